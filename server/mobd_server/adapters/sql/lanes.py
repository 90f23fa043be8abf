"""The append path of each database: precompiled statements on the driver's cursor, and what its errors mean."""

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import psycopg
from msgspec import Struct
from sqlalchemy.engine import Engine

from mobd_server.adapters.sql.rows import (
    EVENT_COLUMNS,
    MESSAGE_COLUMNS,
    MOB_COLUMNS,
    OPERATION_COLUMNS,
    OPERATION_UPSERT,
    RUN_COLUMNS,
    SESSION_COLUMNS,
    SESSION_UPSERT,
    event_rows,
    message_rows,
    mob_row,
    operation_rows,
    run_rows,
    session_rows,
)

if TYPE_CHECKING:
    from mobd_server.adapters.sql.writer import Span

Kind = Literal["retry", "poison", "unknown"]


class Trouble(Struct, gc=False):
    """Why a transaction did not commit: it may be repeated, its content can't be stored, or nobody knows."""

    kind: Kind
    text: str


class Lane(Protocol):
    """A connection that appends."""

    @property
    def waits(self) -> bool:
        """Whether `append` waits for others: for a network, or for a lock."""

    def append(self, spans: "Sequence[Span]") -> set[int]:
        """Begin, write all that is not fenced, and return the places of the spans that were."""

    def commit(self) -> None:
        """Commit."""

    def sort(self, error: Exception, *, committing: bool) -> Trouble:
        """Say what an error means, and leave the transaction."""

    def close(self) -> None:
        """Give the connection up."""


def _insert(table: str, columns: Sequence[str], rows: int) -> str:
    one = "(" + ",".join("?" * len(columns)) + ")"
    return f"INSERT INTO {table} ({','.join(columns)}) VALUES {','.join([one] * rows)}"


class SqliteLane:
    """Multi-row INSERTs: of as many rows as there are up to EXACT, else of 2^k, so that every statement stays prepared.

    Few statements matter more than short ones: at each of them a thread lets go of the interpreter and has to get hold
    of it again, which costs more than what SQLite does. A database that another has locked is not waited for here.
    """

    EXACT: Final = 64
    # The largest power of two whose binds stay below SQLite's limit of 32,766.
    MOST: Final = 1_024

    waits: Final = False

    def __init__(self, engine: Engine) -> None:
        self._pooled = engine.raw_connection()
        connection = self._pooled.driver_connection
        assert isinstance(connection, sqlite3.Connection)
        connection.execute("PRAGMA busy_timeout=0")
        self._connection = connection
        self._cursor = connection.cursor()
        self._texts: dict[tuple[str, int], str] = {}

    def append(self, spans: "Sequence[Span]") -> set[int]:
        cursor = self._cursor
        cursor.execute("BEGIN IMMEDIATE")
        fenced: set[int] = set()
        won = []
        for at, span in enumerate(spans):
            last, create = span.appends[-1], span.appends[0].create
            if span.broken:
                fenced.add(at)
                continue
            if create is not None:
                cursor.execute(_insert("mobs", MOB_COLUMNS, 1) + " ON CONFLICT (mob_id) DO NOTHING", mob_row(span))
            else:
                cursor.execute(
                    "UPDATE mobs SET head = ?, phase = ?, wake_at = ?"
                    " WHERE mob_id = ? AND log_id = ? AND epoch = ? AND head = ?",
                    (span.head, last.phase, last.wake_at, span.mob_id, span.log_id, span.epoch, span.base),
                )
            if cursor.rowcount == 1:
                won.append(span)
            else:
                fenced.add(at)
        appends = [append for span in won for append in span.appends]
        self._rows("events", EVENT_COLUMNS, event_rows(appends))
        self._rows("runs", RUN_COLUMNS, run_rows(appends))
        self._rows("messages", MESSAGE_COLUMNS, message_rows(appends))
        for row in session_rows(appends):
            cursor.execute(_insert("sessions", SESSION_COLUMNS, 1) + SESSION_UPSERT, row)
        for row in operation_rows(appends):
            cursor.execute(_insert("operations", OPERATION_COLUMNS, 1) + OPERATION_UPSERT, row)
        return fenced

    def _rows(self, table: str, columns: Sequence[str], rows: list[tuple[Any, ...]]) -> None:
        at, left = 0, len(rows)
        while left:
            size = left if left <= self.EXACT else min(self.MOST, 1 << left.bit_length() - 1)
            text = self._texts.get((table, size))
            if text is None:
                text = self._texts[table, size] = _insert(table, columns, size)
            self._cursor.execute(text, list(chain.from_iterable(rows[at : at + size])))
            at += size
            left -= size

    def commit(self) -> None:
        # Not as a statement: the driver's own lets go of the interpreter once.
        self._connection.commit()

    def sort(self, error: Exception, *, committing: bool) -> Trouble:
        text = f"{type(error).__name__}: {error}"
        try:
            if self._connection.in_transaction:
                self._cursor.execute("ROLLBACK")
        except sqlite3.Error:
            return Trouble("unknown", text)
        if isinstance(
            error, (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, sqlite3.InterfaceError)
        ):
            return Trouble("poison", text)
        if not isinstance(error, sqlite3.Error):
            # Not the store but what it was given: a value that the driver can't bind.
            return Trouble("poison", text)
        return Trouble("unknown" if committing and not _busy(error) else "retry", text)

    def close(self) -> None:
        self._pooled.invalidate()


