"""EventService: reading and following a log."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tests.rpc.speaking import TIMEOUT_S, RawAgent, Speaker, refusal_of

from mobd.v1 import events_pb2, mobs_pb2, runs_pb2

pytestmark = pytest.mark.asyncio


def after(cursor: int) -> events_pb2.EventStart:
    return events_pb2.EventStart(after_cursor=cursor)


def poll(start: events_pb2.EventStart | None = None, **more: Any) -> events_pb2.PollEventsRequest:
    return events_pb2.PollEventsRequest(**{"mob_id": "m", "start": start or after(0), **more})


class Watched:
    """A stream of events as its reader sees it."""

    def __init__(self, peer: Speaker, start: events_pb2.EventStart, **more: Any) -> None:
        request = events_pb2.WatchEventsRequest(mob_id="m", start=start, **more)
        self._call: Any = peer.events.WatchEvents(request, timeout=TIMEOUT_S)
        self.bookmarks: list[events_pb2.Bookmark] = []
        self.events: list[events_pb2.Event] = []

    async def part(self) -> bool:
        """Take one part; return whether there was one."""
        answer = await self._call.read()
        if answer is grpc.aio.EOF:
            return False
        if answer.HasField("bookmark"):
            self.bookmarks.append(answer.bookmark)
        self.events.extend(answer.page.events)
        return True

    async def until(self, seq: int) -> None:
        """Take parts until the event `seq` was among them."""
        while not self.events or self.events[-1].seq < seq:
            assert await self.part(), "the stream ended"

    async def to_end(self) -> None:
        """Take parts until the stream ends."""
        while await self.part():
            pass

    async def refusal(self) -> Any:
        """Take parts until the stream breaks; return with what."""
        with pytest.raises(grpc.aio.AioRpcError) as broken:
            await self.to_end()
        return refusal_of(broken.value)

    def leave(self) -> None:
        self._call.cancel()


async def head(peer: Speaker) -> int:
    return int((await peer.mobs.GetMob(mobs_pb2.GetMobRequest(mob_id="m"))).mob.head)


async def test_a_log_is_read_by_pages(peer: Speaker) -> None:
    created = (await peer.create("m", "a", "b")).mob
    await peer.deliver("a", "i")
    whole = await peer.events.PollEvents(poll())
    assert [event.kind for event in whole.events] == [
        "mob_created",
        "mob_started",
        "member_spawned",
        "member_spawned",
        "input_accepted",
    ]
    assert [event.seq for event in whole.events] == [1, 2, 3, 4, 5]
    assert (whole.next_cursor, whole.head, whole.log_id) == (5, 5, created.log_id)
    first = await peer.events.PollEvents(poll(limit=2))
    second = await peer.events.PollEvents(poll(after(first.next_cursor), limit=2, log_id=whole.log_id))
    third = await peer.events.PollEvents(poll(after(second.next_cursor), limit=2))
    assert [*first.events, *second.events, *third.events] == list(whole.events)
    assert not (await peer.events.PollEvents(poll(events_pb2.EventStart(latest=True)))).events


async def test_a_log_begins_at_a_time(peer: Speaker) -> None:
    await peer.create("m", "a")
    await peer.deliver("a", "i")
    whole = (await peer.events.PollEvents(poll())).events
    for place, event in enumerate(whole):
        page = await peer.events.PollEvents(poll(events_pb2.EventStart(since=event.time)))
        earliest = next(i for i, one in enumerate(whole) if one.time.ToNanoseconds() >= event.time.ToNanoseconds())
        assert earliest <= place
        assert list(page.events) == list(whole[earliest:])
    late = Timestamp(seconds=whole[-1].time.seconds + 1_000)
    assert not (await peer.events.PollEvents(poll(events_pb2.EventStart(since=late)))).events
    early = Timestamp(seconds=-1_000)
    assert len((await peer.events.PollEvents(poll(events_pb2.EventStart(since=early)))).events) == len(whole)


async def test_a_filter_passes_kinds_and_members_and_the_cursor_goes_on(peer: Speaker) -> None:
    await peer.create("m", "a", "b")
    for member in "abab":
        await peer.deliver(member, f"{member}{await head(peer)}")
    wanted = events_pb2.EventFilter(kinds=["input_accepted"], member_ids=["b"])
    page = await peer.events.PollEvents(poll(filter=wanted))
    assert [event.member_id for event in page.events] == ["b", "b"]
    assert page.next_cursor == page.head
    nothing = await peer.events.PollEvents(poll(filter=events_pb2.EventFilter(kinds=["no_such_kind"])))
    assert (len(nothing.events), nothing.next_cursor) == (0, nothing.head)


async def test_a_page_ends_at_a_megabyte(peer: Speaker) -> None:
    await peer.create("m", "a")
    for number in range(8):
        await peer.deliver("a", f"i{number}", "x" * 200_000)
    found: list[int] = []
    cursor = pages = 0
    while cursor < 11:
        page = await peer.events.PollEvents(poll(after(cursor)))
        assert page.ByteSize() <= (1 << 20) + 210_000
        found += [event.seq for event in page.events]
        cursor, pages = page.next_cursor, pages + 1
    assert found == list(range(1, 12))
    assert pages >= 2


@pytest.mark.parametrize("streamed", [False, True], ids=["poll", "watch"])
async def test_a_cursor_must_be_of_this_log_and_not_ahead_of_it(peer: Speaker, *, streamed: bool) -> None:
    log_id = (await peer.create()).mob.log_id

    async def refused(start: events_pb2.EventStart, **more: Any) -> Any:
        if streamed:
            return await Watched(peer, start, **more).refusal()
        return await peer.refused(peer.events.PollEvents, poll(start, **more))

    ahead = await refused(after(99))
    assert (ahead.code, ahead.reason) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_AHEAD")
    assert ahead.details["head"] == "2"
    changed = await refused(after(1), log_id="another")
    assert (changed.code, changed.reason) == (grpc.StatusCode.OUT_OF_RANGE, "LOG_CHANGED")
    assert changed.details["log_id"] == log_id


@pytest.mark.parametrize("method", ["poll", "watch"])
async def test_the_log_of_an_unknown_mob_is_not_found(peer: Speaker, method: str) -> None:
    refused = (
        await peer.refused(peer.events.PollEvents, poll())
        if method == "poll"
        else await Watched(peer, after(0)).refusal()
    )
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "MOB_NOT_FOUND")


async def test_a_stream_replays_and_goes_on_without_a_gap(peer: Speaker) -> None:
    log_id = (await peer.create("m", "a")).mob.log_id
    watched = Watched(peer, after(0))
    assert await watched.part()
    assert [(one.cursor, one.log_id) for one in watched.bookmarks] == [(0, log_id)]
    deliveries = [peer.deliver("a", f"i{number}") for number in range(300)]
    await asyncio.gather(watched.until(303), *deliveries)
    assert [event.seq for event in watched.events] == list(range(1, 304))
    polled: list[events_pb2.Event] = []
    while len(polled) < 303:
        polled += (await peer.events.PollEvents(poll(after(len(polled))))).events
    assert watched.events == polled
    watched.leave()


async def test_a_stream_begins_after_a_cursor_or_at_the_newest(peer: Speaker) -> None:
    await peer.create("m", "a")
    later, latest = Watched(peer, after(2)), Watched(peer, events_pb2.EventStart(latest=True))
    assert await later.part()
    assert await latest.part()
    assert latest.bookmarks[0].cursor == 3
    await peer.deliver("a", "i")
    await later.until(4)
    await latest.until(4)
    assert [event.seq for event in later.events] == [3, 4]
    assert [event.seq for event in latest.events] == [4]
    later.leave()
    latest.leave()


async def test_a_filtered_stream_passes_what_it_is_asked_for(peer: Speaker) -> None:
    await peer.create("m", "a", "b")
    watched = Watched(peer, after(0), filter=events_pb2.EventFilter(member_ids=["b"]))
    for member in "aabab":
        await peer.deliver(member, f"{member}{await head(peer)}")
    await watched.until(await head(peer))
    assert {event.member_id for event in watched.events} == {"b"}
    assert len(watched.events) == 3
    watched.leave()


async def test_a_stream_ends_after_the_last_event_of_a_destroyed_mob(peer: Speaker) -> None:
    await peer.create("m", "a")
    watched = Watched(peer, after(0))
    await watched.part()
    await peer.mobs.DestroyMob(mobs_pb2.DestroyMobRequest(mob_id="m"))
    await watched.to_end()
    assert watched.events[-1].kind == "mob_destroyed"
    # Who comes later gets the same.
    late = Watched(peer, after(0))
    await late.to_end()
    assert late.events == watched.events


async def test_a_stream_that_is_drained_says_where_to_go_on(peer: Speaker) -> None:
    await peer.create("m", "a")
    watched = Watched(peer, after(0))
    await watched.until(3)
    peer.server.publisher.close()
    refused = await watched.refusal()
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert refused.details["cursor"] == "3"
    assert refused.retry


async def test_every_event_of_a_run_is_told(peer: Speaker) -> None:
    await peer.create("m", "a")
    accepted = (await peer.deliver("a", "i")).accepted
    async with RawAgent(peer, host_id="kitchen") as agent:
        run = await agent.accept_run()
        await agent.succeed(run, '{"n": 7}')
    log = list((await peer.events.PollEvents(poll())).events)
    told = {event.kind: event for event in log}
    assert [event.kind for event in log[3:]][:6] == [
        "input_accepted",
        "attachment_opened",
        "executor_assigned",
        "executor_confirmed",
        "run_started",
        "run_settled",
    ]
    assert told["attachment_opened"].attachment_opened.host_id == "kitchen"
    assert told["executor_assigned"].executor.executor_fence == run.executor_fence
    assert list(told["run_started"].run_started.canonical_input_ids) == [accepted.canonical_input_id]
    assert (told["run_started"].run_id, told["run_started"].member_id) == (run.run_id, "a")
    settled = told["run_settled"].run_settled
    assert (settled.state, settled.output_json) == (runs_pb2.RUN_STATE_COMMITTED, '{"n": 7}')
    assert [one.outcome for one in settled.outcomes] == ["consumed"]


async def test_an_event_carries_the_trace_and_the_key_of_its_request(peer: Speaker) -> None:
    await peer.create()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    request = mobs_pb2.StopMobRequest(mob_id="m", request_id="r")
    await peer.mobs.StopMob(request, metadata=(("traceparent", trace),))
    event = (await peer.events.PollEvents(poll(after(2)))).events[0]
    assert (event.kind, event.request_id, event.traceparent, event.principal) == (
        "mob_stopped",
        "r",
        trace,
        "anonymous",
    )
