"""Turns that are to end, and inputs that come for a turn that is under way."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from tests.client.peer import WAIT_S, Link, Peer, Said
from tests.client.test_agent_turns import serving

import mobd
from mobd.v1 import agents_pb2

pytestmark = [pytest.mark.floor, pytest.mark.asyncio]

CANCELLED = agents_pb2.FAILURE_KIND_CANCELLED
OK = agents_pb2.CONTROL_RESULT_OK
NOT_RUNNING = agents_pb2.CONTROL_RESULT_NOT_RUNNING
FAILED = agents_pb2.CONTROL_RESULT_FAILED


class Hook:
    """An `on_cancel` that a test can wait for."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.called = threading.Event()

    def __call__(self, ctx: mobd.Turn) -> None:
        self.calls.append(ctx.cancelled.reason)
        self.called.set()


async def acknowledged(link: Link, control_id: str) -> Any:
    ack = await link.hear("control_ack")
    assert ack.control_id == control_id
    return ack.result


async def test_an_interrupt_sets_the_flag_calls_the_hook_once_and_ends_no_turn(peer: Peer) -> None:
    hook = Hook()

    begun = threading.Event()

    async def polite(ctx: mobd.Turn) -> str:
        assert not ctx.cancelled
        ctx.check_cancelled()
        begun.set()
        await ctx.cancelled.wait()
        assert ctx.cancelled
        ctx.check_cancelled()
        raise AssertionError("it is cancelled")

    async with serving(peer, polite, hook=hook) as link:
        await link.run("run-1")
        assert await asyncio.to_thread(begun.wait, WAIT_S)
        link.cancel("run-1", "ctl-1")
        assert await acknowledged(link, "ctl-1") == OK
        failed = await link.hear("run_failed")
        link.cancel("run-1", "ctl-1")
        assert await acknowledged(link, "ctl-1") == NOT_RUNNING
        await asyncio.to_thread(hook.called.wait, WAIT_S)
    assert (failed.kind, failed.message, failed.retryable) == (CANCELLED, "somebody asked", True)
    assert hook.calls == ["somebody asked"]


async def test_a_request_that_comes_again_is_answered_again_and_obeyed_once(peer: Peer) -> None:
    hook = Hook()

    async def waits(ctx: mobd.Turn) -> None:
        await ctx.cancelled.wait()
        await asyncio.Event().wait()

    async with serving(peer, waits, hook=hook) as link:
        await link.run("run-1")
        for _ in range(2):
            link.cancel("run-1", "ctl-1")
            assert await acknowledged(link, "ctl-1") == OK
        link.end()
        again = await peer.link()
        assert list((await again.hear("hello")).resume.run_ids) == ["run-1"]
        again.welcome(resumed=True)
        await again.assign()
        again.cancel("run-1", "ctl-1")
        assert await acknowledged(again, "ctl-1") == OK
        again.cancel("run-1", "ctl-2", hard=True)
        assert await acknowledged(again, "ctl-2") == OK
        assert (await again.hear("run_failed")).kind == CANCELLED
        again.settle("run-1", agents_pb2.RUN_DISPOSITION_CANCELLED)
    assert hook.calls == ["somebody asked"]


async def test_an_async_hook_runs_on_the_loop_of_the_turn(peer: Peer, said: Said) -> None:
    done: list[asyncio.Event] = []

    async def waits(ctx: mobd.Turn) -> str:
        done.append(asyncio.Event())
        await done[0].wait()
        return "finished first"

    async def hook(ctx: mobd.Turn) -> None:
        done[0].set()
        raise KeyError("a bug of the hook")

    async with serving(peer, waits, hook=hook) as link:
        await link.run("run-1")
        link.cancel("run-1", "ctl-1")
        assert await acknowledged(link, "ctl-1") == OK
        result = await link.hear("run_result")
    assert result.output_json == '"finished first"'
    assert "run-1" in await said.saying("on_cancel raised")


async def test_a_plain_turn_hears_of_an_interrupt(peer: Peer) -> None:
    def plain(ctx: mobd.Turn) -> None:
        assert ctx.cancelled.sleep(WAIT_S)
        ctx.check_cancelled()

    async with serving(peer, plain) as link:
        await link.run("run-1")
        link.cancel("run-1", "ctl-1")
        assert await acknowledged(link, "ctl-1") == OK
        assert (await link.hear("run_failed")).kind == CANCELLED


