"""Who counts as here, who is away and for how long; and that a late server takes nothing from anybody's patience."""

import asyncio

import pytest
from tests.actors.hub_world import TERMS, AgentPeer, HubWorld, result
from tests.actors.world import ANYBODY, deliver
from tests.support.loops import ticks

from mobd_server.actors import frames as f
from mobd_server.machines import answers as a
from mobd_server.machines import commands as c
from mobd_server.machines.events import AttachmentClosed, RunSettled

pytestmark = pytest.mark.asyncio


async def closings(world: HubWorld) -> list[str]:
    """Return why attachments were closed, in order."""
    return [record.event.reason for record in await world.log() if isinstance(record.event, AttachmentClosed)]


async def test_a_broken_stream_is_suspended_at_once_and_is_given_nothing() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    assert agent.connectivity == "connected"
    assert agent.attachment_id in world.hub.connected("m")
    agent.break_off()
    assert agent.connectivity == "suspended"
    assert agent.attachment_id not in world.hub.connected("m")
    await world.deliver("i1")
    assert "run_started" not in await world.kinds()
    assert world.served_by() == "h1"


async def test_an_agent_that_returns_within_its_grace_goes_on_where_it_was() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    await world.deliver("i1")
    start = await agent.accept_run()
    agent.break_off()
    await world.deliver("i2")
    await world.elapse(TERMS.grace_s - 5)
    await agent.reconnect(start.run_id)
    (first, second) = agent.take(f.Welcome)
    assert (second.attachment_id, second.resumed) == (first.attachment_id, True)
    await agent.say(result(start))
    assert [one.disposition for one in agent.take(a.SendSettled)] == ["committed"]
    assert [one.input_id for one in agent.take(a.SendStartRun)[0].inputs] == ["i2"]
    await world.elapse(TERMS.grace_s / 4)
    assert await closings(world) == []


async def test_an_agent_that_stays_away_is_lost_with_its_run_after_its_grace() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    await world.deliver("i1")
    await agent.accept_run()
    other = await AgentPeer(world, "h2").serve()
    agent.break_off()
    await world.elapse(TERMS.lease_s - 5)
    await other.beat()
    await world.elapse(TERMS.lease_s - 5)
    await other.beat()
    assert world.served_by() == "h1"
    await world.elapse(13)
    assert await closings(world) == ["lost"]
    assert world.hub.connectivity("m", agent.attachment_id) == "none"
    await other.accept_members()
    (start,) = other.take(a.SendStartRun)
    assert start.inputs[0].attempt == 2


async def test_heartbeats_renew_the_lease() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    for _ in range(12):
        await world.elapse(TERMS.heartbeat_s)
        await agent.beat()
    assert agent.connectivity == "connected"
    assert len(agent.take(f.HeartbeatAck)) == 12


async def test_a_silent_agent_is_suspended_after_its_lease_and_its_grace_runs_from_there() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    await world.elapse(TERMS.lease_s - 1)
    assert agent.connectivity == "connected"
    await world.elapse(3)
    assert agent.connectivity == "suspended"
    assert not agent.ended()
    await world.elapse(TERMS.grace_s - 3)
    assert await closings(world) == []
    await world.elapse(6)
    assert await closings(world) == ["lost"]
    (goodbye,) = agent.take(f.Goodbye)
    assert goodbye.reason == "revoked"
    assert agent.ended()


async def test_a_silent_agent_that_speaks_again_is_attached_anew_on_the_same_stream() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    await world.deliver("i1")
    start = await agent.accept_run()
    await world.elapse(TERMS.lease_s + 3)
    assert agent.connectivity == "suspended"
    agent.frames.clear()
    await agent.beat(start.run_id)
    assert agent.connectivity == "connected"
    assert [type(frame) for frame in agent.frames[:2]] == [f.Resync, f.HeartbeatAck]
    assert not agent.take(a.SendStartRun)
    await agent.say(result(start))
    assert [one.disposition for one in agent.take(a.SendSettled)] == ["committed"]


async def test_a_server_that_was_held_up_shifts_every_lease_grace_and_deadline() -> None:
    world = HubWorld()
    await world.create("ada", "bob")
    away = await AgentPeer(world, "away").serve()
    away.break_off()
    here = await AgentPeer(world, "here").serve()
    await world.elapse(1)
    world.clock.stall(10_000)
    await world.elapse(TERMS.lease_s - 5)
    assert here.connectivity == "connected"
    assert away.connectivity == "suspended"
    assert await closings(world) == []
    world.clock.step_wall(10_000_000)
    await here.beat()
    await world.elapse(TERMS.lease_s - 5)
    assert here.connectivity == "connected"
    assert await closings(world) == []
    await world.elapse(TERMS.grace_s)
    assert await closings(world) == ["lost"]


