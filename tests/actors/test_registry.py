"""The registry on real parts: one incarnation of each mob, read when it is needed, thrown away when it failed."""

import asyncio

import pytest
from tests.actors.world import ANYBODY, World, asking, create_mob, deliver, soon
from tests.support.loops import ticks

from mobd_server.actors.journal import PROBE_S
from mobd_server.actors.links import Call
from mobd_server.actors.registry import MAX_BACKOFF_S, SPREAD_S
from mobd_server.adapters.memory.store import MemoryStore
from mobd_server.errors import (
    CommitUnknown,
    Draining,
    Internal,
    InvalidTransition,
    JournalDown,
    MobExists,
    MobFormatNewer,
    MobNotFound,
    MobQuarantined,
    MobReloading,
    Unavailable,
)
from mobd_server.machines import commands as c
from mobd_server.machines.answers import Deduplicated, MobView
from mobd_server.machines.events import MemberDestroyed
from mobd_server.machines.records import Append, Record
from mobd_server.machines.views import view_mob
from mobd_server.ports import Loaded

pytestmark = pytest.mark.asyncio


class FailingStore(MemoryStore):
    """A memory store whose readings fail for the mobs that a test names."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: dict[str, Exception] = {}
        self.acquired: list[str] = []

    async def acquire(self, mob_id: str) -> Loaded | None:
        self.acquired.append(mob_id)
        return await super().acquire(mob_id)

    async def read_events(self, mob_id: str, after: int, limit: int, max_bytes: int = 1 << 20) -> list[Record]:
        if mob_id in self.failing:
            raise self.failing[mob_id]
        return await super().read_events(mob_id, after, limit, max_bytes)


async def spoil(world: World, mob_id: str) -> None:
    """Append an event that can't be applied, and forget the mob."""
    actor = world.actor(mob_id)
    event = MemberDestroyed("nobody", 0)
    record = Record(
        actor.confirmed + 1,
        world.clock.now(),
        event.kind,
        event.v,
        "nobody",
        None,
        None,
        None,
        None,
        "anonymous",
        None,
        '{"member_id":"nobody","inputs_abandoned":0}',
        event,
    )
    world.hold()
    world.journal.submit(Append(mob_id, actor.log_id, actor.epoch, actor.confirmed, [record], "running", None), actor)
    await ticks()
    world.registry.evict(actor)
    world.writer.commit()
    world.writer.open = True
    await ticks()


async def stored(world: World, *mob_ids: str) -> World:
    """Create mobs, each with a member, and return another process on the same store."""
    for mob_id in mob_ids:
        await world.create(mob_id, "ada")
    return World(world.store)


async def test_a_mob_is_read_once_for_all_who_ask() -> None:
    store = FailingStore()
    world = await stored(World(store), "m")
    loads = [asyncio.create_task(world.registry.load("m")) for _ in range(10)]
    await ticks(1)
    # One that gives up does not give up for the others.
    loads[0].cancel()
    actors = {id(actor) for actor in await soon(asyncio.gather(*loads[1:]))}
    assert len(actors) == 1
    assert store.acquired.count("m") == 1 + 1
    assert world.actor().epoch == 2
    assert [actor.mob_id for actor in world.hub.loads] == ["m"]
    assert (await soon(world.actor().read(view_mob))).members["total"] == 1


async def test_a_mob_that_does_not_exist_is_not_found() -> None:
    world = World()
    with pytest.raises(MobNotFound):
        await soon(world.registry.load("m"))
    assert world.registry.get("m") is None


async def test_a_long_log_is_read_in_steps_that_let_others_run() -> None:
    first = World()
    actor = await first.create("m", "ada")
    for start in range(0, 1_000, 250):
        batch = [deliver(f"i{n}") for n in range(start, start + 250)]
        await soon(actor.ask(c.DeliverBatch(batch), ANYBODY))
    world = World(first.store)
    turns = 0
    loading = asyncio.create_task(world.registry.load("m"))
    while not loading.done():
        await ticks(1)
        turns += 1
    assert turns > 1_000 / 250
    assert loading.result().mob == actor.mob


async def test_a_failed_reading_is_tried_again_at_the_next_touch() -> None:
    store = FailingStore()
    world = await stored(World(store), "m")
    store.failing["m"] = Unavailable("the disk is away")
    with pytest.raises(Unavailable):
        await soon(world.registry.load("m"))
    del store.failing["m"]
    assert (await soon(world.registry.load("m"))).epoch == 3


