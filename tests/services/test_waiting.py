"""What services wait for: bookmarks by the clock, changes by published events, and commits before anything is told."""

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

import pytest
from msgspec.structs import replace
from tests.actors.world import ANYBODY, World, deliver, soon

from mobd_server.errors import Draining, InputNotFound, MobQuarantined
from mobd_server.machines import commands as c
from mobd_server.services.bridge import LOOK_AGAIN_S, Bridge
from mobd_server.services.events import BOOKMARK_S, Bookmark, EventFilter, Events, Start
from mobd_server.services.inputs import InputView
from mobd_server.services.members import Members
from mobd_server.services.mobs import Mobs

T = TypeVar("T")

pytestmark = pytest.mark.asyncio

ALL = EventFilter()


def events_of(world: World) -> Events:
    return Events(world.registry, world.publisher, world.store, world.clock)


def bridge_of(world: World) -> Bridge:
    return Bridge(world.registry, world.publisher, world.store, world.hub, world.clock)  # type: ignore[arg-type]  # a double with what is used of it


async def following(stream: AsyncIterator[T]) -> T:
    """Return what a stream brings next."""
    return await soon(anext(stream))


def begun(stream: AsyncIterator[T]) -> "asyncio.Task[T]":
    """Wait for what a stream brings next in a task of its own."""
    return asyncio.ensure_future(anext(stream))


async def settled(world: World) -> None:
    """Let everything happen that needs neither time nor a commit."""
    while True:
        planned = len(world.clock.planned)
        for _ in range(20):
            await asyncio.sleep(0)  # noqa: TID251 gives the loop its turns, waits for no time
        if len(world.clock.planned) == planned:
            return


async def test_a_silent_log_is_bookmarked_again_and_again() -> None:
    world = World()
    await world.create("m", "ada")
    stream = events_of(world).watch("m", Start("latest"), ALL, "")
    assert await following(stream) == Bookmark(3, 3, "log-1")
    for _ in range(3):
        waiting = begun(stream)
        await settled(world)
        world.clock.advance(BOOKMARK_S)
        # Within the 10 seconds that the protocol promises.
        assert BOOKMARK_S < 10
        assert await soon(waiting) == Bookmark(3, 3, "log-1")
    await stream.aclose()  # type: ignore[attr-defined]  # a generator


async def test_bookmarks_pass_events_that_the_filter_leaves_out() -> None:
    world = World()
    actor = await world.create("m", "ada")
    stream = events_of(world).watch("m", Start("latest"), EventFilter(frozenset({"no_such_kind"})), "")
    assert await following(stream) == Bookmark(3, 3, "log-1")
    waiting = begun(stream)
    await settled(world)
    await soon(actor.ask(deliver("i1"), ANYBODY))
    await settled(world)
    assert not waiting.done()
    world.clock.advance(BOOKMARK_S)
    assert await soon(waiting) == Bookmark(4, 4, "log-1")
    await stream.aclose()  # type: ignore[attr-defined]  # a generator


async def test_a_busy_log_is_bookmarked_too() -> None:
    world = World()
    actor = await world.create("m", "ada")
    stream = events_of(world).watch("m", Start("latest"), ALL, "")
    await following(stream)
    for number in range(3):
        await soon(actor.ask(deliver(f"i{number}"), ANYBODY))
        part = await following(stream)
        assert not isinstance(part, Bookmark)
        assert [record.seq for record in part] == [4 + number]
        world.clock.advance(BOOKMARK_S)
        assert await following(stream) == Bookmark(4 + number, 4 + number, "log-1")
    await stream.aclose()  # type: ignore[attr-defined]  # a generator


async def test_a_log_that_can_not_be_applied_can_still_be_read() -> None:
    world = World()
    actor = await world.create("m", "ada")
    world.registry.evict(actor)
    # A fact that cannot follow: ada is there already.
    stored = world.store.logs["m"]
    stored.records.append(replace(stored.records[2], seq=4))
    stored.head = 4
    events = events_of(world)
    with pytest.raises(MobQuarantined):
        await soon(world.registry.load("m"))
    page = await soon(events.poll("m", Start("after", 0), 0, ALL, ""))
    assert [record.seq for record in page.records] == [1, 2, 3, 4]
    assert (page.next_cursor, page.head) == (4, 4)


async def test_an_input_is_shown_when_it_is_durable_and_not_before() -> None:
    world = World()
    actor = await world.create("m", "ada")
    world.hold()
    delivering = asyncio.ensure_future(actor.ask(deliver("i1"), ANYBODY))
    bridge = bridge_of(world)
    asking = asyncio.ensure_future(bridge.get_input("m", "ada", "i1"))
    unknown = asyncio.ensure_future(bridge.get_input("m", "ada", "i2"))
    await settled(world)
    # Not even that i2 is unknown may be said: it was computed from what may be lost.
    assert not delivering.done()
    assert not asking.done()
    assert not unknown.done()
    world.writer.commit()
    assert (await soon(asking)).state == "queued"
    with pytest.raises(InputNotFound):
        await soon(unknown)
    await soon(delivering)


