"""What one decision hands to the journal: rows, and nothing that is not a plain value.

A `Record` is an event with the columns of its row; a `RunRow` and `MessageRow`s are projections of the same decision.
Everything in an `Append` is stored in one transaction or not at all.
"""

from msgspec import Struct

from mobd_server.machines.events import Event


class Record(Struct, gc=False):
    """One row of `events`. `payload` is the event as JSON text, `at` is µs since 1970."""

    seq: int
    at: int
    kind: str
    v: int
    member_id: str | None
    run_id: str | None
    request_id: str | None
    request_hash: str | None
    # The answer to that request: JSON text of a `machines.answers` struct.
    answer: str | None
    principal: str
    traceparent: str | None
    payload: str
    event: Event
    # The event as its readers get it, made once by the adapter that first needs it.
    wire: bytes | None = None


class RunRow(Struct, gc=False):
    """One row of `runs`: a settled run. Output, error and outcomes are read from the event at `settled_seq`."""

    run_id: str
    member_id: str
    state: str
    host_id: str
    executor_fence: int
    started_seq: int
    settled_seq: int
    started_at: int
    settled_at: int
    # JSON text: canonical input ids and attempts, in order.
    inputs: str
    attempts: str
    resent: int
    message_count: int
    digest: str


class MessageRow(Struct, gc=False):
    """One row of `messages`: `position` counts from 0 within the session."""

    session_id: str
    position: int
    run_id: str
    payload: str


class SessionRow(Struct, gc=False):
    """One row of `sessions`, written again whenever its transcript grows."""

    session_id: str
    member_id: str
    message_count: int
    digest: str


class OperationRow(Struct, gc=False):
    """One row of `operations`, written again with every change; `snapshot` is the JSON text of an OperationView."""

    operation_id: str
    kind: str
    member_id: str | None
    owner: str
    status: str
    display_name: str
    created_seq: int
    updated_seq: int
    completion_seq: int | None
    snapshot: str


class MobRow(Struct, gc=False):
    """One row of `mobs` beside head and epoch, written by the append at head 0."""

    mob_id: str
    log_id: str
    labels: str
    definition: str
    created_at: int
    # Who owns the mob, if anybody does.
    owner: str | None = None


class Append(Struct, gc=False):
    """What one decision appends: events `base + 1 … base + len(records)` and their projections."""

    mob_id: str
    # A mob that was deleted and made again has another log, whose epochs begin anew.
    log_id: str
    epoch: int
    base: int
    records: list[Record]
    phase: str
    # When the mob owes something: 0 as soon as a server is up, µs since 1970, or None.
    wake_at: int | None
    create: MobRow | None = None
    runs: list[RunRow] = []
    messages: list[MessageRow] = []
    sessions: list[SessionRow] = []
    operations: list[OperationRow] = []