async def test_what_arrived_while_the_server_was_held_up_is_heard_before_anything_expires() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    await world.elapse(TERMS.lease_s)
    assert agent.connectivity == "connected"
    # The lease would end with the next tick, which is late: the heartbeat has arrived in between.
    world.clock.stall(5)
    world.clock.advance(0)
    await agent.beat()
    await world.elapse(5)
    assert agent.connectivity == "connected"
    assert not agent.take(f.Resync)


async def test_while_the_journal_is_down_graces_stand_still() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    agent.break_off()
    other = await AgentPeer(world, "h2").hello()
    await world.fail_store()
    await world.elapse(TERMS.grace_s * 3)
    await world.mend_store()
    await world.elapse(TERMS.grace_s - 5)
    assert await closings(world) == []
    assert world.hub.connectivity("m", agent.attachment_id) == "suspended"
    await world.elapse(10)
    assert await closings(world) == ["lost"]
    # The other one was silent all the time, and has had its lease first.
    assert other.connectivity == "suspended"


async def test_an_agent_that_detaches_gives_everything_back_and_its_stream_ends_when_that_is_durable() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    await world.deliver("i1")
    await agent.accept_run()
    world.writer.open = False
    await agent.say(f.Detach())
    assert not agent.ended()
    world.writer.commit()
    world.writer.open = True
    await ticks()
    assert agent.ended()
    assert agent.error is None
    assert await closings(world) == ["detached"]
    settled = [record.event.state for record in await world.log() if isinstance(record.event, RunSettled)]
    assert settled == ["released"]
    other = await AgentPeer(world, "h2").serve()
    assert other.take(a.SendStartRun)[0].inputs[0].attempt == 1


async def test_an_agent_that_detaches_right_after_a_result_still_learns_what_became_of_it() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    await world.deliver("i1")
    start = await agent.accept_run()
    await agent.say(result(start), f.Detach())
    assert [one.disposition for one in agent.take(a.SendSettled)] == ["committed"]
    assert agent.ended()


async def test_an_agent_that_speaks_again_while_it_is_being_closed_is_attached_anew() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    await world.elapse(TERMS.lease_s + 3)
    world.writer.open = False
    await world.elapse(TERMS.grace_s + 2)
    await agent.beat()
    world.writer.commit()
    world.writer.open = True
    await ticks()
    world.clock.advance(0.01)
    await ticks()
    if world.writer.in_flight():
        world.writer.commit()
    await ticks()
    assert await closings(world) == ["lost"]
    first, second = agent.take(f.Welcome)
    assert first.attachment_id != second.attachment_id
    assert not agent.ended()
    assert agent.connectivity == "connected"


async def test_an_agent_that_detaches_while_the_store_is_away_is_not_waited_for_afterwards() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    await world.fail_store()
    await agent.say(f.Detach())
    assert agent.ended()
    assert agent.error is None
    await world.mend_store()
    await world.elapse(4)
    assert await closings(world) == ["detached"]


async def test_a_detach_whose_commit_fails_is_made_again() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    world.writer.open = False
    await agent.say(f.Detach())
    world.writer.fail("aborted")
    world.writer.open = True
    await ticks()
    assert agent.ended()
    await world.mend_store()
    await world.elapse(4)
    assert await closings(world) == ["detached"]


async def test_an_agent_that_drains_keeps_its_run_and_gets_no_other_work() -> None:
    world = HubWorld()
    await world.create("ada", "bob")
    agent = await AgentPeer(world).serve()
    await world.deliver("i1")
    start = await agent.accept_run()
    other = await AgentPeer(world, "h2").hello()
    await agent.say(f.Drain())
    assert world.hub.is_draining("m", agent.attachment_id)
    assert agent.connectivity == "connected"
    assert agent.attachment_id not in world.hub.connected("m")
    assert [one.member_id for one in agent.take(a.SendUnassign)] == ["bob"]
    assert [one.member_id for one in other.take(a.SendAssign)] == ["bob"]
    await world.deliver("i2")
    await agent.say(result(start))
    assert [one.disposition for one in agent.take(a.SendSettled)] == ["committed"]
    assert not agent.take(a.SendStartRun)
    await agent.say(f.Detach())
    assert agent.ended()
    await other.accept_members()
    assert [one.inputs[0].input_id for one in other.take(a.SendStartRun)] == ["i2"]


