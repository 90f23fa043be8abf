"""What turns put out while they run."""

import asyncio
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from tests.client.peer import WAIT_S, Link, Peer, Said
from tests.client.test_agent_turns import serving

import mobd
from mobd.live import TOGETHER, WAITING, WAITING_BYTES, LiveBuffer
from mobd.outbox import Outbox
from mobd.v1 import agents_pb2

pytestmark = [pytest.mark.floor, pytest.mark.asyncio]


async def events_until_the_result(link: Link) -> tuple[list[Any], Any]:
    """Return what the run put out, in order, and its report."""
    events: list[Any] = []
    while True:
        frame = await link.hear_any()
        match frame.WhichOneof("frame"):
            case "run_events":
                events += frame.run_events.events
            case "run_progress":
                events.append(frame.run_progress)
            case "run_result":
                return events, frame.run_result
            case kind:
                raise AssertionError(kind)


def payload(event: Any) -> Any:
    return event if isinstance(event, agents_pb2.RunProgress) else getattr(event, event.WhichOneof("payload"))


async def test_every_kind_of_output_comes_in_order_before_the_result_from_an_async_turn(peer: Peer) -> None:
    async def talks(ctx: mobd.Turn) -> str:
        await ctx.emit("so far")
        await ctx.emit({"n": [1]})
        await ctx.emit_delta("piece")
        await ctx.tool_call("c1", "search", {"q": "x"})
        await ctx.tool_result("c1", ["found"], is_error=True)
        await ctx.log("careful", "warning")
        await ctx.progress("half", 50)
        await ctx.progress("more")
        return "done"

    async with serving(peer, talks) as link:
        await link.run("run-1")
        events, result = await events_until_the_result(link)
    assert [one.sequence for one in events] == list(range(1, 9))
    assert [payload(one) for one in events[:6]] == [
        "so far",
        '{"n":[1]}',
        "piece",
        agents_pb2.ToolCall(id="c1", name="search", arguments_json='{"q":"x"}'),
        agents_pb2.ToolResult(id="c1", output_json='["found"]', is_error=True),
        agents_pb2.LogLine(level="warning", message="careful"),
    ]
    half, more = events[6:]
    assert (half.run_id, half.executor_fence, half.message, half.percent) == ("run-1", 7, "half", 50)
    assert not more.HasField("percent")
    assert result.output_json == '"done"'


