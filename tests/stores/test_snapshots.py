"""Snapshots: only of what the log holds, no more of them than are needed, and never in the way of a deletion."""

import asyncio
import math

import pytest
from msgspec import structs
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError
from tests.stores.conftest import WAIT_S, Backend
from tests.support.authors import BEGIN, Author

from mobd_server.actors.loading import rebuild
from mobd_server.adapters.sql import purge
from mobd_server.adapters.sql.tables import METADATA
from mobd_server.errors import CursorAhead, InvalidTransition, MobNotFound
from mobd_server.machines import commands as c
from mobd_server.machines import snapshot as snapshots
from mobd_server.machines.records import Append
from mobd_server.machines.snapshot import FORMAT, superfluous
from mobd_server.ports import Snapshot

pytestmark = pytest.mark.asyncio


async def kept(
    backend: Backend, author: Author, seq: int, state: str = "{}", spacing: int = 1, log_id: str = ""
) -> str:
    """Store a snapshot and return why it was not."""
    done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    snapshot = Snapshot(seq, FORMAT, BEGIN, state)
    backend.writer.write_snapshot(author.mob.mob_id, log_id or author.mob.log_id, snapshot, spacing, done.set_result)
    async with asyncio.timeout(WAIT_S):
        return await done


async def stored(backend: Backend, author: Author) -> list[int]:
    """Return the seqs of all snapshots, the newest first."""
    seqs: list[int] = []
    at_most = 1 << 40
    while (found := await backend.store.read_snapshot(author.mob.mob_id, at_most)) is not None:
        seqs.append(found.seq)
        at_most = found.seq - 1
    return seqs


async def grown(backend: Backend, events: int = 40) -> Author:
    author = Author("m")
    group = author.create("a")
    while author.mob.head < events:
        group.append(author.deliver("a", f"i{author.mob.head}"))
    assert set(await backend.fates(*group)) == {"committed"}
    return author


async def test_a_snapshot_is_read_back_as_it_was_written(backend: Backend) -> None:
    author = await grown(backend)
    state = snapshots.take(author.mob).decode()
    assert await kept(backend, author, author.mob.head, state) == ""
    found = await backend.store.read_snapshot("m", author.mob.head)
    assert found == Snapshot(author.mob.head, FORMAT, BEGIN, state)
    assert await backend.store.read_snapshot("m", author.mob.head - 1) is None
    assert await backend.store.read_snapshot("other", author.mob.head) is None
    assert snapshots.decode(found.state) == author.mob


async def test_one_that_is_written_again_takes_the_place_of_the_first(backend: Backend) -> None:
    author = await grown(backend)
    await kept(backend, author, 9, '{"first":1}')
    assert await kept(backend, author, 9, '{"second":1}') == ""
    found = await backend.store.read_snapshot("m", 40)
    assert found is not None
    assert found.state == '{"second":1}'


async def test_one_of_another_log_or_beyond_the_head_is_not_stored(backend: Backend) -> None:
    author = await grown(backend)
    assert await kept(backend, author, author.mob.head + 1) != ""
    assert await kept(backend, author, 5, log_id="another") != ""
    assert await kept(backend, Author("nobody"), 1, log_id="log-nobody") != ""
    assert await stored(backend, author) == []


async def test_those_that_are_superfluous_go(backend: Backend) -> None:
    author = await grown(backend)
    for seq in range(2, 40, 2):
        assert await kept(backend, author, seq, spacing=2) == ""
    found = await stored(backend, author)
    assert found[:2] == [38, 36]
    assert len(found) < 10
    assert superfluous(found[::-1], 2) == []


