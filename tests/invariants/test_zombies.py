"""Invariants 10 and 15 of the bridge: whoever is no longer meant changes nothing, whatever it still says.

An old incarnation of a member, an old stream, an old process of a host, an agent whose grace has passed: each speaks
again before and after a kill of the server. The agent that did not obey a hard cancel is in test_cancels.py.
"""

import asyncio
from typing import Any

import grpc
import pytest
from tests.faults.conftest import World
from tests.faults.ledger import check_gap_free, check_runs, of_kind
from tests.invariants.scripted import COMMITTED, FENCED
from tests.invariants.stage import ABANDONED, CONSUMED, Stage, staged
from tests.support.peers import MOB

from mobd.v1 import agents_pb2, bridge_pb2, common_pb2, events_pb2, members_pb2

pytestmark = pytest.mark.asyncio

SUPERSEDED = agents_pb2.GOODBYE_REASON_SUPERSEDED


async def of_members(stage: Stage) -> list[events_pb2.Event]:
    """Return what the log says of members."""
    return [event for event in await stage.log() if event.member_id]


async def with_old_fence(stage: Stage, old: common_pb2.Fence) -> None:
    """Try everything that a caller can do to the incarnation that it knew."""
    bridge, members = stage.peer.bridge, stage.peer.members
    stale = "FAILED_PRECONDITION", "STALE_FENCE"
    late = (await stage.send("ada", "late", fence=old)).rejected
    assert late.cause == bridge_pb2.REJECT_CAUSE_STALE_FENCE
    assert late.current.generation == old.generation + 1
    assert late.current.fence_token > old.fence_token
    who: dict[str, Any] = {"mob_id": MOB, "member_id": "ada", "fence": old}
    for method, request in (
        (bridge.Interrupt, bridge_pb2.InterruptRequest(**who)),
        (bridge.Retire, bridge_pb2.RetireRequest(**who)),
        (bridge.Destroy, bridge_pb2.DestroyRequest(**who)),
        (members.RetireMember, members_pb2.RetireMemberRequest(**who)),
        (members.RespawnMember, members_pb2.RespawnMemberRequest(**who)),
    ):
        assert await stage.refused(method, request) == stale


async def test_bridge_10_a_stale_incarnation_can_not_touch_its_successor_before_or_after_a_kill(world: World) -> None:
    async with staged(world) as stage:
        agent = await stage.agent()
        await stage.deliver("ada", "in-flight")
        old_run = await agent.run()
        await stage.deliver("ada", "waits")
        before = await stage.respawn("ada", request_id="again")
        old, new = before.previous, before.member
        assert (new.generation, before.inputs_abandoned) == (old.generation + 1, 2)
        assert (await stage.end_of("ada", "in-flight")).state == ABANDONED
        await stage.deliver("ada", "new")
        run = await agent.run()
        assert run.executor_fence > old_run.executor_fence
        acting = common_pb2.Acting(run_id=old_run.run_id, executor_fence=old_run.executor_fence)
        check = bridge_pb2.CheckFenceRequest(mob_id=MOB, member_id="ada", fence=old, run_id=old_run.run_id)
        for killed in (False, True):
            if killed:
                agent.held[run.run_id] = run
                await stage.crash()
                await agent.attach()
            seen = await of_members(stage)
            assert await agent.settle(old_run, '"too late"') == FENCED
            assert await agent.fail(old_run) == FENCED
            # It would be the right run under the fence of before.
            assert await agent.settle(run, fence=old_run.executor_fence) == FENCED
            await with_old_fence(stage, old)
            acts = stage.delivery("ada", "as-the-old-one", acting=acting)
            assert await stage.refused(stage.peer.bridge.Deliver, acts) == ("FAILED_PRECONDITION", "STALE_FENCE")
            truth = await stage.ask(stage.peer.bridge.CheckFence, check)
            assert (truth.current, truth.fence.generation, truth.run_id) == (False, new.generation, run.run_id)
            assert (await stage.hard_cancel("ada", old_run.run_id)).HasField("already_terminal")
            again = await stage.respawn("ada", request_id="again")
            assert (again.replayed, again.previous) == (True, old)
            assert await of_members(stage) == seen
        assert await agent.settle(run) == COMMITTED
        assert (await stage.end_of("ada", "new")).state == CONSUMED
        member = await stage.member("ada")
        assert (member.generation, member.session.session_id) == (new.generation, new.session.session_id)
        check_runs(await stage.log())


