"""The pages of docs/ name what exists, and the reference names all of it."""

import re
from inspect import signature
from pathlib import Path

import pytest

import mobd
from mobd.v1 import (
    agents_pb2,
    bridge_pb2,
    events_pb2,
    members_pb2,
    mobs_pb2,
    operations_pb2,
    runs_pb2,
    server_pb2,
)
from mobd_server.adapters.rpc.status import STATUS
from mobd_server.config import Config
from mobd_server.machines.events import EVENT_TYPES

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    page for page in [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")] if "node_modules" not in page.parts
)
PROTOCOL = (agents_pb2, bridge_pb2, events_pb2, members_pb2, mobs_pb2, operations_pb2, runs_pb2, server_pb2)
SERVICES = sorted(
    (one for module in PROTOCOL for one in module.DESCRIPTOR.services_by_name.values()), key=lambda one: one.name
)


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


def test_every_verb_of_the_readme_is_a_method_of_the_client() -> None:
    _, _, rest = (ROOT / "README.md").read_text().partition("## Which verb when")
    table, _, _ = rest.partition("\n## ")
    verbs = re.findall(r"`([a-z_]+)(?:\(([^)]*)\))?`", table)
    assert len(verbs) > 20
    for verb, given in verbs:
        if verb == "input_id":
            continue
        method = getattr(mobd.Client, verb)
        assert set(re.findall(r"(\w+)=", given)) <= set(signature(method).parameters), verb


def test_every_call_reason_kind_and_setting_is_in_the_reference() -> None:
    pages = {page.stem: page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md")}
    methods = [f"{one.name}.{method.name}" for one in SERVICES for method in one.methods]
    assert re.findall(r"^### (\w+\.\w+)$", pages["api"], re.MULTILINE) == methods
    assert set(re.findall(r"^\| `([A-Z_]+)` \| [A-Z_]+ \|", pages["errors"], re.MULTILINE)) == {
        error.reason for error in STATUS
    }
    kinds = [kind.kind for kind in EVENT_TYPES]
    assert re.findall(r"^## (\w+)$", pages["events"], re.MULTILINE)[: len(kinds)] == kinds
    assert re.findall(r"^\| `(\w+)` \| `MOBD_", pages["settings"], re.MULTILINE) == list(Config.model_fields)


def test_every_link_within_the_reference_leads_to_a_heading() -> None:
    pages = {page.name: page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md")}
    headings = {
        name: {
            re.sub(r"[^\w -]", "", one).lower().replace(" ", "-")
            for one in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        }
        for name, text in pages.items()
    }
    links = [
        (name, page or name, anchor)
        for name, text in pages.items()
        for page, anchor in re.findall(r"\]\((\w+\.md)?#([^)]+)\)", text)
    ]
    assert len(links) > 300
    assert not [link for link in links if link[2] not in headings[link[1]]]
