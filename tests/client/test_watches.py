"""A watch goes on from its cursor, whatever ends its streams: each event once, in order."""

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.client.peer import MOB, Code, Peer, Refusal, refusal

import mobd
from mobd.v1 import events_pb2

pytestmark = [pytest.mark.floor, pytest.mark.asyncio]

CUT = Refusal(Code.UNAVAILABLE, "Socket closed")
SLOW = refusal(Code.RESOURCE_EXHAUSTED, "SLOW_READER", retry_after=0.001, cursor="2")


def page(*seqs: int) -> events_pb2.WatchEventsResponse:
    events = [events_pb2.Event(seq=seq, kind="input_accepted") for seq in seqs]
    return events_pb2.WatchEventsResponse(page=events_pb2.EventPage(events=events))


def bookmark(cursor: int, log_id: str = "log-1") -> events_pb2.WatchEventsResponse:
    return events_pb2.WatchEventsResponse(bookmark=events_pb2.Bookmark(cursor=cursor, head=cursor, log_id=log_id))


def starts(requests: list[Any]) -> list[tuple[Any, str]]:
    return [(getattr(one.start, one.start.WhichOneof("start")), one.log_id) for one in requests]


@pytest.mark.parametrize(
    "cut", [CUT, SLOW, Refusal(Code.CANCELLED), refusal(Code.UNAVAILABLE, "DRAINING", retry_after=0.001)]
)
async def test_a_cut_stream_is_resumed_without_gap_or_duplicate(peer: Peer, cut: Refusal) -> None:
    script = peer.script("WatchEvents")
    # The second stream repeats what the client has, as a careless server would.
    script.will([bookmark(0), page(1, 2), cut], [bookmark(2), page(2, 3), page(4), cut], [bookmark(4), page(5)])
    async with mobd.Client(peer.target) as client:
        watch = client.watch_events(MOB, after=0)
        seen = [event.seq async for event in watch]
    assert seen == [1, 2, 3, 4, 5]
    assert starts(script.requests) == [(0, ""), (2, "log-1"), (4, "log-1")]
    assert (watch.cursor, watch.log_id) == (5, "log-1")


async def test_a_watch_outlives_a_restart_of_the_server(peer: Peer) -> None:
    script = peer.script("WatchEvents")
    script.will([bookmark(0), page(1), asyncio.Event()], [bookmark(1), page(2)])
    async with mobd.Client(peer.target) as client, aclosing(client.watch_events(MOB)) as watch:
        assert (await anext(watch)).seq == 1
        following = asyncio.ensure_future(anext(watch))
        await peer.stop()
        await peer.start()
        assert (await following).seq == 2


def put_out(*texts: str, run_id: str = "run-1") -> events_pb2.WatchAgentEventsResponse:
    return events_pb2.WatchAgentEventsResponse(
        events=[events_pb2.AgentEvent(run_id=run_id, sequence=place, text=text) for place, text in enumerate(texts, 1)]
    )


async def test_what_agents_put_out_is_watched_from_the_moment_in_which_the_server_listens(peer: Peer) -> None:
    script = peer.script("WatchAgentEvents")
    listening = asyncio.Event()
    script.will([put_out(), listening, put_out("a", "b"), CUT], [put_out("c")])
    async with mobd.Client(peer.target) as client, client.watch_agent_events(MOB, "ada") as events:
        listening.set()
        seen = [(event.sequence, event.text) async for event in events]
    assert seen == [(1, "a"), (2, "b"), (1, "c")]
    assert [(one.mob_id, one.member_id) for one in script.requests] == [(MOB, "ada")] * 2


async def test_a_watch_of_a_destroyed_mob_is_empty_and_one_that_is_left_ends(peer: Peer) -> None:
    script = peer.script("WatchAgentEvents")
    script.will([], [put_out(), asyncio.Event()])
    async with mobd.Client(peer.target) as client:
        async with client.watch_agent_events(MOB) as events:
            assert [event async for event in events] == []
        async with client.watch_agent_events(MOB) as events:
            pass
        assert [event async for event in events] == []


