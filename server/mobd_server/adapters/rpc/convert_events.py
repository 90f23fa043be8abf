"""Events as their readers get them: each is serialised once, for all readers."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from mobd.v1 import events_pb2, runs_pb2
from mobd_server.adapters.rpc.convert import LANES, definition_to, fill_content, json_to, serve_to, time_to, usage_to
from mobd_server.machines import events as e
from mobd_server.machines.records import Record
from mobd_server.machines.state import NOTHING, Cancel

RUN_STATES: Final[dict[str, runs_pb2.RunState.ValueType]] = {
    "running": runs_pb2.RUN_STATE_RUNNING,
    "committed": runs_pb2.RUN_STATE_COMMITTED,
    "failed": runs_pb2.RUN_STATE_FAILED,
    "lost": runs_pb2.RUN_STATE_LOST,
    "released": runs_pb2.RUN_STATE_RELEASED,
    "abandoned": runs_pb2.RUN_STATE_ABANDONED,
    "cancelled": runs_pb2.RUN_STATE_CANCELLED,
}
RUN_STATE_NAMES: Final[dict[int, str]] = {number: name for name, number in RUN_STATES.items()}
CANCELS: Final[dict[Cancel, runs_pb2.RunCancel.ValueType]] = {
    "none": runs_pb2.RUN_CANCEL_UNSPECIFIED,
    "boundary": runs_pb2.RUN_CANCEL_BOUNDARY,
    "hard": runs_pb2.RUN_CANCEL_HARD,
}
# Where inputs are applied that were steered into a run.
CHECKPOINT: Final = "run_checkpoint"


def wire(record: Record) -> bytes:
    """Return a serialised mobd.v1.Event, made at the first call and kept with the record."""
    if record.wire is None:
        record.wire = event_to(record).SerializeToString()
    return record.wire


def event_to(record: Record) -> events_pb2.Event:
    """Return an event as its readers get it."""
    # Assigned one by one: to make a message with all of its fields at once takes several times as long.
    event = events_pb2.Event()
    event.seq = record.seq
    time, at = event.time, record.at
    time.seconds, time.nanos = at // 1_000_000, at % 1_000_000 * 1_000
    time.SetInParent()
    event.kind = record.kind
    event.principal = record.principal
    if record.member_id:
        event.member_id = record.member_id
    if record.run_id:
        event.run_id = record.run_id
    if record.request_id:
        event.request_id = record.request_id
    if record.traceparent:
        event.traceparent = record.traceparent
    fill = _PAYLOADS.get(type(record.event))
    if fill is not None:
        fill(event, record.event)
    return event


def receipt_to(canonical_input_ids: list[str], message_count: int, digest: str, boundary: str) -> runs_pb2.Receipt:
    """Return the proof that a run was applied, with the inputs that it was started with."""
    receipt = runs_pb2.Receipt()
    fill_receipt(receipt, canonical_input_ids, message_count, digest, boundary)
    return receipt


def fill_receipt(
    to: runs_pb2.Receipt, canonical_input_ids: list[str], message_count: int, digest: str, boundary: str
) -> None:
    """Write the proof that a run was applied."""
    to.boundary = boundary
    to.contributing_input_ids.extend(canonical_input_ids)
    to.message_count = message_count
    to.conversation_digest = digest


def steered_receipts(canonical_input_ids: Sequence[str]) -> list[runs_pb2.Receipt]:
    """Return the proofs for the inputs that were steered into a run and taken in: one for each, counted from 1."""
    return [
        runs_pb2.Receipt(sequence=sequence, boundary=CHECKPOINT, contributing_input_ids=[name])
        for sequence, name in enumerate(canonical_input_ids, 1)
    ]


def _mob_created(to: events_pb2.Event, event: e.MobCreated) -> None:
    to.mob_created.definition_json = definition_to(event.definition)
    to.mob_created.labels.update(event.labels)
    to.mob_created.log_id = event.log_id


def _mob_destroyed(to: events_pb2.Event, event: e.MobDestroyed) -> None:
    to.mob_destroyed.members = event.members
    to.mob_destroyed.inputs_abandoned = event.inputs_abandoned
    to.mob_destroyed.SetInParent()


def _member_spawned(to: events_pb2.Event, event: e.MemberSpawned) -> None:
    spawned = to.member_spawned
    spawned.role = event.role
    spawned.generation = event.generation
    spawned.fence_token = event.fence_token
    spawned.labels.update(event.labels or {})
    spawned.context_json = json_to(event.context)
    spawned.session_id = event.session_id
    spawned.operation_id = event.operation_id
    spawned.initial_input_id = event.initial_input_id


def _member_respawned(to: events_pb2.Event, event: e.MemberRespawned) -> None:
    respawned = to.member_respawned
    respawned.generation = event.generation
    respawned.fence_token = event.fence_token
    respawned.session_id = event.session_id
    respawned.operation_id = event.operation_id
    respawned.initial_input_id = event.initial_input_id
    respawned.inputs_abandoned = event.inputs_abandoned


def _runtime_retired(to: events_pb2.Event, event: e.RuntimeRetired) -> None:
    to.runtime_retired.inputs_abandoned = event.inputs_abandoned
    to.runtime_retired.inputs_pending_drain = event.inputs_pending_drain
    to.runtime_retired.SetInParent()


def _member_retired(to: events_pb2.Event, event: e.MemberRetired) -> None:
    to.member_retired.generation = event.generation
    to.member_retired.SetInParent()


def _drain_suspended(to: events_pb2.Event, event: e.DrainSuspended) -> None:
    _at(to.drain_suspended.until_time, event.until)


def _at(to: Timestamp, at: int) -> None:
    """Write a time; 0 is none."""
    if at:
        to.FromMicroseconds(at)


def _member_destroyed(to: events_pb2.Event, event: e.MemberDestroyed) -> None:
    to.member_destroyed.inputs_abandoned = event.inputs_abandoned
    to.member_destroyed.SetInParent()


def _attachment_opened(to: events_pb2.Event, event: e.AttachmentOpened) -> None:
    opened = to.attachment_opened
    opened.attachment_id = event.attachment_id
    opened.host_id = event.host_id
    opened.incarnation = event.incarnation
    opened.capacity = event.capacity
    opened.max_members = event.max_members
    opened.serves.extend(serve_to(serve) for serve in event.serves)
    opened.steers = event.steers


def _attachment_closed(to: events_pb2.Event, event: e.AttachmentClosed) -> None:
    to.attachment_closed.attachment_id = event.attachment_id
    to.attachment_closed.reason = event.reason


def _executor(
    to: events_pb2.Event, event: e.ExecutorAssigned | e.ExecutorConfirmed | e.ExecutorReleased | e.ExecutorLost
) -> None:
    to.executor.attachment_id = event.attachment_id
    to.executor.executor_fence = event.executor_fence
    if isinstance(event, e.ExecutorReleased | e.ExecutorLost):
        to.executor.reason = event.reason


def _input_accepted(to: events_pb2.Event, event: e.InputAccepted) -> None:
    accepted = to.input_accepted
    accepted.input_id = event.input_id
    accepted.canonical_input_id = event.canonical_input_id
    fill_content(accepted.content, event.content)
    accepted.sender = event.sender
    accepted.input_kind = event.input_kind
    accepted.handling_mode = LANES[event.lane]
    if not event.drives:
        accepted.silent = True
    if event.supersession_key:
        accepted.supersession_key = event.supersession_key
    if event.correlation_id:
        accepted.correlation_id = event.correlation_id
    if event.about is not NOTHING:
        accepted.about_json = json_to(event.about)
    if event.consumed:
        accepted.consumed = True


def _input_replaced(to: events_pb2.Event, event: e.InputSuperseded | e.InputCoalesced) -> None:
    to.input_replaced.canonical_input_id = event.canonical_input_id
    to.input_replaced.replaced_by = event.by
    to.input_replaced.attempt = event.attempt


def _input_abandoned(to: events_pb2.Event, event: e.InputAbandoned) -> None:
    to.input_abandoned.canonical_input_ids.extend(event.canonical_input_ids)
    to.input_abandoned.reason = event.reason
    to.input_abandoned.attempts.extend(event.attempts)


def _run_started(to: events_pb2.Event, event: e.RunStarted) -> None:
    started = to.run_started
    started.canonical_input_ids.extend(event.canonical_input_ids)
    started.attempts.extend(event.attempts)
    started.executor_fence = event.executor_fence
    started.attachment_id = event.attachment_id
    started.handling_mode = LANES[event.lane]
    started.boundary = event.stamp.boundary
    started.execution = event.stamp.execution
    _at(started.deadline, event.deadline)


def _run_steered(to: events_pb2.Event, event: e.RunSteered) -> None:
    to.run_steered.canonical_input_ids.extend(event.canonical_input_ids)
    to.run_steered.attempts.extend(event.attempts)


def _run_cancel_requested(to: events_pb2.Event, event: e.RunCancelRequested) -> None:
    requested = to.run_cancel_requested
    requested.cancel = CANCELS["hard" if event.hard else "boundary"]
    requested.by = event.by
    requested.reason = event.reason
    _at(requested.deadline, event.deadline)


def _run_resent(to: events_pb2.Event, event: e.RunResent) -> None:
    to.run_resent.count = event.count


def _run_settled(to: events_pb2.Event, event: e.RunSettled) -> None:
    ended = to.run_settled
    ended.state = RUN_STATES[event.state]
    for outcome in event.outcomes:
        told = ended.outcomes.add()
        told.canonical_input_id = outcome.canonical_input_id
        told.outcome = outcome.outcome
        told.reason = outcome.reason
        told.attempt = outcome.attempt
        told.sequence = outcome.sequence
    ended.output_json = json_to(event.output)
    ended.error = event.error
    if (usage := usage_to(event.usage)) is not None:
        ended.usage.CopyFrom(usage)
    if event.state == "committed":
        # What was steered into the run and not taken in went back, and is no part of what was applied.
        taken = [outcome for outcome in event.outcomes if outcome.outcome == "consumed"]
        inputs = [outcome.canonical_input_id for outcome in taken if outcome.sequence == 0]
        fill_receipt(ended.receipt, inputs, event.message_count, event.digest, event.boundary)
        ended.steered_receipts.extend(
            steered_receipts([outcome.canonical_input_id for outcome in taken if outcome.sequence])
        )
    if (retry := time_to(event.retry_at)) is not None:
        ended.retry_time.CopyFrom(retry)


# Events that are not here say everything in their kind.
def _operation_registered(to: events_pb2.Event, event: e.OperationRegistered) -> None:
    registered = to.operation_registered
    registered.operation_id = event.operation_id
    registered.kind = event.operation_kind
    registered.owner = event.owner
    registered.display_name = event.display_name
    registered.member_id = event.member_id


def _operation(to: events_pb2.Event, event: e.OperationStarted | e.OperationRetiring) -> None:
    to.operation.operation_id = event.operation_id


def _operation_peer_ready(to: events_pb2.Event, event: e.OperationPeerReady) -> None:
    to.operation.operation_id = event.operation_id
    to.operation.peer_handle_json = json_to(event.handle)


def _operation_progressed(to: events_pb2.Event, event: e.OperationProgressed) -> None:
    to.operation.operation_id = event.operation_id
    to.operation.message = event.message
    if event.percent is not None:
        to.operation.percent = event.percent


def _operation_ended(to: events_pb2.Event, event: e.OperationEnded) -> None:
    ended = to.operation
    ended.operation_id = event.operation_id
    ended.status = event.status
    ended.result_json = json_to(event.result)
    ended.is_error = event.is_error
    ended.error = event.error
    ended.reason = event.reason


_PAYLOADS: Final[dict[type[e.Event], Callable[[events_pb2.Event, Any], None]]] = {
    e.MobCreated: _mob_created,
    e.MobDestroyed: _mob_destroyed,
    e.MemberSpawned: _member_spawned,
    e.MemberRespawned: _member_respawned,
    e.RuntimeRetired: _runtime_retired,
    e.MemberRetired: _member_retired,
    e.DrainSuspended: _drain_suspended,
    e.MemberDestroyed: _member_destroyed,
    e.AttachmentOpened: _attachment_opened,
    e.AttachmentClosed: _attachment_closed,
    e.ExecutorAssigned: _executor,
    e.ExecutorConfirmed: _executor,
    e.ExecutorReleased: _executor,
    e.ExecutorLost: _executor,
    e.InputAccepted: _input_accepted,
    e.InputSuperseded: _input_replaced,
    e.InputCoalesced: _input_replaced,
    e.InputAbandoned: _input_abandoned,
    e.RunStarted: _run_started,
    e.RunSteered: _run_steered,
    e.RunCancelRequested: _run_cancel_requested,
    e.RunResent: _run_resent,
    e.RunSettled: _run_settled,
    e.OperationRegistered: _operation_registered,
    e.OperationStarted: _operation,
    e.OperationPeerReady: _operation_peer_ready,
    e.OperationProgressed: _operation_progressed,
    e.OperationRetiring: _operation,
    e.OperationEnded: _operation_ended,
}
