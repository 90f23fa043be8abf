"""How agents attach: to mobs that are there, that are not yet, that can't be read; and who takes whose place."""

import asyncio

import pytest
from tests.actors.hub_world import TERMS, AgentPeer, HubWorld, result
from tests.actors.world import ANYBODY, create_mob, deliver, soon
from tests.support.loops import ticks

from mobd_server.actors import frames as f
from mobd_server.errors import Draining, FieldInvalid
from mobd_server.machines import answers as a
from mobd_server.machines import commands as c
from mobd_server.machines.state import Serve

pytestmark = pytest.mark.asyncio


async def test_the_welcome_comes_before_what_its_decision_releases_and_both_when_it_is_durable() -> None:
    world = HubWorld()
    await world.create("ada", "bob")
    world.writer.open = False
    agent = await AgentPeer(world).hello()
    assert agent.frames == []
    world.writer.commit()
    await ticks()
    welcome, *assigns = agent.frames
    assert isinstance(welcome, f.Welcome)
    assert welcome.attachment_id
    assert welcome.log_id == "log-1"
    assert welcome.terms == TERMS
    assert not welcome.resumed
    assert [one.assigned for one in welcome.serves] == [2]
    assert [one.member_id for one in assigns if isinstance(one, a.SendAssign)] == ["ada", "bob"]


async def test_an_agent_waits_for_its_mob_and_is_attached_when_that_is_created() -> None:
    world = HubWorld()
    agent = await AgentPeer(world).hello()
    (waiting,) = agent.take(f.Welcome)
    assert waiting.attachment_id == ""
    assert [one.waiting for one in waiting.serves] == ["mob 'm' does not exist yet"]
    await agent.beat()
    assert agent.take(f.HeartbeatAck)
    await world.create("ada")
    (welcome,) = agent.take(f.Welcome)
    assert welcome.attachment_id
    assert [one.member_id for one in agent.take(a.SendAssign)] == ["ada"]


async def test_an_agent_that_waits_for_its_mob_may_leave() -> None:
    world = HubWorld()
    agent = await AgentPeer(world).hello()
    await agent.say(f.Detach())
    assert agent.ended()
    assert agent.error is None
    await world.create("ada")
    assert not world.actor.mob.attachments
    await world.elapse(2)
    assert not world.clock.planned


async def test_an_unknown_role_is_rejected_naming_those_that_there_are() -> None:
    world = HubWorld()
    await world.create()
    agent = await AgentPeer(world, serves=[Serve(role="cook")]).hello()
    (reject,) = agent.take(f.Reject)
    assert (reject.cause, reject.retry_after_s) == ("unknown_role", None)
    assert "cook" in reject.message
    assert "analyst, lead" in reject.message
    assert agent.ended()
    assert agent.error is None


async def test_a_destroyed_mob_rejects() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    await world.ask(c.DestroyMob())
    (goodbye,) = agent.take(f.Goodbye)
    assert goodbye.reason == "revoked"
    assert agent.ended()
    await agent.reconnect()
    (reject,) = agent.take(f.Reject)
    assert (reject.cause, reject.retry_after_s) == ("mob_destroyed", None)


async def test_a_mob_that_cannot_be_read_rejects_and_says_when_to_try_again() -> None:
    world = HubWorld()
    world.store.unavailable = True
    agent = await AgentPeer(world).hello()
    (reject,) = agent.take(f.Reject)
    assert reject.cause == "mob_unavailable"
    assert reject.retry_after_s == 1.0


async def test_while_the_journal_is_down_hello_is_rejected_for_a_while() -> None:
    world = HubWorld()
    await world.create("ada")
    await world.fail_store()
    agent = await AgentPeer(world).hello()
    (reject,) = agent.take(f.Reject)
    assert reject.cause == "mob_unavailable"
    assert reject.retry_after_s is not None
    assert agent.ended()


async def test_a_stream_without_hello_ends() -> None:
    world = HubWorld()
    agent = AgentPeer(world)
    await world.elapse(TERMS.hello_s - 1)
    assert not agent.ended()
    await world.elapse(3)
    assert agent.ended()
    assert isinstance(agent.error, FieldInvalid)
    assert [violation.field for violation in agent.error.violations] == ["frames[0].hello"]
    await world.elapse(1)
    assert not world.clock.planned


async def test_a_frame_before_hello_is_refused_by_its_path() -> None:
    world = HubWorld()
    with pytest.raises(FieldInvalid) as refused:
        await AgentPeer(world).beat()
    assert [violation.field for violation in refused.value.violations] == ["frames[0].hello"]


async def test_a_second_hello_is_refused_by_its_path_in_the_same_message_and_in_a_later_one() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).hello()
    hello = agent.connection.hello
    assert hello is not None
    with pytest.raises(FieldInvalid) as refused:
        await agent.say(f.Heartbeat([]), hello)
    assert [violation.field for violation in refused.value.violations] == ["frames[1].hello"]
    with pytest.raises(FieldInvalid) as refused:
        await AgentPeer(world, "h2").say(hello, f.Heartbeat([]), f.Heartbeat([]), hello)
    assert [violation.field for violation in refused.value.violations] == ["frames[3].hello"]


async def test_a_new_stream_of_the_same_process_takes_the_place_of_a_half_open_one() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    await world.deliver("i1")
    start = await agent.accept_run()
    again = await AgentPeer(world).hello(start.run_id)
    (goodbye,) = agent.take(f.Goodbye)
    assert goodbye.reason == "superseded"
    assert agent.ended()
    (welcome,) = again.take(f.Welcome)
    assert (welcome.attachment_id, welcome.resumed) == (agent.attachment_id, True)
    assert again.connectivity == "connected"
    assert not again.take(a.SendStartRun)
    await again.say(result(start))
    assert [one.disposition for one in again.take(a.SendSettled)] == ["committed"]


