"""A mob that is being deleted: from the moment at which somebody can know of it, nobody finds it any more."""

import asyncio

import pytest
from tests.actors.world import ANYBODY, World, create_mob, soon
from tests.support.loops import ticks

from mobd_server.actors.upkeep import LOOK_S, Keeping
from mobd_server.adapters.memory.store import MemoryStore
from mobd_server.errors import InvalidTransition, MobNotFound
from mobd_server.machines import commands as c
from mobd_server.machines.records import Record

pytestmark = pytest.mark.asyncio


class LateStore(MemoryStore):
    """A memory store that does what it is asked at once, and whose answers come when a test lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.deletes = asyncio.Event()
        self.deletes.set()
        self.reads = asyncio.Event()
        self.reads.set()

    async def mark_deleting(self, mob_id: str) -> None:
        try:
            await super().mark_deleting(mob_id)
        finally:
            await self.answers.wait()

    async def delete_rows(self, mob_id: str) -> None:
        await self.deletes.wait()
        await super().delete_rows(mob_id)

    async def read_events(self, mob_id: str, after: int, limit: int, max_bytes: int = 1 << 20) -> list[Record]:
        await self.reads.wait()
        return await super().read_events(mob_id, after, limit, max_bytes)


async def destroyed(store: LateStore) -> World:
    """Return a server whose only mob is destroyed."""
    world = World(store)
    actor = await world.create("m", "ada")
    await soon(actor.ask(c.DestroyMob(), ANYBODY))
    await ticks(20)
    assert actor.mob.phase == "destroyed"
    return world


async def test_who_asks_when_the_store_knows_of_the_deletion_and_the_server_does_not_waits_for_it() -> None:
    store = LateStore()
    world = await destroyed(store)
    deleting = asyncio.create_task(world.registry.delete("m"))
    await ticks(3)
    # To whoever lists the mobs, or reads events, it is gone.
    assert await store.head("m") is None
    assert world.registry.get("m") is None
    asking = asyncio.create_task(world.registry.load("m"))
    await ticks(5)
    assert not asking.done()
    store.answers.set()
    await soon(deleting)
    with pytest.raises(MobNotFound):
        await soon(asking)


async def test_if_the_deletion_is_refused_who_waited_for_it_finds_the_mob_as_it_was() -> None:
    store = LateStore()
    world = World(store)
    actor = await world.create("m", "ada")
    deleting = asyncio.create_task(world.registry.delete("m"))
    await ticks(3)
    asking = [asyncio.create_task(world.registry.load("m")) for _ in range(2)]
    await ticks(5)
    store.answers.set()
    with pytest.raises(InvalidTransition):
        await soon(deleting)
    assert [await soon(one) for one in asking] == [actor, actor]
    assert world.registry.get("m") is actor


async def test_a_mob_that_another_server_deletes_while_it_is_read_is_gone_and_not_broken() -> None:
    store = LateStore()
    store.answers.set()
    first = await destroyed(store)
    second = World(store)
    store.reads.clear()
    loading = asyncio.create_task(second.registry.load("m"))
    await ticks(5)
    # Such as a server that stood still for a while, and goes on.
    await soon(first.registry.delete("m"))
    store.reads.set()
    with pytest.raises(MobNotFound):
        await soon(loading)
    assert not second.registry.quarantined
    await soon(second.registry.create("m", create_mob("log-2"), ANYBODY))
    assert second.actor().log_id == "log-2"


async def test_who_takes_the_name_while_it_is_being_freed_waits_until_it_is(caplog: pytest.LogCaptureFixture) -> None:
    store = LateStore()
    world = await destroyed(store)
    store.deletes.clear()
    deleting = asyncio.create_task(world.registry.delete("m"))
    await ticks(3)
    creating = asyncio.create_task(world.registry.create("m", create_mob("log-2"), ANYBODY))
    await ticks(5)
    store.answers.set()
    await ticks(10)
    assert not creating.done()
    store.deletes.set()
    await soon(deleting)
    await soon(creating)
    assert world.actor().log_id == "log-2"
    # Nothing was tried that the store had to refuse.
    assert "mob_evicted" not in caplog.messages


@pytest.mark.parametrize("again", [False, True])
async def test_a_mob_that_is_deleted_while_its_snapshot_is_made_misses_none(
    caplog: pytest.LogCaptureFixture, again: bool
) -> None:
    store = LateStore()
    store.answers.set()
    world = World(store, keeping=Keeping(snapshot_events=3, snapshot_tail=1, passivate_after_s=0))
    actor = await world.create("m", "ada")
    store.reads.clear()
    world.clock.advance(LOOK_S)
    await ticks(5)
    await soon(actor.ask(c.DestroyMob(), ANYBODY))
    await ticks(20)
    await soon(world.registry.delete("m"))
    if again:
        await soon(world.registry.create("m", create_mob("log-2"), ANYBODY))
    store.reads.set()
    await ticks(50)
    assert "snapshot_failed" not in caplog.messages
    assert await store.read_snapshot("m", 1 << 40) is None
