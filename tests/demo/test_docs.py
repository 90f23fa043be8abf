"""The pages of docs/ name files, settings and decisions that exist."""

import re
from pathlib import Path

import pytest

from mobd_server.config import Config

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_every_file_that_the_architecture_names_exists() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`([\w/]+\.py|(?:adapters|client|migrations|proto)/[\w/]+)`", page))
    roots = (ROOT / "server" / "mobd_server", ROOT)
    missing = [name for name in sorted(named) if not any((root / name).exists() for root in roots)]
    assert len(named) > 25
    assert not missing


def test_every_setting_is_documented_with_its_default() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    found = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", page, re.MULTILINE)
    rows = {name: (default, text) for name, default, text in found}
    assert list(rows) == list(Config.model_fields)
    for name, field in Config.model_fields.items():
        default, text = rows[name]
        assert text == field.description
        if isinstance(field.default, bool):
            assert default == str(field.default).lower()
        elif isinstance(field.default, float):
            assert float(default) == field.default
        elif field.default is not None and not field.default_factory:
            assert default == str(field.default)