async def test_an_agent_that_drains_and_comes_back_still_drains() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    await agent.say(f.Drain())
    agent.break_off()
    await agent.reconnect()
    assert agent.connectivity == "connected"
    assert agent.attachment_id not in world.hub.connected("m")
    await world.deliver("i1")
    assert not agent.take(a.SendStartRun)
    assert world.served_by() is None


async def test_at_a_load_agents_that_are_not_here_have_a_full_grace() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    await world.deliver("i1")
    start = await agent.accept_run()
    after = HubWorld(world.store)
    await after.registry.recover()
    await ticks()
    assert after.hub.connectivity("m", agent.attachment_id) == "suspended"
    await after.elapse(TERMS.grace_s - 2)
    assert await closings(after) == []
    again = await AgentPeer(after).hello(start.run_id)
    (welcome,) = again.take(f.Welcome)
    assert welcome.resumed
    await again.say(result(start))
    assert [one.disposition for one in again.take(a.SendSettled)] == ["committed"]


async def test_a_mob_that_is_read_anew_asks_its_agents_for_what_is_not_settled() -> None:
    world = HubWorld()
    await world.create("ada", "bob")
    agent = await AgentPeer(world).serve()
    away = await AgentPeer(world, "away").serve()
    away.break_off()
    await world.deliver("i1")
    start = await agent.accept_run()
    await agent.beat(start.run_id)
    await world.elapse(TERMS.lease_s - 5)
    world.registry.evict(world.actor)
    # Said while nobody can decide it.
    await agent.say(result(start))
    assert not agent.take(a.SendSettled)
    agent.frames.clear()
    await world.elapse(1)
    assert [one.mob_id for one in agent.take(f.Resync)] == ["m"]
    assert not agent.take(f.Welcome)
    assert sorted(one.member_id for one in agent.take(a.SendAssign)) == ["ada", "bob"]
    assert not agent.take(a.SendStartRun)
    assert agent.connectivity == "connected"
    await agent.say(result(start))
    assert [one.disposition for one in agent.take(a.SendSettled)] == ["committed"]
    # The one that is away has its full grace again.
    await agent.beat()
    await world.elapse(TERMS.lease_s - 5)
    await agent.beat()
    await world.elapse(TERMS.lease_s - 5)
    assert await closings(world) == []


async def test_what_an_agent_says_while_the_journal_is_down_is_asked_for_when_it_is_up() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    await world.deliver("i1")
    start = await agent.accept_run()
    # The store fails for another mob: this one stays in memory.
    await world.registry.create("other", c.CreateMob(world.actor.mob.definition, {}, "log-2"), ANYBODY)
    other = world.registry.get("other")
    assert other is not None
    world.writer.open = False
    failing = asyncio.ensure_future(other.ask(c.StopMob(), ANYBODY))
    await ticks()
    world.writer.fail("aborted")
    world.writer.open = True
    await asyncio.gather(failing, return_exceptions=True)
    before = world.actor
    await agent.say(result(start))
    await agent.beat(start.run_id)
    assert agent.take(f.HeartbeatAck)
    assert not agent.take(a.SendSettled)
    await world.mend_store()
    assert world.actor is before
    assert agent.take(f.Resync)
    await agent.say(result(start))
    assert [one.disposition for one in agent.take(a.SendSettled)] == ["committed"]
    assert (await world.kinds()).count("run_settled") == 1


async def test_a_quarantined_mob_turns_its_agents_away_in_the_end() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    world.registry.evict(world.actor)
    world.store.logs["m"].records.pop()
    await world.elapse(TERMS.lease_s / 2)
    await agent.beat()
    assert not agent.ended()
    await world.elapse(TERMS.lease_s - 5)
    await agent.beat()
    await world.elapse(5)
    assert [one.cause for one in agent.take(f.Reject)] == ["mob_unavailable"]
    assert agent.ended()


async def test_an_input_waits_for_an_agent_that_is_away() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    agent.break_off()
    reply = await world.ask(deliver("i1"))
    assert isinstance(reply.answer, a.Accepted)
    assert world.hub.connectivity("m", reply.answer.attachment_id or "") == "suspended"
    await agent.reconnect()
    assert [one.inputs[0].input_id for one in agent.take(a.SendStartRun)] == ["i1"]
