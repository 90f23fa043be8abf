"""Mobs that owe something are taken over many at a time, and none of them keeps another, or a caller, waiting."""

import asyncio
from collections.abc import Sequence

import pytest
from tests.actors.world import ANYBODY, World, create_mob, deliver, soon
from tests.support.loops import ticks

from mobd_server.actors.ahead import ACQUIRED, EVENTS
from mobd_server.actors.loading import rebuild
from mobd_server.adapters.memory.store import MemoryStore
from mobd_server.errors import MobNotFound, MobQuarantined, Unavailable
from mobd_server.machines import commands as c
from mobd_server.machines import snapshot as snapshots
from mobd_server.machines.records import Record
from mobd_server.ports import Beginning, Loaded, Snapshot, Wanted

pytestmark = pytest.mark.asyncio

EPOCH = 2


class SlowStore(MemoryStore):
    """A memory store that answers when a test lets it, and whose rows others may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.single: list[str] = []
        self.many: list[list[str]] = []
        self.read: list[list[str]] = []
        # Rows that somebody else holds, until the test says so.
        self.held: dict[str, asyncio.Event] = {}
        # What calls of these methods wait for.
        self.gates: dict[str, asyncio.Event] = {}
        self.failing: set[str] = set()

    async def _pass(self, method: str) -> None:
        if method in self.gates:
            await self.gates[method].wait()
        if method in self.failing:
            raise Unavailable("the store does not answer")

    async def acquire(self, mob_id: str) -> Loaded | None:
        self.single.append(mob_id)
        if mob_id in self.held:
            await self.held[mob_id].wait()
        return await super().acquire(mob_id)

    async def acquire_many(self, mob_ids: Sequence[str]) -> dict[str, Loaded | None]:
        self.many.append(list(mob_ids))
        free = [mob_id for mob_id in mob_ids if mob_id not in self.held]
        taken = {mob_id: await MemoryStore.acquire(self, mob_id) for mob_id in free}
        await self._pass("acquire_many")
        return taken

    async def read_many(self, wanted: Sequence[Wanted], limit: int, max_bytes: int = 4 << 20) -> list[Beginning]:
        self.read.append([one.mob_id for one in wanted])
        await self._pass("read_many")
        return await super().read_many(wanted, limit, max_bytes)

    async def read_events(self, mob_id: str, after: int, limit: int, max_bytes: int = 1 << 20) -> list[Record]:
        return await super().read_events(mob_id, after, limit, max_bytes)


async def owing(*names: str) -> tuple[World, SlowStore]:
    """Return a new process on mobs that have agents; what was asked of the store is forgotten."""
    store = SlowStore()
    first = World(store)
    for name in names:
        await first.attach(await first.create(name, "ada"))
    store.single.clear()
    store.many.clear()
    return World(store), store


async def test_all_are_taken_over_at_once() -> None:
    world, store = await owing("a", "b", "c")
    await soon(world.registry.recover())
    assert {actor.mob_id: actor.epoch for actor in world.registry.actors} == dict.fromkeys("abc", EPOCH)
    assert (store.single, store.many, store.read) == ([], [["a", "b", "c"]], [["a", "b", "c"]])
    for name in "abc":
        assert (await soon(world.actor(name).ask(deliver("i1"), ANYBODY))).answer is not None


async def test_many_are_taken_over_in_groups() -> None:
    names = [f"m{number:03}" for number in range(ACQUIRED + 3)]
    world, store = await owing(*names)
    await soon(world.registry.recover())
    assert world.registry.loaded == len(names)
    assert [len(some) for some in store.many] == [ACQUIRED, 3]
    assert [name for some in store.read for name in some] == names
    assert store.single == []


async def test_a_mob_that_somebody_else_holds_keeps_no_other_waiting() -> None:
    names = [f"m{number}" for number in range(12)]
    world, store = await owing(*names)
    # As many as are read at once by themselves, and more.
    for name in names[:8]:
        store.held[name] = asyncio.Event()
    recovering = asyncio.create_task(world.registry.recover())
    await ticks(200)
    assert {actor.mob_id for actor in world.registry.actors} == set(names[8:])
    assert not recovering.done()
    for event in store.held.values():
        event.set()
    await soon(recovering)
    assert {actor.epoch for actor in world.registry.actors} == {EPOCH}


async def test_a_log_that_can_not_be_folded_keeps_no_other_waiting() -> None:
    world, store = await owing("a", "b", "c")
    log = store.logs["b"]
    log.records[2], log.records[3] = log.records[3], log.records[2]
    await soon(world.registry.recover())
    assert {actor.mob_id for actor in world.registry.actors} == {"a", "c"}
    assert set(world.registry.quarantined) == {"b"}
    with pytest.raises(MobQuarantined):
        await soon(world.registry.load("b"))


async def test_a_log_that_is_long_is_read_on_beside_the_others() -> None:
    store = SlowStore()
    first = World(store)
    for name in ("a", "b"):
        actor = await first.create(name, "ada")
        await first.attach(actor)
    await soon(first.actor("a").ask(c.DeliverBatch([deliver(f"i{n}") for n in range(EVENTS)]), ANYBODY))
    world = World(store)
    await soon(world.registry.recover())
    assert world.actor("a").mob == first.actor("a").mob
    # It was taken over once all the same.
    assert (world.actor("a").epoch, world.actor("b").epoch) == (EPOCH, EPOCH)


@pytest.mark.parametrize("method", ["acquire_many", "read_many"])
async def test_a_caller_who_comes_meanwhile_takes_nothing_over_again(method: str) -> None:
    world, store = await owing("a", "b")
    gate = store.gates[method] = asyncio.Event()
    recovering = asyncio.create_task(world.registry.recover())
    await ticks(5)
    asking = asyncio.create_task(world.registry.load("b"))
    await ticks(5)
    # What is only being read is not waited for.
    assert asking.done() == (method == "read_many")
    gate.set()
    actor = await soon(asking)
    await soon(recovering)
    assert world.actor("b") is actor
    assert (actor.epoch, actor.failed) == (EPOCH, False)
    assert store.single == []


async def test_a_mob_in_memory_is_not_taken_from_this_process() -> None:
    world, store = await owing("a", "b")
    actor = await soon(world.registry.load("a"))
    await soon(world.registry.recover())
    assert world.actor("a") is actor
    assert store.many == [["a"], ["b"]]
    assert (await soon(actor.ask(deliver("i1"), ANYBODY))).answer is not None


async def test_those_that_are_asked_for_at_once_share_transactions() -> None:
    names = [f"m{number}" for number in range(9)]
    world, store = await owing(*names)
    gate = store.gates["acquire_many"] = asyncio.Event()
    store.held["m5"] = asyncio.Event()
    loads = {name: asyncio.create_task(world.registry.load(name)) for name in names}
    await ticks(5)
    gate.set()
    assert {(await soon(loads[name])).epoch for name in names if name != "m5"} == {EPOCH}
    assert store.many == [names]
    # Who is held by somebody else is waited for by itself.
    assert store.single == ["m5"]
    assert not loads["m5"].done()
    store.held["m5"].set()
    assert (await soon(loads["m5"])).epoch == EPOCH
    with pytest.raises(MobNotFound):
        await soon(world.registry.load("nobody"))


async def test_those_who_come_while_a_transaction_is_under_way_are_in_the_next() -> None:
    world, store = await owing("a", "b", "c")
    gate = store.gates["acquire_many"] = asyncio.Event()
    loads = [asyncio.create_task(world.registry.load("a"))]
    await ticks(5)
    loads += [asyncio.create_task(world.registry.load(name)) for name in "bc"]
    await ticks(5)
    assert store.many == [["a"]]
    gate.set()
    assert [actor.epoch for actor in await soon(asyncio.gather(*loads))] == [EPOCH] * 3
    assert store.many == [["a"], ["b", "c"]]


async def test_what_was_taken_over_is_not_used_once_the_mob_is_deleted() -> None:
    store = SlowStore()
    first = World(store)
    for name in ("a", "b"):
        await first.attach(await first.create(name, "ada"))
    await soon(first.actor("b").ask(c.DestroyMob(), ANYBODY))
    await ticks(50)
    assert store.logs["b"].phase == "destroyed"
    # As if it still owed something.
    store.logs["b"].wake_at = 0
    world = World(store)
    gate = store.gates["acquire_many"] = asyncio.Event()
    recovering = asyncio.create_task(world.registry.recover())
    await ticks(5)
    deleting = asyncio.create_task(world.registry.delete("b"))
    await ticks(5)
    gate.set()
    await soon(recovering)
    await soon(deleting)
    assert world.registry.get("b") is None
    with pytest.raises(MobNotFound):
        await soon(world.registry.load("b"))
    # The name is free.
    await soon(world.registry.create("b", create_mob("log-2"), ANYBODY))


@pytest.mark.parametrize("method", ["acquire_many", "read_many"])
async def test_if_many_can_not_be_had_at_once_each_is_read_by_itself(method: str) -> None:
    world, store = await owing("a", "b")
    store.failing.add(method)
    await soon(world.registry.recover())
    assert world.registry.loaded == 2
    assert sorted(store.single) == (["a", "b"] if method == "acquire_many" else [])


async def test_what_was_not_published_is_published_from_the_log() -> None:
    world, store = await owing("a", "b")
    actor = await soon(world.registry.load("a"))
    subscription = world.publisher.subscribe("a", actor.confirmed)
    before = actor.confirmed
    # Another process commits what this one does not know of, and is gone.
    other = World(store)
    await soon((await soon(other.registry.load("a"))).ask(deliver("i1"), ANYBODY))
    head = store.logs["a"].head
    assert head > before
    world.registry.evict(actor)
    await soon(world.registry.recover())
    assert world.actor("a").confirmed == head
    page = await soon(subscription.next())
    assert [record.seq for record in page or ()] == list(range(before + 1, head + 1))


@pytest.mark.parametrize("state", ["{", "of another format"])
async def test_a_snapshot_that_can_not_be_used_is_passed_over(state: str) -> None:
    world, store = await owing("a", "b")
    log = store.logs["a"]
    whole = await rebuild(store, "a", log.head - 1)
    text = snapshots.encode(whole).decode()
    kept = Snapshot(whole.head, snapshots.FORMAT, 0, "{") if state == "{" else Snapshot(whole.head, 1, 0, text)
    log.snapshots[whole.head] = kept
    await soon(world.registry.recover())
    assert world.actor("a").mob == await rebuild(store, "a", log.head)
    assert world.registry.quarantined == {}
