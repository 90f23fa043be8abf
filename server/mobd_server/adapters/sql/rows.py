"""What an append becomes: the columns of each table in the order in which its rows are bound."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from mobd_server.machines.records import Append

if TYPE_CHECKING:
    from mobd_server.adapters.sql.writer import Span

EVENT_COLUMNS: Final = (
    "mob_id",
    "seq",
    "at",
    "kind",
    "v",
    "member_id",
    "run_id",
    "request_id",
    "request_hash",
    "answer",
    "principal",
    "traceparent",
    "payload",
)
RUN_COLUMNS: Final = (
    "mob_id",
    "run_id",
    "member_id",
    "state",
    "host_id",
    "executor_fence",
    "started_seq",
    "settled_seq",
    "started_at",
    "settled_at",
    "inputs",
    "attempts",
    "resent",
    "message_count",
    "digest",
)
MESSAGE_COLUMNS: Final = ("mob_id", "session_id", "position", "run_id", "payload")
SESSION_COLUMNS: Final = ("mob_id", "session_id", "member_id", "message_count", "digest")
OPERATION_COLUMNS: Final = (
    "mob_id",
    "operation_id",
    "kind",
    "member_id",
    "owner",
    "status",
    "display_name",
    "created_seq",
    "updated_seq",
    "completion_seq",
    "snapshot",
)
MOB_COLUMNS: Final = (
    "mob_id",
    "head",
    "first_seq",
    "epoch",
    "phase",
    "labels",
    "definition",
    "format",
    "log_id",
    "wake_at",
    "created_at",
    "owner",
)
FORMAT: Final = 1


def event_rows(appends: Iterable[Append]) -> list[tuple[Any, ...]]:
    """Return the events of appends as rows."""
    return [
        (
            append.mob_id,
            r.seq,
            r.at,
            r.kind,
            r.v,
            r.member_id,
            r.run_id,
            r.request_id,
            r.request_hash,
            r.answer,
            r.principal,
            r.traceparent,
            r.payload,
        )
        for append in appends
        for r in append.records
    ]


def mob_row(span: "Span") -> tuple[Any, ...]:
    """Return the row of a mob that a span creates."""
    last, create = span.appends[-1], span.appends[0].create
    assert create is not None
    return (
        span.mob_id,
        span.head,
        1,
        span.epoch,
        last.phase,
        create.labels,
        create.definition,
        FORMAT,
        create.log_id,
        last.wake_at,
        create.created_at,
        create.owner,
    )


def run_rows(appends: Iterable[Append]) -> list[tuple[Any, ...]]:
    """Return the settled runs of appends as rows."""
    return [
        (
            append.mob_id,
            r.run_id,
            r.member_id,
            r.state,
            r.host_id,
            r.executor_fence,
            r.started_seq,
            r.settled_seq,
            r.started_at,
            r.settled_at,
            r.inputs,
            r.attempts,
            r.resent,
            r.message_count,
            r.digest,
        )
        for append in appends
        for r in append.runs
    ]


def message_rows(appends: Iterable[Append]) -> list[tuple[Any, ...]]:
    """Return the messages of appends as rows."""
    return [
        (append.mob_id, m.session_id, m.position, m.run_id, m.payload) for append in appends for m in append.messages
    ]


def session_rows(appends: Iterable[Append]) -> list[tuple[Any, ...]]:
    """Return the sessions of appends as rows, the newest of each."""
    newest = {
        (append.mob_id, s.session_id): (append.mob_id, s.session_id, s.member_id, s.message_count, s.digest)
        for append in appends
        for s in append.sessions
    }
    return list(newest.values())


def operation_rows(appends: Iterable[Append]) -> list[tuple[Any, ...]]:
    """Return the operations of appends as rows, the newest of each."""
    newest = {
        (append.mob_id, o.operation_id): (
            append.mob_id,
            o.operation_id,
            o.kind,
            o.member_id,
            o.owner,
            o.status,
            o.display_name,
            o.created_seq,
            o.updated_seq,
            o.completion_seq,
            o.snapshot,
        )
        for append in appends
        for o in append.operations
    }
    return list(newest.values())


def upsert(key: str, columns: Iterable[str]) -> str:
    """Return the end of an INSERT that writes `columns` of a row with the same (mob_id, `key`) again."""
    return f" ON CONFLICT (mob_id, {key}) DO UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in columns)


SESSION_UPSERT: Final = upsert("session_id", ("message_count", "digest"))
OPERATION_UPSERT: Final = upsert(
    "operation_id",
    ("kind", "member_id", "owner", "status", "display_name", "updated_seq", "completion_seq", "snapshot"),
)
