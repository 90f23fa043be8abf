"""What a call can fail with: one class per reason of the server, grouped by status.

`except mobd.MobNotFound` catches one reason, `except mobd.NotFound` all of a status, `except mobd.Error` everything.
A reason that this version does not know becomes the class of its status.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import grpc

from mobd.v1 import bridge_pb2, common_pb2

Code = grpc.StatusCode


@dataclass(frozen=True)
class Violation:
    """One broken rule: the path of the field, what would be legal, and the name of the rule."""

    field: str
    description: str
    code: str


class Error(Exception):
    """The root of everything that this package raises for the server."""

    default_code: ClassVar[Code] = Code.UNKNOWN
    default_reason: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        code: Code | None = None,
        details: Mapping[str, str] | None = None,
        violations: tuple[Violation, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        #: The server's stable name of the error; empty if gRPC itself made it.
        self.reason = reason or self.default_reason
        #: The status code.
        self.code = code or self.default_code
        #: The facts that the message was made of, by name.
        self.details: dict[str, str] = dict(details or {})
        #: With FIELD_INVALID and DEFINITION_INVALID: every broken rule.
        self.violations = violations
        #: When the same call may succeed, in seconds; None if waiting alone does not help.
        self.retry_after = retry_after


# By status.


class InvalidArgument(Error):
    """The request is malformed."""

    default_code = Code.INVALID_ARGUMENT


class FailedPrecondition(Error):
    """The state of things does not admit the request."""

    default_code = Code.FAILED_PRECONDITION


class NotFound(Error):
    """What was asked for does not exist."""

    default_code = Code.NOT_FOUND


class AlreadyExists(Error):
    """The name is taken."""

    default_code = Code.ALREADY_EXISTS


class OutOfRange(Error):
    """The cursor can't be used."""

    default_code = Code.OUT_OF_RANGE


class ResourceExhausted(Error):
    """Something bounded is full."""

    default_code = Code.RESOURCE_EXHAUSTED
    default_reason = "RESOURCE_EXHAUSTED"


class Unavailable(Error):
    """The server can't answer now. Calls repeat themselves until their timeout; this is raised when that is over."""

    default_code = Code.UNAVAILABLE
    default_reason = "UNAVAILABLE"


class DeadlineExceeded(Error, TimeoutError):
    """No answer came within the timeout; also a TimeoutError. What became of the call is unknown: repeat it."""

    default_code = Code.DEADLINE_EXCEEDED


class Internal(Error):
    """A bug of the server; `details["error_id"]` is in its log."""

    default_code = Code.INTERNAL
    default_reason = "INTERNAL"


class DataLoss(Error):
    """Stored data can't be read."""

    default_code = Code.DATA_LOSS


class PermissionDenied(Error):
    """The caller may not do that."""

    default_code = Code.PERMISSION_DENIED


class Unauthenticated(Error):
    """The server does not know the caller."""

    default_code = Code.UNAUTHENTICATED


class Unimplemented(Error):
    """The server does not have this method: is it older than this client?"""

    default_code = Code.UNIMPLEMENTED


class Cancelled(Error):
    """The call was cancelled on its way; raised in a turn: its run is to end."""

    default_code = Code.CANCELLED


# By reason.


class InvalidTransition(FailedPrecondition):
    """The mob's phase does not admit the command: `details` has from, to and allowed."""

    default_reason = "INVALID_TRANSITION"


class StaleFence(FailedPrecondition):
    """The caller means another incarnation."""

    default_reason = "STALE_FENCE"


class LocalMember(FailedPrecondition):
    """The server hosts the member itself: no bridge leads to it."""

    default_reason = "LOCAL_MEMBER"


class OperationTransition(FailedPrecondition):
    """The operation's status does not allow the step; `details` says what it would allow."""

    default_reason = "OPERATION_TRANSITION"


class PeerNotExpected(FailedPrecondition):
    """The operation has no peer."""

    default_reason = "PEER_NOT_EXPECTED"


class OperationLimit(FailedPrecondition):
    """As many operations live as may."""

    default_reason = "OPERATION_LIMIT"


class OperationAmbiguous(FailedPrecondition):
    """The member would have two operations that live."""

    default_reason = "OPERATION_AMBIGUOUS"


class RequestConflict(FailedPrecondition):
    """The request_id was used before with other content."""

    default_reason = "REQUEST_CONFLICT"


class MobFull(FailedPrecondition):
    """The mob has as many members as it may have."""

    default_reason = "MOB_FULL"


class DecisionTooLarge(FailedPrecondition):
    """The request would append more than one decision may."""

    default_reason = "DECISION_TOO_LARGE"


class MobFormatNewer(FailedPrecondition):
    """The mob was written by a newer mobd."""

    default_reason = "MOB_FORMAT_NEWER"


class MobExists(AlreadyExists):
    """The mob_id is taken."""

    default_reason = "MOB_EXISTS"


class OperationExists(AlreadyExists):
    """The operation_id is taken."""

    default_reason = "OPERATION_EXISTS"


class MemberExists(AlreadyExists):
    """The member_id is taken."""

    default_reason = "MEMBER_EXISTS"


class MobNotFound(NotFound):
    """No mob of that name."""

    default_reason = "MOB_NOT_FOUND"


class MemberNotFound(NotFound):
    """No member of that name."""

    default_reason = "MEMBER_NOT_FOUND"


