"""From the statuses and refusals of the server to errors."""

from typing import Final

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # it has no stubs

from mobd import errors
from mobd.errors import Error, Violation
from mobd.v1 import bridge_pb2

DOMAIN: Final = "mobd"
DETAILS_KEY: Final = "grpc-status-details-bin"
Code = grpc.StatusCode

REASONS: Final[dict[str, type[Error]]] = {
    kind.default_reason: kind
    for kind in (
        errors.CommitUnknown,
        errors.CursorAhead,
        errors.CursorTooOld,
        errors.DecisionTooLarge,
        errors.DefinitionInvalid,
        errors.Draining,
        errors.FieldInvalid,
        errors.InputForgotten,
        errors.InputNotFound,
        errors.Internal,
        errors.InvalidTransition,
        errors.JournalDown,
        errors.JournalFull,
        errors.LocalMember,
        errors.OperationAmbiguous,
        errors.OperationExists,
        errors.OperationLimit,
        errors.OperationNotFound,
        errors.OperationTransition,
        errors.PeerNotExpected,
        errors.LogChanged,
        errors.MemberExists,
        errors.MemberNotFound,
        errors.MobExists,
        errors.MobFormatNewer,
        errors.MobFull,
        errors.MobNotFound,
        errors.MobQuarantined,
        errors.MobReloading,
        errors.ProfileNotFound,
        errors.RequestConflict,
        errors.ResourceExhausted,
        errors.RunNotFound,
        errors.SlowReader,
        errors.StaleFence,
        errors.TokenMissing,
        errors.TokenUnknown,
        errors.Unavailable,
        errors.Undecodable,
    )
}

CODES: Final[dict[Code, type[Error]]] = {
    kind.default_code: kind
    for kind in (
        errors.AlreadyExists,
        errors.Cancelled,
        errors.DataLoss,
        errors.DeadlineExceeded,
        errors.FailedPrecondition,
        errors.Internal,
        errors.InvalidArgument,
        errors.NotFound,
        errors.OutOfRange,
        errors.PermissionDenied,
        errors.ResourceExhausted,
        errors.Unauthenticated,
        errors.Unavailable,
        errors.Unimplemented,
    )
}

REJECTIONS: Final[dict[int, type[errors.DeliveryRejected]]] = {
    bridge_pb2.REJECT_CAUSE_NOT_READY: errors.NotReady,
    bridge_pb2.REJECT_CAUSE_QUEUE_FULL: errors.QueueFull,
    bridge_pb2.REJECT_CAUSE_STALE_FENCE: errors.DeliveryStale,
    bridge_pb2.REJECT_CAUSE_CONTENT_CONFLICT: errors.ContentConflict,
    bridge_pb2.REJECT_CAUSE_INPUT_FORGOTTEN: errors.DeliveryForgotten,
    bridge_pb2.REJECT_CAUSE_HANDLING_MODE_INVALID: errors.HandlingModeInvalid,
}


def of_reason(reason: str, message: str) -> Error:
    """Return the error of a refusal that came within an OK answer."""
    return REASONS.get(reason, errors.FailedPrecondition)(message, reason=reason)


def of_rejection(rejected: bridge_pb2.DeliveryRejected) -> errors.DeliveryRejected:
    """Return the error of a delivery that the member refused."""
    kind = REJECTIONS.get(rejected.cause, errors.DeliveryRejected)
    after = rejected.retry_after.ToMicroseconds() / 1e6 if rejected.HasField("retry_after") else None
    error = kind(rejected.reason, retry_after=after)
    error.state = rejected.state
    error.current = rejected.current if rejected.HasField("current") else None
    error.canonical_input_id = rejected.canonical_input_id
    return error


def of_rpc(error: grpc.aio.AioRpcError) -> Error:
    """Return the error that a status stands for."""
    code = error.code()
    reason, details, violations, retry_after = "", {}, [], None
    for detail in _details(error):
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(detail.value)
            if info.domain == DOMAIN:
                reason, details = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            request = error_details_pb2.BadRequest.FromString(detail.value)
            violations = [_violation(one) for one in request.field_violations]
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry_after = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay.ToMicroseconds() / 1e6
    kind = REASONS.get(reason) or CODES.get(code, Error)
    return kind(
        error.details() or code.name,
        reason=reason,
        code=code,
        details=details,
        violations=tuple(violations),
        retry_after=retry_after,
    )


def _violation(one: error_details_pb2.BadRequest.FieldViolation) -> Violation:
    # The oldest googleapis-common-protos that will do has no name for the rule.
    return Violation(one.field, one.description, getattr(one, "reason", ""))


def _details(error: grpc.aio.AioRpcError) -> list[Any]:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return list(status_pb2.Status.FromString(value).details)
            except DecodeError:
                return []
    return []