async def test_a_bug_in_the_store_is_internal(caplog: pytest.LogCaptureFixture) -> None:
    store = FailingStore()
    world = await stored(World(store), "m")
    store.failing["m"] = ValueError("a bug")
    with pytest.raises(Internal):
        await soon(world.registry.load("m"))
    assert "load_failed" in caplog.text


async def test_a_mob_that_can_not_be_read_is_destroyed_unread_and_deleted() -> None:
    world = World()
    await world.create("m", "ada")
    await spoil(world, "m")
    with pytest.raises(InvalidTransition):
        await soon(world.registry.delete("m"))
    assert await soon(world.registry.destroy_unreadable("m"))
    # It can't be read any better for that, but it can go.
    with pytest.raises(MobQuarantined):
        await soon(world.registry.load("m"))
    assert [one.phase for one in (await world.store.list_mobs("", 10, None, {}))[0]] == ["destroyed"]
    await soon(world.registry.delete("m"))
    await world.create("m", "ada")


async def test_a_mob_that_can_be_read_is_not_destroyed_unread() -> None:
    world = World()
    actor = await world.create("m", "ada")
    assert not await soon(world.registry.destroy_unreadable("m"))
    assert world.actor() is actor
    with pytest.raises(MobNotFound):
        await soon(world.registry.destroy_unreadable("nobody"))


async def test_a_log_that_can_not_be_folded_quarantines_its_mob_and_no_other() -> None:
    world = World()
    await world.create("m", "ada")
    await world.create("n", "ada")
    subscription = world.publisher.subscribe("m", 0)
    watch = world.publisher.watch("m")
    await spoil(world, "m")
    for _ in range(2):
        with pytest.raises(MobQuarantined):
            await soon(world.registry.load("m"))
    assert set(world.registry.quarantined) == {"m"}
    with pytest.raises(MobQuarantined):
        await soon(watch.changed())
    with pytest.raises(MobQuarantined):
        await soon(subscription.next())
    assert world.registry.get("n") is not None


async def test_a_log_of_a_newer_build_is_refused_and_not_taken_again() -> None:
    store = FailingStore()
    world = await stored(World(store), "m")
    store.failing["m"] = MobFormatNewer("kind 'mob_sung' is not known")
    for _ in range(2):
        with pytest.raises(MobFormatNewer):
            await soon(world.registry.load("m"))
    assert store.acquired.count("m") == 2
    assert world.registry.quarantined == {}


async def test_of_two_creators_in_one_process_one_wins() -> None:
    world = World()
    creators = [asyncio.create_task(world.registry.create("m", create_mob(f"log-{n}"), ANYBODY)) for n in range(3)]
    results = await soon(asyncio.gather(*creators, return_exceptions=True))
    assert sorted(type(result).__name__ for result in results) == ["MobExists", "MobExists", "Reply"]
    assert [record.kind for record in await world.log()] == ["mob_created", "mob_started"]


async def test_of_two_creators_in_two_processes_the_store_lets_one_win() -> None:
    one = World()
    two = World(one.store)
    one.hold()
    two.hold()
    creators = [
        asyncio.create_task(w.registry.create("m", create_mob(f"log-{n}"), ANYBODY)) for n, w in ((1, one), (2, two))
    ]
    await ticks()
    assert one.writer.in_flight() == two.writer.in_flight() == 1
    one.writer.commit()
    two.writer.commit()
    assert isinstance((await soon(creators[0])).answer, MobView)
    with pytest.raises(MobExists):
        await soon(creators[1])
    assert [record.kind for record in await one.log()] == ["mob_created", "mob_started"]
    assert two.actor().log_id == "log-1"


async def test_others_see_a_mob_that_is_being_created_when_it_is_durable() -> None:
    world = World()
    world.hold()
    creating = asyncio.create_task(world.registry.create("m", create_mob(), ANYBODY))
    await ticks()
    read = asyncio.create_task(world.actor().read(view_mob))
    await ticks()
    assert not read.done()
    world.writer.commit()
    assert (await soon(read)).phase == "running"
    await soon(creating)