async def test_bridge_15_of_two_streams_of_an_agent_the_newer_wins_and_the_older_is_told(alone: World) -> None:
    """Which stream an agent has is no fact of the log, so the store does not matter here."""
    async with staged(alone) as stage:
        older = await stage.agent()
        await stage.deliver("ada", "one")
        run = await older.run()
        newer = stage.unattached()
        newer.attachment_id = older.attachment_id
        newer.held = dict(older.held)
        await newer.attach()
        assert (await older.next("goodbye")).reason == SUPERSEDED
        await older.gone()
        assert newer.attachment_id == older.attachment_id
        await newer.beat()
        assert not newer.heard("start_run"), "the agent holds the run: only its stream is another one"
        assert not of_kind(await stage.log(), "attachment_closed", "run_resent", "run_settled")
        await stage.crash()
        await newer.attach()
        assert await newer.settle(run) == COMMITTED
        log = await stage.log()
        assert len(of_kind(log, "attachment_opened", "executor_assigned")) == 2
        check_runs(log)


async def test_bridge_15_a_new_process_of_a_host_takes_over_and_the_old_one_never_comes_back(world: World) -> None:
    async with staged(world) as stage:
        old = await stage.agent()
        await stage.deliver("ada", "one")
        run = await old.run()
        await stage.deliver("ada", "two")
        new = await stage.agent(incarnation="2")
        assert (await old.next("goodbye")).reason == SUPERSEDED
        await old.gone()
        again = await new.holds("ada")
        assert [(one.input_id, one.attempt) for one in again.inputs] == [("one", 2)]
        for killed in (False, True):
            if killed:
                await stage.crash()
            await old.dial()
            assert (await old.next("goodbye")).reason == SUPERSEDED
            await old.gone()
        await new.attach()
        seen = await of_members(stage)
        await old.dial()
        with pytest.raises((AssertionError, grpc.aio.AioRpcError, asyncio.InvalidStateError)):
            # It is not listened to: its stream ends, and with it whatever it had to say.
            await old.settle(run, '"too late"')
        await new.beat()
        assert await of_members(stage) == seen
        assert await new.settle(again, '"new"') == COMMITTED
        assert await new.settle(await new.run()) == COMMITTED
        end = await stage.end_of("ada", "one")
        assert (end.output_json, end.run_id) == ('"new"', again.run_id)
        log = await stage.log()
        assert len(of_kind(log, "attachment_opened")) == 2
        check_gap_free(log)
        check_runs(log)


async def test_bridge_10_an_agent_that_was_silent_beyond_its_grace_finds_its_runs_gone(alone: World) -> None:
    """It never lost its stream: it only said nothing, as a process that stands still. The other one has the run now.

    Leases and graces are the hub's, and no store knows of them.
    """
    async with staged(alone, MOBD_LEASE_S="2", MOBD_GRACE_S="2") as stage:
        silent = await stage.agent(host_id="silent", beats=False)
        await stage.deliver("ada", "one")
        run = await silent.run()
        other = await stage.agent(host_id="other")
        again = await other.holds("ada")
        assert [(one.input_id, one.attempt) for one in again.inputs] == [("one", 2)]
        for killed in (False, True):
            if killed:
                await stage.crash()
                await other.attach()
            seen = await of_members(stage)
            await silent.attach()
            assert await silent.settle(run, '"too late"') == FENCED
            await silent.cut()
            await other.beat()
            assert await of_members(stage) == seen
        assert await other.settle(again, '"other"') == COMMITTED
        end = await stage.end_of("ada", "one")
        assert (end.output_json, end.attempt) == ('"other"', 2)
        check_runs(await stage.log())
