"""Who reads a mob while it is deleted learns that it is gone: what is missing is no damage, and nobody waits for it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from msgspec import Raw
from tests.actors.world import ANYBODY, World, create_mob, deliver, soon

from mobd_server.actors.recent import Recent
from mobd_server.adapters.memory.rebuilder import InlineRebuilder
from mobd_server.adapters.memory.store import MemoryStore
from mobd_server.errors import MobNotFound, MobQuarantined, MobReloading
from mobd_server.machines import commands as c
from mobd_server.machines.records import Record
from mobd_server.services.bridge import Bridge
from mobd_server.services.events import EventFilter, Events, Start
from mobd_server.services.runs import Runs
from mobd_server.services.state import States

pytestmark = pytest.mark.asyncio

Meanwhile = Callable[[], Awaitable[None]]


class OvertakenStore(MemoryStore):
    """A store in which something happens between the call of a reader and its look at the log."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Meanwhile | None = None

    async def _overtaken(self) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile()

    async def read_events(self, mob_id: str, after: int, limit: int, max_bytes: int = 1 << 20) -> list[Record]:
        await self._overtaken()
        return await super().read_events(mob_id, after, limit, max_bytes)

    async def mark_deleting(self, mob_id: str) -> None:
        await super().mark_deleting(mob_id)
        await self._overtaken()

    async def seq_at(self, mob_id: str, at: int) -> int:
        await self._overtaken()
        return await super().seq_at(mob_id, at)

    async def read_event(self, mob_id: str, seq: int) -> Record | None:
        await self._overtaken()
        return await super().read_event(mob_id, seq)

    async def read_these(self, mob_id: str, seqs: Sequence[int]) -> list[Record]:
        await self._overtaken()
        return await super().read_these(mob_id, seqs)


async def destroyed() -> tuple[World, OvertakenStore]:
    """Return a mob that has had a run, and is destroyed."""
    store = OvertakenStore()
    world = World(store)
    actor = await world.create("m", "ada")
    attachment_id = await world.confirm(actor)
    await soon(actor.ask(deliver("i1"), ANYBODY))
    (run,) = actor.mob.runs.values()
    await soon(actor.ask(c.SettleRun(attachment_id, run.run_id, run.fence, Raw(b"1"), b"x"), ANYBODY))
    await soon(actor.ask(deliver("i2"), ANYBODY))
    await soon(actor.ask(c.DestroyMob(), ANYBODY))
    # What is new is at hand without the log.
    world.publisher.recent = Recent()
    return world, store


def readers(world: World) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Return every way to read what only the log has."""
    events = Events(world.registry, world.publisher, world.store, world.clock)
    bridge = Bridge(world.registry, world.publisher, world.store, world.hub, world.clock)  # type: ignore[arg-type]  # a double with what is used of it
    runs = Runs(world.registry, world.store)
    states = States(world.registry, world.store, InlineRebuilder(world.store))

    async def watch() -> list[Any]:
        return [one async for one in events.watch("m", Start("after", 0), EventFilter(), "")]

    async def state() -> list[Any]:
        return [one async for one in states.state_at("m", 3)]

    async def follow() -> list[Any]:
        return [one async for one in bridge.watch_input("m", "ada", "i1")]

    async def run() -> Any:
        page, _ = await runs.page("m", "", None, 0, "")
        return await runs.get("m", page[0].run_id)

    return {
        "poll": lambda: events.poll("m", Start("after", 0), 0, EventFilter(), ""),
        "watch": watch,
        "state": state,
        "input": lambda: bridge.get_input("m", "ada", "i1"),
        "inputs": lambda: bridge.page("m", "ada", None, 0, ""),
        "follow": follow,
        "runs": lambda: runs.page("m", "", None, 0, ""),
        "run": run,
    }


NAMES = ["poll", "watch", "state", "input", "inputs", "follow", "runs", "run"]


@pytest.mark.parametrize("name", NAMES)
async def test_who_reads_a_mob_while_it_is_deleted_learns_that_it_is_gone(name: str) -> None:
    world, store = await destroyed()
    store.meanwhile = lambda: world.registry.delete("m")
    with pytest.raises(MobNotFound):
        await soon(readers(world)[name]())
    assert store.meanwhile is None


@pytest.mark.parametrize("name", NAMES)
async def test_who_reads_a_mob_while_another_takes_its_name_is_not_shown_the_other(name: str) -> None:
    world, store = await destroyed()

    async def replace() -> None:
        await world.registry.delete("m")
        await world.registry.create("m", create_mob("log-2"), ANYBODY)

    store.meanwhile = replace
    with pytest.raises(MobNotFound):
        await soon(readers(world)[name]())


@pytest.mark.parametrize("leave", ["delete", "forget"])
async def test_who_looks_for_a_time_in_the_log_of_a_mob_that_leaves_memory_is_told_to_look_again(leave: str) -> None:
    world, store = await destroyed()

    async def forget() -> None:
        world.publisher.forget("m")

    store.meanwhile = forget if leave == "forget" else lambda: world.registry.delete("m")
    events = Events(world.registry, world.publisher, world.store, world.clock)
    with pytest.raises(MobReloading):
        await soon(anext(events.watch("m", Start("since", 1), EventFilter(), "")))


async def test_a_mob_is_deleted_also_if_its_deleter_leaves_at_the_first_moment() -> None:
    world, store = await destroyed()
    marked, go = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        marked.set()
        await go.wait()

    store.meanwhile = hold
    deleting = asyncio.ensure_future(world.registry.delete("m"))
    await soon(marked.wait())
    deleting.cancel()
    await asyncio.gather(deleting, return_exceptions=True)
    go.set()
    for _ in range(20):
        await asyncio.sleep(0)  # noqa: TID251 gives the loop its turns, waits for no time
    # The mark is durable: nobody would find the mob again, and nobody could take its name.
    assert "m" not in store.logs
    await soon(world.registry.create("m", create_mob("log-2"), ANYBODY))


async def test_a_log_that_lacks_an_event_is_no_log_that_was_deleted() -> None:
    world, store = await destroyed()

    async def damage() -> None:
        del store.logs["m"].records[2:]

    store.meanwhile = damage
    with pytest.raises(MobQuarantined):
        await soon(readers(world)["state"]())
