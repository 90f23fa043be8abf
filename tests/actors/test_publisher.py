"""Following a mob and waiting on it: every published event once and in order, or an error with the place to go on."""

import asyncio
import random
from collections.abc import Coroutine

import pytest
from tests.actors.world import ANYBODY, World, asking, deliver, soon
from tests.support.loops import ticks

from mobd_server.actors.feed import PAGE_RECORDS, TAIL_BYTES, Subscription
from mobd_server.actors.watch import KEYS
from mobd_server.adapters.memory.store import MemoryStore
from mobd_server.errors import CursorAhead, CursorTooOld, LogChanged, SlowReader
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.records import Record

pytestmark = pytest.mark.asyncio

BIG = "x" * 200_000


async def test_a_follower_sees_what_was_and_then_what_comes() -> None:
    world = World()
    actor = await world.create("m", "ada")
    with world.publisher.subscribe("m", 0) as subscription:
        page = await following_page(subscription)
        assert [record.seq for record in page] == [1, 2, 3]
        assert await soon_empty(world, subscription.next(5)) == []
        following = asyncio.create_task(subscription.next())
        await ticks()
        reply = await soon(actor.ask(deliver("i1"), ANYBODY))
        page = await following or []
        assert [record.seq for record in page] == [reply.cursor]
        assert subscription.cursor == subscription.head == reply.cursor


async def following_page(subscription: Subscription) -> list[Record]:
    """Return the next page, which is there or comes without time passing."""
    page = await soon(subscription.next())
    assert page is not None
    return page


async def soon_empty(world: World, waiting: Coroutine[None, None, list[Record] | None]) -> list[Record] | None:
    """Return what comes when its patience is over."""
    task = asyncio.create_task(waiting)
    await ticks()
    assert not task.done()
    world.clock.advance(5)
    return await soon(task)


async def test_nothing_is_shown_before_it_is_published() -> None:
    world = World()
    actor = await world.create("m", "ada")
    await soon(actor.ask(deliver("i1"), ANYBODY))
    world.hold()
    asked = asking(actor, deliver("i2"))
    await ticks()
    # The store has it, but the journal has not heard of it yet.
    world.writer.hold_answer()
    await ticks()
    assert len(await world.log()) == 5
    with world.publisher.subscribe("m", 0) as subscription:
        page = await following_page(subscription)
        assert page[-1].seq == 4
        following = asyncio.create_task(subscription.next())
        await ticks()
        assert not following.done()
        world.writer.release_answer()
        page = await following or []
        assert [record.seq for record in page] == [5]
    await soon(asked)


@pytest.mark.parametrize("seed", range(20))
async def test_replay_and_live_together_are_the_log(seed: int) -> None:
    draw = random.Random(seed)
    world = World()
    actor = await world.create("m", "ada")
    seen: dict[int, list[Record]] = {}

    async def follow(name: int, start: int) -> None:
        cursor = start
        while True:
            with world.publisher.subscribe("m", cursor) as subscription:
                try:
                    async for page in subscription:
                        assert page
                        seen[name] += page
                        cursor = page[-1].seq
                        # A reader that takes its time now and then.
                        await ticks(draw.choice((0, 0, 1, 5, 40)))
                    return
                except SlowReader as slow:
                    cursor = int(slow.details["cursor"])

    followers = []
    for number in range(120):
        if number % 12 == 0:
            start = draw.randrange(actor.confirmed + 1)
            if start not in seen:
                seen[start] = []
                followers.append((start, asyncio.create_task(follow(start, start))))
                await ticks(draw.choice((0, 1, 3)))
        text = BIG if draw.random() < 0.1 else "small"
        batch = [deliver(f"i{number}-{n}", text=text) for n in range(draw.randrange(1, 4))]
        await soon(actor.ask(c.DeliverBatch(batch), ANYBODY))
        await ticks(draw.choice((0, 0, 0, 2)))
        if draw.random() < 0.05:
            world.registry.evict(actor)
            actor = await soon(world.registry.load("m"))
    await soon(actor.ask(c.DestroyMob(), ANYBODY))
    await soon(asyncio.gather(*(task for _, task in followers)))
    log = await world.log()
    assert log[-1].kind == "mob_destroyed"
    for start, _ in followers:
        assert [record.seq for record in seen[start]] == [record.seq for record in log[start:]]


async def test_a_page_is_bounded() -> None:
    world = World()
    actor = await world.create("m", "ada")
    with world.publisher.subscribe("m", actor.confirmed) as subscription:
        for start in range(0, 2 * PAGE_RECORDS, 256):
            batch = [deliver(f"i{n}") for n in range(start, start + 256)]
            await soon(actor.ask(c.DeliverBatch(batch), ANYBODY))
        sizes = [len(await following_page(subscription)) for _ in range(2)]
    assert sizes == [PAGE_RECORDS, PAGE_RECORDS]


