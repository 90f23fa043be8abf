"""BridgeService: ending runs and runtimes, and asking whether numbers are in force."""

import asyncio
from typing import Any

import grpc
import pytest
from tests.rpc.speaking import TIMEOUT_S, RawAgent, Speaker

from mobd.v1 import agents_pb2, bridge_pb2, common_pb2, members_pb2, mobs_pb2, runs_pb2

pytestmark = pytest.mark.asyncio


def interrupt(**more: Any) -> bridge_pb2.InterruptRequest:
    return bridge_pb2.InterruptRequest(**{"mob_id": "m", "member_id": "a", **more})


def hard_cancel(run_id: str, **more: Any) -> bridge_pb2.HardCancelRequest:
    return bridge_pb2.HardCancelRequest(**{"mob_id": "m", "member_id": "a", "run_id": run_id, **more})


async def head(peer: Speaker) -> int:
    return int((await peer.mobs.GetMob(mobs_pb2.GetMobRequest(mob_id="m"))).mob.head)


async def get_run(peer: Speaker, run_id: str) -> runs_pb2.Run:
    run = (await peer.runs.GetRun(runs_pb2.GetRunRequest(mob_id="m", run_id=run_id))).run
    assert isinstance(run, runs_pb2.Run)
    return run


async def observe(peer: Speaker, **more: Any) -> bridge_pb2.ObserveResponse:
    request = bridge_pb2.ObserveRequest(**{"mob_id": "m", "member_id": "a", **more})
    answer = await peer.bridge.Observe(request)
    assert isinstance(answer, bridge_pb2.ObserveResponse)
    return answer


async def ended(peer: Speaker, input_id: str) -> bridge_pb2.Input:
    """Follow an input of member a to its end."""
    request = bridge_pb2.WatchInputRequest(mob_id="m", member_id="a", input_id=input_id)
    last = [answer.input async for answer in peer.bridge.WatchInput(request, timeout=TIMEOUT_S)][-1]
    assert isinstance(last, bridge_pb2.Input)
    return last


async def cancelled(agent: RawAgent, run: agents_pb2.StartRun) -> None:
    """Say that a run ended because that was asked for."""
    await agent.send(
        run_failed=agents_pb2.RunFailed(
            run_id=run.run_id, executor_fence=run.executor_fence, kind=agents_pb2.FAILURE_KIND_CANCELLED
        )
    )
    await agent.next("run_settled")


async def test_an_interrupt_ends_the_run_in_flight_and_its_inputs(peer: Speaker) -> None:
    await peer.create("m", "a")
    async with RawAgent(peer) as agent:
        await peer.deliver("a", "i")
        run = await agent.accept_run()
        answer = await peer.bridge.Interrupt(interrupt(reason="changed my mind", request_id="r"))
        assert answer.requested.run_id == run.run_id
        assert answer.cursor == await head(peer)
        sent = (await agent.next("cancel_at_boundary")).cancel_at_boundary
        assert (sent.run_id, sent.reason) == (run.run_id, "changed my mind")
        shown = await get_run(peer, run.run_id)
        assert (shown.state, shown.cancel) == (runs_pb2.RUN_STATE_RUNNING, runs_pb2.RUN_CANCEL_BOUNDARY)
        assert shown.cancel_reason == "changed my mind"
        # Asked again, it was asked before: nothing is appended.
        again = await peer.bridge.Interrupt(interrupt(run_id=run.run_id))
        assert (again.requested.run_id, again.cursor) == (run.run_id, answer.cursor)
        assert (await peer.bridge.Interrupt(interrupt(reason="changed my mind", request_id="r"))).replayed
        await cancelled(agent, run)
    shown = await get_run(peer, run.run_id)
    assert (shown.state, shown.HasField("receipt")) == (runs_pb2.RUN_STATE_CANCELLED, False)
    assert shown.error == "changed my mind"
    given_up = await ended(peer, "i")
    assert (given_up.state, given_up.reason) == (bridge_pb2.INPUT_STATE_ABANDONED, "cancelled")


