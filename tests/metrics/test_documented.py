"""The page of operations names every metric with its labels, and its alarms name no other."""

import re
from pathlib import Path

import pytest
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


def documented() -> dict[str, set[str]]:
    rows = re.findall(r"^\| `(mobd_\w+)` \|([^|]*)\| \S", section(), re.MULTILINE)
    assert len(rows) == len(dict(rows))
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def exposed(found: Scrape) -> dict[str, set[str]]:
    return {_name(family): _labels(family) for family in found.families.values() if family.name.startswith("mobd_")}


def _name(family: Metric) -> str:
    return family.name + TOTAL if family.type == "counter" else family.name


def _labels(family: Metric) -> set[str]:
    return {label for sample in family.samples for label in sample.labels} - {"le"}


async def test_every_metric_is_documented_with_its_labels_and_no_other(tmp_path: Path) -> None:
    async with speaking(settings(tmp_path, http_listen="127.0.0.1:0")) as peer:
        await peer.create("m", "a")
        found = await scrape(peer)
    assert exposed(found) == documented()


async def test_alarms_are_about_metrics_that_there_are() -> None:
    _, _, alarms = section().partition("| alarm |")
    named = set(re.findall(r"mobd_\w+", alarms))
    assert len(named) > 10
    assert named <= documented().keys()