async def test_a_creation_whose_outcome_was_unknown_is_answered_when_it_is_repeated() -> None:
    world = World()
    world.hold()
    call = Call(request_id="r1", request_hash="h1")
    creating = asyncio.create_task(world.registry.create("m", create_mob(), call))
    await ticks()
    world.writer.lose_answer()
    with pytest.raises(CommitUnknown):
        await soon(creating)
    assert world.registry.get("m") is None
    world.clock.advance(PROBE_S)
    world.writer.answer_probe(answers=True)
    world.writer.open = True
    again = await soon(world.registry.create("m", create_mob("log-2"), call))
    assert again.replayed
    assert isinstance(again.answer, MobView)
    assert again.answer.log_id == "log-1"
    with pytest.raises(MobExists):
        await soon(world.registry.create("m", create_mob(), ANYBODY))


async def test_a_creation_that_is_fenced_by_its_own_first_attempt_is_answered() -> None:
    one = World()
    two = World(one.store)
    call = Call(request_id="r1", request_hash="h1")
    two.hold()
    late = asyncio.create_task(two.registry.create("m", create_mob("log-2"), call))
    await ticks()
    first = await soon(one.registry.create("m", create_mob("log-1"), call))
    two.writer.open = True
    two.writer.commit()
    again = await soon(late)
    assert again.replayed
    assert again.answer == first.answer


async def test_a_creation_that_is_refused_leaves_nothing() -> None:
    world = World()
    world.hold()
    await soon(ticks())
    lost = asyncio.create_task(world.registry.create("lost", create_mob(), ANYBODY))
    await ticks()
    world.writer.fail("aborted")
    with pytest.raises(CommitUnknown):
        await soon(lost)
    with pytest.raises(JournalDown):
        await soon(world.registry.create("m", create_mob(), ANYBODY))
    assert world.registry.loaded == 0
    assert world.publisher.feed("m") is None
    assert world.publisher.feed("lost") is None


async def fence(world: World, mob_id: str) -> None:
    """Let a process take the mob, and this one find out."""
    await soon(World(world.store).registry.load(mob_id))
    with pytest.raises(MobReloading):
        await soon(world.actor(mob_id).ask(c.SpawnMember(c.MemberSpec("new", "analyst")), ANYBODY))
    assert world.registry.get(mob_id) is None


async def test_a_mob_that_owes_nothing_is_read_again_at_the_next_touch() -> None:
    world = World()
    await world.create("m", "ada")
    await fence(world, "m")
    assert not world.clock.planned
    await soon(world.registry.load("m"))


async def test_a_mob_with_agents_is_read_again_at_once_and_its_hub_is_told() -> None:
    world = World()
    await world.attach(await world.create("m", "ada"))
    await fence(world, "m")
    assert world.hub.evictions == ["m"]
    assert world.clock.planned == [0.5 * SPREAD_S]
    world.clock.advance(SPREAD_S)
    await ticks()
    assert world.hub.loads == [world.actor("m")]


async def test_a_mob_that_is_watched_is_read_again_at_once() -> None:
    world = World()
    await world.create("m", "ada")
    with world.publisher.subscribe("m", 0):
        await fence(world, "m")
    await world.create("n", "ada")
    watch = world.publisher.watch("n", "ada")
    await fence(world, "n")
    assert len(world.clock.planned) == 2
    world.clock.advance(SPREAD_S)
    await ticks()
    assert world.registry.get("m") is not None
    assert world.registry.get("n") is not None
    watch.close()


async def test_a_mob_that_can_not_be_read_is_tried_ever_less_often() -> None:
    store = FailingStore()
    world = World(store)
    await world.attach(await world.create("m", "ada"))
    await fence(world, "m")
    store.failing["m"] = Unavailable("the disk is away")
    world.clock.advance(SPREAD_S)
    await ticks()
    delays = []
    for _ in range(8):
        delays += world.clock.planned
        world.clock.advance(MAX_BACKOFF_S)
        await ticks()
    # With a jitter that always draws the middle.
    assert delays == pytest.approx([0.75, 1.5, 3, 6, 12, 22.5, 22.5, 22.5])
    del store.failing["m"]
    world.clock.advance(MAX_BACKOFF_S)
    await ticks()
    assert world.registry.get("m") is not None


async def test_a_mob_that_got_somewhere_before_it_failed_again_is_read_again_at_once() -> None:
    world = World()
    await world.attach(await world.create("m", "ada"))
    delays = []
    for progress in (False, False, True):
        if progress:
            await soon(world.actor().ask(deliver("i1"), ANYBODY))
        await fence(world, "m")
        delays += world.clock.planned
        world.clock.advance(MAX_BACKOFF_S)
        await ticks()
    assert delays == pytest.approx([0.5 * SPREAD_S, 0.75, 0.5 * SPREAD_S])