async def test_a_plain_turn_says_the_same_without_awaiting(peer: Peer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        def talks(ctx: mobd.Turn) -> None:
            ctx.emit("a")
            ctx.progress("b", 1)
            ctx.emit_delta("c")

        async with serving(peer, talks) as link:
            await link.run("run-1")
            events, _ = await events_until_the_result(link)
    assert [one.sequence for one in events] == [1, 2, 3]


async def test_to_await_what_is_said_lets_other_turns_run(peer: Peer) -> None:
    async def endless(ctx: mobd.Turn) -> None:
        while not ctx.cancelled:
            await ctx.emit(ctx.member_id)

    async with serving(peer, endless, capacity=2) as link:
        await link.assign("m-2", 8)
        link.start("run-1")
        link.start("run-2", member_id="m-2", fence=8)
        seen: set[str] = set()
        while seen != {"m-1", "m-2"}:
            frame = await link.hear_any()
            seen.update(one.text for one in frame.run_events.events)
        link.cancel("run-1", "ctl-1")
        link.cancel("run-2", "ctl-2", fence=8)
        reports = 0
        while reports < 2:
            reports += (await link.hear_any()).HasField("run_result")


async def test_a_long_text_comes_in_pieces_and_what_can_not_be_sent_is_said(peer: Peer) -> None:
    text = "äöü\0" * 30_000
    errors: list[str] = []

    def talks(ctx: mobd.Turn) -> None:
        ctx.emit(text)
        ctx.progress("x" * 10_000)
        refusals: list[Callable[[], object]] = [
            lambda: ctx.emit({"x": "y" * 70_000}),
            lambda: ctx.emit(object()),
            lambda: ctx.progress("", 101),
        ]
        for refused in refusals:
            try:
                refused()
            except ValueError as error:
                errors.append(str(error))

    async with serving(peer, talks) as link:
        await link.run("run-1")
        events, _ = await events_until_the_result(link)
    assert "".join(one.text for one in events[:-1]) == text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    assert all(len(one.text.encode()) <= 65_536 for one in events[:-1])
    assert len(events[-1].message) == 4_096
    assert [error.split(":")[0] for error in errors] == [
        "what it emits is 70008 bytes of JSON",
        "what it emits can't be JSON",
        "percent is 101",
    ]


async def test_what_is_said_without_a_stream_comes_with_the_next_one_before_the_result(peer: Peer, said: Said) -> None:
    broken, spoken = threading.Event(), threading.Event()

    def talks(ctx: mobd.Turn) -> None:
        assert broken.wait(WAIT_S)
        for number in range(3):
            ctx.emit(f"{number}")
        spoken.set()

    async with serving(peer, talks) as link:
        await link.run("run-1")
        link.end()
        again = await peer.link()
        await again.hear("hello")
        broken.set()
        assert await asyncio.to_thread(spoken.wait, WAIT_S)
        again.welcome(resumed=True)
        events, result = await events_until_the_result(again)
        again.settle("run-1")
    assert [one.text for one in events] == ["0", "1", "2"]
    assert result.run_id == "run-1"


async def test_what_waits_is_bounded_and_the_oldest_goes_first() -> None:
    buffer = LiveBuffer()
    assert buffer.put("r", 1, agents_pb2.RunEvent(sequence=1, text="x"))
    for sequence in range(2, WAITING + 11):
        assert not buffer.put("r", 1, agents_pb2.RunEvent(sequence=sequence, text="x"))
    sequences = []
    while frames := buffer.take():
        assert sum(len(frame.run_events.events) for frame in frames) <= TOGETHER
        sequences += [event.sequence for frame in frames for event in frame.run_events.events]
    assert sequences == list(range(11, WAITING + 11))
    for sequence in range(1, 41):
        buffer.put("r", 1, agents_pb2.RunEvent(sequence=sequence, text="x" * 60_000))
    kept = [event.sequence for frame in buffer.take_run("r") for event in frame.run_events.events]
    assert kept[-1] == 40
    assert WAITING_BYTES - 60_000 < len(kept) * 60_000 <= WAITING_BYTES
    assert not buffer


async def test_what_one_run_has_said_is_taken_from_between_what_others_say() -> None:
    buffer = LiveBuffer()
    for sequence, run_id in enumerate(("a", "a", "b", "a"), 1):
        buffer.put(run_id, 1, agents_pb2.RunEvent(sequence=sequence, text="x"))
    buffer.put("a", 1, agents_pb2.RunProgress(run_id="a", executor_fence=1, sequence=5))
    frames = buffer.take_run("a")
    assert [[one.sequence for one in frame.run_events.events] for frame in frames] == [[1, 2, 4], []]
    assert frames[1].run_progress.sequence == 5
    assert [one.sequence for frame in buffer.take() for one in frame.run_events.events] == [3]


async def test_live_output_waits_for_everything_else_and_for_the_welcome() -> None:
    buffer = LiveBuffer()
    outbox = Outbox(buffer)
    buffer.put("a", 1, agents_pb2.RunEvent(sequence=1, text="x"))
    outbox.put(agents_pb2.AgentFrame(heartbeat=agents_pb2.Heartbeat()))
    first = await outbox.take()
    assert first is not None
    assert [frame.WhichOneof("frame") for frame in first.frames] == ["heartbeat"]
    waiting = asyncio.ensure_future(outbox.take())
    done, _ = await asyncio.wait([waiting], timeout=0)
    assert not done
    outbox.attached()
    second = await waiting
    assert second is not None
    assert [frame.WhichOneof("frame") for frame in second.frames] == ["run_events"]
