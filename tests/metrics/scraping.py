"""Asking a server over HTTP, and reading what Prometheus would."""

import asyncio
from urllib.error import HTTPError
from urllib.request import urlopen

from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families
from tests.rpc.speaking import Speaker

from mobd_server.compose import Server

TIMEOUT_S = 10.0
Labels = frozenset[tuple[str, str]]


class Page(Struct):
    """An answer over HTTP."""

    code: int
    text: str


class Scrape:
    """The samples of one scrape, by name and labels."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples: dict[tuple[str, Labels], float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """Return a sample, which must be there."""
        return self.samples[name, frozenset(labels.items())]

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of a name's samples that have these labels, 0 if there are none."""
        wanted = labels.items()
        return sum(value for (other, found), value in self.samples.items() if other == name and wanted <= set(found))

    def labels(self, name: str) -> set[str]:
        """Return all values of all labels of a name."""
        return {value for other, found in self.samples if other == name for _, value in found}


async def get(server: Server, path: str) -> Page:
    """Ask a server over HTTP."""
    assert server.web is not None, "the test has turned it off"
    return await asyncio.wait_for(asyncio.to_thread(fetch, f"http://{server.web.address}{path}"), TIMEOUT_S)


def fetch(url: str) -> Page:
    """Ask over HTTP, and wait for the answer."""
    try:
        with urlopen(url, timeout=TIMEOUT_S) as answer:
            return Page(answer.status, answer.read().decode())
    except HTTPError as error:
        return Page(error.code, error.read().decode())


async def scrape(peer: Speaker) -> Scrape:
    """Return the metrics of now."""
    page = await get(peer.server, "/metrics")
    assert page.code == 200, page.text
    return Scrape(page.text)
