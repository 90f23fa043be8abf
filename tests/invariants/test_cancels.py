"""Invariants 12 and 17 of the runtime, 7 and 8 of the bridge: what a request to cancel does, and what it never does.

That a run which was not sent yet is taken back, and that a deadline cancels twice and then fences off, is tested in
tests/actors and tests/machines: neither can be brought about from outside without waiting for it.
"""

import asyncio

import pytest
from tests.faults.conftest import World
from tests.faults.ledger import check_runs, of_kind
from tests.invariants.scripted import CANCELLED, CLAIMS_CANCELLED, COMMITTED, FENCED, Scripted, name
from tests.invariants.stage import ABANDONED, ATTACHED, CONSUMED, Stage, staged
from tests.support.peers import CALL_S, MOB

from mobd.v1 import agents_pb2, bridge_pb2, runs_pb2

pytestmark = pytest.mark.asyncio

FAILED = agents_pb2.CONTROL_RESULT_FAILED


async def cancelled(stage: Stage, member_id: str, input_id: str, run: agents_pb2.StartRun) -> None:
    """Check that a run was cancelled, its input with it, and that nothing ran again."""
    end = await stage.end_of(member_id, input_id)
    assert (end.state, end.reason.partition(":")[0]) == (ABANDONED, "cancelled")
    assert (await stage.run_of(run.run_id)).state == runs_pb2.RUN_STATE_CANCELLED
    assert (await stage.observe(member_id)).current_run_id == ""
    log = await stage.log()
    assert len([one for one in of_kind(log, "run_started") if one.member_id == member_id]) == 1
    check_runs([one for one in log if one.member_id == member_id])


async def running(stage: Stage, agent: Scripted, *member_ids: str) -> list[agents_pb2.StartRun]:
    """Let each of these members run an input."""
    for member_id in member_ids:
        await stage.deliver(member_id, "one")
    return [await agent.run(member_id=member_id) for member_id in member_ids]


async def test_12_a_run_that_was_asked_to_end_is_cancelled_however_it_ends_and_never_runs_again(
    world: World,
) -> None:
    """The server is killed when the requests are stored. Only a result comes through, for it was there first."""
    async with staged(world, ("claims", "raises", "forgets", "lost", "brings")) as stage:
        agent = await stage.agent(serves=name("claims", "raises", "forgets", "brings"))
        fragile = await stage.agent(host_id="fragile", serves=name("lost"))
        claims, raises, forgets, brings = await running(stage, agent, "claims", "raises", "forgets", "brings")
        [lost] = await running(stage, fragile, "lost")
        for member_id in ("claims", "raises", "forgets", "lost", "brings"):
            answer = await stage.interrupt(member_id, reason="enough", request_id=f"stop-{member_id}")
            assert answer.HasField("requested")
        watches = [
            asyncio.ensure_future(stage.end_of(member_id, "one")) for member_id in ("claims", "raises", "forgets")
        ]
        await stage.crash()

        # An agent that comes back without a run that is to end does not get it again.
        del agent.held[forgets.run_id]
        successor = stage.unattached(host_id="fragile", incarnation="2", serves=name("lost"))
        await asyncio.gather(agent.attach(), successor.attach())
        assert await agent.fail(claims, CLAIMS_CANCELLED) == CANCELLED
        assert await agent.fail(raises) == CANCELLED
        assert await agent.settle(brings, '"in time"') == COMMITTED
        assert {one.state for one in await asyncio.gather(*watches)} == {ABANDONED}
        for member_id, run in (("claims", claims), ("raises", raises), ("forgets", forgets), ("lost", lost)):
            await cancelled(stage, member_id, "one", run)
        end = await stage.end_of("brings", "one")
        assert (end.state, end.output_json) == (CONSUMED, '"in time"')
        await asyncio.gather(agent.beat(), successor.beat())
        assert len(agent.heard("start_run")) == 4
        assert not successor.heard("start_run")
        await stage.crash()
        assert (await stage.input("lost", "one")).state == ABANDONED
        log = await stage.log()
        assert len(of_kind(log, "run_cancel_requested")) == 5
        assert not of_kind(log, "run_resent")