def _busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _unnest(table: str, columns: Sequence[tuple[str, str]]) -> bytes:
    names = ",".join(name for name, _ in columns)
    arrays = ",".join(f"%b::{kind}[]" for _, kind in columns)
    return f"INSERT INTO {table} ({names}) SELECT * FROM unnest({arrays})".encode()


_EVENTS: Final = tuple(
    zip(
        EVENT_COLUMNS,
        ("text", "int8", "int8", "text", "int4", "text", "text", "text", "text", "text", "text", "text", "text"),
        strict=True,
    )
)
_RUNS: Final = tuple(
    zip(
        RUN_COLUMNS,
        (
            "text",
            "text",
            "text",
            "text",
            "text",
            "int8",
            "int8",
            "int8",
            "int8",
            "int8",
            "text",
            "text",
            "int4",
            "int8",
            "text",
        ),
        strict=True,
    )
)
_MESSAGES: Final = tuple(zip(MESSAGE_COLUMNS, ("text", "text", "int8", "text", "text"), strict=True))
_SESSIONS: Final = tuple(zip(SESSION_COLUMNS, ("text", "text", "text", "int8", "text"), strict=True))
_OPERATIONS: Final = tuple(
    zip(
        OPERATION_COLUMNS,
        ("text", "text", "text", "text", "text", "text", "text", "int8", "int8", "int8", "text"),
        strict=True,
    )
)

# Every name in these texts is one of ours; values are bound.
_APPEND: Final = (
    "WITH v AS (SELECT * FROM"
    " unnest(%b::int8[], %b::text[], %b::text[], %b::int8[], %b::int8[], %b::int8[], %b::text[], %b::int8[])"
    " AS v(place, mob_id, log_id, epoch, base, head, phase, wake_at)),"
    " u AS (UPDATE mobs SET head = v.head, phase = v.phase, wake_at = v.wake_at FROM v"
    " WHERE mobs.mob_id = v.mob_id AND mobs.log_id = v.log_id AND mobs.epoch = v.epoch AND mobs.head = v.base"
    " RETURNING v.place),"
    f" i AS (INSERT INTO events ({','.join(EVENT_COLUMNS)})"
    f" SELECT {','.join('e.' + name for name in EVENT_COLUMNS)}"
    f" FROM unnest(%b::int8[], {','.join(f'%b::{kind}[]' for _, kind in _EVENTS)})"
    f" AS e(place, {','.join(EVENT_COLUMNS)})"
    " JOIN u ON u.place = e.place)"
    " SELECT place FROM u"
).encode()
_CREATE: Final = (
    f"INSERT INTO mobs ({','.join(MOB_COLUMNS)}) VALUES ({','.join(['%s'] * len(MOB_COLUMNS))})"
    " ON CONFLICT (mob_id) DO NOTHING"
).encode()
_SESSION: Final = _unnest("sessions", _SESSIONS) + SESSION_UPSERT.encode()
_OPERATION: Final = _unnest("operations", _OPERATIONS) + OPERATION_UPSERT.encode()