async def test_there_may_be_nothing_to_interrupt(peer: Speaker) -> None:
    await peer.create("m", "a", "b")
    assert (await peer.bridge.Interrupt(interrupt())).HasField("nothing_to_interrupt")
    async with RawAgent(peer, capacity=2) as agent:
        await peer.deliver("a", "i")
        run = await agent.accept_run()
        await agent.succeed(run)
        await peer.deliver("b", "i")
        other = await agent.accept_run()
        before = await head(peer)
        for method, request in (
            (peer.bridge.Interrupt, interrupt(run_id=run.run_id)),
            (peer.bridge.HardCancel, hard_cancel(run.run_id)),
        ):
            answer = await method(request)
            assert answer.already_terminal.run_id == run.run_id
        # Neither one that never was nor one of another member has ended.
        for name in ("run-x", other.run_id):
            for method, request in (
                (peer.bridge.Interrupt, interrupt(run_id=name)),
                (peer.bridge.HardCancel, hard_cancel(name)),
            ):
                refused = await peer.refused(method, request)
                assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")
        assert await head(peer) == before
        assert (await get_run(peer, other.run_id)).cancel == runs_pb2.RUN_CANCEL_UNSPECIFIED
    await peer.bridge.Destroy(bridge_pb2.DestroyRequest(mob_id="m", member_id="a"))
    answer = await peer.bridge.Interrupt(interrupt())
    assert (answer.WhichOneof("outcome"), answer.already_terminal.run_id) == ("already_terminal", "")


async def test_a_hard_cancel_ends_one_run_at_once(peer: Speaker) -> None:
    await peer.create("m", "a")
    async with RawAgent(peer) as agent:
        await peer.deliver("a", "i1")
        run = await agent.accept_run()
        answer = await peer.bridge.HardCancel(hard_cancel(run.run_id, reason="now"))
        assert answer.requested.run_id == run.run_id
        assert (await agent.next("hard_cancel")).hard_cancel.run_id == run.run_id
        assert (await get_run(peer, run.run_id)).cancel == runs_pb2.RUN_CANCEL_HARD
        await cancelled(agent, run)
        await peer.deliver("a", "i2")
        following = await agent.accept_run()
        # It is about the run that is over: the one that followed is not touched.
        assert (await peer.bridge.HardCancel(hard_cancel(run.run_id))).HasField("already_terminal")
        assert (await get_run(peer, following.run_id)).cancel == runs_pb2.RUN_CANCEL_UNSPECIFIED
        await agent.succeed(following)
    assert (await ended(peer, "i1")).state == bridge_pb2.INPUT_STATE_ABANDONED
    assert (await ended(peer, "i2")).state == bridge_pb2.INPUT_STATE_CONSUMED


async def test_a_retired_runtime_drains_what_it_has_and_stays_listed(peer: Speaker) -> None:
    await peer.create("m", "a")
    request = bridge_pb2.RetireRequest(mob_id="m", member_id="a")
    async with RawAgent(peer) as agent:
        await peer.deliver("a", "i1")
        first = await agent.accept_run()
        await peer.deliver("a", "i2")
        answer = await peer.bridge.Retire(request)
        assert (answer.inputs_abandoned, answer.inputs_pending_drain, answer.already) == (0, 2, False)
        assert answer.cursor == await head(peer)
        again = await peer.bridge.Retire(request)
        assert (again.already, again.inputs_pending_drain) == (True, 2)
        seen = await observe(peer)
        assert (seen.state, seen.bridge_terminal, seen.accepting_inputs) == (
            common_pb2.MEMBER_STATE_RETIRED,
            True,
            False,
        )
        assert seen.current_run_id == first.run_id
        rejected = (await peer.deliver("a", "late")).rejected
        assert (rejected.cause, rejected.state) == (
            bridge_pb2.REJECT_CAUSE_NOT_READY,
            common_pb2.MEMBER_STATE_RETIRED,
        )
        await agent.succeed(first)
        await agent.succeed(await agent.accept_run())
        assert [(await ended(peer, name)).state for name in ("i1", "i2")] == [bridge_pb2.INPUT_STATE_CONSUMED] * 2
    member = (await peer.members.GetMember(members_pb2.GetMemberRequest(mob_id="m", member_id="a"))).member
    assert (member.state, member.is_final) == (common_pb2.MEMBER_STATE_RETIRED, True)
    assert member.lifecycle == members_pb2.MEMBER_LIFECYCLE_ACTIVE


