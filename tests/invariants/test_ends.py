"""Invariants 14, 15 and 16 of the runtime, 9 of the bridge: members that retire, drain, are destroyed or reset."""

import asyncio
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from tests.faults.conftest import World
from tests.faults.ledger import check_gap_free, check_order, check_runs, of_kind
from tests.invariants.scripted import COMMITTED, FENCED, name
from tests.invariants.stage import ABANDONED, CONSUMED, DESTROYED, HELD, QUEUED, RETIRED, Stage, staged
from tests.support.peers import CALL_S, MOB

from mobd.v1 import bridge_pb2, members_pb2, mobs_pb2

pytestmark = pytest.mark.asyncio


def counts(answer: Any) -> tuple[int, int, bool]:
    """Return what a retirement says of itself: abandoned, pending, already."""
    both = answer.inputs_abandoned, answer.inputs_pending_drain
    assert 0 in both, "abandoned and pending at once"
    return (*both, answer.already)


async def finals(stage: Stage, *member_ids: str) -> list[str]:
    """Wait until nothing more will come of members; return those of whom that is so."""
    request = members_pb2.WaitMembersRequest(
        mob_id=MOB, member_ids=member_ids, until=members_pb2.WAIT_UNTIL_FINAL, timeout=Duration(seconds=15)
    )
    return list((await stage.ask(stage.peer.members.WaitMembers, request)).satisfied_member_ids)


async def refuses(stage: Stage, member_id: str, state: int) -> None:
    """Check that a member accepts nothing more."""
    refused = (await stage.send(member_id, "late")).rejected
    assert (refused.cause, refused.state) == (bridge_pb2.REJECT_CAUSE_NOT_READY, state)
    seen = await stage.observe(member_id)
    assert (seen.state, seen.bridge_terminal, seen.accepting_inputs) == (state, True, False)


async def test_14_and_bridge_9_a_retired_runtime_drains_with_its_agent_over_kills_while_all_see_retired(
    world: World,
) -> None:
    async with staged(world) as stage:
        agent = await stage.agent()
        await stage.deliver("ada", "in-flight")
        run = await agent.run()
        names = [f"waits-{at}" for at in range(3)]
        for one in names:
            await stage.deliver("ada", one, wake=one != names[1])
        assert counts(await stage.retire("ada", request_id="retire")) == (0, 4, False)
        await stage.crash()
        await refuses(stage, "ada", RETIRED)
        assert counts(await stage.retire("ada")) == (0, 4, True)
        again = await stage.retire("ada", request_id="retire")
        assert (again.replayed, counts(again)) == (True, (0, 4, False))

        await agent.attach()
        watches = [asyncio.ensure_future(stage.end_of("ada", one)) for one in names]
        assert await agent.settle(run) == COMMITTED
        rest = await agent.run()
        assert [one.input_id for one in rest.inputs] == names
        await refuses(stage, "ada", RETIRED)
        await stage.crash()
        await refuses(stage, "ada", RETIRED)
        assert (await stage.observe("ada")).current_run_id == rest.run_id
        await agent.attach()
        assert await agent.settle(rest) == COMMITTED
        assert {one.state for one in await asyncio.gather(*watches)} == {CONSUMED}
        await refuses(stage, "ada", RETIRED)
        member = await stage.member("ada")
        assert (member.is_final, member.inputs_waiting, member.host_id) == (True, 0, "")
        assert counts(await stage.retire("ada")) == (0, 0, True)
        log = await stage.log()
        assert len(of_kind(log, "runtime_retired")) == 1
        assert not of_kind(log, "input_abandoned")
        check_order(log)
        check_runs(log)


async def test_14_without_an_agent_a_retirement_abandons_and_a_kill_before_its_commit_undoes_nothing_seen(
    world: World,
) -> None:
    async with staged(world) as stage:
        for one in ("one", "two"):
            await stage.deliver("ada", one)
        watches = [asyncio.ensure_future(stage.end_of("ada", one)) for one in ("one", "two")]
        request = bridge_pb2.RetireRequest(mob_id=MOB, member_id="ada", request_id="retire")
        async with stage.doomed("events"):
            call = asyncio.ensure_future(stage.peer.bridge.Retire(request, timeout=CALL_S))
            await stage.decided("ada")
        await stage.broken(call)
        assert (await stage.input("ada", "one")).state == QUEUED
        assert not any(one.done() for one in watches)

        assert counts(await stage.retire("ada", request_id="retire")) == (2, 0, False)
        await stage.crash()
        assert counts(await stage.retire("ada", request_id="retire")) == (2, 0, False)
        assert counts(await stage.retire("ada")) == (0, 0, True)
        ends = await asyncio.gather(*watches)
        assert {(one.state, one.reason) for one in ends} == {(ABANDONED, "retired")}
        await refuses(stage, "ada", RETIRED)
        agent = await stage.agent()
        await agent.beat()
        assert not agent.heard("assign"), "nobody serves what is retired and has nothing"
        assert len(of_kind(await stage.log(), "input_abandoned")) == 1