class PostgresLane:
    """The fence and the events in one statement of arrays with binary binds."""

    waits: Final = True

    # Certainly not committed, even if COMMIT says so: serialization, deadlock, lock or statement timeout, shutdown, too
    # many connections.
    RETRY: Final = ("40001", "40P01", "55P03", "57014", "57P01", "57P02", "57P03", "53300", "25P03")

    def __init__(self, engine: Engine) -> None:
        self._pooled = engine.raw_connection()
        connection = self._pooled.driver_connection
        assert isinstance(connection, psycopg.Connection)
        self._connection: psycopg.Connection[Any] = connection
        self._cursor = connection.cursor()

    def append(self, spans: "Sequence[Span]") -> set[int]:
        fenced: set[int] = set()
        created: list[int] = []
        moved: list[int] = []
        for at, span in enumerate(spans):
            if span.broken:
                fenced.add(at)
                continue
            if span.appends[0].create is None:
                moved.append(at)
                continue
            self._cursor.execute(_CREATE, mob_row(span), prepare=True)
            (created.append if self._cursor.rowcount == 1 else fenced.add)(at)
        if moved:
            fenced |= self._move(spans, moved)
        if created:
            self._arrays(_unnest("events", _EVENTS), event_rows(a for at in created for a in spans[at].appends))
        appends = [append for at, span in enumerate(spans) if at not in fenced for append in span.appends]
        self._arrays(_unnest("runs", _RUNS), run_rows(appends))
        self._arrays(_unnest("messages", _MESSAGES), message_rows(appends))
        self._arrays(_SESSION, session_rows(appends))
        self._arrays(_OPERATION, operation_rows(appends))
        return fenced

    def _move(self, spans: "Sequence[Span]", places: list[int]) -> set[int]:
        heads = [
            (at, s.mob_id, s.log_id, s.epoch, s.base, s.head, s.appends[-1].phase, s.appends[-1].wake_at)
            for at, s in ((at, spans[at]) for at in places)
        ]
        rows, owners = [], []
        for at in places:
            new = event_rows(spans[at].appends)
            rows.extend(new)
            owners.extend([at] * len(new))
        binds = [*map(list, zip(*heads, strict=True)), owners, *map(list, zip(*rows, strict=True))]
        self._cursor.execute(_APPEND, binds, prepare=True)
        return set(places) - {place for (place,) in self._cursor.fetchall()}

    def _arrays(self, statement: bytes, rows: list[tuple[Any, ...]]) -> None:
        if rows:
            self._cursor.execute(statement, [list(column) for column in zip(*rows, strict=True)], prepare=True)

    def commit(self) -> None:
        self._connection.commit()

    def sort(self, error: Exception, *, committing: bool) -> Trouble:
        text = f"{type(error).__name__}: {error}"
        lost = self._connection.closed
        if not lost:
            try:
                self._connection.rollback()
            except psycopg.Error:
                lost = True
        if not lost and _about_content(error):
            return Trouble("poison", text)
        known = not lost and isinstance(error, psycopg.Error) and error.sqlstate in self.RETRY
        return Trouble("unknown" if committing and not known else "retry", text)

    def close(self) -> None:
        self._pooled.invalidate()


def _about_content(error: Exception) -> bool:
    """Whether an error is about what was to be stored. A full disk or a server that became a standby is not."""
    if not isinstance(error, psycopg.Error):
        # A value that the driver can't bind.
        return True
    kinds = (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError, psycopg.NotSupportedError)
    # 54: a limit of the program, as for a group that is too large for one statement; XX: it failed within.
    return isinstance(error, kinds) or (error.sqlstate or "").startswith(("54", "XX"))


def lane_for(engine: Engine) -> Lane:
    """Open the append path of an engine. Raises what the driver raises."""
    return SqliteLane(engine) if engine.dialect.name == "sqlite" else PostgresLane(engine)
