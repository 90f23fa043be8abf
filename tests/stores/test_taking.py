"""Many mobs are taken over and read at once, and none of them is in the way of another."""

import asyncio

import pytest
from sqlalchemy import text
from tests.stores.conftest import Backend, commit
from tests.support.authors import BEGIN, Author

from mobd_server.adapters.sql.lanes import lane_for
from mobd_server.adapters.sql.writer import Span
from mobd_server.machines import commands as c
from mobd_server.machines import snapshot as snapshots
from mobd_server.ports import Snapshot, Wanted

pytestmark = pytest.mark.asyncio

WHOLE = 1 << 40


async def authors(backend: Backend, *names: str) -> dict[str, Author]:
    found = {name: Author(name) for name in names}
    for author in found.values():
        assert set(await commit_of(backend, author)) == {"committed"}
    return found


async def commit_of(backend: Backend, author: Author) -> list[str]:
    group = [*author.create("a"), *(author.deliver("a", f"i{n}") for n in range(5))]
    return [result.fate for result in await commit(backend.writer, group)]


async def snapshot_at(backend: Backend, author: Author) -> int:
    """Let the state of now be kept, and the log go on behind it; return where it was kept."""
    done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    mob = author.mob
    seq, state = mob.head, snapshots.take(mob).decode()
    backend.writer.write_snapshot(
        mob.mob_id, mob.log_id, Snapshot(seq, snapshots.FORMAT, BEGIN, state), 1_000, done.set_result
    )
    assert await done == ""
    return seq


async def change(backend: Backend, statement: str) -> None:
    assert backend.engine is not None
    with backend.engine.execution_options(writes=True).begin() as connection:
        connection.execute(text(statement))


async def test_who_takes_many_over_is_the_only_incarnation_of_each(backend: Backend) -> None:
    found = await authors(backend, "m", "n", "o")
    taken = await backend.store.acquire_many(["m", "o", "nobody"])
    assert taken.pop("nobody") is None
    assert {mob_id: (one.epoch, one.head, one.first_seq, one.log_id) for mob_id, one in taken.items() if one} == {
        mob_id: (2, found[mob_id].mob.head, 1, f"log-{mob_id}") for mob_id in ("m", "o")
    }
    late = [found[mob_id].deliver("a", "late") for mob_id in ("m", "n", "o")]
    assert await backend.fates(*late) == ["fenced", "committed", "fenced"]
    # It is durable, and each next one counts on.
    again = await backend.store.acquire("m")
    assert again is not None
    assert again.epoch == 3
    assert await backend.store.acquire_many([]) == {}


async def test_a_mob_that_is_being_deleted_is_not_there(backend: Backend) -> None:
    found = await authors(backend, "m", "n")
    await backend.fates(found["m"].append(c.DestroyMob()))
    await backend.store.mark_deleting("m")
    taken = await backend.store.acquire_many(["m", "n"])
    assert (taken["m"], taken["n"] is None) == (None, False)


async def test_a_mob_in_a_newer_format_stays_with_the_server_that_can_read_it(sql: Backend) -> None:
    found = await authors(sql, "m", "n")
    await change(sql, "UPDATE mobs SET format = 99 WHERE mob_id = 'm'")
    assert set(await sql.store.acquire_many(["m", "n"])) == {"n"}
    assert await sql.fates(found["m"].deliver("a", "still mine")) == ["committed"]


async def test_a_mob_that_somebody_else_holds_is_left_out_and_nobody_waits(sql: Backend) -> None:
    if sql.store.name != "postgresql":
        pytest.skip("SQLite locks no rows")
    found = await authors(sql, "m", "n")
    assert sql.engine is not None
    delivery = found["m"].deliver("a", "in doubt")
    lane = lane_for(sql.engine)
    lane.append([Span("m", "log-m", 1, delivery.base, delivery.base + 1, [delivery], [0])])
    async with asyncio.timeout(3):
        assert set(await sql.store.acquire_many(["m", "n"])) == {"n"}
    lane.commit()
    lane.close()
    assert set(await sql.store.acquire_many(["m", "n"])) == {"m", "n"}