async def test_14_a_member_that_drains_and_loses_its_agent_is_drained_by_another_over_a_kill(world: World) -> None:
    async with staged(world, MOBD_GRACE_S="1") as stage:
        first = await stage.agent(host_id="first")
        await stage.deliver("ada", "in-flight")
        lost = await first.run()
        await stage.deliver("ada", "waits")
        retire = members_pb2.RetireMemberRequest(mob_id=MOB, member_id="ada", request_id="leave")
        assert counts(await stage.ask(stage.peer.members.RetireMember, retire)) == (0, 2, False)
        await first.cut()
        suspended = await stage.event("drain_suspended", "ada")
        left_s = suspended.drain_suspended.until_time.ToSeconds() - suspended.time.ToSeconds()
        assert 59 <= left_s <= 61
        await stage.crash()
        member = await stage.member("ada")
        assert (member.state, member.lifecycle) == (RETIRED, members_pb2.MEMBER_LIFECYCLE_RETIRING)
        assert member.drain_time == suspended.drain_suspended.until_time
        assert not member.is_final
        waiting = asyncio.ensure_future(finals(stage, "ada"))

        second = await stage.agent(host_id="second")
        run = await second.holds("ada")
        assert [(one.input_id, one.attempt) for one in run.inputs] == [("in-flight", 2)]
        assert await second.settle(run) == COMMITTED
        assert await second.settle(await second.holds("ada")) == COMMITTED
        left = await stage.event("member_retired", "ada")
        assert await waiting == ["ada"]
        get = members_pb2.GetMemberRequest(mob_id=MOB, member_id="ada")
        assert await stage.refused(stage.peer.members.GetMember, get) == ("NOT_FOUND", "MEMBER_NOT_FOUND")
        assert counts(await stage.ask(stage.peer.members.RetireMember, retire)) == (0, 2, False)
        await first.attach()
        assert await first.settle(lost) == FENCED
        log = await stage.log()
        assert not [one for one in log if one.seq > left.seq and one.member_id == "ada"]
        assert {(await stage.end_of("ada", one)).state for one in ("in-flight", "waits")} == {CONSUMED}
        check_gap_free(log)
        check_runs(log)


async def stays_destroyed(stage: Stage, run_id: str) -> None:
    """Try everything on a member that was destroyed: all of it is answered, and none of it does anything."""
    await refuses(stage, "ada", DESTROYED)
    assert (await stage.destroy("ada")).already
    assert (await stage.destroy("ada", request_id="end")).replayed
    assert counts(await stage.retire("ada")) == (0, 0, True)
    assert (await stage.interrupt("ada")).HasField("already_terminal")
    assert (await stage.hard_cancel("ada", run_id)).HasField("already_terminal")
    assert (await stage.send("ada", "waits")).deduplicated.terminal


async def test_15_destroy_wins_over_everything_that_comes_late_and_nothing_brings_the_member_back(
    world: World,
) -> None:
    async with staged(world) as stage:
        agent = await stage.agent()
        await stage.deliver("ada", "in-flight")
        run = await agent.run()
        await stage.deliver("ada", "waits")
        watches = [asyncio.ensure_future(stage.end_of("ada", one)) for one in ("in-flight", "waits")]
        request = bridge_pb2.DestroyRequest(mob_id=MOB, member_id="ada", request_id="end")
        async with stage.doomed():
            call = asyncio.ensure_future(stage.peer.bridge.Destroy(request, timeout=CALL_S))
            await stage.decided("ada")
            assert not agent.heard("unassign")
        await stage.broken(call)
        assert (await stage.input("ada", "in-flight")).state == HELD
        await agent.attach()

        waiting = asyncio.ensure_future(finals(stage, "ada"))
        # The result is on its way while the destruction is being stored.
        async with stage.held():
            late = asyncio.ensure_future(stage.peer.bridge.Destroy(request, timeout=CALL_S))
            await stage.decided("ada")
            await agent.result(run)
        assert (await late).inputs_abandoned == 2
        assert await waiting == ["ada"]
        ends = await asyncio.gather(*watches)
        assert {(one.state, one.reason) for one in ends} == {(ABANDONED, "destroyed")}
        agent.held.clear()
        for killed in (False, True):
            if killed:
                await stage.crash()
                await agent.attach()
            before = [one for one in await stage.log() if one.member_id == "ada"]
            assert await agent.settle(run) == FENCED
            assert await agent.fail(run) == FENCED
            await stays_destroyed(stage, run.run_id)
            assert [one for one in await stage.log() if one.member_id == "ada"] == before
        await agent.beat()
        assert len(agent.heard("start_run")) == 1
        check_runs(await stage.log())