async def test_a_runtime_without_an_agent_gives_up_what_it_has_when_it_is_retired(peer: Speaker) -> None:
    await peer.create("m", "a")
    await peer.deliver("a", "i1")
    await peer.deliver("a", "i2")
    answer = await peer.bridge.Retire(bridge_pb2.RetireRequest(mob_id="m", member_id="a"))
    assert (answer.inputs_abandoned, answer.inputs_pending_drain) == (2, 0)
    given_up = await ended(peer, "i2")
    assert (given_up.state, given_up.reason) == (bridge_pb2.INPUT_STATE_ABANDONED, "retired")


async def test_a_destroyed_runtime_gives_everything_up_and_stays_listed(peer: Speaker) -> None:
    await peer.create("m", "a")
    request = bridge_pb2.DestroyRequest(mob_id="m", member_id="a")
    async with RawAgent(peer) as agent:
        await peer.deliver("a", "i1")
        run = await agent.accept_run()
        await peer.deliver("a", "i2")
        answer = await peer.bridge.Destroy(request)
        assert (answer.inputs_abandoned, answer.already) == (2, False)
        # What its agent brings now changes nothing.
        await agent.send(
            run_result=agents_pb2.RunResult(run_id=run.run_id, executor_fence=run.executor_fence, output_json="1")
        )
        assert (await agent.next("run_settled")).run_settled.disposition == agents_pb2.RUN_DISPOSITION_FENCED
    assert (await peer.bridge.Destroy(request)).already
    seen = await observe(peer)
    assert (seen.state, seen.inputs_waiting, seen.inputs_running) == (common_pb2.MEMBER_STATE_DESTROYED, 0, 0)
    assert (await ended(peer, "i1")).reason == "destroyed"
    member = (await peer.members.GetMember(members_pb2.GetMemberRequest(mob_id="m", member_id="a"))).member
    assert (member.lifecycle, member.is_final) == (members_pb2.MEMBER_LIFECYCLE_COMPLETED, True)
    assert (await get_run(peer, run.run_id)).state == runs_pb2.RUN_STATE_ABANDONED


@pytest.mark.parametrize("verb", ["Interrupt", "HardCancel", "Retire", "Destroy", "Observe"])
async def test_another_incarnation_is_refused_and_told_which_is_current(peer: Speaker, verb: str) -> None:
    await peer.create("m", "a")
    seen = await observe(peer)
    fields: dict[str, Any] = {"mob_id": "m", "member_id": "a", "fence": common_pb2.Fence(generation=7)}
    if verb == "HardCancel":
        fields["run_id"] = "run-x"
    request = getattr(bridge_pb2, f"{verb}Request")(**fields)
    refused = await peer.refused(getattr(peer.bridge, verb), request)
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STALE_FENCE")
    assert refused.details["generation"] == "0"
    assert refused.details["fence_token"] == str(seen.fence_token)
    right = common_pb2.Fence(generation=seen.generation, fence_token=seen.fence_token)
    assert (await observe(peer, fence=right)).generation == 0