async def test_a_destruction_that_was_cut_short_goes_on_in_the_next_process() -> None:
    first = World()
    actor = await first.create("m")
    specs = [c.MemberSpec(f"m{n}", "analyst") for n in range(600)]
    await soon(actor.ask(c.SpawnMembers(specs), ANYBODY))
    first.hold()
    actor.submit(c.DestroyMob(), ANYBODY)
    await ticks()
    first.writer.commit()
    await ticks()
    world = World(first.store)
    await soon(world.registry.recover())
    await ticks()
    assert (await world.log())[-1].kind == "mob_destroyed"


async def test_a_touch_makes_a_planned_reading_needless() -> None:
    world = World()
    await world.attach(await world.create("m", "ada"))
    await fence(world, "m")
    await soon(world.registry.load("m"))
    assert not world.clock.planned


async def test_while_the_journal_is_down_nothing_is_read_and_then_all_that_owe_something_are() -> None:
    world = World()
    actors = [await world.create(mob_id, "ada") for mob_id in ("a", "b", "c", "idle")]
    for actor in actors[:3]:
        await world.attach(actor)
    world.hold()
    asked = [asking(actor, deliver("i1")) for actor in actors]
    await ticks()
    world.writer.fail("unknown")
    await soon(asyncio.gather(*asked, return_exceptions=True))
    assert world.registry.loaded == 0
    world.clock.advance(PROBE_S * 0.9)
    await ticks()
    assert world.registry.loaded == 0
    with pytest.raises(JournalDown):
        await soon(world.registry.load("a"))
    world.clock.advance(PROBE_S * 0.1)
    world.writer.answer_probe(answers=True)
    world.writer.open = True
    spread = 0.5 * SPREAD_S
    assert world.clock.planned == pytest.approx([spread])
    world.clock.advance(1)
    await ticks()
    assert world.registry.loaded == 3
    reloaded = await soon(world.registry.load("idle"))
    assert not isinstance((await soon(reloaded.ask(deliver("i1"), ANYBODY))).answer, Deduplicated)


async def test_recovery_reads_what_is_due_now_and_the_rest_in_its_time() -> None:
    store = FailingStore()
    first = World(store)
    for mob_id in ("agents", "broken", "idle", "later"):
        actor = await first.create(mob_id, "ada")
        if mob_id in ("agents", "broken"):
            await first.attach(actor)
        if mob_id == "later":
            attachment_id = await first.confirm(actor)
            await first.fail_attempt(actor, attachment_id)
            await soon(actor.ask(c.CloseAttachment(attachment_id, "detached"), ANYBODY))
    world = World(store)
    store.failing["broken"] = Unavailable("the disk is away")
    await soon(world.registry.recover())
    assert world.registry.get("agents") is not None
    assert world.registry.get("idle") is None
    assert world.registry.get("later") is None
    del store.failing["broken"]
    world.clock.advance(SPREAD_S)
    await ticks()
    assert world.registry.get("broken") is not None
    world.clock.advance(1)
    await ticks()
    assert world.registry.get("later") is not None
    world.clock.advance(0)
    await ticks()
    assert (await world.log("later"))[-1].kind == "retry_due"


async def test_a_drain_ends_what_waits_makes_all_durable_and_decides_nothing_more() -> None:
    world = World()
    actor = await world.create("m", "ada")
    subscription, watch = world.publisher.subscribe("m", actor.confirmed), world.publisher.watch("m")
    following = asyncio.create_task(subscription.next())
    waiting = asyncio.create_task(watch.changed())
    world.hold()
    asked = asking(actor, deliver("i1"))
    await ticks()
    draining = asyncio.create_task(world.registry.drain())
    for task in (following, waiting):
        with pytest.raises(Draining):
            await soon(task)
    assert not draining.done()
    world.writer.commit()
    await soon(draining)
    await soon(asked)
    with pytest.raises(Draining):
        await soon(world.registry.load("n"))
    with pytest.raises(MobReloading):
        await soon(actor.ask(deliver("i2"), ANYBODY))
    with pytest.raises(Draining) as ended:
        await soon(world.publisher.subscribe("m", 0).next())
    assert ended.value.details["cursor"] == "0"