async def test_many_states_begin_with_the_newest_snapshot_that_may_be_used(backend: Backend) -> None:
    found = await authors(backend, "m", "n", "o")
    seqs = {}
    for name in ("m", "o"):
        author = found[name]
        seqs[name] = [await snapshot_at(backend, author)]
        await backend.fates(*(author.deliver("a", f"x{n}") for n in range(3)))
        seqs[name].append(await snapshot_at(backend, author))
        await backend.fates(author.deliver("a", "y"))
    heads = {name: author.mob.head for name, author in found.items()}
    wanted = [Wanted("m", WHOLE), Wanted("n", WHOLE), Wanted("o", seqs["o"][1] - 1), Wanted("nobody", 7)]
    m, n, o, nobody = await backend.store.read_many(wanted, 100)
    assert m.snapshot is not None
    assert o.snapshot is not None
    assert (m.snapshot.seq, n.snapshot, o.snapshot.seq) == (seqs["m"][1], None, seqs["o"][0])
    assert snapshots.decode(m.snapshot.state).head == seqs["m"][1]
    assert [one.seq for one in m.events] == [heads["m"]]
    assert [one.seq for one in n.events] == list(range(1, heads["n"] + 1))
    assert [one.seq for one in o.events] == list(range(seqs["o"][0] + 1, heads["o"] + 1))
    assert (nobody.snapshot, nobody.events) == (None, [])
    assert n.events == await backend.store.read_events("n", 0, 100)


async def test_of_each_mob_only_so_many_events_are_read(backend: Backend) -> None:
    found = await authors(backend, "m", "n")
    seq = await snapshot_at(backend, found["n"])
    await backend.fates(*(found["n"].deliver("a", f"x{n}") for n in range(5)))
    m, n = await backend.store.read_many([Wanted("m", WHOLE), Wanted("n", WHOLE)], 2)
    assert [one.seq for one in m.events] == [1, 2]
    assert [one.seq for one in n.events] == [seq + 1, seq + 2]


async def test_what_is_large_is_read_in_the_next_call_but_always_something(backend: Backend) -> None:
    found = await authors(backend, "m", "n", "o")
    for name in ("m", "n"):
        await snapshot_at(backend, found[name])
    wanted = [Wanted(name, WHOLE) for name in ("m", "n", "o")]
    (first,) = await backend.store.read_many(wanted, 100, max_bytes=1)
    assert first.snapshot is not None
    assert len(await backend.store.read_many(wanted, 100, max_bytes=len(first.snapshot.state) + 1)) == 2
    assert len(await backend.store.read_many(wanted, 100)) == 3
    assert len(await backend.store.read_many(wanted[2:], 100, max_bytes=1)) == 1


async def test_events_that_are_large_are_left_to_whoever_reads_on(sql: Backend) -> None:
    await authors(sql, "m", "n", "o")
    wanted = [Wanted(name, WHOLE) for name in ("m", "n", "o")]
    assert [len(one.events) for one in await sql.store.read_many(wanted, 100, max_bytes=1)] == [1, 0, 0]
    whole = [one.events for one in await sql.store.read_many(wanted, 100)]
    enough = sum(len(one.payload) for events in whole[:2] for one in events)
    cut = [one.events for one in await sql.store.read_many(wanted, 100, max_bytes=enough + 1)]
    assert cut == [whole[0], whole[1], whole[2][:1]]


@pytest.mark.parametrize("kind", ["can not be decoded", "is not known"])
async def test_what_can_not_be_read_of_one_mob_hurts_no_other(sql: Backend, kind: str) -> None:
    found = await authors(sql, "m", "n")
    broken = "payload = '[]'" if kind == "can not be decoded" else "kind = 'mob_sung'"
    await change(sql, f"UPDATE events SET {broken} WHERE mob_id = 'm' AND seq = 3")
    m, n = await sql.store.read_many([Wanted("m", WHOLE), Wanted("n", WHOLE)], 100)
    assert [one.seq for one in m.events] == [1, 2]
    assert [one.seq for one in n.events] == list(range(1, found["n"].mob.head + 1))
