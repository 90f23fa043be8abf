"""What agents answer, or don't, to members and runs that they are given; results, and the digests of transcripts."""

import asyncio
import hashlib
import json

import pytest
from tests.actors.hub_world import TERMS, AgentPeer, HubWorld, result
from tests.actors.world import ANYBODY, deliver, soon
from tests.support.loops import ticks

from mobd_server.actors import frames as f
from mobd_server.errors import Internal
from mobd_server.machines import answers as a
from mobd_server.machines import commands as c
from mobd_server.machines.events import ExecutorReleased, RunSettled
from mobd_server.machines.records import Append
from mobd_server.machines.state import Usage

pytestmark = pytest.mark.asyncio


async def serving(world: HubWorld, *members: str) -> AgentPeer:
    """Return an agent that serves all members of a new mob."""
    await world.create(*members)
    return await AgentPeer(world).serve()


async def settlements(world: HubWorld) -> list[RunSettled]:
    return [record.event for record in await world.log() if isinstance(record.event, RunSettled)]


def digest(*messages: object) -> str:
    """Return the digest of a transcript as anybody would compute it."""
    text = json.dumps(list(messages), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


async def test_a_member_that_is_not_answered_for_goes_to_another_agent_and_the_first_is_told() -> None:
    world = HubWorld()
    await world.create("ada")
    deaf = await AgentPeer(world).hello()
    other = await AgentPeer(world, "h2").hello()
    await world.deliver("i1")
    await world.elapse(TERMS.accept_s - 1)
    assert world.served_by() == "h1"
    await world.elapse(3)
    assert world.served_by() == "h2"
    assert [one.reason for one in deaf.take(a.SendUnassign)] == ["no answer within 10 s"]
    await other.accept_members()
    assert other.take(a.SendStartRun)
    (assign,) = deaf.take(a.SendAssign)
    await deaf.say(f.Assigned(assign.member_id, assign.fence))
    assert world.served_by() == "h2"


async def test_a_member_that_is_declined_goes_to_another_agent() -> None:
    world = HubWorld()
    await world.create("ada")
    picky = await AgentPeer(world).hello()
    await AgentPeer(world, "h2").hello()
    (assign,) = picky.take(a.SendAssign)
    await picky.say(f.Declined("ada", assign.fence, "too hard"))
    await world.elapse(1)
    assert world.served_by() == "h2"
    released = [record.event for record in await world.log() if isinstance(record.event, ExecutorReleased)]
    assert [one.reason for one in released] == ["declined: too hard"]


async def test_a_member_that_is_answered_for_stays() -> None:
    world = HubWorld()
    agent = await serving(world, "ada")
    await world.elapse(TERMS.accept_s + 3)
    assert world.served_by() == "h1"
    assert not agent.take(a.SendUnassign)


async def test_a_run_that_is_not_accepted_in_time_is_a_lost_attempt() -> None:
    world = HubWorld()
    agent = await serving(world, "ada")
    await world.deliver("i1")
    (start,) = agent.take(a.SendStartRun)
    await world.elapse(TERMS.accept_s - 1)
    assert not await settlements(world)
    await world.elapse(3)
    (lost,) = await settlements(world)
    assert (lost.run_id, lost.state) == (start.run_id, "lost")
    assert [one.disposition for one in agent.take(a.SendSettled)] == ["requeued"]
    assert [one.inputs[0].attempt for one in agent.take(a.SendStartRun)] == [2]


async def test_a_run_that_is_accepted_settled_or_listed_by_a_heartbeat_in_time_is_not_lost() -> None:
    world = HubWorld()
    agent = await serving(world, "ada", "bob", "cyd")
    for member_id in ("ada", "bob", "cyd"):
        await world.deliver(f"for-{member_id}", member_id)
    accepted, settled, listed = agent.take(a.SendStartRun)
    await agent.say(f.RunAccepted(accepted.run_id, accepted.fence), result(settled))
    await agent.beat(accepted.run_id, listed.run_id)
    await world.elapse(TERMS.accept_s + 3)
    assert [one.state for one in await settlements(world)] == ["committed"]


async def test_an_acceptance_with_a_stale_fence_is_none() -> None:
    world = HubWorld()
    agent = await serving(world, "ada")
    await world.deliver("i1")
    (start,) = agent.take(a.SendStartRun)
    await agent.say(f.RunAccepted(start.run_id, start.fence - 1))
    await world.elapse(TERMS.accept_s + 2)
    assert [one.state for one in await settlements(world)] == ["lost"]


async def test_a_run_that_two_heartbeats_in_a_row_do_not_list_is_a_lost_attempt() -> None:
    world = HubWorld()
    agent = await serving(world, "ada")
    await world.deliver("i1")
    start = await agent.accept_run()
    for held in ([], [start.run_id], []):
        await agent.beat(*held)
    assert not await settlements(world)
    await agent.beat()
    assert [one.state for one in await settlements(world)] == ["lost"]


async def test_a_run_whose_result_is_being_stored_is_not_missed() -> None:
    world = HubWorld()
    agent = await serving(world, "ada")
    await world.deliver("i1")
    start = await agent.accept_run()
    world.writer.open = False
    await agent.say(result(start), f.Heartbeat([]), f.Heartbeat([]), f.Heartbeat([]))
    world.writer.commit()
    world.writer.open = True
    await ticks()
    assert [one.state for one in await settlements(world)] == ["committed"]
    assert [one.disposition for one in agent.take(a.SendSettled)] == ["committed"]


async def test_a_run_that_was_held_at_the_return_is_missed_like_any_other() -> None:
    world = HubWorld()
    agent = await serving(world, "ada")
    await world.deliver("i1")
    start = await agent.accept_run()
    agent.break_off()
    await agent.reconnect(start.run_id)
    await agent.beat()
    assert not await settlements(world)
    await agent.beat()
    assert [one.state for one in await settlements(world)] == ["lost"]


async def test_a_run_that_was_accepted_since_the_last_heartbeat_is_not_sent_again_when_the_mob_is_read_anew() -> None:
    world = HubWorld()
    agent = await serving(world, "ada")
    await world.deliver("i1")
    start = await agent.accept_run()
    world.registry.evict(world.actor)
    await world.elapse(1)
    assert agent.take(f.Resync)
    assert not agent.take(a.SendStartRun)
    await agent.say(result(start))
    assert [one.disposition for one in agent.take(a.SendSettled)] == ["committed"]


async def test_a_result_is_settled_with_its_usage_and_what_waits_is_started() -> None:
    world = HubWorld()
    agent = await serving(world, "ada")
    await world.deliver("i1")
    await world.deliver("i2")
    start = await agent.accept_run()
    said = result(start, '{"b": 1, "a": 2}')
    await agent.say(f.RunResult(said.run_id, said.fence, said.output, usage=Usage(3, 4)))
    (settled,) = await settlements(world)
    assert bytes(settled.output) == b'{"b": 1, "a": 2}'
    assert settled.usage == Usage(3, 4)
    kinds = [type(frame) for frame in agent.frames if not isinstance(frame, f.Welcome)]
    assert kinds == [a.SendSettled, a.SendStartRun]


async def test_the_digest_is_that_of_the_whole_transcript_over_runs_and_loads() -> None:
    world = HubWorld()
    agent = await serving(world, "ada")
    assert world.member().digest == digest()
    await world.deliver("i1")
    await agent.say(result(await agent.accept_run(), "1", '{"z": [1, 2.5], "é": "ü"}', '"two"', expected=0))
    messages: list[object] = [{"z": [1, 2.5], "é": "ü"}, "two"]
    assert (world.member().message_count, world.member().digest) == (2, digest(*messages))
    await world.deliver("i2")
    await agent.say(result(await agent.accept_run(), "2", expected=2))
    assert world.member().digest == digest(*messages)
    world.registry.evict(world.actor)
    await world.elapse(1)
    await world.deliver("i3")
    await agent.say(result(await agent.accept_run(), "3", '{"b":1,"a":null}', expected=2))
    messages.append({"a": None, "b": 1})
    assert (world.member().message_count, world.member().digest) == (3, digest(*messages))
    rows = await world.store.read_messages("m", world.member().session_id, 0, 10)
    assert [json.loads(row.payload) for row in rows] == messages
    assert "[" + ",".join(row.payload for row in rows) + "]" == json.dumps(
        messages, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )


async def test_a_transcript_is_read_once_and_then_only_added_to() -> None:
    world = HubWorld()
    agent = await serving(world, "ada")
    for count in range(3):
        await world.deliver(f"i{count}")
        start = await agent.accept_run()
        world.store.unavailable = True
        await agent.say(result(start, "1", f"{count}", expected=count))
        world.store.unavailable = False
    assert world.member().digest == digest(0, 1, 2)


async def test_a_result_that_expects_another_transcript_ends_the_stream_and_changes_nothing() -> None:
    world = HubWorld()
    agent = await serving(world, "ada")
    await world.deliver("i1")
    start = await agent.accept_run()
    await agent.say(result(start, "1", '"m"', expected=1))
    (goodbye,) = agent.take(f.Goodbye)
    assert goodbye.reason == "protocol"
    assert agent.ended()
    assert agent.connectivity == "suspended"
    assert not await settlements(world)
    assert world.member().message_count == 0


async def test_a_result_that_comes_twice_is_a_duplicate_and_another_one_ends_the_stream() -> None:
    world = HubWorld()
    agent = await serving(world, "ada")
    await world.deliver("i1")
    start = await agent.accept_run()
    await agent.say(result(start, '{"a": 1, "b": 2}', '"m"', expected=0))
    await agent.say(result(start, '{"b":2,"a":1}', '"m"', expected=0))
    assert [one.disposition for one in agent.take(a.SendSettled)] == ["committed", "duplicate"]
    assert world.member().message_count == 1
    await agent.say(result(start, '{"a": 1, "b": 2}', '"n"'))
    assert [one.reason for one in agent.take(f.Goodbye)] == ["protocol"]
    assert agent.ended()
    assert len(await settlements(world)) == 1


async def test_a_result_with_a_stale_fence_is_fenced_and_changes_nothing() -> None:
    world = HubWorld()
    agent = await serving(world, "ada")
    await world.deliver("i1")
    start = await agent.accept_run()
    said = result(start)
    await agent.say(f.RunResult(said.run_id, said.fence + 1, said.output))
    assert [one.disposition for one in agent.take(a.SendSettled)] == ["fenced"]
    assert not await settlements(world)


async def test_failures_and_releases_are_told_to_the_mob() -> None:
    world = HubWorld()
    agent = await serving(world, "ada")
    await world.deliver("i1")
    start = await agent.accept_run()
    await agent.say(f.RunFailed(start.run_id, start.fence, "released"))
    again = await agent.accept_run()
    assert again.inputs[0].attempt == 1
    await agent.say(f.RunFailed(again.run_id, again.fence, "error", "no luck", retryable=False))
    assert [one.disposition for one in agent.take(a.SendSettled)] == ["requeued", "abandoned"]
    assert [one.state for one in await settlements(world)] == ["released", "failed"]


async def test_a_result_waits_for_room_in_the_journal_and_the_silence_meanwhile_means_nothing() -> None:
    world = HubWorld(slots=16)
    agent = await serving(world, "ada", "bob")
    await world.deliver("i1")
    start = await agent.accept_run()
    world.writer.open = False
    # Ordinary calls leave the kept slots; what agents say takes them too.
    for place in range(16):
        world.actor.submit(deliver(f"f{place}", "bob"), ANYBODY, kept=place >= 15)
    assert world.journal.refusal(kept=True) is not None
    saying = asyncio.ensure_future(world.hub.receive(agent.connection, [result(start)]))
    await ticks()
    assert not saying.done()
    await world.elapse(TERMS.lease_s * 2)
    assert agent.connectivity == "connected"
    world.writer.commit()
    world.writer.open = True
    await ticks()
    world.clock.advance(0.01)
    await ticks()
    await soon(saying)
    if world.writer.in_flight():
        world.writer.commit()
    await ticks(40)
    assert [one.disposition for one in agent.take(a.SendSettled)] == ["committed"]


class PoisonedWorld(HubWorld):
    """A world whose writer can't store the outputs that a test names."""

    def __init__(self, poison: str) -> None:
        super().__init__()
        inner, self.refused = self.writer.submit, 0

        def submit(group: list[Append], done: object) -> None:
            inner(group, done)  # type: ignore[arg-type]  # a double with what is used of it
            if any(poison in record.payload for append in group for record in append.records):
                self.refused += 1
                self.writer.fail("offender")
            else:
                self.writer.commit()

        self.writer.open = False
        self.writer.submit = submit  # type: ignore[assignment,method-assign]  # in its place


async def test_a_result_that_cannot_be_stored_fails_its_attempt_and_nothing_else() -> None:
    world = PoisonedWorld("poison")
    agent = await serving(world, "ada")
    await world.deliver("i1")
    start = await agent.accept_run()
    await agent.say(result(start, '"poison"'))
    await world.elapse(1)
    assert agent.take(f.Resync)
    await agent.say(result(start, '"poison"'))
    assert [one.disposition for one in agent.take(a.SendSettled)] == ["requeued"]
    (failed,) = await settlements(world)
    assert (failed.state, failed.error) == ("failed", "its result can't be stored")
    assert world.refused == 1


async def test_a_transcript_that_the_store_has_lost_ends_the_stream_as_a_fault_of_ours() -> None:
    world = HubWorld()
    agent = await serving(world, "ada")
    await world.deliver("i1")
    await agent.say(result(await agent.accept_run(), "1", '"m"'))
    world.registry.evict(world.actor)
    await world.elapse(1)
    world.store.logs["m"].messages.clear()
    await world.deliver("i2")
    with pytest.raises(Internal):
        await agent.say(result(await agent.accept_run(), "2", '"n"'))


async def test_losing_what_nobody_has_changes_nothing() -> None:
    world = HubWorld()
    agent = await serving(world, "ada")
    before = await world.kinds()
    await world.ask(c.LoseRun(agent.attachment_id, "run-none", 1, "nobody has it"))
    assert await world.kinds() == before
