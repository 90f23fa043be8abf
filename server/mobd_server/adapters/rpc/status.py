"""The one table from errors to statuses, and the making of their details.

Every status that mobd itself raises carries google.rpc.ErrorInfo (domain `mobd`, the error's reason and its details),
BadRequest for fields, RetryInfo where the same call may succeed later.
"""

from typing import Final

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # it has no stubs

from mobd_server import errors

DOMAIN: Final = "mobd"
DETAILS_KEY: Final = "grpc-status-details-bin"
# A client takes 8 KiB of metadata unless told otherwise, and gives up the whole status when there is more. Details
# travel there in base64 beside the message, whose other-than-ASCII characters take three bytes each.
MAX_DETAILS_BYTES: Final = 3_500
MAX_MESSAGE_BYTES: Final = 700

Code = grpc.StatusCode

STATUS: Final[dict[type[errors.MobdError], Code]] = {
    errors.InvalidTransition: Code.FAILED_PRECONDITION,
    errors.StaleFence: Code.FAILED_PRECONDITION,
    errors.LocalMember: Code.FAILED_PRECONDITION,
    errors.RequestConflict: Code.FAILED_PRECONDITION,
    errors.MobExists: Code.ALREADY_EXISTS,
    errors.MemberExists: Code.ALREADY_EXISTS,
    errors.ProfileNotFound: Code.NOT_FOUND,
    # Not RESOURCE_EXHAUSTED: members do not go away by waiting.
    errors.MobFull: Code.FAILED_PRECONDITION,
    errors.DecisionTooLarge: Code.FAILED_PRECONDITION,
    errors.OperationExists: Code.ALREADY_EXISTS,
    errors.OperationTransition: Code.FAILED_PRECONDITION,
    errors.PeerNotExpected: Code.FAILED_PRECONDITION,
    errors.OperationLimit: Code.FAILED_PRECONDITION,
    errors.OperationAmbiguous: Code.FAILED_PRECONDITION,
    errors.OperationNotFound: Code.NOT_FOUND,
    errors.MobNotFound: Code.NOT_FOUND,
    errors.MemberNotFound: Code.NOT_FOUND,
    errors.InputNotFound: Code.NOT_FOUND,
    errors.InputForgotten: Code.NOT_FOUND,
    errors.RunNotFound: Code.NOT_FOUND,
    errors.FieldInvalid: Code.INVALID_ARGUMENT,
    errors.DefinitionInvalid: Code.INVALID_ARGUMENT,
    errors.Undecodable: Code.INVALID_ARGUMENT,
    errors.CursorTooOld: Code.OUT_OF_RANGE,
    errors.CursorAhead: Code.OUT_OF_RANGE,
    errors.LogChanged: Code.OUT_OF_RANGE,
    errors.Exhausted: Code.RESOURCE_EXHAUSTED,
    errors.JournalFull: Code.RESOURCE_EXHAUSTED,
    errors.SlowReader: Code.RESOURCE_EXHAUSTED,
    errors.Unavailable: Code.UNAVAILABLE,
    errors.CommitUnknown: Code.UNAVAILABLE,
    errors.MobReloading: Code.UNAVAILABLE,
    errors.JournalDown: Code.UNAVAILABLE,
    errors.Draining: Code.UNAVAILABLE,
    errors.MobQuarantined: Code.DATA_LOSS,
    errors.MobFormatNewer: Code.FAILED_PRECONDITION,
    errors.TokenMissing: Code.UNAUTHENTICATED,
    errors.TokenUnknown: Code.UNAUTHENTICATED,
    errors.Internal: Code.INTERNAL,
}


def code_of(error: errors.MobdError) -> Code:
    """Return the status code of an error; an error that only an adapter knows has that of what it is a kind of."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def message_of(error: errors.MobdError) -> str:
    """Return the sentence of an error, cut to what a status may carry."""
    return _cut(error.message, MAX_MESSAGE_BYTES)


def details_of(error: errors.MobdError) -> bytes:
    """Return the serialised google.rpc.Status of an error, for the trailing metadata."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for key, value in error.details.items():
        info.metadata[key] = _cut(value, 1_000)
    more: list[Message] = []
    if isinstance(error, errors.FieldInvalid):
        request, left_out = _bad_request(error)
        if left_out:
            info.metadata["violations_left_out"] = str(left_out)
        more.append(request)
    if isinstance(error, errors.Exhausted | errors.Unavailable):
        delay = Duration()
        delay.FromMicroseconds(int(error.retry_after_s * 1_000_000))
        more.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code_of(error).value[0], message=message_of(error))
    for detail in [info, *more]:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return bytes(status.SerializeToString())


def _bad_request(error: errors.FieldInvalid) -> tuple[error_details_pb2.BadRequest, int]:
    """Return as many violations as a status can carry, and how many were left out."""
    request = error_details_pb2.BadRequest()
    room = MAX_DETAILS_BYTES - MAX_MESSAGE_BYTES
    for index, violation in enumerate(error.violations):
        entry = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(violation.field, 500), description=_cut(violation.description, 1_000), reason=violation.code
        )
        room -= entry.ByteSize() + 4
        if room < 0 and index:
            return request, len(error.violations) - index
        request.field_violations.append(entry)
    return request, 0


def _cut(text: str, limit: int) -> str:
    encoded = text.encode(errors="replace")
    return text if len(encoded) <= limit else encoded[: limit - 3].decode(errors="ignore") + "…"
