"""The schema. Words of its own: nothing here knows protobuf, and JSON is text that plain SQL can read.

Hot tables are rowid tables in global append order with one unique index that leads with mob_id: clustering by mob would
dirty a page for every mob of a commit.
"""

from typing import Final

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, Table, Text

METADATA: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Ids are compared as bytes: lists have one order on every store, and no index depends on a locale of the machine.
_Id = Text().with_variant(Text(collation="C"), "postgresql")
# SQLite makes only INTEGER PRIMARY KEY an alias of the rowid.
_Row = BigInteger().with_variant(Integer, "sqlite")

mobs: Final = Table(
    "mobs",
    METADATA,
    Column("mob_id", _Id, primary_key=True),
    Column("head", BigInteger, nullable=False),
    Column("first_seq", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("phase", Text, nullable=False),
    Column("labels", Text, nullable=False),
    Column("definition", Text, nullable=False),
    Column("format", Integer, nullable=False),
    Column("log_id", Text, nullable=False),
    Column("wake_at", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("owner", Text),
)

events: Final = Table(
    "events",
    METADATA,
    Column("id", _Row, primary_key=True, autoincrement=True),
    Column("mob_id", _Id, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("v", Integer, nullable=False),
    Column("member_id", Text),
    Column("run_id", _Id),
    Column("flow_run_id", Text),
    Column("operation_id", Text),
    Column("request_id", Text),
    Column("request_hash", Text),
    Column("answer", Text),
    Column("principal", Text, nullable=False),
    Column("traceparent", Text),
    Column("payload", Text, nullable=False),
    Index(None, "mob_id", "seq", unique=True),
)

runs: Final = Table(
    "runs",
    METADATA,
    Column("id", _Row, primary_key=True, autoincrement=True),
    Column("mob_id", _Id, nullable=False),
    Column("run_id", _Id, nullable=False),
    Column("member_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("host_id", Text, nullable=False),
    Column("executor_fence", BigInteger, nullable=False),
    Column("started_seq", BigInteger, nullable=False),
    Column("settled_seq", BigInteger, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("settled_at", BigInteger, nullable=False),
    Column("inputs", Text, nullable=False),
    Column("attempts", Text, nullable=False),
    Column("resent", Integer, nullable=False),
    Column("message_count", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Index(None, "mob_id", "run_id", unique=True),
)

sessions: Final = Table(
    "sessions",
    METADATA,
    Column("mob_id", _Id, primary_key=True),
    Column("session_id", _Id, primary_key=True),
    Column("member_id", Text, nullable=False),
    Column("message_count", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
)

messages: Final = Table(
    "messages",
    METADATA,
    Column("id", _Row, primary_key=True, autoincrement=True),
    Column("mob_id", _Id, nullable=False),
    Column("session_id", _Id, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("run_id", _Id, nullable=False),
    Column("payload", Text, nullable=False),
    Index(None, "mob_id", "session_id", "position", unique=True),
)

operations: Final = Table(
    "operations",
    METADATA,
    Column("id", _Row, primary_key=True, autoincrement=True),
    Column("mob_id", _Id, nullable=False),
    Column("operation_id", _Id, nullable=False),
    Column("kind", Text, nullable=False),
    Column("member_id", Text),
    Column("owner", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("display_name", _Id, nullable=False),
    Column("created_seq", BigInteger, nullable=False),
    Column("updated_seq", BigInteger, nullable=False),
    Column("completion_seq", BigInteger),
    Column("snapshot", Text, nullable=False),
    Index(None, "mob_id", "operation_id", unique=True),
    Index(None, "mob_id", "completion_seq"),
)

# The state of a mob at some seq, as machines/snapshot.py writes it: only ever a shorter way to what the log says.
snapshots: Final = Table(
    "snapshots",
    METADATA,
    Column("id", _Row, primary_key=True, autoincrement=True),
    Column("mob_id", _Id, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("format", Integer, nullable=False),
    Column("taken_at", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Index(None, "mob_id", "seq", unique=True),
)
