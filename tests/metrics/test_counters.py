"""What is counted while it happens: exact values after a known number of calls, groups and failures."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import HistogramMetricFamily
from tests.metrics.scraping import Scrape, scrape
from tests.rpc.cases import METHODS
from tests.rpc.conftest import settings, speaking
from tests.rpc.speaking import TIMEOUT_S, RawAgent, Refusal, Speaker
from tests.support.clock import ManualClock
from tests.support.loops import ticks
from tests.support.writers import HeldWriter

from mobd.v1 import agents_pb2, bridge_pb2, events_pb2, mobs_pb2
from mobd_server.actors.journal import GATHER_S, MAX_ROWS, Journal
from mobd_server.adapters.metrics.meters import Distribution, Meters, as_in_go
from mobd_server.adapters.rpc.server import RpcServer
from mobd_server.machines.events import MobStarted
from mobd_server.machines.records import Append, Record
from mobd_server.machines.snapshot import SnapshotUnusable
from mobd_server.ports import Result

pytestmark = pytest.mark.asyncio

DELIVER = {"grpc_type": "unary", "grpc_service": "mobd.v1.BridgeService", "grpc_method": "Deliver"}
GET_MOB = {"grpc_type": "unary", "grpc_service": "mobd.v1.MobService", "grpc_method": "GetMob"}
WATCH = {"grpc_type": "server_stream", "grpc_service": "mobd.v1.EventService", "grpc_method": "WatchEvents"}
ATTACH = {"grpc_type": "bidi_stream", "grpc_service": "mobd.v1.AgentService", "grpc_method": "Attach"}
STARTED = "grpc_server_started_total"
HANDLED = "grpc_server_handled_total"
RECEIVED = "grpc_server_msg_received_total"
SENT = "grpc_server_msg_sent_total"
SECONDS = "grpc_server_handling_seconds"
INSIDE = "mobd_rpcs_in_flight"


@pytest_asyncio.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Speaker]:
    async with speaking(settings(tmp_path, http_listen="127.0.0.1:0")) as speaker:
        yield speaker


async def test_calls_are_counted_by_method_and_status(peer: Speaker) -> None:
    await peer.create("m", "a")
    for number in range(7):
        await peer.deliver("a", f"i{number}")
    for _ in range(2):
        await peer.refused(peer.mobs.GetMob, mobs_pb2.GetMobRequest(mob_id="nowhere"))
    await peer.refused(peer.bridge.Deliver, bridge_pb2.DeliverRequest(mob_id="m"))
    found = await scrape(peer)
    assert found.value(HANDLED, **DELIVER, grpc_code="OK") == 7
    assert found.value(HANDLED, **DELIVER, grpc_code="InvalidArgument") == 1
    assert found.value(HANDLED, **GET_MOB, grpc_code="NotFound") == 2
    # From the beginning: an increase is seen only from what was there.
    assert found.value(HANDLED, **GET_MOB, grpc_code="OK") == found.value(HANDLED, **GET_MOB, grpc_code="Internal") == 0
    assert found.total(HANDLED) == found.total(STARTED) == 1 + 1 + 7 + 2 + 1
    assert found.total(INSIDE) == 0
    assert (found.value(RECEIVED, **DELIVER), found.value(SENT, **DELIVER)) == (8, 7)
    assert (found.value(RECEIVED, **GET_MOB), found.value(SENT, **GET_MOB)) == (2, 0)
    assert found.value(f"{SECONDS}_count", **DELIVER) == 8
    assert 0 < found.value(f"{SECONDS}_sum", **DELIVER) < TIMEOUT_S
    assert found.value(f"{SECONDS}_bucket", **DELIVER, le="+Inf") == 8


async def test_a_call_is_in_flight_until_it_ends(peer: Speaker) -> None:
    await peer.create("m", "a")
    await peer.deliver("a", "i")
    waiting = peer.bridge.WatchInput(bridge_pb2.WatchInputRequest(mob_id="m", member_id="a", input_id="i"))
    async with asyncio.timeout(TIMEOUT_S):
        while not (await scrape(peer)).total(INSIDE, grpc_method="WatchInput"):
            pass
    waiting.cancel()
    async with asyncio.timeout(TIMEOUT_S):
        while (await scrape(peer)).total(INSIDE):
            pass


async def test_a_stream_is_counted_when_it_ends_and_is_not_timed(peer: Speaker) -> None:
    await peer.create("m")
    async with RawAgent(peer):
        found = await scrape(peer)
        assert found.value(STARTED, **ATTACH) == found.value(INSIDE, **ATTACH) == 1
        assert found.total(HANDLED, **ATTACH) == 0
    refused = peer.events.WatchEvents(events_pb2.WatchEventsRequest(mob_id="nowhere"), timeout=TIMEOUT_S)
    with pytest.raises(grpc.aio.AioRpcError):
        await refused.read()
    await ended(peer, 2)
    found = await scrape(peer)
    assert found.value(HANDLED, **ATTACH, grpc_code="Canceled") == 1
    assert found.value(HANDLED, **WATCH, grpc_code="InvalidArgument") == 1
    assert not {"Attach", "WatchEvents"} & found.labels(f"{SECONDS}_count")


async def test_messages_of_streams_are_counted_one_by_one(peer: Speaker) -> None:
    await peer.create("m", "a")
    head = (await peer.deliver("a", "i")).accepted.cursor
    start = events_pb2.EventStart(after_cursor=0)
    stream = peer.events.WatchEvents(events_pb2.WatchEventsRequest(mob_id="m", start=start), timeout=TIMEOUT_S)
    messages = [await stream.read()]
    while not messages[-1].page.events or messages[-1].page.events[-1].seq < head:
        messages.append(await stream.read())
    found = await scrape(peer)
    assert len(messages) > 1
    assert (found.value(RECEIVED, **WATCH), found.value(SENT, **WATCH)) == (1, len(messages))
    stream.cancel()


async def test_messages_of_agents_are_counted_one_by_one(peer: Speaker) -> None:
    await peer.create("m")
    async with RawAgent(peer) as agent:
        found = await scrape(peer)
        assert (found.value(RECEIVED, **ATTACH), found.value(SENT, **ATTACH)) == (1, 1)
        for _ in range(4):
            await agent.send(heartbeat=agents_pb2.Heartbeat())
        async with asyncio.timeout(TIMEOUT_S):
            while (await scrape(peer)).value(RECEIVED, **ATTACH) < 5:
                pass
    assert (await scrape(peer)).value(RECEIVED, **ATTACH) == 5


async def ended(peer: Speaker, count: int) -> None:
    """Return when so many streams, those of agents and watchers, were counted: their ends reach the server later."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            found = await scrape(peer)
            if sum(found.total(HANDLED, **one) for one in (ATTACH, WATCH)) == count:
                return


