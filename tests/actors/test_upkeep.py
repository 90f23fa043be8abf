"""What is done for mobs while nobody asks: snapshots when a log has grown, and leave for those at rest."""

import asyncio

import pytest
from tests.actors.world import ANYBODY, World, asking, create_mob, deliver, soon
from tests.support.loops import ticks

from mobd_server.actors.upkeep import AGAIN_S, LOOK_S, Keeping
from mobd_server.errors import MobNotFound
from mobd_server.machines import commands as c
from mobd_server.machines import snapshot as snapshots
from mobd_server.machines.views import view_mob

pytestmark = pytest.mark.asyncio

KEEPING = Keeping(snapshot_events=10, snapshot_tail=4, passivate_after_s=60)
WHOLE = 1 << 40


def world(keeping: Keeping = KEEPING) -> World:
    return World(keeping=keeping)


async def delivered(world: World, count: int, mob_id: str = "m") -> None:
    actor = world.actor(mob_id)
    for _ in range(count):
        await soon(actor.ask(deliver(f"i{actor.mob.head}"), ANYBODY))


async def written(world: World) -> int:
    """Return the seq of the next snapshot, when it is stored."""
    return await soon(world.writer.snapshots.get())


def kept(world: World, mob_id: str = "m") -> int:
    return max(world.store.logs[mob_id].snapshots, default=0)


async def test_a_log_that_grew_gets_a_snapshot_at_the_next_look() -> None:
    one = world()
    actor = await one.create("m", "ada")
    await delivered(one, 6)
    one.clock.advance(LOOK_S)
    await ticks(20)
    assert kept(one) == 0
    await delivered(one, 1)
    assert actor.confirmed == 10
    one.clock.advance(LOOK_S)
    assert await written(one) == 10
    found = await one.store.read_snapshot("m", WHOLE)
    assert found is not None
    assert snapshots.decode(found.state) == actor.mob
    await delivered(one, 9)
    one.clock.advance(LOOK_S)
    await ticks(20)
    assert kept(one) == 10
    await delivered(one, 1)
    one.clock.advance(LOOK_S)
    assert await written(one) == 20


async def test_what_is_read_from_a_snapshot_is_what_was_decided() -> None:
    one = world()
    actor = await one.create("m", "ada")
    await delivered(one, 10)
    one.clock.advance(LOOK_S)
    assert await written(one) == 13
    await delivered(one, 3)
    other = World(one.store, keeping=KEEPING)
    loaded = await soon(other.registry.load("m"))
    assert loaded.mob == actor.mob
    # It knows how far its newest snapshot is behind.
    await delivered(other, 6)
    other.clock.advance(LOOK_S)
    await ticks(20)
    assert kept(other) == 13
    await delivered(other, 1)
    other.clock.advance(LOOK_S)
    assert await written(other) == 23


async def test_a_snapshot_that_failed_is_tried_again_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    one = world()
    await one.create("m", "ada")
    await delivered(one, 10)
    one.store.unavailable = True
    one.clock.advance(LOOK_S)
    await ticks(20)
    assert "snapshot_failed" in caplog.messages
    one.store.unavailable = False
    one.clock.advance(LOOK_S)
    await ticks(20)
    assert kept(one) == 0
    one.registry.get("m")
    one.clock.advance(AGAIN_S)
    assert await written(one) == 13


async def test_a_mob_that_nobody_uses_leaves_memory_with_a_snapshot_and_comes_back() -> None:
    one = world()
    actor = await one.create("m", "ada")
    await delivered(one, 2)
    state = actor.mob
    one.clock.advance(60)
    assert one.registry.loaded == 1
    one.clock.advance(2 * LOOK_S)
    assert (one.registry.loaded, one.hub.evictions) == (0, ["m"])
    assert one.publisher.feed("m") is None
    assert await written(one) == state.head
    # Nothing is planned for it, and nobody looks at an empty house.
    one.clock.advance(LOOK_S)
    assert not one.clock.planned
    again = await soon(one.registry.load("m"))
    assert (again.epoch, again.mob) == (2, state)


async def test_a_short_tail_is_no_reason_for_a_snapshot() -> None:
    one = world()
    await one.create("m", "ada")
    one.clock.advance(60 + 2 * LOOK_S)
    assert one.registry.loaded == 0
    await ticks(20)
    assert kept(one) == 0


async def test_whoever_uses_a_mob_keeps_it_in_memory() -> None:
    one = world()
    actor = await one.create("m", "ada")
    for _ in range(5):
        one.clock.advance(40)
        await soon((await soon(one.registry.load("m"))).read(view_mob))
    assert one.actor() is actor
    for _ in range(5):
        one.clock.advance(40)
        assert one.registry.get("m") is actor


