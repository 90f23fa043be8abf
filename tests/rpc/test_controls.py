"""Runs that are steered, cancelled and watched, over a socket: frame by frame, and as agents of the SDK see them."""

import asyncio
import json
import threading
from typing import Any

import pytest
from tests.rpc.conftest import settings, speaking
from tests.rpc.speaking import TIMEOUT_S, RawAgent, Speaker, rest_of

import mobd
from mobd.v1 import agents_pb2 as pb
from mobd.v1 import bridge_pb2, common_pb2, events_pb2, mobs_pb2

pytestmark = pytest.mark.asyncio

STEER = common_pb2.HANDLING_MODE_STEER
STEERS = pb.Capabilities(steer=True)
TIMED = '{"profiles": {"lead": {"instructions": "merge", "run_timeout_s": 60}}}'


async def interrupt(peer: Speaker, reason: str = "enough") -> bridge_pb2.InterruptResponse:
    answer = await peer.bridge.Interrupt(bridge_pb2.InterruptRequest(mob_id="m", member_id="ada", reason=reason))
    assert isinstance(answer, bridge_pb2.InterruptResponse)
    return answer


async def hard_cancel(peer: Speaker, run_id: str) -> None:
    request = bridge_pb2.HardCancelRequest(mob_id="m", member_id="ada", run_id=run_id, reason="now")
    await peer.bridge.HardCancel(request)


def failed(run: pb.StartRun, kind: "pb.FailureKind.ValueType", *steered: str) -> pb.RunFailed:
    return pb.RunFailed(
        run_id=run.run_id, executor_fence=run.executor_fence, kind=kind, retryable=True, steered_input_ids=steered
    )


async def input_of(peer: Speaker, input_id: str) -> bridge_pb2.Input:
    request = bridge_pb2.GetInputRequest(mob_id="m", member_id="ada", input_id=input_id)
    answer: bridge_pb2.GetInputResponse = await peer.bridge.GetInput(request)
    return answer.input


async def test_a_run_says_all_that_it_knows_of_itself_and_its_inputs(peer: Speaker) -> None:
    definition = mobs_pb2.DefinitionDocument(json=TIMED)
    await peer.mobs.CreateMob(mobs_pb2.CreateMobRequest(mob_id="m", definition=definition))
    async with mobd.Client(peer.server.address) as client, RawAgent(peer) as agent:
        await client.spawn("m", "ada", "lead")
        request = mobd.PeerRequest(intent="ask", request_id="q-1")
        await client.deliver("m", "ada", "?", input_id="i1", form=request, correlation_id="c-1")
        run = await agent.accept_run()
    assert (run.boundary, run.execution, run.intent) == ("run_start", "content_turn", "none")
    assert 50 < run.time_left.seconds <= 60
    (one,) = run.inputs
    assert (one.kind, one.correlation_id, json.loads(one.about_json)["intent"]) == ("peer_request", "c-1", "ask")


async def test_an_interrupt_and_a_hard_cancel_reach_the_agent_with_their_run(peer: Speaker) -> None:
    await peer.create("m", "ada")
    async with RawAgent(peer) as agent:
        await peer.deliver("ada", "i1")
        run = await agent.accept_run()
        assert not run.HasField("time_left")
        await interrupt(peer)
        soft = (await agent.next("cancel_at_boundary")).cancel_at_boundary
        ack = pb.ControlAck(control_id=soft.control_id, result=pb.CONTROL_RESULT_OK)
        await agent.send(control_ack=ack)
        await hard_cancel(peer, run.run_id)
        hard = (await agent.next("hard_cancel")).hard_cancel
        named = (run.run_id, run.executor_fence, "ada")
        assert [(one.run_id, one.executor_fence, one.member_id) for one in (soft, hard)] == [named, named]
        assert (soft.reason, hard.reason) == ("enough", "now")
        await agent.send(run_failed=failed(run, pb.FAILURE_KIND_CANCELLED))
        settled = (await agent.next("run_settled")).run_settled
    assert settled.disposition == pb.RUN_DISPOSITION_CANCELLED
    assert (await input_of(peer, "i1")).state == bridge_pb2.INPUT_STATE_ABANDONED


