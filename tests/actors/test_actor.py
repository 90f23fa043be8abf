"""One actor on real parts: nothing is seen before it is durable, and a failure is never seen at all."""

import asyncio
from typing import Any

import pytest
from tests.actors.world import ANYBODY, World, asking, deliver, noting, soon
from tests.support.loops import ticks

from mobd_server.actors.journal import GATHER_S
from mobd_server.actors.links import Call, Receiver, Reply
from mobd_server.errors import (
    CommitUnknown,
    Internal,
    JournalDown,
    JournalFull,
    MemberExists,
    MemberNotFound,
    MobReloading,
    RequestConflict,
)
from mobd_server.machines import commands as c
from mobd_server.machines.answers import Accepted, Deduplicated, DestroyAnswer, MemberView, MobView
from mobd_server.machines.views import view_mob

pytestmark = pytest.mark.asyncio


async def test_an_answer_waits_for_its_commit() -> None:
    world = World()
    actor = await world.create("m", "ada")
    world.hold()
    asked = asking(actor, deliver("i1"))
    await ticks()
    assert not asked.done()
    assert actor.mob.head == actor.confirmed + 1
    world.writer.commit()
    reply = await soon(asked)
    assert isinstance(reply.answer, Accepted)
    assert reply.cursor == reply.answer.seq == actor.confirmed == len(await world.log())


async def test_refusals_duplicates_and_reads_wait_for_what_they_saw() -> None:
    world = World()
    actor = await world.create("m", "ada")
    world.hold()
    spawn = asking(actor, c.SpawnMember(c.MemberSpec("bob", "analyst")))
    first = asking(actor, deliver("i1"))
    await ticks()
    refused = asking(actor, c.SpawnMember(c.MemberSpec("bob", "analyst")))
    duplicate = asking(actor, deliver("i1"))
    unknown = asking(actor, deliver("i1", member_id="nobody"))
    read = asyncio.create_task(actor.read(view_mob))
    later: list[asyncio.Future[Any]] = [refused, duplicate, unknown, read]
    await ticks()
    # The two are in one group or in two, by where the tick ended; what saw them is not out before both are stored.
    assert not any(task.done() for task in later)
    world.writer.commit()
    await ticks()
    assert first.done() or not any(task.done() for task in later)
    world.writer.open = True
    if world.writer.in_flight():
        world.writer.commit()
    await soon(asyncio.gather(spawn, first, *later, return_exceptions=True))
    assert isinstance(refused.exception(), MemberExists)
    assert isinstance(duplicate.result().answer, Deduplicated)
    assert isinstance(unknown.exception(), MemberNotFound)
    assert read.result().head == actor.confirmed


async def test_a_read_that_refuses_waits_too() -> None:
    world = World()
    actor = await world.create("m", "ada")

    def refuse(mob: object) -> None:
        raise MemberNotFound("no such member")

    world.hold()
    asked = asking(actor, deliver("i1"))
    await ticks()
    read = asyncio.create_task(actor.read(refuse))
    await ticks()
    assert not read.done()
    world.writer.commit()
    with pytest.raises(MemberNotFound):
        await soon(read)
    await soon(asked)
    with pytest.raises(MemberNotFound):
        await soon(actor.read(refuse))


async def test_what_is_durable_already_is_answered_at_once() -> None:
    world = World()
    actor = await world.create("m", "ada")
    await soon(actor.ask(deliver("i1"), ANYBODY))
    replies: list[Reply] = []
    actor.submit(deliver("i1"), ANYBODY, replies.append)
    assert isinstance(replies[0].answer, Deduplicated)
    assert replies[0].append is None


async def test_a_commit_is_published_then_answered_then_reacted_to() -> None:
    world = World()
    one, two = await world.create("one", "ada"), await world.create("two", "ada")
    for actor in (one, two):
        await world.confirm(actor)
    feeds = [world.publisher.feed("one"), world.publisher.feed("two")]
    world.told.clear()
    world.hold()

    def note(name: str) -> Receiver:
        def noted(reply: Reply) -> None:
            # Every event of the commit is published before its first answer is out.
            assert [feed.head for feed in feeds if feed] == [one.mob.head, two.mob.head]
            noting(world.told, name)(reply)

        return noted

    one.submit(deliver("i1"), ANYBODY, note("one"))
    two.submit(deliver("i1"), ANYBODY, note("two"))
    await ticks()
    assert world.told == []
    world.writer.commit()
    await ticks()
    assert world.told == ["one", "two", "SendStartRun", "SendStartRun"]


