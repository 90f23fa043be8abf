"""What a store tells of what it holds."""

import pytest
from tests.stores.conftest import Backend
from tests.support.authors import BEGIN, Author

from mobd_server.errors import MobFormatNewer, MobQuarantined
from mobd_server.machines import commands as c

pytestmark = pytest.mark.asyncio


async def test_a_mob_that_was_never_created_is_not_there(backend: Backend) -> None:
    assert await backend.store.acquire("nobody") is None
    assert await backend.store.head("nobody") is None
    assert await backend.store.read_events("nobody", 0, 10) == []
    assert await backend.store.read_event("nobody", 1) is None
    assert await backend.store.read_these("nobody", [1]) == []
    assert await backend.store.read_run("nobody", "run-1") is None


async def test_to_look_at_the_head_takes_nothing_over(backend: Backend) -> None:
    author = Author("m")
    await backend.fates(*author.create("a"))
    loaded = await backend.store.head("m")
    assert loaded is not None
    assert (loaded.epoch, loaded.head, loaded.first_seq, loaded.log_id) == (1, author.mob.head, 1, "log-m")
    assert await backend.fates(author.deliver("a", "still mine")) == ["committed"]


async def test_events_come_in_pages_that_end_at_a_count_or_a_size(backend: Backend) -> None:
    author = Author("m")
    await backend.fates(*author.create("a"), *(author.deliver("a", f"i{n}") for n in range(10)))
    assert [r.seq for r in await backend.store.read_events("m", 3, 4)] == [4, 5, 6, 7]
    small = await backend.store.read_events("m", 0, 100, max_bytes=1)
    assert [r.seq for r in small] == [1]


async def test_single_events_come_in_the_order_of_the_log(backend: Backend) -> None:
    author = Author("m")
    await backend.fates(*author.create("a", "b"))
    assert [r.seq for r in await backend.store.read_these("m", [4, 2, 99, 2])] == [2, 4]


async def test_since_is_the_cursor_before_the_first_event_that_is_late_enough(backend: Backend) -> None:
    author = Author("m")
    await backend.fates(*author.create("a"), author.deliver("a", "1"), author.deliver("a", "2"))
    first, last = BEGIN + 1, author.now
    assert await backend.store.seq_at("m", 0) == 0
    assert await backend.store.seq_at("m", first) == 0
    assert await backend.store.seq_at("m", last) == author.mob.head - 1
    assert await backend.store.seq_at("m", last + 1) == author.mob.head


async def test_mobs_are_listed_by_phase_and_labels_in_pages(backend: Backend) -> None:
    for name, labels in (("a", {"env": "x"}), ("b", {"env": "y"}), ("c", {"env": "x", "team": "t"}), ("d", {})):
        author = Author(name)
        group = author.create(labels=labels)
        if name == "d":
            group.append(author.append(c.StopMob()))
        await backend.fates(*group)
    store = backend.store
    listed, after = await store.list_mobs("", 100, None, {})
    assert ([one.mob_id for one in listed], after) == (["a", "b", "c", "d"], "")
    listed, after = await store.list_mobs("", 1, None, {"env": "x"})
    assert [one.mob_id for one in listed] == ["a"]
    listed, after = await store.list_mobs(after, 1, None, {"env": "x"})
    assert [one.mob_id for one in listed] == ["c"]
    assert (await store.list_mobs(after, 1, None, {"env": "x"}))[0] == []
    listed, _ = await store.list_mobs("", 100, "stopped", {})
    assert [(one.mob_id, one.labels) for one in listed] == [("d", {})]


async def test_runs_are_listed_in_their_order_by_member_and_state(backend: Backend) -> None:
    author = Author("m")
    group = [*author.create("a", "b"), *author.attach()]
    for n in range(3):
        group += [*author.run("a", f"a{n}"), *author.run("b", f"b{n}")]
    await backend.fates(*group)
    runs, after = await backend.store.list_runs("m", "", 4, None, None)
    rest, end = await backend.store.list_runs("m", after, 4, None, None)
    ids = [run.run_id for run in runs + rest]
    assert (ids, end) == (sorted(ids), "")
    assert len(ids) == 6
    of_a, _ = await backend.store.list_runs("m", "", 100, "a", "committed")
    assert [run.member_id for run in of_a] == ["a"] * 3
    assert (await backend.store.list_runs("m", "", 100, None, "lost"))[0] == []


async def test_mobs_that_owe_something_are_known_without_reading_them(backend: Backend) -> None:
    owing, idle = Author("owing"), Author("idle")
    await backend.fates(*owing.create("a"), *owing.attach(), *idle.create("a"))
    assert await backend.store.owing() == [("owing", 0)]


async def test_an_event_of_a_newer_build_is_named(backend: Backend) -> None:
    author = Author("m")
    group = author.create("a")
    group[-1].records[-1].v = 99
    await backend.fates(*group)
    with pytest.raises(MobFormatNewer, match="version 99"):
        await backend.store.read_events("m", 0, 10)


async def test_an_event_that_is_no_event_is_named(backend: Backend) -> None:
    author = Author("m")
    group = author.create("a")
    group[-1].records[-1].payload = '{"member_id": 1}'
    await backend.fates(*group)
    with pytest.raises(MobQuarantined, match="event 3"):
        await backend.store.read_events("m", 0, 10)