async def test_what_the_same_process_does_not_hold_any_more_is_sent_again() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    await world.deliver("i1")
    start = await agent.accept_run()
    again = await AgentPeer(world).hello()
    (resent,) = again.take(a.SendStartRun)
    assert (resent.run_id, resent.fence) == (start.run_id, start.fence)
    assert (await world.kinds())[-1] == "run_resent"


async def test_a_new_incarnation_takes_over_at_once_with_a_new_fence() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    await world.deliver("i1")
    start = await agent.accept_run()
    other = await AgentPeer(world, incarnation="2").serve()
    (goodbye,) = agent.take(f.Goodbye)
    assert goodbye.reason == "superseded"
    (anew,) = other.take(a.SendStartRun)
    assert anew.fence > start.fence
    assert anew.inputs[0].attempt == 2
    await agent.reconnect(start.run_id)
    # The old process takes the place back: that is what it says, and nobody can know better.
    assert world.member().executor is not None


async def test_two_streams_of_one_process_at_once_leave_the_later_one() -> None:
    world = HubWorld()
    await world.create("ada")
    world.writer.open = False
    first = await AgentPeer(world).hello()
    second = await AgentPeer(world).hello()
    world.writer.commit()
    world.writer.open = True
    await ticks()
    assert first.ended()
    assert [one.reason for one in first.take(f.Goodbye)] == ["superseded"]
    assert second.take(f.Welcome)
    assert second.connectivity == "connected"


async def test_an_input_that_comes_while_the_agent_is_being_attached_is_not_left_behind() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    agent.break_off()
    await world.ask(c.SpawnMember(c.MemberSpec("bob", "analyst")))
    world.writer.open = False
    await agent.reconnect()
    delivering = asyncio.ensure_future(world.actor.ask(deliver("i1"), ANYBODY))
    await ticks()
    assert not agent.take(a.SendStartRun)
    world.writer.commit()
    world.writer.open = True
    await ticks()
    world.clock.advance(0.01)
    await ticks()
    await soon(delivering)
    assert [one.member_id for one in agent.take(a.SendStartRun)] == ["ada"]


async def test_a_stream_that_breaks_while_it_is_being_attached_leaves_a_suspended_agent() -> None:
    world = HubWorld()
    await world.create("ada")
    world.writer.open = False
    agent = await AgentPeer(world).hello()
    agent.break_off()
    world.writer.commit()
    world.writer.open = True
    await ticks()
    (attachment_id,) = world.actor.mob.attachments
    assert world.hub.connectivity("m", attachment_id) == "suspended"
    assert attachment_id not in world.hub.connected("m")
    await world.elapse(TERMS.grace_s + 3)
    assert not world.actor.mob.attachments


async def test_an_agent_whose_attachment_could_not_be_stored_is_attached_when_the_store_is_back() -> None:
    world = HubWorld()
    await world.create("ada")
    world.writer.open = False
    agent = await AgentPeer(world).hello()
    world.writer.fail("unknown")
    world.writer.open = True
    await ticks()
    assert [one.attachment_id for one in agent.take(f.Welcome)] == [""]
    await world.mend_store()
    await world.elapse(2)
    (welcome,) = agent.take(f.Welcome)
    assert welcome.attachment_id
    assert [one.member_id for one in agent.take(a.SendAssign)] == ["ada"]


async def test_an_agent_that_wants_no_work_before_its_mob_is_there_gets_none() -> None:
    world = HubWorld()
    agent = await AgentPeer(world).hello()
    await agent.say(f.Drain())
    await world.create("ada")
    assert agent.connectivity == "connected"
    assert agent.attachment_id not in world.hub.connected("m")
    assert world.served_by() is None


async def test_an_agent_is_attached_when_the_journal_has_room() -> None:
    world = HubWorld(slots=16)
    await world.create("ada")
    world.writer.open = False
    for place in range(16):
        world.actor.submit(deliver(f"f{place}"), ANYBODY, kept=place >= 15)
    agent = await AgentPeer(world).hello()
    assert agent.frames == []
    world.writer.commit()
    world.writer.open = True
    await ticks()
    world.clock.advance(0.01)
    await ticks()
    assert [one.attachment_id != "" for one in agent.take(f.Welcome)] == [True]
    assert agent.take(a.SendAssign)


async def test_a_creation_that_fails_leaves_its_agents_waiting() -> None:
    world = HubWorld()
    agent = await AgentPeer(world).hello()
    agent.take(f.Welcome)
    world.writer.open = False
    creating = asyncio.ensure_future(world.registry.create("m", create_mob(), ANYBODY))
    await ticks()
    world.writer.fail("aborted")
    world.writer.open = True
    await asyncio.gather(creating, return_exceptions=True)
    await world.mend_store()
    assert not agent.ended()
    assert not agent.take(f.Welcome)
    await world.create("ada")
    assert [one.attachment_id != "" for one in agent.take(f.Welcome)] == [True]


async def test_a_server_that_drains_says_goodbye_to_all_and_keeps_their_attachments_open() -> None:
    world = HubWorld()
    await world.create("ada")
    agent, waiting = await AgentPeer(world).serve(), AgentPeer(world, "h2")
    await waiting.hello(mob_id="nowhere")
    world.hub.drain()
    await ticks()
    for one in (agent, waiting):
        (goodbye,) = one.take(f.Goodbye)
        assert goodbye.reason == "draining"
        assert goodbye.retry_after_s is not None
        assert one.ended()
        assert one.error is None
    with pytest.raises(Draining):
        AgentPeer(world, "h3")
    assert "attachment_closed" not in await world.kinds()
    assert world.hub.connections == 0
