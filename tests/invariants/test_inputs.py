"""Invariants 3, 4, 5 and 13 of the runtime, 5 and 6 of the bridge: deliveries, over kills of the server.

The horizon of the dedupe, 24 hours and 4,096 ids, is tested in tests/machines/test_inbox.py; a thousand calls of one
delivery at a kill in tests/faults/test_same_input.py.
"""

import asyncio

import pytest
from tests.faults.conftest import World
from tests.faults.ledger import check_consumed_once, check_gap_free, check_runs, of_kind
from tests.invariants.scripted import COMMITTED
from tests.invariants.stage import ATTACHED, CONSUMED, HELD, IDLE, QUEUED, STEER, Stage, staged
from tests.support.peers import CALL_S, MOB, content

from mobd.v1 import bridge_pb2, events_pb2, members_pb2

pytestmark = pytest.mark.asyncio


async def test_3_an_acknowledged_input_waits_after_a_kill_and_one_that_was_not_stored_never_was(world: World) -> None:
    async with staged(world) as stage:
        async with stage.doomed("events"):
            lost = asyncio.ensure_future(stage.peer.bridge.Deliver(stage.delivery("ada", "lost"), timeout=CALL_S))
            await stage.decided("ada")
            assert not lost.done(), "an acknowledgement before its commit"
        await stage.broken(lost)
        await stage.no_input("ada", "lost")
        assert (await stage.observe("ada")).inputs_waiting == 0

        name = await stage.deliver("ada", "lost")
        await stage.crash()
        found = await stage.input("ada", "lost")
        seen = await stage.observe("ada")
        assert (found.state, found.canonical_input_id) == (QUEUED, name)
        assert (seen.state, seen.inputs_waiting) == (IDLE, 1)
        log = await stage.log()
        check_gap_free(log)
        assert [one.input_accepted.canonical_input_id for one in of_kind(log, "input_accepted")] == [name]


async def work(stage: Stage) -> list[events_pb2.Event]:
    """Return the log without the comings and goings of agents."""
    return [event for event in await stage.log() if not event.kind.startswith(("executor_", "attachment_"))]


async def repeated(stage: Stage, input_id: str, name: str, *, terminal: bool) -> None:
    """Deliver again what was delivered, and something else under the same id: nothing happens."""
    before = await work(stage)
    again = await stage.send("ada", input_id)
    assert again.deduplicated == bridge_pb2.DeliveryDeduplicated(canonical_input_id=name, terminal=terminal)
    other = await stage.send("ada", input_id, content=content(n="other"))
    assert other.rejected.cause == bridge_pb2.REJECT_CAUSE_CONTENT_CONFLICT
    assert other.rejected.canonical_input_id == name
    assert await work(stage) == before


async def test_4_an_id_is_one_input_live_or_ended_before_and_after_kills_and_for_successors(world: World) -> None:
    async with staged(world) as stage:
        agent = await stage.agent()
        ended = await stage.deliver("ada", "ended")
        assert await agent.settle(await agent.run()) == COMMITTED
        live = await stage.deliver("ada", "live")
        run = await agent.run()
        for killed in (False, True):
            if killed:
                await stage.crash()
            await repeated(stage, "ended", ended, terminal=True)
            await repeated(stage, "live", live, terminal=False)
        await agent.attach()
        assert await agent.settle(run) == COMMITTED
        await repeated(stage, "live", live, terminal=True)

        await stage.respawn("ada")
        await repeated(stage, "ended", ended, terminal=True)
        retire = members_pb2.RetireMemberRequest(mob_id=MOB, member_id="ada")
        await stage.ask(stage.peer.members.RetireMember, retire)
        await stage.event("member_retired", "ada")
        await stage.crash()
        await repeated(stage, "live", live, terminal=True)
        assert (await stage.send("ada", "ended")).deduplicated.terminal
        assert (await stage.spawn("ada")).generation == 2
        await agent.attach()
        await repeated(stage, "ended", ended, terminal=True)
        await agent.beat()
        assert len(agent.heard("start_run")) == 2
        log = await stage.log()
        check_consumed_once(log, {("ada", "ended"): ended, ("ada", "live"): live})
        check_runs(log)