async def test_a_tool_asks_whether_it_may_still_act(peer: Speaker) -> None:
    await peer.create("m", "a")
    seen = await observe(peer)
    right = common_pb2.Fence(generation=seen.generation, fence_token=seen.fence_token)

    async def check(fence: common_pb2.Fence = right, **more: Any) -> bridge_pb2.CheckFenceResponse:
        request = bridge_pb2.CheckFenceRequest(mob_id="m", member_id="a", fence=fence, **more)
        answer = await peer.bridge.CheckFence(request)
        assert isinstance(answer, bridge_pb2.CheckFenceResponse)
        return answer

    answer = await check()
    assert (answer.current, answer.fence, answer.run_id, answer.executor_fence) == (True, right, "", 0)
    async with RawAgent(peer) as agent:
        await peer.deliver("a", "i")
        run = await agent.accept_run()
        held: dict[str, Any] = {"run_id": run.run_id, "executor_fence": run.executor_fence}
        answer = await check(**held)
        assert (answer.current, answer.run_id, answer.executor_fence) == (True, *held.values())
        assert not (await check(common_pb2.Fence(generation=1))).current
        assert not (await check(common_pb2.Fence(fence_token=0))).current
        assert not (await check(run_id="run-x")).current
        assert not (await check(executor_fence=0)).current
        await agent.succeed(run)
        assert not (await check(**held)).current
        assert (await check()).current
    await peer.bridge.Destroy(bridge_pb2.DestroyRequest(mob_id="m", member_id="a"))
    assert not (await check()).current


@pytest.mark.parametrize("verb", ["Authorize", "Revoke", "Wire", "Unwire"])
async def test_a_member_that_the_server_hosts_is_under_its_authority(peer: Speaker, verb: str) -> None:
    await peer.create("m", "a")
    before = await head(peer)
    method, request = getattr(peer.bridge, verb), getattr(bridge_pb2, f"{verb}Request")
    if verb in ("Authorize", "Revoke"):
        await method(request(mob_id="m", member_id="a"))
    else:
        refused = await peer.refused(method, request(mob_id="m", member_id="a"))
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "LOCAL_MEMBER")
    refused = await peer.refused(method, request(mob_id="m", member_id="x"))
    assert refused.reason == "MEMBER_NOT_FOUND"
    assert await head(peer) == before


async def test_inputs_are_steered_into_a_run_and_consumed_with_it(peer: Speaker) -> None:
    await peer.create("m", "a")
    async with RawAgent(peer, capabilities=agents_pb2.Capabilities(steer=True)) as agent:
        await peer.deliver("a", "i1")
        run = await agent.accept_run()
        watch = asyncio.create_task(ended(peer, "i2"))
        steered = [
            (await peer.deliver("a", name, handling_mode=common_pb2.HANDLING_MODE_STEER)).accepted.canonical_input_id
            for name in ("i2", "i3")
        ]
        for name in steered:
            assert [one.canonical_input_id for one in (await agent.next("steer_run")).steer_run.inputs] == [name]
        request = bridge_pb2.GetInputRequest(mob_id="m", member_id="a", input_id="i2")
        shown = (await peer.bridge.GetInput(request)).input
        assert (shown.state, shown.run_id, shown.attempt) == (bridge_pb2.INPUT_STATE_RUNNING, run.run_id, 1)
        assert shown.handling_mode == common_pb2.HANDLING_MODE_STEER
        in_flight = await get_run(peer, run.run_id)
        assert (list(in_flight.steered_input_ids), list(in_flight.steered_attempts)) == (steered, [1, 1])
        assert (await observe(peer)).inputs_running == 3
        # It took in the first only; the other is run afterwards.
        await agent.send(
            run_result=agents_pb2.RunResult(
                run_id=run.run_id,
                executor_fence=run.executor_fence,
                output_json="1",
                steered_input_ids=steered[:1],
            )
        )
        following = await agent.accept_run()
        assert [one.canonical_input_id for one in following.inputs] == steered[1:]
        consumed = await watch
        assert (consumed.state, consumed.run_id, consumed.boundary_sequence) == (
            bridge_pb2.INPUT_STATE_CONSUMED,
            run.run_id,
            1,
        )
        settled = await get_run(peer, run.run_id)
        assert (settled.receipt.sequence, settled.receipt.boundary) == (0, "run_start")
        assert list(settled.receipt.contributing_input_ids) == list(settled.canonical_input_ids)
        assert settled.steered_receipts == [
            runs_pb2.Receipt(sequence=1, boundary="run_checkpoint", contributing_input_ids=steered[:1])
        ]
        assert list(settled.steered_input_ids) == steered
        await agent.succeed(following)
        assert (await get_run(peer, following.run_id)).receipt.boundary == "run_checkpoint"