async def test_a_cancelled_waiter_does_not_undo_the_decision() -> None:
    world = World()
    actor = await world.create("m", "ada")
    world.hold()
    asked = asking(actor, deliver("i1"))
    await ticks()
    asked.cancel()
    await ticks()
    world.writer.commit()
    await ticks()
    assert (await world.log())[-1].kind == "input_accepted"
    assert isinstance((await soon(actor.ask(deliver("i1"), ANYBODY))).answer, Deduplicated)


async def test_a_receiver_that_fails_hurts_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    actor = await world.create("m", "ada")

    def fail(reply: Reply) -> None:
        raise ValueError("broken receiver")

    actor.submit(deliver("i1"), ANYBODY, fail)
    await soon(actor.ask(deliver("i2"), ANYBODY))
    assert "reply_failed" in caplog.text
    assert world.registry.get("m") is actor


async def test_a_repeated_request_gets_the_stored_answer() -> None:
    world = World()
    actor = await world.create("m")
    call = Call(request_id="r1", request_hash="h1")
    first = await soon(actor.ask(c.SpawnMember(c.MemberSpec("ada", "analyst")), call))
    await soon(actor.ask(c.SpawnMember(c.MemberSpec("bob", "analyst")), ANYBODY))
    again = await soon(actor.ask(c.SpawnMember(c.MemberSpec("ada", "analyst")), call))
    assert isinstance(first.answer, MemberView)
    assert again.answer == first.answer
    assert (again.replayed, again.cursor) == (True, first.cursor)
    assert not first.replayed
    with pytest.raises(RequestConflict):
        await soon(actor.ask(c.StopMob(), Call(request_id="r1", request_hash="h2")))


async def test_a_repeated_request_in_flight_joins_the_first() -> None:
    world = World()
    actor = await world.create("m")
    world.hold()
    call = Call(request_id="r1", request_hash="h1")
    first, again = (asking(actor, c.StopMob(), call) for _ in range(2))
    await ticks()
    assert not again.done()
    world.writer.commit()
    assert isinstance((await soon(again)).answer, MobView)
    assert (await soon(again)).replayed
    assert (await soon(again)).answer == (await soon(first)).answer


async def test_an_unknown_outcome_shows_nothing_and_the_state_is_what_the_log_says() -> None:
    for stored in (False, True):
        world = World()
        actor = await world.create("m", "ada")
        before = len(await world.log())
        world.hold()
        asked = asking(actor, deliver("i1"))
        await ticks()
        read = asyncio.create_task(actor.read(view_mob))
        await ticks()
        if stored:
            world.writer.lose_answer()
        else:
            world.writer.fail("unknown")
        for task in (asked, read):
            with pytest.raises(CommitUnknown):
                await soon(task)
        feed = world.publisher.feed("m")
        assert feed is not None
        assert feed.head == before
        assert world.registry.get("m") is None
        assert world.hub.evictions == ["m"]
        with pytest.raises(MobReloading):
            await soon(actor.read(view_mob))
        with pytest.raises(JournalDown):
            await soon(world.registry.load("m"))
        world.clock.advance(1)
        world.writer.answer_probe(answers=True)
        world.writer.open = True
        reloaded = await soon(world.registry.load("m"))
        assert reloaded.mob.head == before + stored == feed.head == len(await world.log())
        answer = (await soon(reloaded.ask(deliver("i1"), ANYBODY))).answer
        assert isinstance(answer, Deduplicated if stored else Accepted)


async def test_other_actors_go_on_after_a_fenced_one() -> None:
    world = World()
    one, two = await world.create("one", "ada"), await world.create("two", "ada")
    other = World(world.store)
    taken = await soon(other.registry.load("one"))
    await soon(taken.ask(deliver("theirs"), ANYBODY))
    fenced, fine = asking(one, deliver("ours")), asking(two, deliver("ours"))
    with pytest.raises(MobReloading):
        await soon(fenced)
    assert isinstance((await soon(fine)).answer, Accepted)
    assert not world.journal.down
    assert world.registry.get("one") is None
    assert world.registry.get("two") is two
    assert [record.kind for record in await world.log("one")].count("input_accepted") == 1


