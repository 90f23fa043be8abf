"""Between protobuf and the domain: deliveries, what is asked of runtimes, inputs, runs, agents."""

from typing import Final, Literal, Protocol

import msgspec
from msgspec import Raw

from mobd.v1 import agents_pb2, bridge_pb2, common_pb2, runs_pb2
from mobd_server.actors.links import Reply
from mobd_server.adapters.rpc.convert import (
    LANE_NAMES,
    LANES,
    MEMBER_STATES,
    content_from,
    content_to,
    duration_to,
    fence_from,
    json_to,
    serve_to,
    time_to,
    usage_to,
)
from mobd_server.adapters.rpc.convert_events import CANCELS, RUN_STATES, receipt_to, steered_receipts
from mobd_server.adapters.rpc.convert_would import would_append
from mobd_server.machines.answers import Accepted, Deduplicated, Delivered, Rejected
from mobd_server.machines.commands import Deliver
from mobd_server.services.agents import AgentView
from mobd_server.services.inputs import InputView
from mobd_server.services.runs import RunView

CAUSES: Final[dict[str, bridge_pb2.RejectCause.ValueType]] = {
    "not_ready": bridge_pb2.REJECT_CAUSE_NOT_READY,
    "queue_full": bridge_pb2.REJECT_CAUSE_QUEUE_FULL,
    "stale_fence": bridge_pb2.REJECT_CAUSE_STALE_FENCE,
    "content_conflict": bridge_pb2.REJECT_CAUSE_CONTENT_CONFLICT,
    "input_forgotten": bridge_pb2.REJECT_CAUSE_INPUT_FORGOTTEN,
    "handling_mode_invalid": bridge_pb2.REJECT_CAUSE_HANDLING_MODE_INVALID,
}
INPUT_STATES: Final[dict[str, bridge_pb2.InputState.ValueType]] = {
    "queued": bridge_pb2.INPUT_STATE_QUEUED,
    "running": bridge_pb2.INPUT_STATE_RUNNING,
    "consumed": bridge_pb2.INPUT_STATE_CONSUMED,
    "abandoned": bridge_pb2.INPUT_STATE_ABANDONED,
    "superseded": bridge_pb2.INPUT_STATE_SUPERSEDED,
    "coalesced": bridge_pb2.INPUT_STATE_COALESCED,
}
INPUT_STATE_NAMES: Final[dict[int, str]] = {number: name for name, number in INPUT_STATES.items()}
# The states of a response after which another one follows, and those after which none does.
PROGRESS: Final[dict[int, str]] = {
    bridge_pb2.PEER_RESPONSE_STATUS_ACCEPTED: "accepted",
    bridge_pb2.PEER_RESPONSE_STATUS_IN_PROGRESS: "in_progress",
    bridge_pb2.PEER_RESPONSE_STATUS_PARTIAL_RESULT: "partial_result",
}
TERMINAL: Final[dict[int, str]] = {
    bridge_pb2.PEER_RESPONSE_STATUS_COMPLETED: "completed",
    bridge_pb2.PEER_RESPONSE_STATUS_FAILED: "failed",
    bridge_pb2.PEER_RESPONSE_STATUS_CANCELLED: "cancelled",
}

AnyDelivery = bridge_pb2.DeliverRequest | bridge_pb2.Delivery

_encode: Final = msgspec.json.Encoder().encode


def deliver_from(request: AnyDelivery) -> Deliver:
    """Return a delivery."""
    command = Deliver(request.member_id, request.input_id, content_from(request.content))
    if request.HasField("fence"):
        command.generation, command.fence_token = fence_from(request)
    if mode := request.handling_mode:
        command.handling_mode = LANE_NAMES[mode]
    if request.HasField("wake"):
        command.wake = request.wake
    if key := request.supersession_key:
        command.supersession_key = key
    if key := request.correlation_id:
        command.correlation_id = key
    if request.WhichOneof("form") is not None:
        _form(command, request)
    return command


def _form(command: Deliver, request: AnyDelivery) -> None:
    """Say what the input is, and what its kind knows beside the content."""
    if request.HasField("peer_request"):
        asked = request.peer_request
        command.kind, command.intent = "peer_request", asked.intent
        command.about = Raw(_encode({"request_id": asked.request_id, "intent": asked.intent}))
    elif request.HasField("peer_response"):
        response = request.peer_response
        status = PROGRESS.get(response.status)
        command.kind = "peer_response_terminal" if status is None else "peer_response_progress"
        status = status or TERMINAL[response.status]
        command.about = Raw(_encode({"request_id": response.request_id, "status": status}))
    else:
        command.kind = "external_event"
        command.about = Raw(_encode({"event_type": request.external_event.event_type}))


class Presences(Protocol):
    """Who knows whether agents are there."""

    def connectivity(self, mob_id: str, attachment_id: str) -> Literal["connected", "suspended", "none"]:
        """Return whether the agent of an attachment is here."""


def connectivity(hub: Presences, mob_id: str, attachment_id: str | None) -> common_pb2.Connectivity.ValueType:
    """Return whether an agent serves a member."""
    if attachment_id is None:
        return common_pb2.CONNECTIVITY_NONE
    here = hub.connectivity(mob_id, attachment_id) == "connected"
    return common_pb2.CONNECTIVITY_CONNECTED if here else common_pb2.CONNECTIVITY_SUSPENDED


