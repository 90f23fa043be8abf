"""The page of operations names every metric with its labels and every alarm, and the alarms are about those metrics."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics_core import Metric
from tests.metrics.scraping import Scrape, scrape
from tests.rpc.conftest import settings, speaking

pytestmark = pytest.mark.asyncio

ROOT = Path(__file__).parent.parent.parent
# What the parser of Prometheus takes from a family's name, and the kinds that have it.
TOTAL = "_total"


def section() -> str:
    page = (ROOT / "docs" / "operations.md").read_text()
    _, _, rest = page.partition("\n## Metrics and alarms\n")
    found, _, _ = rest.partition("\n## ")
    return found


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alarms.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def documented() -> dict[str, set[str]]:
    rows = re.findall(r"^\| `((?:mobd|grpc_server)_\w+)` \|([^|]*)\| \S", section(), re.MULTILINE)
    assert len(rows) == len(dict(rows))
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def exposed(found: Scrape) -> dict[str, set[str]]:
    return {
        _name(family): _labels(family)
        for family in found.families.values()
        if family.name.startswith(("mobd_", "grpc_server_"))
    }


def _name(family: Metric) -> str:
    return family.name + TOTAL if family.type == "counter" else family.name


def _labels(family: Metric) -> set[str]:
    return {label for sample in family.samples for label in sample.labels} - {"le"}


async def test_every_metric_is_documented_with_its_labels_and_no_other(tmp_path: Path) -> None:
    async with speaking(settings(tmp_path, http_listen="127.0.0.1:0")) as peer:
        await peer.create("m", "a")
        found = await scrape(peer)
    assert exposed(found) == documented()


async def test_alarms_are_about_what_a_server_shows(tmp_path: Path) -> None:
    """Each selector of an alarm has a series from the beginning on: an increase is seen only from what was there."""
    async with speaking(settings(tmp_path, http_listen="127.0.0.1:0")) as peer:
        found = await scrape(peer)
    named = set()
    for rule in rules():
        selectors = re.findall(r"\b([a-z]\w+_\w+)(?:\{([^}]*)\})?", rule["expr"])
        assert selectors or rule["expr"].startswith('up{job="mobd"}'), rule
        for name, terms in selectors:
            named.add(name)
            assert [labels for other, labels in found.samples if other == name and _matches(dict(labels), terms)], rule
    assert len(named) > 10


def _matches(labels: dict[str, str], terms: str) -> bool:
    for label, equals, wanted in re.findall(r'(\w+)(=~?)"([^"]*)"', terms):
        # Prometheus adds which job it was.
        value = labels.get(label, "mobd" if label == "job" else "")
        if not (re.fullmatch(wanted, value) if equals == "=~" else value == wanted):
            return False
    return True


async def test_every_alarm_is_documented_with_what_it_means_and_no_other() -> None:
    _, _, table = section().partition("\n| alarm |")
    rows = re.findall(r"^\| `(Mobd\w+)` \| ([^|]+) \| \S", table, re.MULTILINE)
    assert len(rows) == len(dict(rows))
    assert dict(rows) == {rule["alert"]: rule["annotations"]["summary"] for rule in rules()}


async def test_what_the_page_says_to_look_at_is_there() -> None:
    _, _, table = section().partition("\n| alarm |")
    known = documented().keys()
    named = set(re.findall(r"(?:mobd_(?:loop|members|journal|mobs|rpc)|grpc_server)_\w+", table))
    assert len(named) > 2
    assert named <= known
