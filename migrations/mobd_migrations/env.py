"""How Alembic runs the revisions of mobd.

`config.attributes["engine"]` is the engine of a running mobd; without it, for the alembic command, the database is
that of MOBD_DATABASE_URL, or ./mobd-data/mobd.db.
"""

import os
from pathlib import Path

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.engine import Engine

from mobd_server.adapters.sql.engine import database_url, open_engine
from mobd_server.adapters.sql.tables import METADATA
from mobd_server.faults import ARMED, reach

# Any number that no other user of the database takes: "mobd" in ASCII.
_LOCK = 0x6D6F6264


def _engine() -> Engine:
    given = context.config.attributes.get("engine")
    if isinstance(given, Engine):
        return given
    url = context.config.attributes.get("url") or os.environ.get("MOBD_DATABASE_URL")
    return open_engine(database_url(Path(os.environ.get("MOBD_DATA_DIR", "mobd-data")), url))


def _applied(*_args: object, **_facts: object) -> None:
    if ARMED:
        reach("during_migration")


def _run(connection: Connection) -> None:
    # SQLite is locked by BEGIN IMMEDIATE; PostgreSQL by an advisory lock on this very connection, and each revision
    # is looked up again once it is held.
    if connection.dialect.name == "postgresql":
        # A revision, or the wait for another process's, may take longer than anything that a server does.
        for name in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
            connection.exec_driver_sql(f"SET LOCAL {name} = 0")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
    context.configure(
        connection=connection,
        target_metadata=METADATA,
        render_as_batch=connection.dialect.name == "sqlite",
        transaction_per_migration=False,
        compare_type=True,
        on_version_apply=_applied,
    )
    with context.begin_transaction():
        context.run_migrations()


with _engine().execution_options(writes=True).begin() as begun:
    _run(begun)