async def test_bookmarks_move_the_cursor_over_what_the_filter_left_out(peer: Peer) -> None:
    script = peer.script("WatchEvents")
    script.will([bookmark(0), page(3), bookmark(90), CUT], [bookmark(90), page(91)])
    async with mobd.Client(peer.target) as client:
        seen = [event.seq async for event in client.watch_events(MOB, kinds=["x"], members=["lead"])]
    assert seen == [3, 91]
    assert starts(script.requests) == [(0, ""), (90, "log-1")]
    assert list(script.requests[1].filter.kinds) == ["x"]
    assert list(script.requests[1].filter.member_ids) == ["lead"]


async def test_a_watch_from_now_begins_where_its_first_bookmark_says(peer: Peer) -> None:
    script = peer.script("WatchEvents")
    script.will([CUT], [bookmark(40), CUT], [bookmark(40), page(41)])
    async with mobd.Client(peer.target) as client:
        assert [event.seq async for event in client.watch_events(MOB, after=None)] == [41]
    assert starts(script.requests) == [(True, ""), (True, ""), (40, "log-1")]


async def test_a_watch_can_begin_at_a_time(peer: Peer) -> None:
    script = peer.script("WatchEvents")
    script.will([bookmark(7), page(8)])
    async with mobd.Client(peer.target) as client:
        since = datetime(2025, 3, 4, tzinfo=UTC)
        assert [event.seq async for event in client.watch_events(MOB, since=since)] == [8]
    assert script.requests[0].start.since.ToDatetime(UTC) == since


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (refusal(Code.OUT_OF_RANGE, "LOG_CHANGED"), mobd.LogChanged),
        (refusal(Code.OUT_OF_RANGE, "CURSOR_AHEAD", head="3"), mobd.CursorAhead),
        (refusal(Code.NOT_FOUND, "MOB_NOT_FOUND"), mobd.MobNotFound),
        # Made by gRPC itself for a message that is too large: another stream would end so, too.
        (Refusal(Code.RESOURCE_EXHAUSTED), mobd.ResourceExhausted),
    ],
)
async def test_a_watch_that_can_not_go_on_says_why(peer: Peer, end: Refusal, kind: type[mobd.Error]) -> None:
    peer.script("WatchEvents").will([bookmark(0), page(1), end])
    async with mobd.Client(peer.target) as client:
        watch = client.watch_events(MOB)
        assert (await anext(watch)).seq == 1
        with pytest.raises(kind):
            await anext(watch)


def header(cursor: int) -> events_pb2.GetStateResponse:
    return events_pb2.GetStateResponse(header=events_pb2.StateHeader(cursor=cursor, head=9, log_id="log-1"))


def sections(*parts: tuple[str, str, str]) -> events_pb2.GetStateResponse:
    found = [events_pb2.StateSection(kind=kind, id=name, value_json=value) for kind, name, value in parts]
    return events_pb2.GetStateResponse(sections=events_pb2.StateSections(sections=found))


async def test_a_state_that_breaks_is_read_from_its_beginning(peer: Peer) -> None:
    script = peer.script("GetState")
    script.will(
        [header(3), sections(("mob", MOB, '{"head":3}'), ("member", "gone", "{}")), CUT],
        [header(4), sections(("mob", MOB, '{"head":4}')), sections(("member", "ada", '{"role":"lead"}'))],
    )
    async with mobd.Client(peer.target) as client:
        state = await client.get_state(MOB, at_cursor=4)
    assert (state.cursor, state.head, state.log_id) == (4, 9, "log-1")
    assert state.parts == {"mob": {MOB: {"head": 4}}, "member": {"ada": {"role": "lead"}}}
    assert [one.at_cursor for one in script.requests] == [4, 4]


async def test_a_state_that_takes_too_long_is_given_up(peer: Peer) -> None:
    peer.script("GetState").will([header(3), asyncio.Event()])
    async with mobd.Client(peer.target) as client:
        with pytest.raises(mobd.DeadlineExceeded):
            await client.get_state(MOB, timeout=0.2)
