"""What a SQL store says when its database fails: certain that nothing was written, or not certain of anything.

The faults are raised between the writer and the real driver, at the statements at which a driver raises them.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing

import psycopg
import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import Connection, Engine
from tests.stores.conftest import WAIT_S, Backend, EngineOf, commit
from tests.support.authors import Author

from mobd_server.adapters.sql import engine as opening
from mobd_server.adapters.sql.lanes import Lane, Trouble, lane_for
from mobd_server.adapters.sql.writer import Span, SqlWriter
from mobd_server.ports import Result

pytestmark = pytest.mark.asyncio


class FailingLane:
    """A real lane; before each of its steps it takes the next fault that is planned for it."""

    def __init__(self, inner: Lane, faults: dict[str, list[Exception]]) -> None:
        self._inner = inner
        self._faults = faults
        # The mobs of each transaction that was tried.
        self.tried: list[list[str]] = []

    @property
    def waits(self) -> bool:
        return self._inner.waits

    def _meet(self, point: str) -> None:
        if self._faults.get(point):
            raise self._faults[point].pop(0)

    def append(self, spans: Sequence[Span]) -> set[int]:
        self.tried.append([span.mob_id for span in spans])
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


async def attempt(
    sql: Backend, faults: dict[str, list[Exception]], *, open_before: bool, retry_s: float = WAIT_S
) -> tuple[Result, int]:
    """Commit one delivery with faults; return its result and how many deliveries the store then holds.

    With `open_before` its lane is open when it comes, so that one that waits for nobody is written on the loop.
    """
    assert sql.engine is not None
    author = Author("m")
    await sql.fates(*author.create("a"))
    armed: dict[str, list[Exception]] = {}
    opened: Callable[[Engine], Lane] = lambda engine: FailingLane(lane_for(engine), armed)  # noqa: E731 - a value
    with closing(SqlWriter(sql.engine, retry_s, opened)) as writer:
        if open_before:
            other = Author("other")
            assert {result.fate for result in await commit(writer, other.create("a"))} == {"committed"}
        armed.update(faults)
        (result,) = await commit(writer, [author.deliver("a", "i")])
    kinds = [record.kind for record in await sql.store.read_events("m", 0, 100)]
    return result, kinds.count("input_accepted")


@pytest.mark.parametrize("open_before", [False, True])
@pytest.mark.parametrize("point", ["before_append", "after_append", "before_commit"])
async def test_what_certainly_was_not_committed_is_tried_again(sql: Backend, point: str, *, open_before: bool) -> None:
    assert sql.engine is not None
    result, held = await attempt(sql, {point: [busy(sql.engine), busy(sql.engine)]}, open_before=open_before)
    assert (result.fate, held) == ("committed", 1)


@pytest.mark.parametrize("open_before", [False, True])
@pytest.mark.parametrize("point", ["before_append", "after_append"])
async def test_a_connection_that_breaks_before_the_commit_is_replaced(
    sql: Backend, point: str, *, open_before: bool
) -> None:
    assert sql.engine is not None
    result, held = await attempt(sql, {point: [broken(sql.engine)]}, open_before=open_before)
    assert (result.fate, held) == ("committed", 1)


@pytest.mark.parametrize("open_before", [False, True])
async def test_what_is_tried_in_vain_is_aborted_and_not_there(sql: Backend, *, open_before: bool) -> None:
    assert sql.engine is not None
    result, held = await attempt(
        sql, {"before_append": [broken(sql.engine) for _ in range(1_000)]}, open_before=open_before, retry_s=0.3
    )
    assert (result.fate, held) == ("aborted", 0)
    assert result.error


@pytest.mark.parametrize("open_before", [False, True])
@pytest.mark.parametrize(("point", "there"), [("before_commit", 0), ("after_commit", 1)])
async def test_a_commit_that_breaks_is_unknown_whether_it_is_there_or_not(
    sql: Backend, point: str, there: int, *, open_before: bool
) -> None:
    assert sql.engine is not None
    result, held = await attempt(sql, {point: [broken(sql.engine)]}, open_before=open_before)
    assert (result.fate, held) == ("unknown", there)


async def test_a_database_that_fails_while_an_offender_is_sought_is_not_asked_for_every_mob(sql: Backend) -> None:
    assert sql.engine is not None
    authors = [Author(name) for name in ("a", "b", "c")]
    await sql.fates(*(append for author in authors for append in author.create("x")))
    group = [author.deliver("x", "i") for author in authors]
    group[-1].records[0].payload = "\ud800"
    faults = {"after_append": [broken(sql.engine) for _ in range(1_000)]}
    lanes: list[FailingLane] = []

    def opened(engine: Engine) -> FailingLane:
        lanes.append(FailingLane(lane_for(engine), faults))
        return lanes[-1]

    with closing(SqlWriter(sql.engine, 0.3, opened)) as writer:
        results = await commit(writer, group)
    assert [result.fate for result in results] == ["aborted"] * 3
    tried = [mobs for lane in lanes for mobs in lane.tried]
    assert tried[0] == ["a", "b", "c"]
    assert {tuple(mobs) for mobs in tried[1:]} == {("a",)}


class Senseless(FailingLane):
    """A lane that does not even know its errors."""

    def sort(self, error: Exception, *, committing: bool) -> Trouble:
        raise RuntimeError("what is this") from error


async def test_a_bug_of_the_writer_never_leaves_the_journal_without_an_answer(sql: Backend) -> None:
    assert sql.engine is not None
    author = Author("m")
    await sql.fates(*author.create("a"))
    faults = {"before_append": [broken(sql.engine)]}
    opened: Callable[[Engine], Lane] = lambda engine: Senseless(lane_for(engine), faults)  # noqa: E731 - a value
    with closing(SqlWriter(sql.engine, 0.3, opened)) as writer:
        delivery = author.deliver("a", "i")
        (result,) = await commit(writer, [delivery])
        assert (result.fate, result.error) == ("unknown", "RuntimeError: what is this")
        (result,) = await commit(writer, [delivery])
        assert result.fate == "committed"


class Patient(FailingLane):
    """A lane that tells when it met an error."""

    def __init__(self, inner: Lane, met: Callable[[Trouble], None]) -> None:
        super().__init__(inner, {})
        self._met = met

    def sort(self, error: Exception, *, committing: bool) -> Trouble:
        trouble = super().sort(error, committing=committing)
        self._met(trouble)
        return trouble


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_lock_that_another_holds_is_waited_for(
    kind: str, engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "BUSY_MS", 50)
    monkeypatch.setitem(opening.POSTGRES_OPTIONS, "lock_timeout", "50ms")
    engine = engine_of(kind)
    loop = asyncio.get_running_loop()
    met: asyncio.Queue[Trouble] = asyncio.Queue()

    def tell(trouble: Trouble) -> None:
        loop.call_soon_threadsafe(met.put_nowait, trouble)

    def opened(engine: Engine) -> Lane:
        return Patient(lane_for(engine), tell)

    author = Author("m")
    with closing(SqlWriter(engine, WAIT_S, opened)) as writer:
        await commit(writer, author.create("a"))
        other = engine.execution_options(writes=True).connect()
        other.execute(text("UPDATE mobs SET wake_at = NULL WHERE mob_id = 'm'"))
        waiting = asyncio.ensure_future(commit(writer, [author.deliver("a", "i")]))
        async with asyncio.timeout(WAIT_S):
            assert (await met.get()).kind == "retry"
        other.rollback()
        assert [result.fate for result in await waiting] == ["committed"]
        other.close()


async def probed(writer: SqlWriter) -> bool:
    """Probe once."""
    answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    writer.probe(answered.set_result)
    async with asyncio.timeout(WAIT_S):
        return await answered


def forbid_writes(engine: Engine, *, forbidden: bool) -> None:
    """Make every new connection read-only, as a standby's are, or no longer."""
    if engine.dialect.name == "sqlite":
        if forbidden:
            event.listen(engine, "connect", _only_reads)
        else:
            event.remove(engine, "connect", _only_reads)
    else:
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(text("SET default_transaction_read_only = off"))
            _set_read_only(connection, forbidden=forbidden)
    engine.dispose()