async def test_a_mob_with_agents_followers_or_waiting_streams_stays() -> None:
    one = world()
    await one.create("followed", "ada")
    await one.create("watched", "ada")
    attached = await one.create("attached", "ada")
    await one.attach(attached)
    subscription = one.publisher.subscribe("followed", 0)
    watch = one.publisher.watch("watched")
    one.clock.advance(300)
    assert one.registry.loaded == 3
    one.hub.busy = True
    subscription.close()
    watch.close()
    one.clock.advance(300)
    assert one.registry.loaded == 3
    one.hub.busy = False
    one.clock.advance(300)
    assert one.registry.loaded == 1


async def test_a_mob_whose_answer_is_held_stays() -> None:
    one = world()
    actor = await one.create("m", "ada")
    one.hold()
    held = asking(actor, deliver("i1"))
    await ticks()
    one.clock.advance(300)
    assert one.registry.loaded == 1
    one.writer.commit()
    await soon(held)
    one.clock.advance(LOOK_S)
    assert one.registry.loaded == 0


async def test_zero_keeps_every_mob_in_memory() -> None:
    one = world(Keeping(snapshot_events=10, snapshot_tail=4, passivate_after_s=0))
    await one.create("m", "ada")
    one.clock.advance(100_000)
    assert one.registry.loaded == 1


async def _retrying(one: World) -> None:
    """Leave a mob without agents whose next attempt is due a second later."""
    actor = await one.create("m", "ada")
    attachment_id = await one.confirm(actor)
    await one.fail_attempt(actor, attachment_id)
    await soon(actor.ask(c.CloseAttachment(attachment_id, "lost"), ANYBODY))
    assert not actor.mob.attachments


async def test_a_mob_that_owes_something_soon_stays() -> None:
    one = world(Keeping(snapshot_events=10, snapshot_tail=4, passivate_after_s=0.5))
    await _retrying(one)
    # When it has been unused for long enough, the retry is due in less than that.
    one.clock.advance(0.9)
    assert one.registry.loaded == 1


async def test_a_mob_that_owes_something_later_leaves_and_is_read_again_in_time() -> None:
    one = world(Keeping(snapshot_events=10, snapshot_tail=4, passivate_after_s=0.2))
    await _retrying(one)
    due = one.actor().wake_at
    assert due == one.clock.now() + 1_000_000
    one.clock.advance(0.4)
    assert one.registry.loaded == 0
    assert one.clock.planned == pytest.approx([0.6])
    one.clock.advance(0.6)
    await ticks()
    one.clock.advance(0)
    await ticks()
    actor = one.actor()
    assert actor.mob.members["ada"].retry_at == 0
    assert (await one.log())[-1].kind == "retry_due"


async def test_many_mobs_are_looked_at_some_at_a_time() -> None:
    one = world()
    for number in range(520):
        await one.create(f"m{number}")
    for _ in range(14):
        one.clock.advance(LOOK_S)
        await ticks(3)
    assert one.registry.loaded == 0


async def _destroyed(one: World) -> None:
    actor = await one.create("m", "ada")
    await soon(actor.ask(c.DestroyMob(), ANYBODY))
    await ticks(20)
    assert (actor.mob.phase, actor.at_rest) == ("destroyed", True)


async def test_a_deleted_mob_is_gone_for_all_who_knew_it() -> None:
    one = world()
    await _destroyed(one)
    watch = one.publisher.watch("m")
    waiting = asyncio.create_task(watch.changed())
    await ticks()
    await soon(one.registry.delete("m"))
    with pytest.raises(MobNotFound):
        await soon(waiting)
    assert (one.registry.loaded, one.store.logs, one.publisher.feed("m")) == (0, {}, None)
    with pytest.raises(MobNotFound):
        await soon(one.registry.load("m"))
    with pytest.raises(MobNotFound):
        await soon(one.registry.delete("m"))
    await one.create("m", "new")
    assert list(one.actor().mob.members) == ["new"]


async def test_a_mob_that_is_created_while_its_name_is_being_freed_waits_for_it() -> None:
    one = world()
    await _destroyed(one)
    deleting = asyncio.create_task(one.registry.delete("m"))
    await ticks(1)
    creating = asyncio.create_task(one.registry.create("m", create_mob("log-2"), ANYBODY))
    await soon(deleting)
    await soon(creating)
    assert one.actor().log_id == "log-2"


async def test_a_deletion_that_was_cut_off_is_finished_at_the_next_start() -> None:
    one = world()
    await _destroyed(one)
    await one.store.mark_deleting("m")
    other = World(one.store, keeping=KEEPING)
    await soon(other.registry.recover())
    await ticks(20)
    assert not one.store.logs


async def test_what_is_being_done_ends_with_the_registry() -> None:
    one = world()
    await one.create("m", "ada")
    await delivered(one, 10)
    one.clock.advance(LOOK_S)
    await soon(one.registry.drain())
    one.clock.advance(300)
    assert not one.clock.planned