async def test_a_watched_input_is_told_once_for_each_change() -> None:
    world = World()
    actor = await world.create("m", "ada", "bob")
    await soon(actor.ask(deliver("i1"), ANYBODY))
    stream = bridge_of(world).watch_input("m", "ada", "i1")
    seen: list[InputView] = [await following(stream)]
    assert (seen[0].state, seen[0].waiting_reason) == ("queued", "no agent serves role analyst")
    waiting = begun(stream)
    await settled(world)
    # What happens to others, and looking again without a change, say nothing.
    await soon(actor.ask(deliver("i2", "bob"), ANYBODY))
    world.clock.advance(LOOK_AGAIN_S)
    await settled(world)
    assert not waiting.done()
    attachment_id = await world.confirm(actor)
    while (view := await soon(waiting)).state == "queued":
        seen.append(view)
        waiting = begun(stream)
    assert (view.state, view.attempt) == ("running", 1)
    # While it is being confirmed a later reason may take the place of an earlier one; none is said twice.
    reasons = [one.waiting_reason for one in seen]
    assert len(set(reasons)) == len(reasons)
    run = next(run for run in actor.mob.runs.values() if run.member_id == "ada")
    command = c.FailRun(attachment_id, run.run_id, run.fence, "error", "boom", retryable=False)
    await soon(actor.ask(command, ANYBODY))
    last = await following(stream)
    assert (last.state, last.run_id) == ("abandoned", run.run_id)
    with pytest.raises(StopAsyncIteration):
        await following(stream)


async def test_an_agent_that_goes_away_changes_what_an_input_waits_for() -> None:
    world = World()
    actor = await world.create("m", "ada")
    await world.confirm(actor)
    await soon(actor.ask(deliver("i1"), ANYBODY))
    await soon(actor.ask(deliver("i2"), ANYBODY))
    stream = bridge_of(world).watch_input("m", "ada", "i2")
    assert (await following(stream)).waiting_reason == "an earlier run of the member is in flight"
    await stream.aclose()  # type: ignore[attr-defined]  # a generator
    # Connections are no events: a watcher looks again by itself.
    await soon(actor.ask(c.StopMob(), ANYBODY))
    stream = bridge_of(world).watch_input("m", "ada", "i2")
    await following(stream)
    waiting = begun(stream)
    await settled(world)
    assert any(abs(due - LOOK_AGAIN_S) < 0.001 for due in world.clock.planned)
    waiting.cancel()


async def test_a_destruction_is_answered_when_its_last_event_is_durable() -> None:
    world = World()
    actor = await world.create("m", *(f"a{number}" for number in range(3)))
    mobs = Mobs(world.registry, world.publisher, world.store, lambda: "log-2")
    world.hold()
    destroying = asyncio.ensure_future(mobs.destroy("m", ANYBODY))
    await settled(world)
    assert actor.mob.phase == "destroyed"
    assert not destroying.done()
    world.writer.commit()
    destroyed = await soon(destroying)
    assert destroyed.answer.done
    assert [one.member_id for one in destroyed.answer.outcomes] == ["a0", "a1", "a2"]
    assert destroyed.cursor == (await world.log())[-1].seq


async def test_who_waits_for_a_destruction_is_told_that_the_server_leaves() -> None:
    world = World()
    await world.create("m")
    actor = world.actor()
    specs = [c.MemberSpec(f"a{number:04}", "analyst") for number in range(700)]
    await soon(actor.ask(c.SpawnMembers(specs), ANYBODY))
    mobs = Mobs(world.registry, world.publisher, world.store, lambda: "log-2")
    world.hold()
    destroying = asyncio.ensure_future(mobs.destroy("m", ANYBODY))
    await settled(world)
    # The first slice is durable, the mob is not destroyed yet.
    world.writer.commit()
    await settled(world)
    world.publisher.close()
    with pytest.raises(Draining):
        await soon(destroying)


async def test_who_waits_for_members_is_answered_by_events_or_by_the_clock_and_looks_no_other_time() -> None:
    world = World()
    actor = await world.create("m", "ada", "bob")
    members = Members(world.registry, world.publisher, world.clock)
    waiting = asyncio.ensure_future(members.wait("m", ["bob", "ada"], "ready", 30.0))
    await settled(world)
    # One look, and one timer for the end of the patience.
    assert len(world.clock.planned) == 1
    attachment_id = await world.confirm(actor, "ada")
    await settled(world)
    assert not waiting.done()
    world.clock.advance(29.0)
    await settled(world)
    assert not waiting.done()
    world.clock.advance(1.0)
    assert await soon(waiting) == (["ada"], ["bob"])
    again = asyncio.ensure_future(members.wait("m", [], "ready", 30.0))
    await settled(world)
    executor = actor.mob.members["bob"].executor
    assert executor is not None
    world.hold()
    confirming = asyncio.ensure_future(actor.ask(c.Confirm(attachment_id, "bob", executor.fence), ANYBODY))
    await settled(world)
    # What is not durable is true for nobody.
    assert not again.done()
    world.writer.commit()
    assert await soon(again) == (["ada", "bob"], [])
    await soon(confirming)


async def test_who_waits_for_members_is_told_that_the_server_leaves() -> None:
    world = World()
    await world.create("m", "ada")
    waiting = asyncio.ensure_future(Members(world.registry, world.publisher, world.clock).wait("m", [], "final", 30.0))
    await settled(world)
    world.publisher.close()
    with pytest.raises(Draining):
        await soon(waiting)