def _only_reads(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA query_only = ON")


def _set_read_only(connection: Connection, *, forbidden: bool) -> None:
    name = connection.execute(text("SELECT current_database()")).scalar()
    connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = {forbidden}"))


async def test_a_database_that_only_reads_is_down_until_it_writes_again(sql: Backend) -> None:
    assert sql.engine is not None
    author = Author("m")
    await sql.fates(*author.create("a"))
    delivery = author.deliver("a", "i")
    with closing(SqlWriter(sql.engine, 0.3)) as writer:
        assert await probed(writer)
        forbid_writes(sql.engine, forbidden=True)
        assert [result.fate for result in await commit(writer, [delivery])] == ["aborted"]
        assert not await probed(writer)
        forbid_writes(sql.engine, forbidden=False)
        assert await probed(writer)
        assert [result.fate for result in await commit(writer, [delivery])] == ["committed"]


async def test_appends_that_do_not_follow_from_one_another_are_fenced_together(sql: Backend) -> None:
    author, neighbour = Author("m"), Author("n")
    await sql.fates(*author.create("a"), *neighbour.create("a"))
    head = author.mob.head
    first = author.deliver("a", "1")
    author.deliver("a", "not in the group")
    group = [first, neighbour.deliver("a", "1"), author.deliver("a", "3")]
    assert await sql.fates(*group) == ["fenced", "committed", "fenced"]
    assert [record.seq for record in await sql.store.read_events("m", 0, 100)] == list(range(1, head + 1))
    assert await sql.fates(first) == ["committed"]


async def test_a_takeover_waits_for_a_transaction_in_doubt(sql: Backend) -> None:
    assert sql.engine is not None
    author = Author("m")
    await sql.fates(*author.create("a"))
    delivery = author.deliver("a", "in doubt")
    lane = lane_for(sql.engine)
    lane.append([Span("m", "log-m", 1, delivery.base, delivery.base + 1, [delivery], [0])])
    takeover = asyncio.ensure_future(sql.store.acquire("m"))
    await asyncio.wait([takeover], timeout=0.3)
    assert not takeover.done()
    lane.commit()
    loaded = await takeover
    assert loaded is not None
    assert loaded.head == delivery.base + 1
    lane.close()
