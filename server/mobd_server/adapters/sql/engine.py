"""Opening the database: what is set on every connection, and the lock that keeps a second server off a SQLite file."""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Lock
from typing import Any, Final

from sqlalchemy import create_engine, event, make_url
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import ArgumentError

BUSY_MS: Final = 5_000
# More than the append path has texts.
CACHED_STATEMENTS: Final = 512
# Long enough for a large group, short enough that a frozen server can't keep another from its mobs.
POSTGRES_OPTIONS: Final = {
    "idle_in_transaction_session_timeout": "10s",
    "lock_timeout": "5s",
    "statement_timeout": "30s",
    "tcp_keepalives_idle": "30",
}
# A database that vanishes without a word, as when its machine loses power, is noticed after some 10 s: what was sent
# must be acknowledged, and where nothing is sent it is probed. The system would go on trying for a quarter of an hour.
POSTGRES_SILENCE: Final = {
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}

_TURNS: Final = "turns"


class StoreInUse(Exception):
    """Another process has the database open."""


class StoreInvalid(Exception):
    """The URL of the database can't be used."""


def database_url(data_dir: Path | None, url: str | None) -> URL:
    """Return where the database is: `url`, or mobd.db in the data directory."""
    if url is None:
        return URL.create("sqlite", database=str((data_dir or Path()) / "mobd.db"))
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StoreInvalid("the database URL can't be read: it looks like postgresql://user@host/database") from None
    if parsed.get_backend_name() == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    file = parsed.database or ":memory:"
    if parsed.get_backend_name() == "sqlite" and file != ":memory:" and not file.startswith("file:"):
        return parsed.set(drivername="sqlite")
    raise StoreInvalid(f"the database is {parsed.get_backend_name()}: it may be postgresql or sqlite, as a file")


def open_engine(url: URL) -> Engine:
    """Return an engine whose every connection is set up; nothing is connected yet."""
    if url.get_backend_name() == "sqlite":
        engine = create_engine(
            url,
            connect_args={
                "timeout": BUSY_MS / 1000,
                "check_same_thread": False,
                "cached_statements": CACHED_STATEMENTS,
            },
            execution_options={_TURNS: Turns()},
        )
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    options = " ".join(f"-c {name}={value}" for name, value in POSTGRES_OPTIONS.items())
    return create_engine(
        url,
        pool_pre_ping=True,
        connect_args={
            "options": options,
            "application_name": "mobd",
            "client_encoding": "utf8",
            "connect_timeout": 5,
            **POSTGRES_SILENCE,
        },
    )


class Turns:
    """What is held during a transaction that writes, so that the writers of this process take turns.

    SQLite lets one write at a time and makes the others ask again and again: while the journal commits group after
    group, another would hardly ever come in between. After BUSY_MS a turn is taken all the same, for then it is for
    SQLite to say that it is busy.
    """

    def __init__(self) -> None:
        self._lock = Lock()

    def take_now(self) -> AbstractContextManager[None] | None:
        """Take a turn if nobody has it: return what gives it back at its exit, which may be on another thread."""
        return self._held() if self._lock.acquire(blocking=False) else None

    @contextmanager
    def _held(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def take(self) -> Iterator[None]:
        """Take a turn."""
        taken = self._lock.acquire(timeout=BUSY_MS / 1000)
        try:
            yield
        finally:
            if taken:
                self._lock.release()


def turn(engine: Engine) -> AbstractContextManager[None]:
    """Return the next turn to write to an engine; writers to PostgreSQL need not wait for one another."""
    turns = engine.get_execution_options().get(_TURNS)
    return turns.take() if isinstance(turns, Turns) else nullcontext()


def turn_now(engine: Engine) -> AbstractContextManager[None] | None:
    """Return a turn that was taken without waiting, or None if another writer has it."""
    turns = engine.get_execution_options().get(_TURNS)
    return turns.take_now() if isinstance(turns, Turns) else nullcontext()


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # Transactions are begun by us: the driver opens none for DDL and a deferred one for the rest.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_MS}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Any) -> None:
    options = connection.get_execution_options()
    if options.get("isolation_level") != "AUTOCOMMIT":
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes") else "BEGIN")


def durability(engine: Engine) -> dict[str, str]:
    """Read back what decides whether a commit survives a crash."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            names = ("journal_mode", "synchronous")
            rows = {name: str(connection.exec_driver_sql(f"PRAGMA {name}").scalar()) for name in names}
            rows["synchronous"] = {"2": "FULL", "3": "EXTRA", "1": "NORMAL", "0": "OFF"}[rows["synchronous"]]
            return rows
        names = ("fsync", "synchronous_commit")
        return {name: str(connection.exec_driver_sql(f"SHOW {name}").scalar()) for name in names}


class FileLock:
    """The lock of a SQLite database, on a side file: a lock on the database itself would be dropped by any close."""

    def __init__(self, database: Path) -> None:
        self._name = database.name
        self._path = database.with_name(database.name + ".lock")
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock or raise StoreInUse."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(fd, 32).decode(errors="replace").strip() or "?"
            os.close(fd)
            raise StoreInUse(f"{self._name} is in use by another mobd (pid {pid})") from None
        self._fd = fd
        # For people: who has the lock does not depend on it, and on a full disk it is for the database to say so.
        with suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back; harmless if it is not held."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
