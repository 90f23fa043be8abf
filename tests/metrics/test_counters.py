"""What is counted while it happens: exact values after a known number of calls, groups and failures."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry, generate_latest
from tests.metrics.scraping import Scrape, scrape
from tests.rpc.cases import METHODS
from tests.rpc.conftest import settings, speaking
from tests.rpc.speaking import TIMEOUT_S, RawAgent, Refusal, Speaker
from tests.support.clock import ManualClock
from tests.support.loops import ticks
from tests.support.writers import HeldWriter

from mobd.v1 import bridge_pb2, events_pb2, mobs_pb2
from mobd_server.actors.journal import GATHER_S, MAX_ROWS, Journal
from mobd_server.adapters.metrics.meters import Meters
from mobd_server.machines.events import MobStarted
from mobd_server.machines.records import Append, Record
from mobd_server.ports import Result

pytestmark = pytest.mark.asyncio

DELIVER = "mobd.v1.BridgeService/Deliver"
GET_MOB = "mobd.v1.MobService/GetMob"
WATCH = "mobd.v1.EventService/WatchEvents"


@pytest_asyncio.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Speaker]:
    async with speaking(settings(tmp_path, http_listen="127.0.0.1:0")) as speaker:
        yield speaker


def path(name: str) -> str:
    return next(f"{method.containing_service.full_name}/{method.name}" for method in METHODS if method.name == name)


async def test_calls_are_counted_by_method_and_status(peer: Speaker) -> None:
    await peer.create("m", "a")
    for number in range(7):
        await peer.deliver("a", f"i{number}")
    for _ in range(2):
        await peer.refused(peer.mobs.GetMob, mobs_pb2.GetMobRequest(mob_id="nowhere"))
    await peer.refused(peer.bridge.Deliver, bridge_pb2.DeliverRequest(mob_id="m"))
    found = await scrape(peer)
    assert found.value("mobd_rpc_calls_total", method=DELIVER, code="OK") == 7
    assert found.value("mobd_rpc_calls_total", method=DELIVER, code="INVALID_ARGUMENT") == 1
    assert found.value("mobd_rpc_calls_total", method=GET_MOB, code="NOT_FOUND") == 2
    assert found.value("mobd_rpc_calls_total", method=GET_MOB, code="OK") == 0
    assert found.total("mobd_rpc_calls_total") == 1 + 1 + 7 + 2 + 1
    assert found.value("mobd_rpc_seconds_count", method=DELIVER) == 8
    assert 0 < found.value("mobd_rpc_seconds_sum", method=DELIVER) < TIMEOUT_S
    assert found.value("mobd_rpc_seconds_bucket", method=DELIVER, le="+Inf") == 8


async def test_a_stream_is_counted_when_it_ends_and_is_not_timed(peer: Speaker) -> None:
    await peer.create("m")
    attach = path("Attach")
    async with RawAgent(peer):
        assert (await scrape(peer)).total("mobd_rpc_calls_total", method=attach) == 0
    refused = peer.events.WatchEvents(events_pb2.WatchEventsRequest(mob_id="nowhere"), timeout=TIMEOUT_S)
    with pytest.raises(grpc.aio.AioRpcError):
        await refused.read()
    await ended(peer, 2)
    found = await scrape(peer)
    assert found.value("mobd_rpc_calls_total", method=attach, code="CANCELLED") == 1
    assert found.value("mobd_rpc_calls_total", method=WATCH, code="INVALID_ARGUMENT") == 1
    assert not {attach, WATCH} & found.labels("mobd_rpc_seconds_count")


async def ended(peer: Speaker, count: int) -> None:
    """Return when so many streams, those of agents and watchers, were counted: their ends reach the server later."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            found = await scrape(peer)
            if sum(found.total("mobd_rpc_calls_total", method=one) for one in (path("Attach"), WATCH)) == count:
                return


