"""Waits for operations: fed by what is published, answered once each, and by nothing that is not durable."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from msgspec import Raw
from tests.actors.world import ANYBODY, World, soon
from tests.services.test_waiting import settled

from mobd_server.actors.links import Call
from mobd_server.adapters.memory.store import MemoryStore
from mobd_server.errors import Draining, FieldInvalid, OperationExists, OperationNotFound, OperationTransition
from mobd_server.machines import commands as c
from mobd_server.machines.answers import OperationView
from mobd_server.machines.records import OperationRow
from mobd_server.services.operations import OperationFilter, Operations

pytestmark = pytest.mark.asyncio


def operations_of(world: World) -> Operations:
    return Operations(world.registry, world.publisher, world.store, world.clock)


async def begin(world: World, *names: str, owner: str = "") -> Operations:
    operations = operations_of(world)
    for name in names:
        await soon(operations.register("m", c.RegisterOperation(name, name, owner, running=True), ANYBODY))
    return operations


def complete(name: str, result: str = "1") -> c.MoveOperation:
    return c.MoveOperation(name, "complete", result=Raw(result.encode()))


def watchers(operations: Operations, *names: str) -> list[int]:
    return [operations.watchers("m", name) for name in names]


async def test_everybody_who_waits_is_answered_once_and_looks_only_when_something_happened() -> None:
    world = World()
    await world.create("m")
    operations = await begin(world, "a", "b", "c")
    waits = [asyncio.ensure_future(operations.wait("m", ["b", "a"], 30.0)) for _ in range(3)]
    await settled(world)
    # One timer for the end of each patience, and no other.
    assert len(world.clock.planned) == 3
    assert watchers(operations, "a", "b", "c") == [3, 3, 0]
    await soon(operations.move("m", complete("c"), ANYBODY))
    await soon(operations.move("m", complete("a"), ANYBODY))
    await settled(world)
    assert not any(one.done() for one in waits)
    assert watchers(operations, "a", "b", "c") == [0, 3, 0]
    await soon(operations.move("m", complete("b"), ANYBODY))
    for waited in await soon(asyncio.gather(*waits)):
        # In the caller's order, not in that of the ends.
        assert [(one.operation_id, one.completion_seq) for one in waited.ended] == [("b", 3), ("a", 2)]
        assert (waited.pending, waited.more) == ([], False)
    assert watchers(operations, "a", "b", "c") == [0, 0, 0]


async def test_an_end_that_is_not_durable_ends_no_wait() -> None:
    world = World()
    await world.create("m")
    operations = await begin(world, "a")
    waiting = asyncio.ensure_future(operations.wait("m", ["a"], 30.0))
    await settled(world)
    world.hold()
    ending = asyncio.ensure_future(operations.move("m", complete("a"), ANYBODY))
    late = asyncio.ensure_future(operations.wait("m", ["a"], 0.0))
    shown = asyncio.ensure_future(operations.get("m", "a"))
    await settled(world)
    assert not any(one.done() for one in (waiting, ending, late, shown))
    world.writer.commit()
    assert [one.status for one in (await soon(waiting)).ended] == ["completed"]
    assert (await soon(late)).ended == (await soon(waiting)).ended == [await soon(shown)]
    await soon(ending)


async def test_a_wait_ends_with_its_patience_and_leaves_nothing_behind() -> None:
    world = World()
    await world.create("m")
    operations = await begin(world, "a", "b")
    await soon(operations.move("m", complete("a"), ANYBODY))
    waiting = asyncio.ensure_future(operations.wait("m", ["a", "b"], 30.0))
    given_up = asyncio.ensure_future(operations.wait("m", ["b"], 30.0))
    await settled(world)
    given_up.cancel()
    await settled(world)
    assert watchers(operations, "b") == [1]
    world.clock.advance(30.0)
    waited = await soon(waiting)
    assert ([one.operation_id for one in waited.ended], waited.pending) == (["a"], ["b"])
    assert watchers(operations, "b") == [0]
    assert not world.publisher.watched("m")


@pytest.mark.parametrize("end", [c.RetireMember("ada"), c.DestroyRuntime("ada"), c.RespawnMember("ada"), c.ResetMob()])
async def test_the_end_of_a_member_ends_the_waits_for_its_life_and_for_its_tools(end: c.Command) -> None:
    world = World()
    actor = await world.create("m", "ada")
    operations = await begin(world, "tool", owner="ada")
    # Each by itself: neither may hang on what wakes the other.
    life = asyncio.ensure_future(operations.wait("m", [actor.mob.members["ada"].operation_id], 30.0))
    tool = asyncio.ensure_future(operations.wait("m", ["tool"], 30.0))
    await settled(world)
    await soon(actor.ask(end, ANYBODY))
    assert [one.status for one in (await soon(life)).ended] == ["aborted"]
    assert [one.status for one in (await soon(tool)).ended] == ["terminated"]


async def test_the_end_of_a_mob_ends_every_wait() -> None:
    world = World()
    actor = await world.create("m", "ada")
    operations = await begin(world, "tool")
    waiting = asyncio.ensure_future(operations.wait("m", ["tool", actor.mob.members["ada"].operation_id], 30.0))
    await settled(world)
    await soon(actor.ask(c.DestroyMob(), ANYBODY))
    assert [one.status for one in (await soon(waiting)).ended] == ["terminated", "aborted"]


async def test_who_waits_is_told_that_the_server_leaves() -> None:
    world = World()
    await world.create("m")
    operations = await begin(world, "a")
    waiting = asyncio.ensure_future(operations.wait("m", ["a"], 30.0))
    await settled(world)
    world.publisher.close()
    with pytest.raises(Draining):
        await soon(waiting)
    assert watchers(operations, "a") == [0]


async def test_what_is_asked_for_twice_or_unknown_is_refused_in_this_order() -> None:
    world = World()
    await world.create("m")
    operations = await begin(world, "a")
    with pytest.raises(FieldInvalid) as refused:
        await soon(operations.wait("m", ["nobody", "a", "a"], 30.0))
    assert [(one.field, one.code) for one in refused.value.violations] == [("operation_ids[2]", "DUPLICATE")]
    with pytest.raises(OperationNotFound) as unknown:
        await soon(operations.wait("m", ["a", "nobody", "neither"], 30.0))
    assert unknown.value.details == {"mob_id": "m", "operation_id": "nobody"}


async def test_there_is_nothing_to_wait_for_in_nothing() -> None:
    world = World()
    await world.create("m")
    waited = await soon(operations_of(world).wait("m", [], 30.0))
    assert (waited.ended, waited.pending) == ([], [])


async def test_results_that_do_not_fit_are_asked_for_again() -> None:
    world = World()
    await world.create("m")
    names = [f"op-{number}" for number in range(10)]
    operations = await begin(world, *names)
    for name in names:
        await soon(operations.move("m", complete(name, '"' + "x" * 200_000 + '"'), ANYBODY))
    left, answers = names, 0
    while left:
        waited = await soon(operations.wait("m", left, 0.0))
        assert [one.operation_id for one in waited.ended] + waited.pending == left
        assert sum(len(bytes(one.result)) for one in waited.ended) <= 1 << 20
        assert waited.more == bool(waited.pending)
        left, answers = waited.pending, answers + 1
    assert answers == 2


class Forgotten:
    """A mob whose operation `first` ended so long ago that memory does not know it any more."""

    def __init__(self) -> None:
        self.world = World()
        self.register = c.RegisterOperation("first", "first", running=True)

    async def __call__(self) -> Operations:
        actor = await self.world.create("m")
        operations = operations_of(self.world)
        await soon(operations.register("m", self.register, Call(request_id="r1", request_hash="h")))
        await soon(operations.move("m", complete("first"), Call(request_id="r2", request_hash="h")))
        for number in range(256):
            await begin(self.world, f"op-{number}")
            await soon(operations.move("m", c.MoveOperation(f"op-{number}", "cancel"), ANYBODY))
        assert "first" not in actor.mob.operations
        return operations


async def test_what_left_memory_is_shown_waited_for_and_answered_as_before() -> None:
    forgotten = Forgotten()
    operations = await forgotten()
    shown = await soon(operations.get("m", "first"))
    assert (shown.status, bytes(shown.result), shown.completion_seq) == ("completed", b"1", 1)
    waited = await soon(operations.wait("m", ["op-255", "first"], 30.0))
    assert [one.completion_seq for one in waited.ended] == [257, 1]
    again = await soon(operations.register("m", forgotten.register, Call(request_id="r1", request_hash="h")))
    assert again.replayed
    assert isinstance(again.answer, OperationView)
    assert again.answer.status == "running"
    again = await soon(operations.move("m", complete("first"), Call(request_id="r2", request_hash="h")))
    assert again.replayed


async def test_what_left_memory_can_take_no_step_and_keeps_its_name() -> None:
    operations = await Forgotten()()
    with pytest.raises(OperationTransition) as refused:
        await soon(operations.move("m", c.MoveOperation("first", "cancel"), ANYBODY))
    assert refused.value.details["status"] == "completed"
    assert refused.value.details["allowed"] == ""
    with pytest.raises(OperationExists):
        await soon(operations.register("m", c.RegisterOperation("first", "again"), ANYBODY))
    with pytest.raises(OperationNotFound):
        await soon(operations.move("m", c.MoveOperation("nobody", "cancel"), ANYBODY))


async def test_the_feed_has_no_gap_and_ends_where_it_was_counted() -> None:
    operations = await Forgotten()()
    seen, after = [], 0
    while True:
        page, watermark = await soon(operations.completions("m", after, 100))
        assert watermark == 257
        if not page:
            break
        assert len(page) <= 100
        seen += [one.completion_seq for one in page]
        after = seen[-1]
    assert seen == list(range(1, 258))


class Overtaken(MemoryStore):
    """A store in which something happens before a feed is read."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[], Awaitable[object]] | None = None

    async def list_completions(self, mob_id: str, after_seq: int, limit: int) -> list[OperationRow]:
        if self.before is not None:
            await self.before()
        return await super().list_completions(mob_id, after_seq, limit)