async def test_an_agent_that_says_that_it_can_not_end_a_run_loses_it(peer: Speaker) -> None:
    await peer.create("m", "ada")
    async with RawAgent(peer) as agent:
        await peer.deliver("ada", "i1")
        run = await agent.accept_run()
        await hard_cancel(peer, run.run_id)
        control_id = (await agent.next("hard_cancel")).hard_cancel.control_id
        ack = pb.ControlAck(control_id=control_id, result=pb.CONTROL_RESULT_FAILED, message="a thread")
        await agent.send(control_ack=ack)
        settled = (await agent.next("run_settled")).run_settled
        assert settled.disposition == pb.RUN_DISPOSITION_CANCELLED
        assert "a thread" in (await agent.next("unassign")).unassign.reason
        late = pb.RunResult(run_id=run.run_id, executor_fence=run.executor_fence, output_json="1")
        await agent.send(run_result=late)
        settled = (await agent.next("run_settled")).run_settled
        assert settled.disposition == pb.RUN_DISPOSITION_FENCED


@pytest.mark.parametrize("succeeds", [True, False], ids=["result", "failure"])
async def test_what_was_steered_into_a_run_and_taken_shares_its_fate(peer: Speaker, succeeds: bool) -> None:
    await peer.create("m", "ada")
    async with RawAgent(peer, capabilities=STEERS) as agent:
        await peer.deliver("ada", "i1")
        run = await agent.accept_run()
        for input_id in ("s1", "s2"):
            await peer.deliver("ada", input_id, handling_mode=STEER)
        one, two = [(await agent.next("steer_run")).steer_run for _ in range(2)]
        assert (one.run_id, one.executor_fence, one.member_id) == (run.run_id, run.executor_fence, "ada")
        assert [each.inputs[0].input_id for each in (one, two)] == ["s1", "s2"]
        listed = (await peer.agents.ListAgents(pb.ListAgentsRequest(mob_id="m"))).agents
        assert [each.capabilities for each in listed] == [STEERS]
        taken = one.inputs[0].canonical_input_id
        if succeeds:
            result = pb.RunResult(run_id=run.run_id, executor_fence=run.executor_fence, output_json="1")
            result.steered_input_ids.append(taken)
            await agent.send(run_result=result)
        else:
            await agent.send(run_failed=failed(run, pb.FAILURE_KIND_ERROR, taken))
        await agent.next("run_settled")
        again = await agent.accept_run()
        # To have been taken in is an attempt; what was not is as it was before.
        attempts = {each.input_id: each.attempt for each in again.inputs}
        await agent.send(run_failed=failed(again, pb.FAILURE_KIND_RELEASED))
    assert attempts == ({"s2": 1} if succeeds else {"s1": 2})
    if succeeds:
        assert (await input_of(peer, "s1")).state == bridge_pb2.INPUT_STATE_CONSUMED


async def test_an_agent_is_told_of_a_retirement(peer: Speaker) -> None:
    await peer.create("m", "ada")
    async with RawAgent(peer) as agent:
        await peer.deliver("ada", "i1")
        run = await agent.accept_run()
        await peer.bridge.Retire(bridge_pb2.RetireRequest(mob_id="m", member_id="ada"))
        retire = (await agent.next("retire")).retire
    assert (retire.member_id, retire.executor_fence, retire.drain) == ("ada", run.executor_fence, True)


class Watch:
    """A raw WatchAgentEvents."""

    def __init__(self, peer: Speaker, **request: Any) -> None:
        asked = events_pb2.WatchAgentEventsRequest(mob_id="m", **request)
        self.call: Any = peer.events.WatchAgentEvents(asked, timeout=TIMEOUT_S)

    async def begin(self) -> "Watch":
        assert not (await self.call.read()).events
        return self

    async def next(self, count: int) -> list[events_pb2.AgentEvent]:
        events: list[events_pb2.AgentEvent] = []
        while len(events) < count:
            events += (await self.call.read()).events
        return events