async def test_a_bug_is_counted_as_internal(peer: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    await peer.create("m")
    monkeypatch.delattr(peer.server.registry, "_store")
    monkeypatch.setattr(peer.server.registry, "_actors", None)
    assert (await peer.refused(peer.mobs.GetMob, mobs_pb2.GetMobRequest(mob_id="m"))).reason == "INTERNAL"
    monkeypatch.undo()
    assert (await scrape(peer)).value(HANDLED, **GET_MOB, grpc_code="Internal") == 1


async def test_what_callers_say_never_becomes_a_label(peer: Speaker) -> None:
    await peer.create("a-mob-of-this-name", "a-member-of-this-name")
    odd = ["/mobd.v1.BridgeService/Nope", "/x/y", "/mobd.v1.BridgeService/Deliver?x=1", "/" + "z" * 500]
    for name in odd:
        method: Any = peer.channel.unary_unary(name)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await method(b"", timeout=TIMEOUT_S)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    found = await scrape(peer)
    allowed = {"unary", "server_stream", "bidi_stream"} | {as_in_go(code.name) for code in grpc.StatusCode}
    methods = {method.name for method in METHODS} | {method.containing_service.full_name for method in METHODS}
    for name in (STARTED, HANDLED, RECEIVED, SENT, INSIDE):
        assert found.labels(name) - allowed == methods
    assert not [labels for _, labels in found.samples if "-of-this-name" in str(labels)]


async def test_a_request_is_refused_and_counted_when_the_server_leaves(peer: Speaker) -> None:
    await peer.create("m")
    rpc = peer.server.rpc
    assert isinstance(rpc, RpcServer)
    rpc._gate.close()
    rpc._gate.release()
    answer = await peer.first(next(one for one in METHODS if one.name == "GetMob"), b"")
    assert isinstance(answer, Refusal)
    assert answer.reason == "DRAINING"
    assert (await scrape(peer)).value(HANDLED, **GET_MOB, grpc_code="Unavailable") == 1


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


async def snapshots(tmp_path: Path, outcome: str) -> Scrape:
    """Return the metrics when one snapshot came to this: that of a mob that leaves memory."""
    async with speaking(
        settings(tmp_path, http_listen="127.0.0.1:0", snapshot_tail=1, passivate_after_s=0.2)
    ) as speaker:
        await speaker.create("m", "a")
        async with asyncio.timeout(TIMEOUT_S):
            while not (found := await scrape(speaker)).value("mobd_snapshots_total", outcome=outcome):
                pass
    return found


async def test_snapshots_are_counted_and_timed(tmp_path: Path) -> None:
    found = await snapshots(tmp_path, "written")
    assert found.value("mobd_snapshots_total", outcome="written") == 1
    assert found.value("mobd_snapshots_total", outcome="failed") == 0
    assert found.value("mobd_snapshot_seconds_count") == 1
    assert 0 < found.value("mobd_snapshot_seconds_sum") < TIMEOUT_S


async def test_snapshots_that_fail_are_counted_and_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(_: object) -> str:
        raise SnapshotUnusable("not today")

    monkeypatch.setattr("mobd_server.machines.snapshot.take", take)
    found = await snapshots(tmp_path, "failed")
    assert found.value("mobd_snapshots_total", outcome="failed") == 1
    assert found.value("mobd_snapshots_total", outcome="written") == found.value("mobd_snapshot_seconds_count") == 0


async def test_a_distribution_counts_a_value_in_every_bucket_that_it_is_within() -> None:
    found = Distribution((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 7.0):
        found.observe(value)
    family = HistogramMetricFamily("x", "")
    found.add_to(family)
    buckets = {one.labels["le"]: one.value for one in family.samples if one.name == "x_bucket"}
    assert buckets == {"1.0": 2, "2.0": 3, "+Inf": 4}
    assert [one.value for one in family.samples if one.name in ("x_count", "x_sum")] == [4, 10.0]


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
            self.journal.submit(Append("m", "log-m", 1, self.head, records, "running", None), Owner())
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