async def test_any_state_is_folded_from_half_the_log_at_most() -> None:
    spacing, seqs = 20, list[int]()
    for number in range(1, 600):
        seqs.append(number * spacing)
        dropped = set(superfluous(seqs, spacing))
        seqs = [seq for seq in seqs if seq not in dropped]
        assert len(seqs) <= 2 * math.log2(number) + 4
        assert seqs[-2:] == [seq for seq in (number * spacing - spacing, number * spacing) if seq]
        gaps = [younger - older for older, younger in zip([0, *seqs], seqs, strict=False)]
        assert max(gaps) <= max(spacing, number * spacing // 2)


async def test_a_failed_snapshot_leaves_the_journal_as_it_was(sql: Backend) -> None:
    author = await grown(sql)
    # A lone surrogate: no database takes it.
    assert "Unicode" in await kept(sql, author, 5, "\ud800")
    assert await sql.fates(author.deliver("a", "after")) == ["committed"]
    assert await stored(sql, author) == []


async def test_a_state_of_the_past_is_that_of_the_log_folded_by_hand(backend: Backend) -> None:
    author = await grown(backend)
    states = {}
    for seq in (0, 3, 17, 40):
        states[seq] = snapshots.encode(await rebuild(backend.store, "m", seq))
    for seq in (10, 30):
        await kept(backend, author, seq, snapshots.take(await rebuild(backend.store, "m", seq)).decode())
    for seq, state in states.items():
        assert snapshots.encode(await rebuild(backend.store, "m", seq)) == state
    assert states[40] == snapshots.encode(author.mob)
    with pytest.raises(CursorAhead):
        await rebuild(backend.store, "m", 41)
    with pytest.raises(MobNotFound):
        await rebuild(backend.store, "nobody", 0)


@pytest.mark.parametrize(
    ("state", "form"),
    [
        ("{", FORMAT),
        ('{"mob_id":"m"}', FORMAT),
        ('{"mob_id":"m","head":20,"log_id":"another"}', FORMAT),
        ('{"mob_id":"m","head":20,"log_id":"log-m","members":{}}', FORMAT),
        ("anything at all", FORMAT + 1),
    ],
)
async def test_a_snapshot_that_can_not_be_used_is_passed_over(backend: Backend, state: str, form: int) -> None:
    author = await grown(backend)
    good = snapshots.take(await rebuild(backend.store, "m", 10)).decode()
    await kept(backend, author, 10, good)
    done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    backend.writer.write_snapshot("m", "log-m", Snapshot(20, form, BEGIN, state), 1, done.set_result)
    assert await done == ""
    assert await rebuild(backend.store, "m", 40) == author.mob


async def _destroyed(backend: Backend) -> Author:
    author = Author("m")
    group = [*author.create("a", "b"), *author.attach(), *author.run("a", "i1", '{"role":"user"}')]
    group.append(author.append(c.DestroyMob()))
    while author.mob.phase != "destroyed":
        group.append(author.append(c.Continue()))
    assert set(await backend.fates(*group)) == {"committed"}
    return author


async def test_only_a_destroyed_mob_is_deleted(backend: Backend) -> None:
    await grown(backend)
    with pytest.raises(InvalidTransition) as refused:
        await backend.store.mark_deleting("m")
    assert (refused.value.details["from"], refused.value.details["allowed"]) == ("running", "destroyed")
    with pytest.raises(MobNotFound):
        await backend.store.mark_deleting("nobody")
    await backend.store.delete_rows("m")
    assert await backend.store.head("m") is not None


async def test_from_the_mark_on_a_mob_is_found_by_nobody_and_its_name_is_taken(backend: Backend) -> None:
    author = await _destroyed(backend)
    await backend.store.mark_deleting("m")
    await backend.store.mark_deleting("m")
    store = backend.store
    assert await store.deleting() == ["m"]
    assert (await store.acquire("m"), await store.head("m"), await store.owing()) == (None, None, [])
    assert await store.list_mobs("", 10, None, {}) == ([], "")
    assert await kept(backend, author, 1) == "the mob is gone"
    assert set(await backend.fates(*Author("m").create())) == {"fenced"}


async def test_a_deleted_mob_leaves_no_row_and_its_name_is_free(backend: Backend) -> None:
    author, other = await _destroyed(backend), Author("other")
    await backend.fates(*other.create("a"))
    await kept(backend, author, 3)
    await backend.store.mark_deleting("m")
    await backend.store.delete_rows("m")
    await backend.store.delete_rows("m")
    assert await backend.store.deleting() == []
    if backend.engine is not None:
        with backend.engine.connect() as connection:
            left = {
                table.name: connection.execute(select(func.count()).where(table.c.mob_id == "m")).scalar()
                for table in METADATA.tables.values()
            }
        assert set(left.values()) == {0}, left
    assert await backend.store.read_events("m", 0, 10) == []
    assert set(await backend.fates(*Author("m").create("new"))) == {"committed"}
    assert len(await backend.store.read_events("other", 0, 10)) == other.mob.head


async def test_an_incarnation_that_is_deleted_appends_no_more(backend: Backend) -> None:
    author = await _destroyed(backend)
    head = author.mob.head
    (record,) = await backend.store.read_events("m", head - 1, 1)
    late = Append("m", "log-m", author.epoch, head, [structs.replace(record, seq=head + 1)], "running", None)
    await backend.store.mark_deleting("m")
    assert await backend.fates(late) == ["fenced"]


async def test_a_log_that_can_not_be_read_is_destroyed_without_an_event(backend: Backend) -> None:
    author = await grown(backend)
    await backend.store.destroy_unreadable("m")
    assert await backend.fates(author.deliver("a", "late")) == ["fenced"]
    listing = (await backend.store.list_mobs("", 10, "destroyed", {}))[0]
    assert [(one.mob_id, one.head) for one in listing] == [("m", 40)]
    await backend.store.mark_deleting("m")
    with pytest.raises(MobNotFound):
        await backend.store.destroy_unreadable("m")
    with pytest.raises(MobNotFound):
        await backend.store.destroy_unreadable("nobody")


async def test_many_rows_are_deleted_in_slices_between_which_others_append(sql: Backend) -> None:
    author, other = Author("m"), Author("other")
    await sql.fates(*author.create("a"), *other.create("a"))
    for _ in range(10):
        await sql.fates(*[author.deliver("a", f"i{author.mob.head}-{n}") for n in range(90)])
    await sql.store.destroy_unreadable("m")
    await sql.store.mark_deleting("m")
    deleting = asyncio.ensure_future(sql.store.delete_rows("m"))
    appended = 0
    while not deleting.done():
        assert await sql.fates(other.deliver("a", f"i{appended}")) == ["committed"]
        appended += 1
    await deleting
    assert await sql.store.deleting() == []


async def test_while_rows_of_a_mob_are_deleted_nobody_else_can_free_its_name(sql: Backend) -> None:
    if sql.store.name != "postgresql":
        pytest.skip("SQLite locks no rows")
    await _destroyed(sql)
    await sql.store.mark_deleting("m")
    assert sql.engine is not None
    writes = sql.engine.execution_options(writes=True)
    with writes.connect() as first, writes.connect() as second:
        assert purge.slice_of(first, "m")
        second.execute(text("SET lock_timeout = '100ms'"))
        with pytest.raises(OperationalError, match="lock timeout"):
            second.execute(text("DELETE FROM mobs WHERE mob_id = 'm'"))
        first.rollback()
        second.rollback()
