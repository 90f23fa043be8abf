"""A mob's life goes on over kills: a stop stays a stop, and a destruction ends what it began."""

import asyncio
from contextlib import AsyncExitStack

import grpc
import pytest
from tests.faults.conftest import World
from tests.faults.ledger import check_gap_free, of_kind
from tests.support.peers import CALL_S, MOB, Peer, Watcher, answered, content, reason
from tests.support.processes import Changes
from tests.support.served import Served

from mobd.v1 import bridge_pb2, mobs_pb2

MEMBERS = 2_000
BATCH = 250
# How often the kill may come after the last slice, which is a matter of some 50 ms.
TRIES = 6


@pytest.mark.asyncio
async def test_a_stopped_mob_stays_stopped_over_a_kill_and_runs_what_waits_when_it_is_resumed(world: World) -> None:
    served = await world.serve()
    peer = await world.peer(served)
    await peer.create(["ada"])
    agent = world.agent(served, "agent")
    await peer.deliver("ada", "first", do="sleep", s=1)
    await agent.called()
    await peer.deliver("ada", "second", n=2)
    stop = mobs_pb2.StopMobRequest(mob_id=MOB, request_id="stop")
    stopped = await peer.mobs.StopMob(stop, timeout=CALL_S)
    assert stopped.mob.phase == mobs_pb2.MOB_PHASE_STOPPED
    served.kill9()
    await served.restart()

    first = await peer.end_of("ada", "first")
    assert (first.state, first.attempt) == (bridge_pb2.INPUT_STATE_CONSUMED, 1)
    answer = await answered(lambda: peer.mobs.GetMob(mobs_pb2.GetMobRequest(mob_id=MOB), timeout=CALL_S))
    assert answer.mob.phase == mobs_pb2.MOB_PHASE_STOPPED
    assert answer.mob.inputs_waiting == 1
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await peer.bridge.Deliver(peer.delivery("ada", "third", n=3), timeout=CALL_S)
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert reason(refused.value) == "INVALID_TRANSITION"
    repeated = await peer.mobs.StopMob(stop, timeout=CALL_S)
    assert (repeated.replayed, repeated.cursor) == (True, stopped.cursor)
    known = await peer.bridge.Deliver(peer.delivery("ada", "second", n=2), timeout=CALL_S)
    assert known.HasField("deduplicated"), "what is known comes before the phase"
    assert len(agent.calls()) == 1

    await peer.mobs.ResumeMob(mobs_pb2.ResumeMobRequest(mob_id=MOB), timeout=CALL_S)
    second = await peer.end_of("ada", "second")
    assert second.state == bridge_pb2.INPUT_STATE_CONSUMED
    assert [call.inputs[0][0] for call in agent.calls()] == ["first", "second"]
    kinds = [event.kind for event in of_kind(await peer.log(), "mob_started", "mob_stopped", "mob_resumed")]
    assert kinds == ["mob_started", "mob_stopped", "mob_resumed"]


async def populate(peer: Peer, names: list[str]) -> None:
    """Make the mob with these members, and give each of them an input that waits."""
    await peer.create(names)
    for at in range(0, len(names), BATCH):
        deliveries = [
            bridge_pb2.Delivery(member_id=name, input_id="waits", content=content(n=1))
            for name in names[at : at + BATCH]
        ]
        batch = bridge_pb2.DeliverBatchRequest(mob_id=peer.mob_id, deliveries=deliveries)
        await peer.bridge.DeliverBatch(batch, timeout=CALL_S)


async def kill_in_the_middle(served: Served, peer: Peer, watcher: Watcher, changes: Changes) -> bool:
    """Kill the server after the first slice of a destruction, and return whether that was before its last."""
    request = mobs_pb2.DestroyMobRequest(mob_id=peer.mob_id, request_id="the-end")
    call = asyncio.ensure_future(peer.mobs.DestroyMob(request, timeout=CALL_S))
    await changes.until(lambda: "member_destroyed" in watcher.kinds, "the first slice")
    served.kill9()
    [outcome] = await asyncio.gather(call, return_exceptions=True)
    await served.restart()
    # Nobody asks again: it goes on by itself.
    await changes.until(lambda: "mob_destroyed" in watcher.kinds, "the end of the destruction")
    await watcher.ended()
    if not isinstance(outcome, grpc.aio.AioRpcError):
        return False
    assert outcome.code() == grpc.StatusCode.UNAVAILABLE
    [end] = of_kind(await peer.log(), "mob_destroyed")
    return end.time.ToNanoseconds() > served.kills[-1] * 1e9


@pytest.mark.asyncio
async def test_a_destruction_that_is_killed_in_its_middle_ends_after_the_restart_and_reports_all(world: World) -> None:
    served = await world.serve()
    names = [f"m{at:04}" for at in range(MEMBERS)]
    changes = Changes()
    async with AsyncExitStack() as stack:
        for number in range(TRIES):
            peer = await world.peer(served, f"crew-{number}")
            await populate(peer, names)
            watcher = Watcher(await world.peer(served, peer.mob_id), changes)
            stack.push_async_callback(watcher.stop)
            await watcher.reach(1 + MEMBERS)
            if await kill_in_the_middle(served, peer, watcher, changes):
                break
        else:
            raise AssertionError(f"the kill came too late {TRIES} times")

    log = await peer.log()
    assert log[-1].kind == "mob_destroyed"
    assert len(of_kind(log, "mob_destroying", "mob_destroyed")) == 2
    assert sorted(event.member_id for event in of_kind(log, "member_destroyed")) == names
    check_gap_free(log)
    assert watcher.seen == [event.seq for event in log]

    request = mobs_pb2.DestroyMobRequest(mob_id=peer.mob_id, request_id="the-end")
    answer = await answered(lambda: peer.mobs.DestroyMob(request, wait_for_ready=True, timeout=CALL_S))
    assert (answer.report.members, answer.report.inputs_abandoned) == (MEMBERS, MEMBERS)
    assert [one.member_id for one in answer.report.outcomes] == names
    assert {one.inputs_abandoned for one in answer.report.outcomes} == {1}
    assert answer.mob.phase == mobs_pb2.MOB_PHASE_DESTROYED
    other = await peer.mobs.DestroyMob(mobs_pb2.DestroyMobRequest(mob_id=peer.mob_id), timeout=CALL_S)
    assert other.already
    assert other.report == answer.report
    assert await peer.log() == log