class ProfileNotFound(NotFound):
    """The definition has no such role."""

    default_reason = "PROFILE_NOT_FOUND"


class OperationNotFound(NotFound):
    """No operation of that name."""

    default_reason = "OPERATION_NOT_FOUND"


class RunNotFound(NotFound):
    """No run of that name."""

    default_reason = "RUN_NOT_FOUND"


class InputNotFound(NotFound):
    """No input of that name."""

    default_reason = "INPUT_NOT_FOUND"


class InputForgotten(NotFound):
    """The input is older than what the server still remembers."""

    default_reason = "INPUT_FORGOTTEN"


class FieldInvalid(InvalidArgument):
    """Fields of the request break their rules: see `violations`."""

    default_reason = "FIELD_INVALID"


class DefinitionInvalid(FieldInvalid):
    """The definition has errors: see `violations`, whose fields are paths into it."""

    default_reason = "DEFINITION_INVALID"


class Undecodable(InvalidArgument):
    """The bytes of the request are no message."""

    default_reason = "UNDECODABLE"


class CursorTooOld(OutOfRange):
    """The log does not reach back that far."""

    default_reason = "CURSOR_TOO_OLD"


class CursorAhead(OutOfRange):
    """The log has not come that far."""

    default_reason = "CURSOR_AHEAD"


class LogChanged(OutOfRange):
    """The cursor belongs to another log."""

    default_reason = "LOG_CHANGED"


class JournalFull(ResourceExhausted):
    """The server has as many commits under way as it takes."""

    default_reason = "JOURNAL_FULL"


class SlowReader(ResourceExhausted):
    """A stream was read too slowly."""

    default_reason = "SLOW_READER"


class CommitUnknown(Unavailable):
    """The store failed while the request was being committed: whether it was is unknown."""

    default_reason = "COMMIT_UNKNOWN"


class MobReloading(Unavailable):
    """The mob is being read anew."""

    default_reason = "MOB_RELOADING"


class JournalDown(Unavailable):
    """The store does not answer."""

    default_reason = "JOURNAL_DOWN"


class Draining(Unavailable):
    """The server shuts down."""

    default_reason = "DRAINING"


class MobQuarantined(DataLoss):
    """The mob's log can't be read; its events stay readable."""

    default_reason = "MOB_QUARANTINED"


class TokenMissing(Unauthenticated):
    """The server takes only callers with a token: give token=, or set MOBD_TOKEN."""

    default_reason = "TOKEN_MISSING"


class TokenUnknown(Unauthenticated):
    """The server does not know the token: it was revoked, or is another server's."""

    default_reason = "TOKEN_UNKNOWN"


# Outcomes of a delivery, and of an input.


class DeliveryRejected(Error):
    """The member refused an input; nothing is stored."""

    default_code = Code.FAILED_PRECONDITION
    default_reason = "REJECTED"
    #: With NOT_READY: the phase of the member's runtime.
    state: int = 0
    #: With STALE_FENCE: the numbers that are current.
    current: common_pb2.Fence | None = None
    #: With CONTENT_CONFLICT: the input that holds the id.
    canonical_input_id: str = ""


class NotReady(DeliveryRejected):
    """The member is in a phase that accepts nothing."""

    default_reason = "NOT_READY"


class QueueFull(DeliveryRejected):
    """The member has as many inputs waiting as it may: try again after `retry_after` seconds."""

    default_code = Code.RESOURCE_EXHAUSTED
    default_reason = "QUEUE_FULL"


class ContentConflict(DeliveryRejected):
    """The input_id was delivered before, with other content."""

    default_reason = "CONTENT_CONFLICT"


class DeliveryStale(DeliveryRejected, StaleFence):
    """The delivery was meant for another incarnation of the member."""

    default_reason = "STALE_FENCE"


class DeliveryForgotten(DeliveryRejected, InputForgotten):
    """The input_id is older than what the server remembers: whether it ran before can't be told."""

    default_reason = "INPUT_FORGOTTEN"


class HandlingModeInvalid(DeliveryRejected):
    """An input of this form takes no handling mode."""

    default_reason = "HANDLING_MODE_INVALID"


class InputAbandoned(Error):
    """An input was given up; the message says why."""

    default_code = Code.ABORTED
    default_reason = "INPUT_ABANDONED"

    def __init__(self, message: str, input: bridge_pb2.Input) -> None:  # noqa: A002 the domain's word
        super().__init__(message, details={"input_id": input.input_id, "member_id": input.member_id})
        #: The input as it ended.
        self.input = input


class InputReplaced(InputAbandoned):
    """A newer input took the place of this one while it waited: `input.replaced_by`."""

    default_reason = "INPUT_REPLACED"


class AskTimeout(DeadlineExceeded):
    """No answer came in time, but the input is stored and stays: asking again with this input_id joins it."""

    default_reason = "ASK_TIMEOUT"

    def __init__(self, message: str, input_id: str, waiting_reason: str) -> None:
        super().__init__(message, details={"input_id": input_id, "waiting_reason": waiting_reason})
        #: The caller's name of the input, to ask again with.
        self.input_id = input_id
        #: What the input waits for, as far as the server said.
        self.waiting_reason = waiting_reason


class AgentStopped(Error):
    """An agent ended because it can't go on; the message says what to do."""

    default_code = Code.ABORTED
