"""The process that folds states of the past: what it answers, and that it comes and goes as it should."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from sqlalchemy import text
from tests.stores.conftest import Backend
from tests.support.authors import BEGIN, Author

from mobd_server.actors.loading import rebuild
from mobd_server.adapters.sql.rebuilding import RebuilderProcess
from mobd_server.errors import CursorAhead, MobNotFound, MobQuarantined, Unavailable
from mobd_server.machines import snapshot as snapshots
from mobd_server.machines.sections import parts
from mobd_server.ports import Snapshot

pytestmark = pytest.mark.asyncio

WAIT_S = 30


@pytest_asyncio.fixture
async def rebuilder(sql: Backend) -> AsyncIterator[RebuilderProcess]:
    """The process of a server on that database."""
    assert sql.engine is not None
    rebuilder = RebuilderProcess(sql.engine.url.render_as_string(hide_password=False))
    yield rebuilder
    await rebuilder.close()


async def grown(sql: Backend, count: int = 30) -> Author:
    author = Author("m")
    group = [*author.create("a"), *author.attach(), *author.run("a", "first", '{"role":"user"}')]
    group += [author.deliver("a", f"i{n}", '"\\ud83d\\ude00"') for n in range(count)]
    assert set(await sql.fates(*group)) == {"committed"}
    return author


async def test_a_state_of_the_past_is_that_of_the_log(sql: Backend, rebuilder: RebuilderProcess) -> None:
    author = await grown(sql)
    async with asyncio.timeout(WAIT_S):
        for seq in (author.mob.head, 0, 9):
            mob = await rebuild(sql.store, "m", seq)
            assert await rebuilder.state("m", seq) == snapshots.encode(mob)
            assert await rebuilder.sections("m", seq) == list(parts(mob))
    assert snapshots.decode(await rebuilder.state("m", author.mob.head)) == author.mob


async def test_it_begins_with_the_newest_snapshot_that_can_be_used(sql: Backend, rebuilder: RebuilderProcess) -> None:
    author = await grown(sql)
    done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    told = await rebuilder.state("m", 10)
    # Of another member than the log knows of: so it is seen from where a state was folded.
    changed = told.replace(b'"role":"analyst"', b'"role":"changed"')
    snapshot = Snapshot(10, snapshots.FORMAT, BEGIN, changed.decode())
    sql.writer.write_snapshot("m", "log-m", snapshot, 1, done.set_result)
    assert await done == ""
    head = author.mob.head
    assert (await rebuilder.state("m", head)).count(b'"role":"changed"') > 0
    assert (await rebuilder.state("m", 9)).count(b'"role":"changed"') == 0
    assert sql.engine is not None
    with sql.engine.execution_options(writes=True).begin() as connection:
        connection.execute(text("UPDATE snapshots SET state = '{'"))
    assert await rebuilder.state("m", head) == snapshots.encode(author.mob)


async def test_what_can_not_be_folded_is_refused_in_the_words_of_the_server(
    sql: Backend, rebuilder: RebuilderProcess
) -> None:
    author = await grown(sql)
    with pytest.raises(MobNotFound):
        await rebuilder.state("nobody", 0)
    with pytest.raises(CursorAhead) as ahead:
        await rebuilder.sections("m", author.mob.head + 1)
    assert ahead.value.details["head"] == str(author.mob.head)
    assert sql.engine is not None
    with sql.engine.execution_options(writes=True).begin() as connection:
        connection.execute(text("UPDATE events SET payload = '[]' WHERE seq = 12"))
    with pytest.raises(MobQuarantined):
        await rebuilder.state("m", 12)
    assert snapshots.decode(await rebuilder.state("m", 11)).head == 11


async def test_it_is_one_process_that_is_started_again_if_it_dies(sql: Backend, rebuilder: RebuilderProcess) -> None:
    author = await grown(sql)
    head = author.mob.head
    first = await rebuilder.state("m", head)
    pid = rebuilder.pid
    assert pid is not None
    await rebuilder.state("m", 3)
    assert rebuilder.pid == pid
    # Signals for the whole group of the server are not for it.
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    await rebuilder.state("m", 3)
    assert rebuilder.pid == pid
    os.kill(pid, signal.SIGKILL)
    assert await rebuilder.state("m", head) == first
    assert rebuilder.pid not in (pid, None)


async def test_who_gives_up_waiting_ends_the_work_and_nobody_gets_its_answer(
    sql: Backend, rebuilder: RebuilderProcess
) -> None:
    author = await grown(sql)
    await rebuilder.state("m", 1)
    pid = rebuilder.pid
    asking = asyncio.ensure_future(rebuilder.state("m", 2))
    waiting = asyncio.ensure_future(rebuilder.state("m", author.mob.head))
    # Until the first has the turn.
    await asyncio.wait([asking], timeout=0)
    asking.cancel()
    assert snapshots.decode(await waiting) == author.mob
    assert rebuilder.pid != pid
    assert asking.cancelled()


async def test_after_the_end_nothing_is_started(sql: Backend, rebuilder: RebuilderProcess) -> None:
    await grown(sql)
    await rebuilder.state("m", 1)
    pid = rebuilder.pid
    assert pid is not None
    await rebuilder.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(Unavailable):
        await rebuilder.state("m", 1)
