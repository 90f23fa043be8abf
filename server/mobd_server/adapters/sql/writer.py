"""The one thread that commits. Each group is one transaction; who may write is decided inside it.

Where nothing has to be waited for, a group is written on the loop, and the thread has only its commit to do: between
two threads that both want the interpreter, each statement costs more than on one (docs/decisions/0019).
SQLAlchemy owns the engine and the connection; the statements of the append path run on that connection's driver cursor.
A group that can't be stored for what is in it is repeated span by span, and the failing span decision by decision, so
that only the offender and what its mob decided after it are lost.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Final

from msgspec import Struct
from sqlalchemy import delete, insert
from sqlalchemy.engine import Engine

from mobd_server.adapters.sql import snapshots
from mobd_server.adapters.sql.engine import turn, turn_now
from mobd_server.adapters.sql.lanes import Lane, Trouble, lane_for
from mobd_server.adapters.sql.tables import sessions
from mobd_server.faults import ARMED, reach
from mobd_server.machines.records import Append
from mobd_server.ports import Result, Snapshot

RETRY_S: Final = 5.0
PAUSE_S: Final = 0.05
# As much as is written in less than a millisecond.
QUICK_ROWS: Final = 128

_COMMITTED: Final = Result("committed")
# No id is empty, so this row is nobody's.
_PROBE: Final = {"mob_id": "", "session_id": "", "member_id": "", "message_count": 0, "digest": ""}


class Span(Struct, gc=False):
    """Consecutive appends of one incarnation: one head, one fate."""

    mob_id: str
    log_id: str
    epoch: int
    base: int
    head: int
    appends: list[Append]
    places: list[int]
    # One of its appends does not follow from the one before it: none of them is stored.
    broken: bool = False


class Begun(Struct):
    """A group that is written and not committed."""

    spans: list[Span]
    fenced: set[int]
    turn: ExitStack


def spans_of(group: Sequence[Append], places: Sequence[int]) -> list[Span]:
    """Merge what belongs together, sorted by mob so that two writers lock rows in one order."""
    spans: list[Span] = []
    newest: dict[tuple[str, str, int], Span] = {}
    for place in places:
        append = group[place]
        span = newest.get((append.mob_id, append.log_id, append.epoch))
        if span is None or append.create is not None:
            span = Span(append.mob_id, append.log_id, append.epoch, append.base, append.base, [], [])
            newest[append.mob_id, append.log_id, append.epoch] = span
            spans.append(span)
        span.broken = span.broken or span.head != append.base
        span.appends.append(append)
        span.places.append(place)
        span.head += len(append.records)
    spans.sort(key=lambda one: one.mob_id)
    return spans


def write_nothing(engine: Engine) -> None:
    """Commit a write that leaves nothing: a read answers on a full disk, and on a server that became a standby.

    Raises what the driver does.
    """
    with turn(engine), engine.execution_options(writes=True).begin() as connection:
        connection.execute(insert(sessions).values(_PROBE))
        connection.execute(delete(sessions).where(sessions.c.mob_id == _PROBE["mob_id"]))


class SqlWriter:
    """Commits groups on a thread of its own; see ports.Writer."""

    def __init__(
        self, engine: Engine, retry_s: float = RETRY_S, open_lane: Callable[[Engine], Lane] = lane_for
    ) -> None:
        self._engine = engine
        self._open_lane = open_lane
        self._loop = asyncio.get_running_loop()
        self._retry_s = retry_s
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lane: Lane | None = None
        # Jobs that the loop has not heard of again. While there are none, the thread does nothing.
        self._open_jobs = 0
        self._thread = threading.Thread(target=self._run, name="mobd-journal", daemon=True)
        self._thread.start()

    def submit(self, group: Sequence[Append], done: Callable[[list[Result]], None]) -> None:
        """Commit `group` in one transaction and call `done` on the loop with one result for each append."""
        begun = self._begin(group) if not self._open_jobs else None
        self._put(done, lambda: self._commit_or_fail(group, begun))

    def probe(self, done: Callable[[bool], None]) -> None:
        """Try the store with a new connection and call `done` on the loop with whether it answers."""
        self._put(done, self._answers)

    def write_snapshot(
        self, mob_id: str, log_id: str, snapshot: Snapshot, spacing: int, done: Callable[[str], None]
    ) -> None:
        """Store a snapshot and call `done` on the loop with why it was not stored, or with ""."""
        self._put(done, lambda: self._keep(mob_id, log_id, snapshot, spacing))

    def close(self) -> None:
        """Wait for what is in flight and release the connection."""
        self._jobs.put(None)
        self._thread.join()
        self._discard()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _put(self, done: Callable[..., None], work: Callable[[], object]) -> None:
        def job() -> None:
            outcome = work()
            # When the loop is closed nobody waits any more.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(told, outcome)

        def told(outcome: object) -> None:
            self._open_jobs -= 1
            done(outcome)

        self._open_jobs += 1
        self._jobs.put(job)

    def _begin(self, group: Sequence[Append]) -> Begun | None:
        """Write `group` on the loop, if that waits for nobody. What fails is tried again on the thread, from the start.

        The thread is idle, so the lane is this one's until the commit is handed over.
        """
        lane = self._lane
        if lane is None or lane.waits or sum(len(one.records) + len(one.messages) for one in group) > QUICK_ROWS:
            return None
        held = turn_now(self._engine)
        if held is None:
            return None
        with ExitStack() as stack:
            stack.enter_context(held)
            spans = spans_of(group, range(len(group)))
            try:
                fenced = lane.append(spans)
            except Exception as error:  # noqa: BLE001 - the thread meets it again, and says what it means
                lane.sort(error, committing=False)
                return None
            return Begun(spans, fenced, stack.pop_all())

    def _commit_or_fail(self, group: Sequence[Append], begun: Begun | None = None) -> list[Result]:
        try:
            results = self.commit(group, begun)
            if ARMED:
                reach("after_commit")
            return results
        except Exception as error:  # noqa: BLE001 - a group without results would hold the journal for ever
            self._discard()
            return [Result("unknown", f"{type(error).__name__}: {error}")] * len(group)

    def commit(self, group: Sequence[Append], begun: Begun | None = None) -> list[Result]:
        """Commit `group`, which may have begun, and return what became of each append. Runs on the thread."""
        results: list[Result | None] = [None] * len(group)
        spans = spans_of(group, range(len(group))) if begun is None else begun.spans
        trouble = self._commit_spans(spans, results, begun)
        if trouble is not None and trouble.kind == "poison":
            self._repeat(group, results)
        elif trouble is not None:
            results = [Result("unknown" if trouble.kind == "unknown" else "aborted", trouble.text)] * len(group)
        return [one if one is not None else _COMMITTED for one in results]

    def _repeat(self, group: Sequence[Append], results: list[Result | None]) -> None:
        """Span by span; the one that fails decision by decision."""
        down: Result | None = None
        for span in spans_of(group, range(len(group))):
            if down is not None:
                # The rest would wait as long again, one after another.
                self._settle(span, results, down)
                continue
            trouble = self._commit_spans([span], results)
            if trouble is not None and trouble.kind == "poison":
                trouble = self._one_by_one(group, span, results)
            if trouble is not None and trouble.kind != "poison":
                self._settle(span, results, Result("unknown" if trouble.kind == "unknown" else "aborted", trouble.text))
                down = Result("aborted", trouble.text)

    @staticmethod
    def _settle(span: Span, results: list[Result | None], result: Result) -> None:
        for place in span.places:
            results[place] = results[place] or result

    def _one_by_one(self, group: Sequence[Append], span: Span, results: list[Result | None]) -> Trouble | None:
        for at, place in enumerate(span.places):
            trouble = self._commit_spans(spans_of(group, [place]), results)
            if trouble is None and results[place] is None:
                results[place] = _COMMITTED
                continue
            if trouble is not None and trouble.kind != "poison":
                return trouble
            if trouble is not None:
                results[place] = Result("offender", trouble.text)
            for later in span.places[at + 1 :]:
                results[later] = Result("dropped", "an earlier decision of the mob did not commit")
            return None
        return None

    def _commit_spans(
        self, spans: list[Span], results: list[Result | None], begun: Begun | None = None
    ) -> Trouble | None:
        """Commit spans in one transaction, again while the store says that it certainly did not."""
        deadline = time.monotonic() + self._retry_s
        while True:
            trouble = self._try(spans, results, begun)
            begun = None
            if trouble is None or trouble.kind != "retry":
                return trouble
            if time.monotonic() >= deadline:
                return trouble
            time.sleep(PAUSE_S)

    def _try(self, spans: list[Span], results: list[Result | None], begun: Begun | None) -> Trouble | None:
        committing = False
        lane = self._lane
        try:
            if lane is None:
                lane = self._lane = self._open_lane(self._engine)
            with turn(self._engine) if begun is None else begun.turn:
                fenced = lane.append(spans) if begun is None else begun.fenced
                if ARMED:
                    reach("before_commit")
                committing = True
                lane.commit()
        except Exception as error:  # noqa: BLE001 - every driver has its own tree of errors; the lane sorts them
            trouble = lane.sort(error, committing=committing) if lane is not None else Trouble("retry", str(error))
            self._after(trouble)
            return trouble
        for at in fenced:
            for place in spans[at].places:
                results[place] = Result("fenced", "another incarnation owns the mob")
        return None

    def _after(self, trouble: Trouble) -> None:
        """What is not about the content may be about the connection: the next try gets a new one."""
        if trouble.kind != "poison":
            self._discard()

    def _discard(self) -> None:
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.close()

    def _keep(self, mob_id: str, log_id: str, snapshot: Snapshot, spacing: int) -> str:
        """On a connection of its own, so that the one that appends stays as it is whatever happens."""
        try:
            with turn(self._engine), self._engine.execution_options(writes=True).begin() as connection:
                error = snapshots.write(connection, mob_id, log_id, snapshot, spacing)
                if ARMED:
                    reach("before_snapshot_written")
                return error
        except Exception as error:  # noqa: BLE001 - it is tried again at the next time
            return f"{type(error).__name__}: {error}"

    def _answers(self) -> bool:
        self._discard()
        self._engine.dispose()
        try:
            write_nothing(self._engine)
        except Exception:  # noqa: BLE001 - whatever it is, the store does not answer
            return False
        return True