async def test_everything_that_a_run_puts_out_is_shown_as_it_was_said(peer: Speaker) -> None:
    await peer.create("m", "ada", "bob")
    call = pb.ToolCall(id="c1", name="search", arguments_json='{"q":"x"}')
    answer = pb.ToolResult(id="c1", output_json='["y"]', is_error=True)
    line = pb.LogLine(level="info", message="hm")
    said: list[dict[str, Any]] = [
        {"text_delta": "a"},
        {"text": "b"},
        {"tool_call": call},
        {"tool_result": answer},
        {"log": line},
        {"custom_json": '{"n":1}'},
    ]
    async with RawAgent(peer) as agent:
        everyone = await Watch(peer).begin()
        bob = await Watch(peer, member_id="bob").begin()
        await peer.deliver("ada", "i1")
        run = await agent.accept_run()
        named: dict[str, Any] = {"run_id": run.run_id, "executor_fence": run.executor_fence}
        events = [pb.RunEvent(sequence=place, **one) for place, one in enumerate(said, 1)]
        await agent.send(run_events=pb.RunEvents(**named, events=events))
        await agent.send(run_progress=pb.RunProgress(**named, message="half", percent=50, sequence=7))
        stale = {**named, "executor_fence": run.executor_fence + 1}
        await agent.send(run_events=pb.RunEvents(**stale, events=events))
        await agent.succeed(run)
        await agent.send(run_events=pb.RunEvents(**named, events=events))
        await peer.deliver("bob", "i2")
        second = await agent.accept_run()
        last = pb.RunEvent(sequence=1, text="last")
        await agent.send(
            run_events=pb.RunEvents(run_id=second.run_id, executor_fence=second.executor_fence, events=[last])
        )
        seen = await everyone.next(8)
        (only,) = await bob.next(1)
    assert [(one.member_id, one.run_id, one.attempt, one.sequence) for one in seen] == [
        *(("ada", run.run_id, 1, place) for place in range(1, 8)),
        ("bob", second.run_id, 1, 1),
    ]
    assert [getattr(one, one.WhichOneof("payload") or "") for one in seen] == [
        "a",
        "b",
        call,
        answer,
        line,
        '{"n":1}',
        pb.Progress(message="half", percent=50),
        "last",
    ]
    assert all(one.time.seconds > 0 for one in seen)
    assert only == seen[-1]


async def test_a_watch_ends_in_order_with_its_mob(peer: Speaker) -> None:
    await peer.create("m")
    watch = await Watch(peer).begin()
    await peer.mobs.DestroyMob(mobs_pb2.DestroyMobRequest(mob_id="m"))
    assert await rest_of(watch.call) == []
    refusal = await peer.refused(
        lambda request, timeout: peer.events.WatchAgentEvents(request, timeout=timeout).read(),
        events_pb2.WatchAgentEventsRequest(mob_id="nobody"),
    )
    assert refusal.reason == "MOB_NOT_FOUND"


async def test_an_interrupt_calls_the_hook_once_and_a_hard_cancel_never(peer: Speaker) -> None:
    await peer.create("m", "ada")
    agent = mobd.Agent(peer.server.address, mob="m", role="lead")
    hooked: list[str] = []
    begun: asyncio.Queue[mobd.Turn] = asyncio.Queue()

    @agent.turn
    async def turn(ctx: mobd.Turn) -> None:
        begun.put_nowait(ctx)
        await asyncio.Event().wait()

    @agent.on_cancel
    async def hook(ctx: mobd.Turn) -> None:
        hooked.append(ctx.run_id)

    async with mobd.Client(peer.server.address) as client, agent.running():
        await client.deliver("m", "ada", "work", input_id="i1")
        first = await begun.get()
        for _ in range(2):
            await client.interrupt("m", "ada", reason="enough")
        await first.cancelled.wait()
        await client.hard_cancel("m", "ada", first.run_id)
        ended = [state async for state in client.watch_input("m", "ada", "i1")][-1]
        await client.deliver("m", "ada", "more", input_id="i2")
        second = await begun.get()
        await client.hard_cancel("m", "ada", second.run_id)
        also = [state async for state in client.watch_input("m", "ada", "i2")][-1]
    assert hooked == [first.run_id]
    assert first.cancelled.reason == "enough"
    assert ended.state == also.state == bridge_pb2.INPUT_STATE_ABANDONED