async def test_a_reader_that_is_busy_while_too_much_comes_is_told_where_to_go_on() -> None:
    world = World()
    actor = await world.create("m", "ada")
    subscription = world.publisher.subscribe("m", actor.confirmed)
    await soon(actor.ask(deliver("first"), ANYBODY))
    cursor = (await following_page(subscription))[-1].seq
    for number in range(TAIL_BYTES // len(BIG) + 2):
        await soon(actor.ask(deliver(f"i{number}", text=BIG), ANYBODY))
    with pytest.raises(SlowReader) as slow:
        await soon(subscription.next())
    assert slow.value.details == {"cursor": str(cursor)}
    subscription.close()
    with world.publisher.subscribe("m", cursor) as again:
        page = await following_page(again)
        assert page[0].seq == cursor + 1


async def test_a_reader_that_waits_is_not_slow_however_much_comes_at_once() -> None:
    world = World()
    actor = await world.create("m", "ada")
    with world.publisher.subscribe("m", actor.confirmed) as subscription:
        following = asyncio.create_task(subscription.next())
        await ticks()
        world.hold()
        count = 2 * TAIL_BYTES // len(BIG)
        asked = [asking(actor, deliver(f"i{number}", text=BIG)) for number in range(count)]
        await ticks()
        world.writer.commit()
        await soon(asyncio.gather(*asked))
        seqs = [record.seq for record in (await soon(following) or [])]
        while seqs[-1] < actor.confirmed:
            seqs += [record.seq for record in await following_page(subscription)]
    assert seqs == list(range(4, 4 + count))


async def test_a_reader_that_replays_is_never_too_slow() -> None:
    world = World()
    actor = await world.create("m", "ada")
    for number in range(3):
        await soon(actor.ask(c.DeliverBatch([deliver(f"a{number}-{n}") for n in range(200)]), ANYBODY))
    subscription = world.publisher.subscribe("m", 0)
    seqs = [record.seq for record in await following_page(subscription)]
    for number in range(TAIL_BYTES // len(BIG) + 2):
        await soon(actor.ask(deliver(f"b{number}", text=BIG), ANYBODY))
    while seqs[-1] < actor.confirmed:
        seqs += [record.seq for record in await following_page(subscription)]
    assert seqs == list(range(1, actor.confirmed + 1))


async def test_a_follower_of_a_destroyed_mob_comes_to_an_end() -> None:
    world = World()
    actor = await world.create("m", "ada")
    await soon(actor.ask(c.DestroyMob(), ANYBODY))
    for cursor in (0, actor.confirmed):
        with world.publisher.subscribe("m", cursor) as subscription:
            pages = [page async for page in subscription]
        assert sum(map(len, pages)) == actor.confirmed - cursor
    other = World(world.store)
    actor = await soon(other.registry.load("m"))
    with other.publisher.subscribe("m", actor.confirmed) as subscription:
        assert await soon(subscription.next()) is None


async def test_cancelling_a_follower_loses_nothing() -> None:
    world = World()
    actor = await world.create("m", "ada")
    with world.publisher.subscribe("m", actor.confirmed) as subscription:
        following = asyncio.create_task(subscription.next())
        await ticks()
        following.cancel()
        await ticks()
        await soon(actor.ask(deliver("i1"), ANYBODY))
        assert len(await following_page(subscription)) == 1


async def test_cursors_are_checked() -> None:
    world = World()
    actor = await world.create("m", "ada")
    head = actor.confirmed
    with pytest.raises(CursorAhead) as ahead:
        world.publisher.subscribe("m", head + 1)
    assert ahead.value.details["head"] == str(head)
    with pytest.raises(LogChanged):
        world.publisher.subscribe("m", 0, "another-log")
    feed = world.publisher.feed("m")
    assert feed is not None
    feed.first_seq = 3
    with pytest.raises(CursorTooOld) as old:
        world.publisher.subscribe("m", 1)
    assert old.value.details["earliest"] == "2"
    world.publisher.subscribe("m", 2, actor.log_id).close()
    assert not world.publisher.watched("m")


async def test_who_reads_a_log_that_another_takes_the_place_of_is_told() -> None:
    world = World()
    actor = await world.create("m", "ada")
    subscription = world.publisher.subscribe("m", actor.confirmed)
    feed = world.publisher.open("m", "another-log", 1, actor.confirmed)
    assert feed.log_id == "another-log"
    with pytest.raises(LogChanged):
        await soon(subscription.next())


async def test_events_out_of_order_are_never_published() -> None:
    world = World()
    await world.create("m", "ada")
    feed = world.publisher.feed("m")
    assert feed is not None
    with pytest.raises(RuntimeError):
        feed.publish([record for record in await world.log() if record.seq == 2])


async def test_a_watch_is_woken_by_what_concerns_it_and_nothing_else() -> None:
    world = World()
    actor = await world.create("m", "ada", "bob")
    first = (await soon(actor.ask(deliver("i1"), ANYBODY))).answer
    second = (await soon(actor.ask(deliver("i2"), ANYBODY))).answer
    watches = {
        "first": world.publisher.watch("m", "ada", getattr(first, "canonical_input_id", "")),
        "second": world.publisher.watch("m", "ada", getattr(second, "canonical_input_id", "")),
        "bob": world.publisher.watch("m", "bob"),
        "mob": world.publisher.watch("m"),
    }

    async def woken() -> set[str]:
        names = set()
        for name, watch in watches.items():
            looking = asyncio.create_task(watch.changed(1))
            await ticks(2)
            world.clock.advance(1)
            if await soon(looking):
                names.add(name)
        return names

    attachment_id = await world.attach(actor)
    assert await woken() == set(watches)
    executor = actor.mob.members["bob"].executor
    assert executor is not None
    await soon(actor.ask(c.Confirm(attachment_id, "bob", executor.fence), ANYBODY))
    assert await woken() == {"bob"}
    await soon(actor.ask(deliver("i3", member_id="bob"), ANYBODY))
    assert await woken() == set()
    await soon(actor.ask(c.StopMob(), ANYBODY))
    assert await woken() == set(watches)
    watches.pop("bob").close()
    await soon(actor.ask(c.ResumeMob(), ANYBODY))
    assert await woken() == set(watches)
    executor = actor.mob.members["ada"].executor
    assert executor is not None
    await soon(actor.ask(c.Confirm(attachment_id, "ada", executor.fence), ANYBODY))
    # Both were waiting, and one run took both.
    assert await woken() == {"first", "second"}
    for watch in watches.values():
        watch.close()
    assert not world.publisher.watched("m")


async def test_a_change_between_two_looks_is_not_missed() -> None:
    world = World()
    actor = await world.create("m", "ada")
    watch = world.publisher.watch("m")
    await soon(actor.ask(c.StopMob(), ANYBODY))
    await soon(actor.ask(c.ResumeMob(), ANYBODY))
    assert await soon(watch.changed())
    looking = asyncio.create_task(watch.changed())
    await ticks()
    assert not looking.done()
    await soon(actor.ask(c.StopMob(), ANYBODY))
    assert await soon(looking)
    watch.close()
    watch.close()


async def test_a_destruction_wakes_those_who_wait_for_it() -> None:
    world = World()
    actor = await world.create("m", "ada")
    feed = world.publisher.feed("m")
    assert feed is not None
    watch = world.publisher.watch("m")
    await soon(actor.ask(c.DestroyMob(), ANYBODY))
    while not feed.ended:
        await soon(watch.changed())
    assert actor.mob.phase == "destroyed"


async def test_every_kind_of_event_is_known_to_wake_or_not_to_wake() -> None:
    quiet = {e.MobCreated, e.MemberSpawned, e.InputAccepted, e.RunCancelRequested, e.RunResent}
    assert set(KEYS) == set(e.EVENT_TYPES) - quiet


class Counting(MemoryStore):
    """A store that writes down after which events pages were read."""

    def __init__(self) -> None:
        super().__init__()
        self.read_after: list[int] = []

    async def read_events(self, mob_id: str, after: int, limit: int, max_bytes: int = 1 << 20) -> list[Record]:
        self.read_after.append(after)
        return await super().read_events(mob_id, after, limit, max_bytes)


async def long_log(store: MemoryStore) -> tuple[World, int]:
    """Return a world with a mob of four pages that nobody has followed, and the head of its log."""
    world = World(store)
    actor = await world.create("m", "ada", "bob", "cyd")
    for start in range(0, 3 * PAGE_RECORDS, PAGE_RECORDS):
        for member_id in ("ada", "bob", "cyd"):
            third = PAGE_RECORDS // 3
            batch = [deliver(f"{member_id}{n}", member_id) for n in range(start, start + third)]
            await soon(actor.ask(c.DeliverBatch(batch), ANYBODY))
    return world, actor.confirmed


async def test_the_next_page_is_read_while_a_reader_has_the_one_before_it() -> None:
    store = Counting()
    world, head = await long_log(store)
    store.read_after.clear()
    with world.publisher.subscribe("m", 0) as subscription:
        seen = [record.seq for record in await following_page(subscription)]
        await ticks()
        assert store.read_after == [0, PAGE_RECORDS]
        while subscription.cursor < head:
            seen += [record.seq for record in await following_page(subscription)]
    assert seen == list(range(1, head + 1))
    # Each page once, and none for the end, which was not a whole page away.
    assert store.read_after == list(range(0, head, PAGE_RECORDS))


async def test_a_reader_that_leaves_reads_no_further_and_leaves_nothing_behind() -> None:
    store = Counting()
    world, _ = await long_log(store)
    before = len(asyncio.all_tasks())
    store.read_after.clear()
    with world.publisher.subscribe("m", 0) as subscription:
        await following_page(subscription)
    await ticks()
    assert max(store.read_after) <= PAGE_RECORDS
    assert len(asyncio.all_tasks()) == before


async def test_a_reader_whose_next_page_cannot_be_read_is_told_when_it_asks_for_it() -> None:
    store = Counting()
    world, head = await long_log(store)
    with world.publisher.subscribe("m", 0) as subscription:
        await following_page(subscription)
        await ticks()
        subscription.end(SlowReader("too slow", {}))
        with pytest.raises(SlowReader):
            await soon(subscription.next())
    assert subscription.cursor == PAGE_RECORDS < head
