"""A loop that hangs, as HTTP tells it: nobody else can."""

import asyncio
import http.client

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from tests.actors.world import World
from tests.metrics.scraping import TIMEOUT_S, Scrape
from tests.support.loops import ticks

from mobd_server.actors.frames import Terms
from mobd_server.actors.hub import Hub
from mobd_server.adapters import web
from mobd_server.adapters.metrics.gauges import Gauges
from mobd_server.services.census import Census
from mobd_server.services.readiness import Readiness


def test_a_loop_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "LOOP_S", 0.2)
    # It never runs.
    loop = asyncio.new_event_loop()
    served = web.Web("127.0.0.1:0", lambda _, __: [], lambda: "", loop)
    host, _, port = served.address.rpartition(":")
    try:
        for path in ("/healthz", "/readyz"):
            connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_S)
            connection.request("GET", path)
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (503, b"the event loop has not turned for 0.2 s\n")
            connection.close()
    finally:
        served.close()
        # What it was asked is answered too late, and to nobody.
        loop.run_until_complete(ticks())
        loop.close()


def test_a_scrape_goes_without_what_only_the_loop_knows() -> None:
    loop = asyncio.new_event_loop()

    async def gauges() -> Gauges:
        world = World()
        hub = Hub(world.journal, world.store, world.clock, Terms(10, 30, 60, 10, 5))
        census = Census(world.registry, world.publisher, hub, world.journal, world.clock)
        return Gauges(census, Readiness(world.journal, world.registry), 16, {"store": "memory"}, loop, patience_s=0.05)

    registry = CollectorRegistry()
    try:
        registry.register(loop.run_until_complete(gauges()))
        found = Scrape(generate_latest(registry).decode())
    finally:
        loop.run_until_complete(ticks())
        loop.close()
    assert found.value("mobd_loop_answered") == 0
    assert set(found.families) == {"mobd_build_info", "mobd_loop_answered"}
