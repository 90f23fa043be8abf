"""Where a group is written: on the loop when nothing has to be waited for, and committed on the journal's thread."""

import threading
from collections.abc import Callable, Sequence
from contextlib import closing

import pytest
from sqlalchemy.engine import Engine
from tests.stores.conftest import Backend, commit
from tests.support.authors import Author

from mobd_server.adapters.sql.engine import turn_now
from mobd_server.adapters.sql.lanes import Lane, Trouble, lane_for
from mobd_server.adapters.sql.writer import QUICK_ROWS, Span, SqlWriter

pytestmark = pytest.mark.asyncio


class Traced:
    """A real lane that writes down on which thread its steps were called."""

    def __init__(self, inner: Lane, steps: list[tuple[str, bool]]) -> None:
        self._inner = inner
        self._steps = steps
        self.waits = inner.waits

    def append(self, spans: Sequence[Span]) -> set[int]:
        self._note("append")
        return self._inner.append(spans)

    def commit(self) -> None:
        self._note("commit")
        self._inner.commit()

    def sort(self, error: Exception, *, committing: bool) -> Trouble:
        return self._inner.sort(error, committing=committing)

    def close(self) -> None:
        self._inner.close()

    def _note(self, step: str) -> None:
        self._steps.append((step, threading.current_thread() is threading.main_thread()))


THREAD = [("append", False), ("commit", False)]
LOOP = [("append", True), ("commit", False)]


async def test_only_commits_of_sqlite_are_left_to_the_thread(sql: Backend) -> None:
    assert sql.engine is not None
    steps: list[tuple[str, bool]] = []
    opened: Callable[[Engine], Lane] = lambda engine: Traced(lane_for(engine), steps)  # noqa: E731 - a value
    author = Author("m")
    with closing(SqlWriter(sql.engine, 0.3, opened)) as writer:
        await commit(writer, author.create("a"))
        assert steps == THREAD
        steps.clear()
        await commit(writer, [author.deliver("a", "i")])
        assert steps == (LOOP if sql.engine.dialect.name == "sqlite" else THREAD)


async def test_what_is_long_is_written_on_the_thread(sql: Backend) -> None:
    assert sql.engine is not None
    steps: list[tuple[str, bool]] = []
    opened: Callable[[Engine], Lane] = lambda engine: Traced(lane_for(engine), steps)  # noqa: E731 - a value
    author = Author("m")
    with closing(SqlWriter(sql.engine, 0.3, opened)) as writer:
        await commit(writer, author.create("a"))
        steps.clear()
        results = await commit(writer, [author.deliver("a", f"i{number}") for number in range(QUICK_ROWS + 1)])
        assert steps == THREAD
    assert {result.fate for result in results} == {"committed"}


async def test_a_writer_that_has_its_turn_is_waited_for_on_the_thread(sql: Backend) -> None:
    assert sql.engine is not None
    if sql.engine.dialect.name != "sqlite":
        # Its writers take no turns.
        assert turn_now(sql.engine) is not None
        return
    steps: list[tuple[str, bool]] = []
    opened: Callable[[Engine], Lane] = lambda engine: Traced(lane_for(engine), steps)  # noqa: E731 - a value
    author = Author("m")
    with closing(SqlWriter(sql.engine, 0.3, opened)) as writer:
        await commit(writer, author.create("a"))
        steps.clear()
        held = turn_now(sql.engine)
        assert held is not None
        # Its end comes from another thread, as that of a purge or a load does.
        release = threading.Timer(0.05, held.__exit__, (None, None, None))
        held.__enter__()
        assert turn_now(sql.engine) is None
        release.start()
        (result,) = await commit(writer, [author.deliver("a", "i")])
        assert (result.fate, steps) == ("committed", THREAD)
        release.join()
    assert turn_now(sql.engine) is not None


async def test_an_older_incarnation_is_fenced_wherever_it_writes(sql: Backend) -> None:
    assert sql.engine is not None
    author, other = Author("m"), Author("other")
    with closing(SqlWriter(sql.engine, 0.3)) as writer:
        await commit(writer, author.create("a"))
        await sql.store.acquire("m")
        results = await commit(writer, [author.deliver("a", "i"), *other.create("b")])
        assert [result.fate for result in results] == ["fenced", "committed", "committed"]
    assert [record.kind for record in await sql.store.read_events("m", 0, 9)] == [
        "mob_created",
        "mob_started",
        "member_spawned",
    ]