async def test_5_what_is_invalid_is_refused_before_it_is_known_and_leaves_nothing(alone: World) -> None:
    """The order of the checks is the machine's, the same on every store: mode, what is known, phase, fence, queue."""
    async with staged(alone, ("ada", "bob")) as stage:
        progress = bridge_pb2.PeerResponse(request_id="r1", status=bridge_pb2.PEER_RESPONSE_STATUS_IN_PROGRESS)
        first = await stage.deliver("ada", "known", peer_response=progress)
        before = await stage.log()
        for input_id in ("known", "new"):
            refused = await stage.send("ada", input_id, peer_response=progress, handling_mode=STEER)
            assert refused.rejected.cause == bridge_pb2.REJECT_CAUSE_HANDLING_MODE_INVALID
        stale = bridge_pb2.DeliverRequest(mob_id=MOB, member_id="ada", input_id="new", content=content(n="new"))
        stale.fence.generation = 7
        assert (await stage.send("ada", "new", fence=stale.fence)).rejected.cause == bridge_pb2.REJECT_CAUSE_STALE_FENCE
        assert (await stage.send("ada", "known", content=content(n="known"), fence=stale.fence)).HasField(
            "deduplicated"
        ), "what is known comes before the fence"
        no_content = stage.delivery("ada", "new", content=None)
        assert (await stage.refused(stage.peer.bridge.Deliver, no_content))[0] == "INVALID_ARGUMENT"
        assert await stage.log() == before
        await stage.no_input("ada", "new")

        await stage.crash()
        await stage.no_input("ada", "new")
        name = await stage.deliver("ada", "new", peer_response=progress)
        assert name != first
        await stage.retire("bob")
        not_ready = (await stage.send("bob", "late")).rejected
        assert not_ready.cause == bridge_pb2.REJECT_CAUSE_NOT_READY
        await stage.no_input("bob", "late")


async def test_bridge_5_and_6_who_got_no_answer_asks_again_with_the_same_id_and_learns_what_it_was(
    world: World,
) -> None:
    """Two callers see the same break. One input was stored and one was not; neither caller is told a guess."""
    async with staged(world) as stage:
        async with stage.held():
            dropped = [
                asyncio.ensure_future(stage.peer.bridge.Deliver(stage.delivery("ada", "stored"), timeout=CALL_S))
                for _ in range(5)
            ]
            await stage.decided("ada")
            for call in dropped:
                call.cancel()
        await stage.event("input_accepted", "ada")
        async with stage.doomed("events"):
            lost = asyncio.ensure_future(stage.peer.bridge.Deliver(stage.delivery("ada", "gone"), timeout=CALL_S))
            await stage.decided("ada")
        await stage.broken(lost)

        answers = [await stage.send("ada", input_id) for input_id in ("stored", "gone", "stored", "gone")]
        assert [one.WhichOneof("outcome") for one in answers] == [
            "deduplicated",
            "accepted",
            "deduplicated",
            "deduplicated",
        ]
        log = await stage.log()
        names = [one.input_accepted.canonical_input_id for one in of_kind(log, "input_accepted")]
        assert [answers[0].deduplicated.canonical_input_id, answers[1].accepted.canonical_input_id] == names
        assert [one.deduplicated.canonical_input_id for one in answers[2:]] == names


async def test_13_an_input_that_does_not_wake_starts_nothing_over_a_kill_and_rides_along_in_order(
    world: World,
) -> None:
    async with staged(world) as stage:
        agent = await stage.agent()
        await stage.event("executor_confirmed", "ada")
        await stage.deliver("ada", "passive-1", wake=False)
        await stage.crash()
        await agent.attach()
        await stage.deliver("ada", "passive-2", wake=False)
        await agent.beat()
        assert not agent.heard("start_run")
        seen = await stage.observe("ada")
        waits = await stage.input("ada", "passive-1")
        assert (seen.state, seen.inputs_waiting) == (ATTACHED, 2)
        assert (waits.state, waits.silent) == (QUEUED, True)

        await stage.deliver("ada", "driver")
        run = await agent.run()
        assert [one.input_id for one in run.inputs] == ["passive-1", "passive-2", "driver"]
        assert (await stage.input("ada", "passive-1")).state == HELD
        # Admitted without waking while a run is in flight: the end of that run does not drive it either.
        await stage.deliver("ada", "passive-3", wake=False)
        assert await agent.settle(run) == COMMITTED
        await agent.beat()
        assert (await stage.observe("ada")).state == ATTACHED
        await stage.deliver("ada", "passive-3-driver")
        run = await agent.run()
        assert [one.input_id for one in run.inputs] == ["passive-3", "passive-3-driver"]
        assert await agent.settle(run) == COMMITTED
        assert (await stage.end_of("ada", "passive-3")).state == CONSUMED