async def test_17_and_bridge_7_an_interrupt_asks_once_and_never_cancels_hard(world: World) -> None:
    async with staged(world, ("ada", "idle", "retired", "destroyed")) as stage:
        agent = await stage.agent(serves=name("ada"))
        assert (await stage.interrupt("ada")).HasField("nothing_to_interrupt")
        assert (await stage.interrupt("idle")).HasField("nothing_to_interrupt")
        await stage.retire("retired")
        await stage.destroy("destroyed")
        assert (await stage.interrupt("retired")).HasField("already_terminal")
        assert (await stage.interrupt("destroyed")).HasField("already_terminal")

        [run] = await running(stage, agent, "ada")
        request = bridge_pb2.InterruptRequest(mob_id=MOB, member_id="ada", request_id="stop")
        async with stage.doomed():
            call = asyncio.ensure_future(stage.peer.bridge.Interrupt(request, timeout=CALL_S))
            await stage.decided("ada")
            assert not agent.heard("cancel_at_boundary"), "a request that is not stored reached the agent"
        await stage.broken(call)
        await agent.attach()
        await agent.beat()
        assert not agent.heard("cancel_at_boundary")
        assert (await stage.run_of(run.run_id)).cancel == runs_pb2.RUN_CANCEL_UNSPECIFIED

        first = await stage.interrupt("ada", request_id="stop")
        asked = await agent.next("cancel_at_boundary", run_id=run.run_id)
        again = await stage.interrupt("ada", request_id="stop")
        other = await stage.interrupt("ada", run_id=run.run_id)
        assert (first.requested.run_id, again.requested.run_id, again.replayed) == (run.run_id, run.run_id, True)
        assert other.requested.run_id == run.run_id
        await agent.acknowledge(asked.control_id)
        await agent.beat()
        assert len(agent.heard("cancel_at_boundary")) == 1
        # It is the same request, told by its name, that an agent hears again when it comes back.
        await stage.crash()
        await agent.attach()
        assert (await agent.next("cancel_at_boundary")).control_id == asked.control_id
        await agent.beat()
        assert not agent.heard("hard_cancel")
        assert await agent.settle(run) == COMMITTED, "the step that was under way was finished, and it was the last"
        assert (await stage.interrupt("ada", run_id=run.run_id)).already_terminal.run_id == run.run_id
        [event] = of_kind(await stage.log(), "run_cancel_requested")
        assert event.run_cancel_requested.cancel == runs_pb2.RUN_CANCEL_BOUNDARY


async def test_bridge_8_a_hard_cancel_is_for_one_run_and_touches_no_later_one(world: World) -> None:
    async with staged(world) as stage:
        agent = await stage.agent()
        [first] = await running(stage, agent, "ada")
        await stage.deliver("ada", "two")
        answer = await stage.hard_cancel("ada", first.run_id, request_id="kill")
        assert answer.requested.run_id == first.run_id
        told = await agent.next("hard_cancel", run_id=first.run_id)
        await stage.crash()
        await agent.attach()
        assert (await agent.next("hard_cancel")).control_id == told.control_id
        await agent.acknowledge(told.control_id)
        assert await agent.fail(first, CLAIMS_CANCELLED) == CANCELLED
        second = await agent.run()
        assert [one.input_id for one in second.inputs] == ["two"]

        for killed in (False, True):
            if killed:
                await stage.crash()
                await agent.attach()
            before = [one for one in await stage.log() if one.run_id]
            replayed = await stage.hard_cancel("ada", first.run_id, request_id="kill")
            assert (replayed.replayed, replayed.requested.run_id) == (True, first.run_id)
            late = await stage.hard_cancel("ada", first.run_id)
            assert late.already_terminal.run_id == first.run_id
            assert (await stage.interrupt("ada", run_id=first.run_id)).already_terminal.run_id == first.run_id
            unknown = bridge_pb2.HardCancelRequest(mob_id=MOB, member_id="ada", run_id="run-of-nobody")
            assert await stage.refused(stage.peer.bridge.HardCancel, unknown) == ("NOT_FOUND", "RUN_NOT_FOUND")
            now = await stage.run_of(second.run_id)
            assert (now.state, now.cancel) == (runs_pb2.RUN_STATE_RUNNING, runs_pb2.RUN_CANCEL_UNSPECIFIED)
            assert [one for one in await stage.log() if one.run_id] == before
        await agent.beat()
        assert {one.run_id for one in agent.heard("hard_cancel")} == {first.run_id}
        assert not agent.heard("cancel_at_boundary")
        assert await agent.settle(second) == COMMITTED
        assert (await stage.run_of(first.run_id)).state == runs_pb2.RUN_STATE_CANCELLED
        check_runs(await stage.log())