async def test_a_plain_turn_that_is_cancelled_hard_is_fenced_off(peer: Speaker) -> None:
    await peer.create("m", "ada")
    agent = mobd.Agent(peer.server.address, mob="m", role="lead", capacity=2)
    begun, ended = threading.Event(), threading.Event()
    run_ids: list[str] = []

    @agent.turn
    def turn(ctx: mobd.Turn) -> str:
        run_ids.append(ctx.run_id)
        begun.set()
        assert ended.wait(TIMEOUT_S)
        return "late"

    async with mobd.Client(peer.server.address) as client, agent.running():
        await client.deliver("m", "ada", "work", input_id="i1")
        await asyncio.to_thread(begun.wait, TIMEOUT_S)
        await client.hard_cancel("m", "ada", run_ids[0])
        state = [state async for state in client.watch_input("m", "ada", "i1")][-1]
        ended.set()
        answer = await client.ask("m", "ada", "again", timeout=TIMEOUT_S)
        run = await client.get_run("m", run_ids[0])
    assert state.state == bridge_pb2.INPUT_STATE_ABANDONED
    assert (answer, run.output_json) == ("late", "")
    assert len(run_ids) == 2


async def test_steered_inputs_are_consumed_once_by_the_run_that_took_them(peer: Speaker) -> None:
    await peer.create("m", "ada")
    agent = mobd.Agent(peer.server.address, mob="m", role="lead", steer=True)
    runs: list[list[str]] = []
    taken = asyncio.Event()

    @agent.turn
    async def turn(ctx: mobd.Turn) -> list[str]:
        found = [one.input_id for one in ctx.inputs]
        while "s2" not in found and len(runs) == 0:
            found += [one.input_id for one in ctx.take_steered()]
            await ctx.emit(len(found))
        runs.append(found)
        taken.set()
        return found

    async with mobd.Client(peer.server.address) as client, agent.running():
        async with client.watch_agent_events("m", "ada") as events:
            await client.deliver("m", "ada", "work", input_id="i1")
            await anext(events)
        for input_id in ("s1", "s2"):
            await client.deliver("m", "ada", "more", input_id=input_id, steer=True)
        for input_id in ("i1", "s1", "s2"):
            last = [state async for state in client.watch_input("m", "ada", input_id)][-1]
            assert last.state == bridge_pb2.INPUT_STATE_CONSUMED
        member = await client.get_member("m", "ada")
    assert runs == [["i1", "s1", "s2"]]
    assert member.inputs_waiting == 0


async def test_what_a_turn_says_is_watched_and_its_progress_stored(peer: Speaker) -> None:
    await peer.create("m", "ada")
    agent = mobd.Agent(peer.server.address, mob="m", role="lead")

    @agent.turn
    async def turn(ctx: mobd.Turn) -> str:
        await ctx.emit("so far: 3 errors")
        await ctx.progress("half", 50)
        await ctx.progress("most", 90)
        return "done"

    async with mobd.Client(peer.server.address) as client, agent.running():
        async with client.watch_agent_events("m") as events:
            assert await client.ask("m", "ada", "work", timeout=TIMEOUT_S) == "done"
            seen = [await anext(events) for _ in range(3)]
        page = await client.poll_events("m", kinds=["operation_progressed"])
    assert [one.WhichOneof("payload") for one in seen] == ["text", "progress", "progress"]
    assert [(one.member_id, one.sequence) for one in seen] == [("ada", 1), ("ada", 2), ("ada", 3)]
    assert len(page.events) == 2


async def test_a_blocked_loop_does_not_save_a_run_from_a_hard_cancel(tmp_path: Any) -> None:
    begun, ended = threading.Event(), threading.Event()
    run_ids: list[str] = []

    async def turn(ctx: mobd.Turn) -> str:
        run_ids.append(ctx.run_id)
        begun.set()
        ended.wait(TIMEOUT_S)
        return "late"

    async with speaking(settings(tmp_path, accept_s=0.5)) as peer, mobd.Client(peer.server.address) as client:
        await peer.create("m", "ada")
        agent = mobd.Agent(peer.server.address, mob="m", role="lead")
        agent.turn(turn)
        serving = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(agent.serve())))
        await client.deliver("m", "ada", "work", input_id="i1")
        await asyncio.to_thread(begun.wait, TIMEOUT_S)
        await client.hard_cancel("m", "ada", run_ids[0])
        state = [state async for state in client.watch_input("m", "ada", "i1")][-1]
        ended.set()
        agent.drain()
        await asyncio.wait_for(serving, TIMEOUT_S)
    assert state.state == bridge_pb2.INPUT_STATE_ABANDONED
    assert "did not acknowledge" in state.reason
