"""What is delivered, what became of it, and what else requests are made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from mobd import errors, statuses
from mobd.content import content_of, dump
from mobd.v1 import bridge_pb2, common_pb2, events_pb2, members_pb2


@dataclass(frozen=True)
class Delivery:
    """An input that the server holds."""

    #: The caller's name for it.
    input_id: str
    #: The server's name for it.
    canonical_input_id: str
    #: It was delivered before, with this input_id and this content.
    duplicate: bool = False
    #: With duplicate: it has ended.
    terminal: bool = False
    #: If not a duplicate: the cursor of the event that accepted it.
    cursor: int = 0
    #: If not a duplicate: whether an agent serves the member.
    executor: "common_pb2.Connectivity.ValueType" = common_pb2.CONNECTIVITY_UNSPECIFIED


#: What an input may be beside a message of a peer.
Form = bridge_pb2.PeerRequest | bridge_pb2.PeerResponse | bridge_pb2.ExternalEvent


@dataclass(frozen=True)
class Draft:
    """One delivery of a batch; an input_id is made if none is given."""

    member_id: str
    content: Any
    input_id: str = ""
    fence: common_pb2.Fence | None = None
    form: Form | None = None
    steer: bool | None = None
    wake: bool = True
    supersession_key: str = ""
    correlation_id: str = ""


def shape_of(
    form: Form | None, *, steer: bool | None, wake: bool, supersession_key: str, correlation_id: str
) -> dict[str, Any]:
    """Return the fields of a delivery that say how it is handled."""
    shape: dict[str, Any] = {"supersession_key": supersession_key, "correlation_id": correlation_id}
    if steer is not None:
        shape["handling_mode"] = common_pb2.HANDLING_MODE_STEER if steer else common_pb2.HANDLING_MODE_QUEUE
    if not wake:
        shape["wake"] = False
    match form:
        case None:
            pass
        case bridge_pb2.PeerRequest():
            shape["peer_request"] = form
        case bridge_pb2.PeerResponse():
            shape["peer_response"] = form
        case bridge_pb2.ExternalEvent():
            shape["external_event"] = form
    return shape


def delivery_of(
    member_id: str, input_id: str, answer: bridge_pb2.DeliverResponse | bridge_pb2.DeliveryOutcome
) -> Delivery | errors.Error:
    """Return what became of a delivery, or the error that stands for it."""
    match answer.WhichOneof("outcome"):
        case "accepted":
            one = answer.accepted
            return Delivery(input_id, one.canonical_input_id, cursor=one.cursor, executor=one.executor)
        case "deduplicated":
            again = answer.deduplicated
            return Delivery(input_id, again.canonical_input_id, duplicate=True, terminal=again.terminal)
        case "rejected":
            return statuses.of_rejection(answer.rejected)
        case "member_not_found":
            return errors.MemberNotFound(f"no member '{member_id}'")
        case _:
            return errors.Error("the server answered with an outcome that this client does not know: is it too old?")


def ask_timeout(last: bridge_pb2.Input, member_id: str, input_id: str, timeout: float) -> errors.AskTimeout:
    """Return what is raised when an answer did not come in time; `last` is what was last heard of the input."""
    waiting = last.waiting_reason
    if last.state == bridge_pb2.INPUT_STATE_RUNNING:
        waiting = f"its run {last.run_id} is in flight, attempt {last.attempt}"
    elif not waiting:
        waiting = "the server has not said what it waits for"
    if not last.canonical_input_id:
        waiting = "the server has not said that it holds it"
    message = (
        f"member '{member_id}' did not answer within {timeout:g} s: {waiting}. "
        f"Asking again with input_id='{input_id}' joins this input and does not deliver it twice"
    )
    return errors.AskTimeout(message, input_id, last.waiting_reason)


def member_spec(
    member_id: str,
    role: str,
    *,
    labels: Mapping[str, str] | None = None,
    context: Any = None,
    initial_message: Any = None,
) -> members_pb2.MemberSpec:
    """Return what a new member is to be; `context` is JSON for its agent, `initial_message` its first input."""
    return members_pb2.MemberSpec(
        member_id=member_id,
        role=role,
        labels=labels,
        context_json="" if context is None else dump(context),
        initial_message=None if initial_message is None else content_of(initial_message),
    )


def event_start(after: int | None, since: datetime | None) -> events_pb2.EventStart:
    """Return where to begin: at a time, else after a cursor, else after the newest event."""
    if since is not None:
        at = Timestamp()
        at.FromDatetime(since.astimezone(UTC))
        return events_pb2.EventStart(since=at)
    if after is not None:
        return events_pb2.EventStart(after_cursor=after)
    return events_pb2.EventStart(latest=True)