async def test_a_hard_cancel_ends_an_async_turn_without_its_hook(peer: Peer) -> None:
    hook = Hook()

    async def endless(ctx: mobd.Turn) -> None:
        await asyncio.Event().wait()

    async with serving(peer, endless, hook=hook) as link:
        await link.run("run-1")
        link.cancel("run-1", "ctl-1", hard=True)
        assert await acknowledged(link, "ctl-1") == OK
        assert (await link.hear("run_failed")).kind == CANCELLED
        link.settle("run-1", agents_pb2.RUN_DISPOSITION_CANCELLED)
        await link.run("run-2")
        link.cancel("run-2", "ctl-2", hard=True)
        await link.hear("control_ack")
        await link.hear("run_failed")
    assert hook.calls == []


async def test_a_hard_cancel_that_comes_before_the_turn_begins_ends_it(peer: Peer) -> None:
    began: list[str] = []

    async def counts(ctx: mobd.Turn) -> None:
        began.append(ctx.run_id)

    busy = threading.Event()
    free = threading.Event()

    async def blocks(ctx: mobd.Turn) -> None:
        if ctx.run_id == "run-1":
            busy.set()
            assert free.wait(WAIT_S)
        else:
            await counts(ctx)

    async with serving(peer, blocks, capacity=2) as link:
        await link.assign("m-2", 8)
        await link.run("run-1")
        assert await asyncio.to_thread(busy.wait, WAIT_S)
        await link.run("run-2", member_id="m-2", fence=8)
        link.cancel("run-2", "ctl-1", hard=True, fence=8)
        # A loop that is blocked does not answer: then the server takes the run away.
        await link.heartbeats(2)
        assert not [one for one in link.heard if one.HasField("control_ack")]
        free.set()
        frames = {(await link.hear_any()).WhichOneof("frame") for _ in range(3)}
    assert frames == {"control_ack", "run_result", "run_failed"}
    assert began == []


async def test_a_plain_turn_can_not_be_ended_and_the_agent_says_so(peer: Peer, said: Said) -> None:
    ended = threading.Event()

    def stubborn(ctx: mobd.Turn) -> str:
        assert ended.wait(WAIT_S)
        return "late"

    async with serving(peer, stubborn) as link:
        await link.run("run-1")
        link.cancel("run-1", "ctl-1", hard=True)
        ack = await link.hear("control_ack")
        assert (ack.result, ack.message) == (FAILED, "the turn runs in a thread, which can't be ended")
        link.settle("run-1", agents_pb2.RUN_DISPOSITION_CANCELLED)
        await said.saying("run run-1 of member 'm-1' is cancelled")
        ended.set()
        await link.run("run-2")
        assert (await link.hear("run_result")).run_id == "run-2"


async def test_a_turn_whose_run_was_settled_without_it_is_told_to_end(peer: Peer) -> None:
    reasons: list[str] = []
    told = threading.Event()

    async def waits(ctx: mobd.Turn) -> None:
        await ctx.cancelled.wait()
        reasons.append(ctx.cancelled.reason)
        told.set()

    async with serving(peer, waits) as link:
        await link.run("run-1")
        link.settle("run-1", agents_pb2.RUN_DISPOSITION_FENCED)
        assert await asyncio.to_thread(told.wait, WAIT_S)
    assert reasons == ["the run is not this agent's any more"]


async def test_a_request_for_what_the_agent_does_not_hold_is_answered_so(peer: Peer) -> None:
    async def waits(ctx: mobd.Turn) -> None:
        await ctx.cancelled.wait()

    async with serving(peer, waits) as link:
        await link.run("run-1")
        link.cancel("run-0", "ctl-0")
        assert await acknowledged(link, "ctl-0") == NOT_RUNNING
        link.cancel("run-1", "ctl-1", hard=True, fence=6)
        assert await acknowledged(link, "ctl-1") == NOT_RUNNING
        link.cancel("run-1", "ctl-2")
        assert await acknowledged(link, "ctl-2") == OK
        await link.hear("run_result")


@pytest.mark.parametrize("error", [mobd.Cancelled("mine"), asyncio.CancelledError("mine")], ids=["own", "asyncio"])
async def test_a_turn_that_nobody_asked_to_end_does_not_claim_so(peer: Peer, said: Said, error: BaseException) -> None:
    async def moody(ctx: mobd.Turn) -> None:
        raise error

    async with serving(peer, moody) as link:
        await link.run("run-1")
        failed = await link.hear("run_failed")
    assert (failed.kind, failed.retryable) == (agents_pb2.FAILURE_KIND_ERROR, True)


