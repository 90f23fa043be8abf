"""Between protobuf and the domain: deliveries, inputs, runs, agents."""

from typing import Final, Literal, Protocol

from mobd.v1 import agents_pb2, bridge_pb2, common_pb2, runs_pb2
from mobd_server.adapters.rpc.convert import (
    MEMBER_STATES,
    content_from,
    content_to,
    duration_to,
    json_to,
    serve_to,
    time_to,
    usage_to,
)
from mobd_server.adapters.rpc.convert_events import RUN_STATES, receipt_to
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
}
INPUT_STATES: Final[dict[str, bridge_pb2.InputState.ValueType]] = {
    "queued": bridge_pb2.INPUT_STATE_QUEUED,
    "running": bridge_pb2.INPUT_STATE_RUNNING,
    "consumed": bridge_pb2.INPUT_STATE_CONSUMED,
    "abandoned": bridge_pb2.INPUT_STATE_ABANDONED,
}


def deliver_from(request: bridge_pb2.DeliverRequest | bridge_pb2.Delivery) -> Deliver:
    """Return a delivery."""
    if request.HasField("fence"):
        fence = request.fence
        return Deliver(
            request.member_id,
            request.input_id,
            content_from(request.content),
            fence.generation if fence.HasField("generation") else None,
            fence.fence_token if fence.HasField("fence_token") else None,
        )
    return Deliver(request.member_id, request.input_id, content_from(request.content))


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


def deliver_to(answer: Delivered, hub: Presences, mob_id: str) -> bridge_pb2.DeliverResponse:
    """Return what became of one delivery."""
    if isinstance(answer, Accepted):
        return bridge_pb2.DeliverResponse(accepted=_accepted(answer, hub, mob_id))
    if isinstance(answer, Deduplicated):
        return bridge_pb2.DeliverResponse(deduplicated=_deduplicated(answer))
    # A single delivery to nobody is a status, not an outcome.
    assert isinstance(answer, Rejected)
    return bridge_pb2.DeliverResponse(rejected=_rejected(answer))


def outcome_to(answer: Delivered, hub: Presences, mob_id: str) -> bridge_pb2.DeliveryOutcome:
    """Return what became of one delivery of a batch."""
    if isinstance(answer, Accepted):
        return bridge_pb2.DeliveryOutcome(accepted=_accepted(answer, hub, mob_id))
    if isinstance(answer, Deduplicated):
        return bridge_pb2.DeliveryOutcome(deduplicated=_deduplicated(answer))
    if isinstance(answer, Rejected):
        return bridge_pb2.DeliveryOutcome(rejected=_rejected(answer))
    return bridge_pb2.DeliveryOutcome(member_not_found=bridge_pb2.MemberNotFound(member_id=answer.member_id))


def _accepted(answer: Accepted, hub: Presences, mob_id: str) -> bridge_pb2.DeliveryAccepted:
    return bridge_pb2.DeliveryAccepted(
        input_id=answer.input_id,
        canonical_input_id=answer.canonical_input_id,
        executor=connectivity(hub, mob_id, answer.attachment_id),
        cursor=answer.seq,
    )


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
        receipt=receipt_to(view.inputs, view.message_count, view.digest) if committed else None,
        resent=view.resent,
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
    )