async def test_queued_appends_of_an_incarnation_never_land_after_its_actor_was_rebuilt() -> None:
    world = World()
    old = await world.create("m", "ada")
    world.hold()
    old.submit(deliver("i1"), ANYBODY)
    await ticks()
    queued = asking(old, deliver("i2"))
    await ticks()
    # In flight is i1, queued is i2: the actor is rebuilt while both are under way.
    world.registry.evict(old)
    with pytest.raises(MobReloading):
        await soon(queued)
    new = await soon(world.registry.load("m"))
    assert new is not old
    world.writer.commit()
    await ticks()
    assert world.writer.in_flight() == 0
    # The result of i1 came to the old incarnation, which is nobody's any more.
    assert world.registry.get("m") is new
    assert not new.failed
    assert new.mob.head == new.confirmed == len(await world.log())
    world.writer.open = True
    assert isinstance((await soon(new.ask(deliver("i3"), ANYBODY))).answer, Accepted)
    inputs = [record.payload for record in await world.log() if record.kind == "input_accepted"]
    assert len(inputs) == 1
    assert '"i3"' in inputs[0]


async def test_what_an_evicted_incarnation_has_queued_is_not_written() -> None:
    world = World()
    actor, other = await world.create("m", "ada"), await world.create("n", "ada")
    world.hold()
    other.submit(deliver("i1"), ANYBODY)
    await ticks()
    actor.submit(deliver("i1"), ANYBODY)
    groups = len(world.writer.groups)
    world.registry.evict(actor)
    world.writer.commit()
    await ticks()
    assert len(world.writer.groups) == groups