async def test_what_ends_while_the_feed_is_read_is_left_to_the_next_page() -> None:
    store = Overtaken()
    world = World(store)
    await world.create("m")
    operations = await begin(world, "a", "b")
    await soon(operations.move("m", complete("a"), ANYBODY))
    store.before = lambda: operations.move("m", complete("b"), ANYBODY)
    page, watermark = await soon(operations.completions("m", 0, 100))
    assert ([one.operation_id for one in page], watermark) == (["a"], 1)
    store.before = None
    page, watermark = await soon(operations.completions("m", 1, 100))
    assert ([one.operation_id for one in page], watermark) == (["b"], 2)


async def test_pages_go_on_behind_names_of_several_lines() -> None:
    world = World()
    await world.create("m", "ada")
    operations = operations_of(world)
    names = ["a\nb", "a\nb", "a\nc", "a", "z"]
    for number, name in enumerate(names):
        await soon(operations.register("m", c.RegisterOperation(f"op-{number}", name), ANYBODY))
    seen, token = [], ""
    while True:
        page, token = await soon(operations.page("m", OperationFilter(kind="background_tool"), 1, token))
        seen += [(one.display_name, one.operation_id) for one in page]
        if not token:
            break
    assert seen == sorted((name, f"op-{number}") for number, name in enumerate(names))
