"""Copies of a database, whose logs get names of their own.

A cursor says up to where somebody has read a log. In a copy that goes its own way the same number means something else;
since the log has another name there, such a cursor is refused instead of skipping events without a word.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
from sqlalchemy import Connection, bindparam, select, text, update
from sqlalchemy.engine import URL, Engine

from mobd_server.adapters.sql.engine import open_engine
from mobd_server.adapters.sql.tables import events, mobs, snapshots
from mobd_server.faults import ARMED, reach

# Where a log's name is: with its mob, in its first event, and in the states that were folded from it.
_KEY: Final = "log_id"
_FIRST: Final = 1
_PARTIAL: Final = ".partial"

_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class CopyRefused(Exception):
    """There is no copy; the message says why."""


@contextmanager
def copied(database: Path, target: Path) -> Iterator[Engine]:
    """Copy a SQLite database, also while a server writes it, and yield an engine on the copy, to change it.

    The copy is the state after one commit, which is no older than this call. It is one file, for its owner alone,
    durable and named `target` when the block has ended; if the block fails there is none. Raises CopyRefused.
    """
    partial = target.with_name(f"{target.name}.{os.getpid()}{_PARTIAL}")
    try:
        if not database.is_file():
            raise CopyRefused(f"there is no database {database}; MOBD_DATA_DIR names the directory of another")
        if target.exists():
            raise CopyRefused(f"{target} is there already: name a file that is not")
        _remove(partial)
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        _copy(database, partial)
        engine = open_engine(URL.create("sqlite", database=str(partial)))
        try:
            yield engine
        finally:
            engine.dispose()
        if ARMED:
            reach("during_backup")
        _seal(partial)
        # Not a rename: that would replace a file that has appeared meanwhile.
        os.link(partial, target)
        _sync(target.parent)
    except (OSError, sqlite3.Error) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise CopyRefused(f"{database} can't be copied to {target}: {why}") from None
    finally:
        _remove(partial)


def rename_logs(engine: Engine, new_id: Callable[[], str]) -> int:
    """Give the log of every mob a new name, in one transaction; return how many mobs there are.

    Servers that have the mobs in memory lose them to the new epoch.
    """
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        mob_ids = list(connection.execute(select(mobs.c.mob_id).order_by(mobs.c.mob_id)).scalars())
        for mob_id in mob_ids:
            _rename(connection, mob_id, new_id())
    return len(mob_ids)


def others(engine: Engine) -> int:
    """Return how many connections of other mobd processes a PostgreSQL database has; 0 for SQLite, which has a lock."""
    if engine.dialect.name == "sqlite":
        return 0
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mobd' "
        "AND datname = current_database() AND pid <> pg_backend_pid()"
    )
    with engine.connect() as connection:
        return int(connection.execute(query).scalar_one())


def _rename(connection: Connection, mob_id: str, log_id: str) -> None:
    connection.execute(update(mobs).where(mobs.c.mob_id == mob_id).values(log_id=log_id, epoch=mobs.c.epoch + 1))
    first = select(events.c.id, events.c.payload).where(events.c.mob_id == mob_id, events.c.seq == _FIRST)
    for row in connection.execute(first):
        change = update(events).where(events.c.id == bindparam("row"))
        connection.execute(change, {"row": row.id, "payload": _renamed(row.payload, log_id)})
    # One after the other: a state can be large.
    kept = list(connection.execute(select(snapshots.c.id).where(snapshots.c.mob_id == mob_id)).scalars())
    for number in kept:
        state = connection.execute(select(snapshots.c.state).where(snapshots.c.id == number)).scalar_one()
        change = update(snapshots).where(snapshots.c.id == bindparam("row"))
        connection.execute(change, {"row": number, "state": _renamed(state, log_id)})


def _renamed(document: str, log_id: str) -> str:
    """Return a JSON object with another name of the log; every other byte stays."""
    try:
        fields = _fields(document)
    except (msgspec.MsgspecError, RecursionError):
        # What can't be read is passed over by those who load it, or quarantines its mob; a copy makes that no worse.
        return document
    if _KEY not in fields:
        return document
    fields[_KEY] = msgspec.Raw(msgspec.json.encode(log_id))
    return msgspec.json.encode(fields).decode()


def _copy(database: Path, target: Path) -> None:
    # All pages in one step: after a pause SQLite would begin anew with each commit of the server.
    with (
        closing(sqlite3.connect(f"file:{_quoted(database)}?mode=rw", uri=True)) as source,
        closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy, pages=-1)


def _quoted(file: Path) -> str:
    return str(file.resolve()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _seal(file: Path) -> None:
    """Bring all that belongs to a database into its one file, durably."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    _sync(file)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(partial: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        # Where nothing can be removed nothing was made.
        with suppress(PermissionError):
            partial.with_name(partial.name + suffix).unlink(missing_ok=True)
