"""Threads that read keep their connections: what is read is never old, and a connection that broke is replaced."""

import asyncio

import pytest
from sqlalchemy import Connection, text
from tests.stores.conftest import Backend
from tests.support.authors import Author

from mobd_server.adapters.sql.readers import THREADS, Readers

pytestmark = pytest.mark.asyncio


async def test_what_was_committed_is_seen_by_the_next_read_on_every_thread(sql: Backend) -> None:
    assert sql.engine is not None
    author = Author("m")
    await sql.fates(*author.create("a"))
    for number in range(3):
        # All threads have read, and have kept their connections.
        heads = await asyncio.gather(*(sql.store.head("m") for _ in range(4 * THREADS)))
        assert {loaded.head for loaded in heads if loaded is not None} == {author.mob.head}
        assert await sql.fates(author.deliver("a", f"i{number}")) == ["committed"]


async def test_a_connection_that_broke_is_replaced_and_its_reader_does_not_notice(sql: Backend) -> None:
    assert sql.engine is not None
    if sql.engine.dialect.name != "postgresql":
        # A file does not go away; what fails there fails again.
        return
    readers = Readers(sql.engine)
    pids: list[int] = []

    def pid(connection: Connection) -> None:
        pids.append(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())

    try:
        await readers.read(pid)
        with sql.engine.begin() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pids[0]})
        for _ in range(THREADS):
            await readers.read(pid)
    finally:
        readers.close()
    assert len(pids) == 1 + THREADS
    assert pids[0] not in pids[1:]


async def test_nothing_that_was_read_keeps_the_log_of_sqlite_from_being_cut(sql: Backend) -> None:
    assert sql.engine is not None
    if sql.engine.dialect.name != "sqlite":
        return
    author = Author("m")
    await sql.fates(*author.create("a"))
    await asyncio.gather(*(sql.store.read_events("m", 0, 10) for _ in range(4 * THREADS)))
    with sql.engine.connect() as connection:
        busy, _, _ = connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)")).one()
    assert busy == 0