async def test_a_result_for_an_old_incarnation_never_touches_the_new_one(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    old = await world.create("m", "ada")
    world.hold()
    old.submit(deliver("i1"), ANYBODY)
    await ticks()
    world.writer.hold_answer()
    await ticks()
    world.registry.evict(old)
    new = await soon(world.registry.load("m"))
    with world.publisher.subscribe("m", new.confirmed - 1) as subscription:
        world.writer.release_answer()
        await ticks()
        page = await soon(subscription.next())
        assert page is not None
        assert [record.seq for record in page] == [new.confirmed]
    assert world.actor() is new
    assert "publish_failed" not in caplog.text


async def test_a_commit_that_its_incarnation_did_not_live_to_see_is_published_by_the_next() -> None:
    world = World()
    old = await world.create("m", "ada")
    subscription = world.publisher.subscribe("m", old.confirmed)
    world.hold()
    old.submit(deliver("i1"), ANYBODY)
    await ticks()
    world.registry.evict(old)
    world.writer.commit()
    await ticks()
    assert subscription.head == old.confirmed
    new = await soon(world.registry.load("m"))
    page = await soon(subscription.next())
    assert page is not None
    assert [record.kind for record in page] == ["input_accepted"]
    assert new.mob.head == page[-1].seq


async def test_a_poison_payload_fails_alone_in_its_group(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    actor, other = await world.create("m", "ada"), await world.create("n", "ada")
    world.hold()
    told: list[object] = []
    replies: list[Reply] = []
    actor.submit(deliver("before"), ANYBODY, noting(told, "before"))
    other.submit(deliver("other"), ANYBODY, noting(told, "other"))
    actor.submit(deliver("poison"), ANYBODY, replies.append)
    actor.submit(deliver("poison"), ANYBODY, noting(told, "again"))
    actor.submit(deliver("after"), ANYBODY, noting(told, "after"))
    await ticks()
    world.memory.poisoned = lambda append: '"poison"' in append.records[0].payload
    world.writer.commit()
    await ticks()
    assert told == ["before", "again: MOB_RELOADING", "after: MOB_RELOADING", "other"]
    error = replies[0].error
    assert isinstance(error, Internal)
    assert set(error.details) == {"error_id"}
    assert error.details["error_id"] in {getattr(record, "error_id", None) for record in caplog.records}
    assert world.registry.get("m") is None
    assert world.registry.get("n") is other
    assert not world.journal.down
    inputs = [[r.payload for r in await world.log(mob_id) if r.kind == "input_accepted"] for mob_id in ("m", "n")]
    assert [[payload.count('"before"') for payload in inputs[0]], len(inputs[1])] == [[1], 1]


async def test_a_bug_in_a_decision_is_internal_and_leaves_the_actor_alone(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    actor = await world.create("m", "ada")
    head = actor.mob.head
    with pytest.raises(Internal) as raised:
        await soon(actor.ask(c.Command(), ANYBODY))
    assert raised.value.details["error_id"].startswith("err-")
    assert "decision_failed" in caplog.text
    assert actor.mob.head == head
    assert isinstance((await soon(actor.ask(deliver("i1"), ANYBODY))).answer, Accepted)


async def test_a_full_journal_refuses_before_it_decides_but_keeps_room() -> None:
    world = World(slots=10)
    actor = await world.create("m", "ada")
    world.hold()
    asked = [asking(actor, deliver(f"i{n}")) for n in range(9)]
    await ticks()
    head = actor.mob.head
    with pytest.raises(JournalFull):
        await soon(actor.ask(deliver("one more"), ANYBODY))
    assert actor.mob.head == head
    kept = asyncio.ensure_future(actor.ask(deliver("kept"), ANYBODY, kept=True))
    await ticks()
    assert actor.mob.head == head + 1
    world.writer.open = True
    world.writer.commit()
    await ticks()
    world.clock.advance(GATHER_S)
    await soon(asyncio.gather(*asked, kept))


async def test_a_journal_that_is_down_refuses_before_it_decides_and_reads_go_on() -> None:
    world = World()
    actor, lost = await world.create("m", "ada"), await world.create("lost", "ada")
    world.hold()
    asked = asking(lost, deliver("i1"))
    await ticks()
    world.writer.fail("aborted")
    with pytest.raises(CommitUnknown):
        await soon(asked)
    head = actor.mob.head
    with pytest.raises(JournalDown):
        await soon(actor.ask(deliver("i1"), ANYBODY))
    assert actor.mob.head == head
    assert (await soon(actor.read(view_mob))).head == head


async def test_a_destruction_goes_on_by_itself_in_slices() -> None:
    world = World()
    actor = await world.create("m")
    specs = [c.MemberSpec(f"m{n}", "analyst") for n in range(600)]
    await soon(actor.ask(c.SpawnMembers(specs), ANYBODY))
    with world.publisher.subscribe("m", actor.confirmed) as subscription:
        reply = await soon(actor.ask(c.DestroyMob(), ANYBODY))
        assert isinstance(reply.answer, DestroyAnswer)
        assert not reply.answer.done
        kinds = [record.kind async for page in subscription for record in page]
    assert kinds[0] == "mob_destroying"
    assert kinds[-1] == "mob_destroyed"
    assert actor.mob.phase == "destroyed"


async def test_a_failed_attempt_is_tried_again_when_its_pause_is_over() -> None:
    world = World()
    actor = await world.create("m", "ada")
    await world.fail_attempt(actor, await world.confirm(actor))
    assert actor.mob.runs == {}
    assert len(world.clock.planned) == 1
    world.told.clear()
    world.clock.advance(0.999)
    await ticks()
    assert actor.mob.runs == {}
    world.clock.advance(0.001)
    await ticks()
    assert [run.attempts for run in actor.mob.runs.values()] == [[2]]
    assert world.told == ["SendStartRun"]
    assert [record.kind for record in await world.log()][-2:] == ["retry_due", "run_started"]


async def test_a_retry_that_is_due_while_the_journal_is_down_happens_when_it_is_up() -> None:
    world = World()
    actor, lost = await world.create("m", "ada"), await world.create("lost", "ada")
    await world.fail_attempt(actor, await world.confirm(actor))
    world.hold()
    asked = asking(lost, deliver("i1"))
    await ticks()
    world.writer.fail("unknown")
    await soon(asyncio.gather(asked, return_exceptions=True))
    world.clock.advance(1)
    await ticks()
    assert actor.mob.runs == {}
    world.writer.open = True
    world.writer.answer_probe(answers=True)
    await ticks()
    assert len(actor.mob.runs) == 1