async def test_16_a_reset_gives_everything_up_once_keeps_ids_known_and_goes_on_after_a_kill(world: World) -> None:
    async with staged(world, ("ada", "bob")) as stage:
        agent = await stage.agent(serves=name("ada"))
        await stage.deliver("ada", "in-flight")
        run = await agent.run()
        kept = await stage.deliver("bob", "waits")
        watches = [
            asyncio.ensure_future(stage.watched("ada", "in-flight")),
            asyncio.ensure_future(stage.watched("bob", "waits")),
        ]
        await asyncio.gather(*(stage.observe(member_id) for member_id in ("ada", "bob")))
        reset = mobs_pb2.ResetMobRequest(mob_id=MOB, request_id="anew")
        async with stage.held():
            call = asyncio.ensure_future(stage.peer.mobs.ResetMob(reset, timeout=CALL_S))
            await stage.decided("ada")
            assert not any(one.done() for one in watches)
            call.cancel()
        for shown in await asyncio.gather(*watches):
            assert [(one.state, one.reason) for one in shown if one.state == ABANDONED] == [(ABANDONED, "reset")]
            assert shown[-1].state == ABANDONED
        await stage.crash()

        answer = await stage.ask(stage.peer.mobs.ResetMob, reset)
        assert answer.replayed
        assert [(one.member_id, one.inputs_abandoned) for one in answer.report.outcomes] == [("ada", 1), ("bob", 1)]
        mob = (await stage.ask(stage.peer.mobs.GetMob, mobs_pb2.GetMobRequest(mob_id=MOB))).mob
        assert (mob.phase, mob.pending, mob.members.total) == (mobs_pb2.MOB_PHASE_RUNNING, 0, 0)
        await agent.attach()
        assert await agent.settle(run) == FENCED
        known = (await stage.send("bob", "waits")).deduplicated
        assert (known.canonical_input_id, known.terminal) == (kept, True)
        assert (await stage.spawn("ada")).generation == 1
        assert (await stage.send("ada", "in-flight")).deduplicated.terminal
        await stage.deliver("ada", "anew")
        assert await agent.settle(await agent.run()) == COMMITTED
        log = await stage.log()
        assert len(of_kind(log, "mob_resetting", "mob_cleanup_finished")) == 2
        check_runs(log)


async def test_9_and_14_a_completion_waits_for_its_members_over_a_kill(world: World) -> None:
    async with staged(world, ("ada", "bob")) as stage:
        agent = await stage.agent(serves=name("ada"))
        await stage.deliver("ada", "in-flight")
        run = await agent.run()
        await stage.deliver("bob", "unserved")
        complete = mobs_pb2.CompleteMobRequest(mob_id=MOB, request_id="done")
        answer = await stage.ask(stage.peer.mobs.CompleteMob, complete)
        outcomes = [(one.member_id, one.inputs_abandoned, one.inputs_pending_drain) for one in answer.report.outcomes]
        assert outcomes == [("ada", 0, 1), ("bob", 1, 0)]
        assert answer.mob.pending == mobs_pb2.MOB_PENDING_COMPLETE
        await stage.crash()
        joined = await stage.ask(stage.peer.mobs.CompleteMob, mobs_pb2.CompleteMobRequest(mob_id=MOB))
        assert joined.report == answer.report
        await agent.attach()
        assert await agent.settle(run) == COMMITTED
        await stage.event("mob_completed")
        mob = (await stage.ask(stage.peer.mobs.GetMob, mobs_pb2.GetMobRequest(mob_id=MOB))).mob
        assert (mob.phase, mob.pending, mob.members.total) == (mobs_pb2.MOB_PHASE_COMPLETED, 0, 0)
        assert len(of_kind(await stage.log(), "mob_completing", "mob_completed")) == 2
        assert (await stage.end_of("bob", "unserved")).reason == "retired"