async def test_bridge_8_an_agent_that_does_not_obey_is_fenced_off_and_changes_nothing_any_more(alone: World) -> None:
    """One says that it can't, one says nothing, one says nothing to a server that was killed meanwhile.

    What time an agent has is the hub's, and no store knows of it.
    """
    members = ("unable", "silent", "killed")
    async with staged(alone, members, MOBD_ACCEPT_S="1") as stage:
        agent = await stage.agent(serves=name(*members))
        unable, silent, killed = await running(stage, agent, *members)
        other = await stage.agent(host_id="other")
        for member_id in members:
            await stage.deliver(member_id, "next")
        await stage.hard_cancel("unable", unable.run_id)
        await agent.acknowledge((await agent.next("hard_cancel", member_id="unable")).control_id, FAILED)
        await stage.hard_cancel("silent", silent.run_id)
        await stage.event("executor_lost", "silent")
        await stage.hard_cancel("killed", killed.run_id)
        await stage.crash()
        await asyncio.gather(agent.attach(), other.attach())
        assert (await agent.next("hard_cancel", member_id="killed")).run_id == killed.run_id
        assert await agent.settled(killed) == CANCELLED
        await stage.event("executor_lost", "killed")

        for member_id, run in zip(members, (unable, silent, killed), strict=True):
            agent.held[run.run_id] = run
            assert await agent.settle(run, '"too late"') == FENCED
            end = await stage.end_of(member_id, "one")
            assert (end.state, end.reason.partition(":")[0]) == (ABANDONED, "cancelled")
            assert (await stage.run_of(run.run_id)).state == runs_pb2.RUN_STATE_CANCELLED
            after = await other.holds(member_id)
            assert [(one.input_id, one.attempt) for one in after.inputs] == [("next", 1)]
            assert await other.settle(after) == COMMITTED
        assert {one.member_id for one in agent.heard("unassign")} >= {"killed"}
        log = await stage.log()
        assert len(of_kind(log, "executor_lost")) == 3
        check_runs(log)


async def test_17_a_run_of_an_agent_that_is_away_is_cancelled_when_it_comes_back(alone: World) -> None:
    """Whose stream is where is no fact of the log, so the store does not matter here."""
    async with staged(alone) as stage:
        agent = await stage.agent()
        [run] = await running(stage, agent, "ada")
        await agent.cut()
        await stage.deliver("ada", "two")
        assert (await stage.interrupt("ada")).requested.run_id == run.run_id
        await agent.attach()
        asked = await agent.next("cancel_at_boundary", run_id=run.run_id)
        await agent.acknowledge(asked.control_id)
        assert await agent.fail(run, CLAIMS_CANCELLED) == CANCELLED
        assert (await stage.input("ada", "one")).state == ABANDONED
        assert await agent.settle(await agent.run()) == COMMITTED
        assert (await stage.observe("ada")).state == ATTACHED
