"""What a SQL store says when its database fails: certain that nothing was written, or not certain of anything.

The faults are raised between the writer and the real driver, at the statements at which a driver raises them.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing

import psycopg
import pytest
from sqlalchemy.engine import Engine
from tests.stores.conftest import Backend, commit
from tests.support.authors import Author

from mobd_server.adapters.sql.lanes import Lane, Trouble, lane_for
from mobd_server.adapters.sql.writer import Span, SqlWriter
from mobd_server.ports import Result

pytestmark = pytest.mark.asyncio


class FailingLane:
    """A real lane; before each of its steps it takes the next fault that is planned for it."""

    def __init__(self, inner: Lane, faults: dict[str, list[Exception]]) -> None:
        self._inner = inner
        self._faults = faults

    def _meet(self, point: str) -> None:
        if self._faults.get(point):
            raise self._faults[point].pop(0)

    def append(self, spans: Sequence[Span]) -> set[int]:
        self._meet("before_append")
        fenced = self._inner.append(spans)
        self._meet("after_append")
        return fenced

    def commit(self) -> None:
        self._meet("before_commit")
        self._inner.commit()
        self._meet("after_commit")

    def sort(self, error: Exception, *, committing: bool) -> Trouble:
        return self._inner.sort(error, committing=committing)

    def close(self) -> None:
        self._inner.close()


def busy(engine: Engine) -> Exception:
    """What a driver raises when it certainly did not commit and may be asked again."""
    if engine.dialect.name == "sqlite":
        error = sqlite3.OperationalError("database is locked")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        return error
    return psycopg.errors.DeadlockDetected("deadlock detected")


def broken(engine: Engine) -> Exception:
    """What a driver raises when it does not know what became of a COMMIT."""
    if engine.dialect.name == "sqlite":
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        return error
    return psycopg.OperationalError("server closed the connection unexpectedly")


async def attempt(sql: Backend, faults: dict[str, list[Exception]]) -> tuple[Result, int]:
    """Commit one delivery with faults; return its result and how many deliveries the store then holds."""
    assert sql.engine is not None
    author = Author("m")
    await sql.fates(*author.create("a"))
    opened: Callable[[Engine], Lane] = lambda engine: FailingLane(lane_for(engine), faults)  # noqa: E731 - a value
    with closing(SqlWriter(sql.engine, 0.3, opened)) as writer:
        (result,) = await commit(writer, [author.deliver("a", "i")])
    kinds = [record.kind for record in await sql.store.read_events("m", 0, 100)]
    return result, kinds.count("input_accepted")


@pytest.mark.parametrize("point", ["before_append", "after_append", "before_commit"])
async def test_what_certainly_was_not_committed_is_tried_again(sql: Backend, point: str) -> None:
    assert sql.engine is not None
    result, held = await attempt(sql, {point: [busy(sql.engine), busy(sql.engine)]})
    assert (result.fate, held) == ("committed", 1)


@pytest.mark.parametrize("point", ["before_append", "after_append"])
async def test_a_connection_that_breaks_before_the_commit_is_replaced(sql: Backend, point: str) -> None:
    assert sql.engine is not None
    result, held = await attempt(sql, {point: [broken(sql.engine)]})
    assert (result.fate, held) == ("committed", 1)


async def test_what_is_tried_in_vain_is_aborted_and_not_there(sql: Backend) -> None:
    assert sql.engine is not None
    result, held = await attempt(sql, {"before_append": [broken(sql.engine) for _ in range(1_000)]})
    assert (result.fate, held) == ("aborted", 0)
    assert result.error


@pytest.mark.parametrize(("point", "there"), [("before_commit", 0), ("after_commit", 1)])
async def test_a_commit_that_breaks_is_unknown_whether_it_is_there_or_not(sql: Backend, point: str, there: int) -> None:
    assert sql.engine is not None
    result, held = await attempt(sql, {point: [broken(sql.engine)]})
    assert (result.fate, held) == ("unknown", there)


async def test_a_probe_tells_whether_the_database_answers(sql: Backend) -> None:
    answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    sql.writer.probe(answered.set_result)
    assert await answered


async def test_a_takeover_waits_for_a_transaction_in_doubt(sql: Backend) -> None:
    assert sql.engine is not None
    author = Author("m")
    await sql.fates(*author.create("a"))
    delivery = author.deliver("a", "in doubt")
    lane = lane_for(sql.engine)
    lane.append([Span("m", 1, delivery.base, delivery.base + 1, [delivery], [0])])
    takeover = asyncio.ensure_future(sql.store.acquire("m"))
    await asyncio.wait([takeover], timeout=0.3)
    assert not takeover.done()
    lane.commit()
    loaded = await takeover
    assert loaded is not None
    assert loaded.head == delivery.base + 1
    lane.close()