async def test_steered_inputs_are_taken_once_and_named_in_the_result(peer: Peer) -> None:
    come: list[list[str]] = []
    steps = [threading.Event() for _ in range(3)]

    def steered(ctx: mobd.Turn) -> list[str]:
        assert ctx.take_steered() == []
        taken: list[str] = []
        for step in steps:
            assert step.wait(WAIT_S)
            fresh = ctx.take_steered()
            come.append([one.text for one in fresh])
            taken += [one.input_id for one in fresh]
        return taken

    async with serving(peer, steered, steer=True) as link:
        assert link.heard[0].hello.capabilities.steer
        await link.run("run-1")
        link.steer("run-1", "a", "b")
        await link.heartbeats(2)
        steps[0].set()
        link.steer("run-1", "a", "b", "c")
        link.steer("run-1", "x", fence=6)
        link.steer("run-0", "y")
        await link.heartbeats(2)
        steps[1].set()
        steps[2].set()
        result = await link.hear("run_result")
    assert sorted(text for texts in come for text in texts) == ["text of a", "text of b", "text of c"]
    assert result.output_json == '["a","b","c"]'
    assert list(result.steered_input_ids) == ["in-a", "in-b", "in-c"]


async def test_what_was_steered_and_not_taken_is_not_named_and_a_failure_names_what_was(peer: Peer, said: Said) -> None:
    came = threading.Event()

    def fails(ctx: mobd.Turn) -> None:
        assert came.wait(WAIT_S)
        (first,) = ctx.take_steered()
        assert first.input_id == "a"
        assert ctx.cancelled.sleep(WAIT_S)
        raise KeyError(first.input_id)

    async with serving(peer, fails, steer=True) as link:
        await link.run("run-1")
        link.steer("run-1", "a")
        await link.heartbeats(2)
        came.set()
        await link.heartbeats(2)
        link.steer("run-1", "b")
        link.cancel("run-1", "ctl-1")
        await link.hear("control_ack")
        failed = await link.hear("run_failed")
    assert list(failed.steered_input_ids) == ["in-a"]


async def test_a_turn_knows_its_time_and_what_its_inputs_are(peer: Peer) -> None:
    seen: list[mobd.Turn] = []
    look: Callable[[mobd.Turn], None] = seen.append
    one = agents_pb2.RunInput(
        canonical_input_id="in-1",
        input_id="key-1",
        kind="peer_request",
        content=mobd.blocks("?"),
        attempt=1,
        correlation_id="c-1",
        about_json='{"intent":"ask"}',
    )
    start = agents_pb2.StartRun(
        run_id="run-1",
        executor_fence=7,
        member_id="m-1",
        boundary="run_checkpoint",
        inputs=[one],
        execution="resume_pending",
        intent="append_context_and_run",
        time_left=Duration(seconds=60),
    )
    async with serving(peer, look) as link:
        before = time.monotonic()
        link.say(start_run=start)
        await link.hear("run_accepted")
        await link.hear("run_result")
        await link.run("run-2", attempt=1)
        await link.hear("run_result")
    timed, endless = seen
    assert timed.deadline is not None
    assert before + 59 < timed.deadline <= time.monotonic() + 60
    assert timed.time_left is not None
    assert 0 < timed.time_left <= 60
    assert (timed.boundary, timed.execution, timed.intent) == (start.boundary, start.execution, start.intent)
    assert (timed.inputs[0].kind, timed.inputs[0].correlation_id) == ("peer_request", "c-1")
    assert timed.inputs[0].about == {"intent": "ask"}
    assert (endless.deadline, endless.time_left, endless.inputs[0].about) == (None, None, {})


async def test_an_agent_tells_that_a_member_is_retired(peer: Peer, said: Said) -> None:
    async with serving(peer, lambda ctx: None) as link:
        link.say(retire=agents_pb2.Retire(member_id="m-1", executor_fence=7, drain=True))
        assert "what it has is still run" in await said.saying("member 'm-1' is retired")


async def test_an_agent_has_one_hook() -> None:
    agent = mobd.Agent("localhost:1", mob="m", role="worker")
    agent.on_cancel(lambda ctx: None)
    with pytest.raises(ValueError, match="one hook"):
        agent.on_cancel(lambda ctx: None)
