"""Between protobuf and the domain: the frames of agents and of the server."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal

import msgspec
from google.protobuf.duration_pb2 import Duration

from mobd.v1 import agents_pb2 as pb
from mobd.v1 import events_pb2
from mobd_server.actors import frames as f
from mobd_server.adapters.rpc.convert import duration_to, fill_content, json_from, json_to, serve_to, usage_from
from mobd_server.machines.answers import (
    RunInput,
    SendAssign,
    SendCancel,
    SendRetire,
    SendSettled,
    SendStartRun,
    SendSteer,
    SendUnassign,
    ServeOutcome,
)
from mobd_server.machines.state import NOTHING, Profile, Serve

# One message to an agent ends when it is this long.
RESPONSE_BYTES: Final = 1 << 18

REJECTIONS: Final[dict[str, pb.RejectReason.ValueType]] = {
    "unknown_role": pb.REJECT_REASON_UNKNOWN_ROLE,
    "mob_destroyed": pb.REJECT_REASON_MOB_DESTROYED,
    "mob_unavailable": pb.REJECT_REASON_MOB_UNAVAILABLE,
    "too_many_agents": pb.REJECT_REASON_TOO_MANY_AGENTS,
}
GOODBYES: Final[dict[str, pb.GoodbyeReason.ValueType]] = {
    "superseded": pb.GOODBYE_REASON_SUPERSEDED,
    "draining": pb.GOODBYE_REASON_DRAINING,
    "revoked": pb.GOODBYE_REASON_REVOKED,
    "protocol": pb.GOODBYE_REASON_PROTOCOL,
    "slow": pb.GOODBYE_REASON_SLOW,
}
DISPOSITIONS: Final[dict[str, pb.RunDisposition.ValueType]] = {
    "committed": pb.RUN_DISPOSITION_COMMITTED,
    "duplicate": pb.RUN_DISPOSITION_DUPLICATE,
    "requeued": pb.RUN_DISPOSITION_REQUEUED,
    "abandoned": pb.RUN_DISPOSITION_ABANDONED,
    "fenced": pb.RUN_DISPOSITION_FENCED,
    "cancelled": pb.RUN_DISPOSITION_CANCELLED,
}
FAILURES: Final[dict[int, Literal["error", "released", "cancelled"]]] = {
    pb.FAILURE_KIND_ERROR: "error",
    pb.FAILURE_KIND_RELEASED: "released",
    pb.FAILURE_KIND_CANCELLED: "cancelled",
}
CONTROL_RESULTS: Final[dict[int, Literal["ok", "not_running", "failed"]]] = {
    pb.CONTROL_RESULT_OK: "ok",
    pb.CONTROL_RESULT_NOT_RUNNING: "not_running",
    pb.CONTROL_RESULT_FAILED: "failed",
}


def frames_from(request: pb.AttachRequest) -> Iterator[f.AgentFrame]:
    """Return the entries of a message that was checked, each when it is asked for."""
    for frame in request.frames:
        kind = frame.WhichOneof("frame") or ""
        yield _FRAMES_FROM[kind](getattr(frame, kind))


def _hello_from(hello: pb.Hello) -> f.Hello:
    return f.Hello(
        mob_id=hello.mob_id,
        host_id=hello.host_id,
        incarnation=hello.incarnation,
        serves=[_serve_from(serve) for serve in hello.serves],
        capacity=hello.capacity,
        max_members=hello.max_members,
        resume=hello.resume.attachment_id or None,
        held=list(hello.resume.run_ids),
        steers=hello.capabilities.steer,
    )


def _serve_from(serve: pb.Serve) -> Serve:
    if serve.WhichOneof("interest") == "member_id":
        return Serve(member_id=serve.member_id)
    return Serve(role=serve.role)


def _result_from(result: pb.RunResult) -> f.RunResult:
    return f.RunResult(
        run_id=result.run_id,
        fence=result.executor_fence,
        output=json_from(result.output_json),
        messages=[json_from(message) for message in result.messages_json],
        expected_message_count=result.expected_message_count if result.HasField("expected_message_count") else None,
        usage=usage_from(result.usage) if result.HasField("usage") else None,
        steered=list(result.steered_input_ids),
    )


def _failed_from(failed: pb.RunFailed) -> f.RunFailed:
    return f.RunFailed(
        failed.run_id,
        failed.executor_fence,
        FAILURES[failed.kind],
        failed.message,
        failed.retryable,
        list(failed.steered_input_ids),
    )


def _progress_from(progress: pb.RunProgress) -> f.RunProgress:
    percent = progress.percent if progress.HasField("percent") else None

    def bodies() -> list[bytes]:
        shown = pb.Progress(message=progress.message, percent=percent)
        return [events_pb2.AgentEvent(sequence=progress.sequence, progress=shown).SerializeToString()]

    return f.RunProgress(progress.run_id, progress.executor_fence, progress.message, percent, bodies)


def _events_from(events: pb.RunEvents) -> f.RunEvents:
    return f.RunEvents(events.run_id, events.executor_fence, lambda: [_body(event) for event in events.events])


def _body(event: pb.RunEvent) -> bytes:
    """Return a live event without what the hub knows of it; see `live.LiveEvent`."""
    kind = event.WhichOneof("payload") or ""
    payload: Any = {kind: getattr(event, kind)}
    return events_pb2.AgentEvent(sequence=event.sequence, **payload).SerializeToString()


_FRAMES_FROM: Final[dict[str, Callable[[Any], f.AgentFrame]]] = {
    "hello": _hello_from,
    "heartbeat": lambda one: f.Heartbeat(list(one.run_ids)),
    "assigned": lambda one: f.Assigned(one.member_id, one.executor_fence),
    "declined": lambda one: f.Declined(one.member_id, one.executor_fence, one.reason),
    "run_accepted": lambda one: f.RunAccepted(one.run_id, one.executor_fence),
    "run_result": _result_from,
    "run_failed": _failed_from,
    "control_ack": lambda one: f.ControlAck(one.control_id, CONTROL_RESULTS[one.result], one.message),
    "run_progress": _progress_from,
    "run_events": _events_from,
    "drain": lambda _: f.Drain(),
    "detach": lambda _: f.Detach(),
}


class Responses:
    """Makes the messages of one stream. A profile is encoded once for the members that follow one another with it."""

    __slots__ = ("_now", "_profile", "_profile_json")

    def __init__(self, now: Callable[[], int]) -> None:
        # The server's time, µs since 1970.
        self._now = now
        self._profile: Profile | None = None
        self._profile_json = ""

    def responses_to(self, frames: Sequence[f.ServerFrame]) -> Iterator[pb.AttachResponse]:
        """Return messages with these entries, in order, each message not much longer than it may be."""
        response, size = pb.AttachResponse(), 0
        for frame in frames:
            if size >= RESPONSE_BYTES:
                yield response
                response, size = pb.AttachResponse(), 0
            entry = response.frames.add()
            self._fill(entry, frame)
            size += entry.ByteSize()
        yield response

    def _fill(self, to: pb.ServerFrame, frame: f.ServerFrame) -> None:
        if isinstance(frame, SendStartRun):
            self._start(to.start_run, frame)
        elif isinstance(frame, SendSettled):
            to.run_settled.run_id = frame.run_id
            to.run_settled.disposition = DISPOSITIONS[frame.disposition]
        elif isinstance(frame, SendAssign):
            to.assign.CopyFrom(self._assign_to(frame))
        else:
            to.CopyFrom(_FRAMES_TO[type(frame)](frame))

    def _assign_to(self, assign: SendAssign) -> pb.Assign:
        profile = assign.profile
        if profile is not self._profile:
            self._profile = profile
            self._profile_json = msgspec.json.encode(profile, order="deterministic").decode()
        return pb.Assign(
            member_id=assign.member_id,
            executor_fence=assign.fence,
            role=profile.role,
            profile_json=self._profile_json,
            instructions=profile.instructions,
            context_json=json_to(assign.context),
            generation=assign.generation,
            fence_token=assign.fence_token,
            session_id=assign.session_id,
            message_count=assign.message_count,
            digest=assign.digest,
        )

    def _start(self, to: pb.StartRun, start: SendStartRun) -> None:
        # Assigned one by one: to make a message with all of its fields at once takes several times as long.
        to.run_id = start.run_id
        to.executor_fence = start.fence
        to.member_id = start.member_id
        to.boundary = start.boundary
        for one in start.inputs:
            _fill_input(to.inputs.add(), one)
        if start.traceparent:
            to.traceparent = start.traceparent
        to.execution = start.execution
        to.intent = start.intent
        if start.deadline:
            to.time_left.CopyFrom(duration_to(max(0, start.deadline - self._now()) // 1_000))


def _welcome_to(welcome: f.Welcome) -> pb.ServerFrame:
    terms = welcome.terms
    return pb.ServerFrame(
        welcome=pb.Welcome(
            attachment_id=welcome.attachment_id,
            heartbeat=_seconds(terms.heartbeat_s),
            lease=_seconds(terms.lease_s),
            grace=_seconds(terms.grace_s),
            limits=pb.AgentLimits(message_bytes=terms.message_bytes, output_bytes=terms.output_bytes),
            log_id=welcome.log_id,
            serves=[_outcome_to(outcome) for outcome in welcome.serves],
            resumed=welcome.resumed,
        )
    )


def _outcome_to(outcome: ServeOutcome) -> pb.ServeStatus:
    serve = serve_to(outcome.serve)
    if outcome.waiting:
        return pb.ServeStatus(serve=serve, waiting=outcome.waiting)
    return pb.ServeStatus(serve=serve, assigned=outcome.assigned)


def _reject_to(reject: f.Reject) -> pb.ServerFrame:
    return pb.ServerFrame(
        reject=pb.Reject(
            cause=REJECTIONS[reject.cause], message=reject.message, retry_after=_seconds(reject.retry_after_s)
        )
    )


def _goodbye_to(goodbye: f.Goodbye) -> pb.ServerFrame:
    return pb.ServerFrame(
        goodbye=pb.Goodbye(
            reason=GOODBYES[goodbye.reason], message=goodbye.message, retry_after=_seconds(goodbye.retry_after_s)
        )
    )


def _seconds(seconds: float | None) -> Duration | None:
    return None if seconds is None else duration_to(round(seconds * 1_000))


def _fill_input(to: pb.RunInput, one: RunInput) -> None:
    to.canonical_input_id = one.canonical_input_id
    to.input_id = one.input_id
    to.kind = one.kind
    fill_content(to.content, one.content)
    to.sender = one.sender
    to.attempt = one.attempt
    if one.correlation_id:
        to.correlation_id = one.correlation_id
    if one.about is not NOTHING:
        to.about_json = json_to(one.about)


def _steer_to(steer: SendSteer) -> pb.ServerFrame:
    frame = pb.ServerFrame(
        steer_run=pb.SteerRun(run_id=steer.run_id, executor_fence=steer.fence, member_id=steer.member_id)
    )
    for one in steer.inputs:
        _fill_input(frame.steer_run.inputs.add(), one)
    return frame


def _cancel_to(cancel: SendCancel) -> pb.ServerFrame:
    if cancel.hard:
        return pb.ServerFrame(
            hard_cancel=pb.HardCancel(
                control_id=cancel.control_id,
                run_id=cancel.run_id,
                executor_fence=cancel.fence,
                member_id=cancel.member_id,
                reason=cancel.reason,
            )
        )
    return pb.ServerFrame(
        cancel_at_boundary=pb.CancelAtBoundary(
            control_id=cancel.control_id,
            run_id=cancel.run_id,
            executor_fence=cancel.fence,
            member_id=cancel.member_id,
            reason=cancel.reason,
        )
    )


def _retire_to(retire: SendRetire) -> pb.ServerFrame:
    return pb.ServerFrame(retire=pb.Retire(member_id=retire.member_id, executor_fence=retire.fence, drain=retire.drain))


def _unassign_to(unassign: SendUnassign) -> pb.ServerFrame:
    return pb.ServerFrame(
        unassign=pb.Unassign(member_id=unassign.member_id, executor_fence=unassign.fence, reason=unassign.reason)
    )


_FRAMES_TO: Final[dict[type, Callable[[Any], pb.ServerFrame]]] = {
    f.Welcome: _welcome_to,
    f.Reject: _reject_to,
    f.Goodbye: _goodbye_to,
    f.HeartbeatAck: lambda _: pb.ServerFrame(heartbeat_ack=pb.HeartbeatAck()),
    f.Resync: lambda one: pb.ServerFrame(resync=pb.Resync(mob_id=one.mob_id)),
    SendSteer: _steer_to,
    SendCancel: _cancel_to,
    SendRetire: _retire_to,
    SendUnassign: _unassign_to,
}