def deliver_to(reply: Reply, hub: Presences, mob_id: str) -> bridge_pb2.DeliverResponse:
    """Return what became of one delivery."""
    answer = reply.answer
    if isinstance(answer, Accepted):
        response = bridge_pb2.DeliverResponse()
        _accepted(response.accepted, answer, hub, mob_id)
        if reply.would:
            response.would_append.extend(would_append(reply.would))
        return response
    if isinstance(answer, Deduplicated):
        return bridge_pb2.DeliverResponse(deduplicated=_deduplicated(answer))
    # A single delivery to nobody is a status, not an outcome.
    assert isinstance(answer, Rejected)
    return bridge_pb2.DeliverResponse(rejected=_rejected(answer))


def outcome_to(answer: Delivered, hub: Presences, mob_id: str) -> bridge_pb2.DeliveryOutcome:
    """Return what became of one delivery of a batch."""
    if isinstance(answer, Accepted):
        outcome = bridge_pb2.DeliveryOutcome()
        _accepted(outcome.accepted, answer, hub, mob_id)
        return outcome
    if isinstance(answer, Deduplicated):
        return bridge_pb2.DeliveryOutcome(deduplicated=_deduplicated(answer))
    if isinstance(answer, Rejected):
        return bridge_pb2.DeliveryOutcome(rejected=_rejected(answer))
    return bridge_pb2.DeliveryOutcome(member_not_found=bridge_pb2.MemberNotFound(member_id=answer.member_id))


def _accepted(to: bridge_pb2.DeliveryAccepted, answer: Accepted, hub: Presences, mob_id: str) -> None:
    # Assigned one by one: to make a message with all of its fields at once takes four times as long.
    to.input_id = answer.input_id
    to.canonical_input_id = answer.canonical_input_id
    to.executor = connectivity(hub, mob_id, answer.attachment_id)
    to.cursor = answer.seq


def _deduplicated(answer: Deduplicated) -> bridge_pb2.DeliveryDeduplicated:
    return bridge_pb2.DeliveryDeduplicated(canonical_input_id=answer.canonical_input_id, terminal=answer.terminal)


def _rejected(answer: Rejected) -> bridge_pb2.DeliveryRejected:
    current = None
    if answer.fence_token is not None:
        current = common_pb2.Fence(generation=answer.generation, fence_token=answer.fence_token)
    return bridge_pb2.DeliveryRejected(
        cause=CAUSES[answer.cause],
        reason=answer.reason,
        state=MEMBER_STATES[answer.state] if answer.state is not None else common_pb2.MEMBER_STATE_UNSPECIFIED,
        current=current,
        retry_after=duration_to(answer.retry_after_ms) if answer.retry_after_ms else None,
        canonical_input_id=answer.canonical_input_id,
    )


def input_to(view: InputView) -> bridge_pb2.Input:
    """Return an input as callers see it."""
    return bridge_pb2.Input(
        mob_id=view.mob_id,
        member_id=view.member_id,
        input_id=view.input_id,
        canonical_input_id=view.canonical_input_id,
        content=content_to(view.content),
        sender=view.sender,
        state=INPUT_STATES[view.state],
        attempt=view.attempt,
        accept_time=time_to(view.accepted_at),
        cursor=view.cursor,
        run_id=view.run_id,
        output_json=json_to(view.output),
        usage=usage_to(view.usage),
        reason=view.reason,
        end_time=time_to(view.ended_at),
        waiting_reason=view.waiting_reason,
        kind=view.kind,
        handling_mode=LANES[view.lane],
        silent=not view.drives,
        replaced_by=view.replaced_by,
        correlation_id=view.correlation_id,
        about_json=json_to(view.about),
        boundary_sequence=view.boundary_sequence,
        supersession_key=view.supersession_key,
    )


def run_to(view: RunView) -> runs_pb2.Run:
    """Return a run as callers see it."""
    committed = view.state == "committed"
    return runs_pb2.Run(
        mob_id=view.mob_id,
        member_id=view.member_id,
        run_id=view.run_id,
        state=RUN_STATES[view.state],
        canonical_input_ids=view.inputs,
        attempts=view.attempts,
        host_id=view.host_id,
        executor_fence=view.executor_fence,
        start_time=time_to(view.started_at),
        end_time=time_to(view.settled_at),
        output_json=json_to(view.output),
        usage=usage_to(view.usage),
        error=view.error,
        receipt=receipt_to(view.inputs, view.message_count, view.digest, view.boundary) if committed else None,
        resent=view.resent,
        cancel=CANCELS[view.cancel],
        cancel_reason=view.cancel_reason,
        steered_input_ids=view.steered,
        steered_attempts=view.steered_attempts,
        deadline=time_to(view.deadline),
        steered_receipts=steered_receipts(view.taken) if committed else (),
    )


def agent_to(view: AgentView) -> agents_pb2.Agent:
    """Return an agent as callers see it."""
    return agents_pb2.Agent(
        attachment_id=view.attachment_id,
        host_id=view.host_id,
        incarnation=view.incarnation,
        connectivity=common_pb2.CONNECTIVITY_CONNECTED if view.connected else common_pb2.CONNECTIVITY_SUSPENDED,
        draining=view.draining,
        serves=[serve_to(serve) for serve in view.serves],
        capacity=view.capacity,
        runs=view.runs,
        max_members=view.max_members,
        members=view.members,
        attach_time=time_to(view.attached_at),
        capabilities=agents_pb2.Capabilities(steer=view.steers),
    )