async def test_a_bug_is_counted_as_internal(peer: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    await peer.create("m")
    monkeypatch.delattr(peer.server.registry, "_store")
    monkeypatch.setattr(peer.server.registry, "_actors", None)
    assert (await peer.refused(peer.mobs.GetMob, mobs_pb2.GetMobRequest(mob_id="m"))).reason == "INTERNAL"
    monkeypatch.undo()
    assert (await scrape(peer)).value("mobd_rpc_calls_total", method=GET_MOB, code="INTERNAL") == 1


async def test_what_callers_say_never_becomes_a_label(peer: Speaker) -> None:
    await peer.create("a-mob-of-this-name", "a-member-of-this-name")
    odd = ["/mobd.v1.BridgeService/Nope", "/x/y", "/mobd.v1.BridgeService/Deliver?x=1", "/" + "z" * 500]
    for name in odd:
        method: Any = peer.channel.unary_unary(name)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await method(b"", timeout=TIMEOUT_S)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    found = await scrape(peer)
    methods = {f"{method.containing_service.full_name}/{method.name}" for method in METHODS}
    codes = {code.name for code in grpc.StatusCode}
    assert found.labels("mobd_rpc_calls_total") - codes == methods
    assert not [labels for _, labels in found.samples if "-of-this-name" in str(labels)]


async def test_a_request_is_refused_and_counted_when_the_server_leaves(peer: Speaker) -> None:
    await peer.create("m")
    peer.server.rpc._gate.close()
    peer.server.rpc._gate.release()
    answer = await peer.first(next(one for one in METHODS if one.name == "GetMob"), b"")
    assert isinstance(answer, Refusal)
    assert answer.reason == "DRAINING"
    assert (await scrape(peer)).value("mobd_rpc_calls_total", method=GET_MOB, code="UNAVAILABLE") == 1


async def test_each_decision_of_a_server_is_an_append_that_committed(peer: Speaker) -> None:
    await peer.create("m", "a")
    for number in range(5):
        await peer.deliver("a", f"i{number}")
    # A repeated input decides nothing new.
    await peer.deliver("a", "i0")
    found = await scrape(peer)
    assert found.value("mobd_journal_appends_total", fate="committed") == 1 + 1 + 5
    assert found.total("mobd_journal_appends_total") == 7
    assert found.value("mobd_journal_group_appends_sum") == 7
    groups = found.value("mobd_journal_group_appends_count")
    assert groups == found.value("mobd_journal_commit_seconds_count") == found.value("mobd_journal_queue_seconds_count")
    assert 0 < found.value("mobd_journal_commit_seconds_sum") < TIMEOUT_S


class Owner:
    """Hears what became of its appends, and does nothing about it."""

    def committed(self, append: Append) -> None:
        pass

    def lost(self, append: Append, result: Result) -> None:
        pass

    def answer(self) -> None:
        pass

    def react(self) -> None:
        pass

    def leave(self) -> None:
        pass


class Bench:
    """A journal that is measured, with time and commits by hand."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.writer = HeldWriter()
        self.registry = CollectorRegistry()
        self.journal = Journal(self.writer, self.clock, 4_096, Meters(self.registry))
        self.head = 0

    def submit(self, times: int = 1, rows: int = 1) -> None:
        for _ in range(times):
            records = [
                Record(self.head + n, 0, MobStarted.kind, 1, None, None, None, None, None, "", None, "{}", MobStarted())
                for n in range(1, rows + 1)
            ]
            self.journal.submit(Append("m", 1, self.head, records, "running", None), Owner())
            self.head += rows

    def found(self) -> Scrape:
        return Scrape(generate_latest(self.registry).decode())


async def test_a_group_is_measured_from_its_oldest_append_to_its_results() -> None:
    bench = Bench()
    bench.submit(3)
    await ticks()
    # While the first group is with the writer the next one gathers.
    bench.clock.advance(0.25)
    bench.submit()
    bench.clock.advance(0.5)
    bench.submit()
    assert (bench.journal.waiting, bench.journal.age_s) == (5, 0.75)
    bench.writer.commit()
    assert bench.journal.age_s == 0.5
    await ticks()
    bench.clock.advance(2)
    assert bench.journal.age_s == 2.5
    bench.writer.commit()
    assert (bench.journal.waiting, bench.journal.age_s) == (0, 0)
    found = bench.found()
    assert found.value("mobd_journal_group_appends_count") == 2
    assert found.value("mobd_journal_group_appends_sum") == 5
    assert found.value("mobd_journal_group_appends_bucket", le="2.0") == 1
    assert found.value("mobd_journal_queue_seconds_sum") == 0 + 0.5
    assert found.value("mobd_journal_commit_seconds_sum") == 0.75 + 2


async def test_what_a_full_group_leaves_behind_keeps_its_age() -> None:
    bench = Bench()
    bench.submit()
    await ticks()
    bench.submit(rows=MAX_ROWS)
    bench.clock.advance(1)
    bench.submit(rows=MAX_ROWS)
    bench.clock.advance(1)
    for waited in (2, 1):
        bench.writer.commit()
        await ticks()
        assert bench.journal.age_s == waited
    bench.writer.commit()
    assert bench.found().value("mobd_journal_queue_seconds_sum") == 2 + 1


async def test_what_became_of_appends_is_counted_by_fate() -> None:
    bench = Bench()
    bench.submit(4)
    await ticks()
    bench.writer.fail("committed", "fenced", "offender", "dropped")
    bench.submit(3)
    # After a large group the next one is gathered for a while.
    bench.clock.advance(GATHER_S)
    bench.writer.fail("unknown", "unknown", "aborted")
    assert bench.journal.down
    found = bench.found()
    fates = {"committed": 1, "fenced": 1, "offender": 1, "dropped": 1, "unknown": 2, "aborted": 1}
    for fate, count in fates.items():
        assert found.value("mobd_journal_appends_total", fate=fate) == count
    assert found.total("mobd_journal_appends_total") == 7
