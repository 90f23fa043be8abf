"""What an answer may be: a message of the protocol, or an error of the catalogue that says what is wrong.

A rule that an answer breaks is a complaint, in words. No complaint means that a client can know what happened to it.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # it has no stubs
from msgspec import Struct

from mobd_server.adapters.rpc.server import RECEIVE_BYTES
from mobd_server.adapters.rpc.status import STATUS
from mobd_server.adapters.rpc.validate import is_map, is_repeated

Code = grpc.StatusCode

MAX_ANSWER: Final = 4 << 20
DETAILS: Final = "grpc-status-details-bin"
# What each reason of the catalogue may come with.
CATALOGUE: Final = {kind.reason: (code, kind) for kind, code in STATUS.items()}
# What fits a request that nobody can have made by mistake: a server that says this has failed.
NEVER: Final = (Code.UNKNOWN, Code.INTERNAL, Code.DATA_LOSS)
# How a call ends that its caller ended.
OURS: Final = (Code.CANCELLED, Code.DEADLINE_EXCEEDED)
AGAIN: Final = (Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE)
_INDEX: Final = r'\[(?:"(?:[^"\\]|\\.)*"|\d+)\]'
_NAME: Final = r"[a-z0-9_]+"
_STEP: Final = re.compile(f"{_INDEX}|{_NAME}")
_PATH: Final = re.compile(rf"{_NAME}(?:{_INDEX})*(?:\.{_NAME}(?:{_INDEX})*)*").fullmatch


class Outcome(Struct):
    """What became of one call."""

    code: Code
    message: str = ""
    details: bytes = b""
    answers: list[bytes] = []
    seconds: float = 0.0
    # The caller may have given up, or the deadline was meant to be met.
    impatient: bool = False


class Details(Struct):
    """What an error says of itself."""

    reason: str = ""
    domain: str = ""
    fields: list[str] = []
    retry: bool = False


def details_of(raw: bytes) -> Details:
    """Read the details of a status."""
    found = Details()
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for detail in status_pb2.Status.FromString(raw).details:
        if detail.Unpack(info):
            found.reason, found.domain = info.reason, info.domain
        elif detail.Unpack(bad):
            found.fields = [one.field for one in bad.field_violations if one.description and one.reason]
        elif detail.Unpack(retry):
            found.retry = True
    return found


def complaints(method: MethodDescriptor, messages: list[bytes], outcome: Outcome) -> Iterator[str]:
    """Yield each rule that an outcome breaks."""
    for answer in outcome.answers:
        if len(answer) > MAX_ANSWER:
            yield f"an answer of {len(answer)} bytes"
        try:
            decoded(method.output_type, answer)
        except DecodeError:
            yield f"an answer that is no {method.output_type.full_name}: {answer[:64].hex()}"
    if outcome.code is Code.OK:
        yield from _of_success(method, messages, outcome)
    elif outcome.code in OURS and not outcome.details:
        if not outcome.impatient:
            yield f"{outcome.code.name} after {outcome.seconds:.1f} s: {outcome.message}"
    else:
        yield from _of_error(method, messages, outcome)


def _of_success(method: MethodDescriptor, messages: list[bytes], outcome: Outcome) -> Iterator[str]:
    if not method.client_streaming and not decodable(method, messages[0]):
        yield "OK for bytes that are no message"
    if not method.server_streaming and len(outcome.answers) != 1:
        yield f"OK with {len(outcome.answers)} answers"


def _of_error(method: MethodDescriptor, messages: list[bytes], outcome: Outcome) -> Iterator[str]:
    code = outcome.code
    if code in NEVER:
        yield f"{code.name}: {outcome.message}"
    if not outcome.details:
        # The one refusal that gRPC itself makes of a request that is only large.
        if code is not Code.RESOURCE_EXHAUSTED or max(map(len, messages)) <= RECEIVE_BYTES:
            yield f"{code.name} without details: {outcome.message}"
        return
    details = details_of(outcome.details)
    known = CATALOGUE.get(details.reason)
    if details.domain != "mobd" or known is None:
        yield f"{code.name} with the reason {details.reason!r} of {details.domain!r}, which the catalogue has not"
    elif known[0] is not code:
        yield f"{code.name} with the reason {details.reason}, which comes with {known[0].name}"
    if not outcome.message:
        yield f"{code.name} without a sentence"
    if (code in AGAIN) is not details.retry:
        yield f"{code.name} {'with' if details.retry else 'without'} a delay"
    if details.reason == "FIELD_INVALID":
        yield from _of_fields(method.input_type, details)
    elif details.reason == "UNDECODABLE" and all(decodable(method, one) for one in messages):
        yield "UNDECODABLE for what can be decoded"
    elif details.reason == "DEFINITION_INVALID" and not details.fields:
        yield "DEFINITION_INVALID without a place"


def _of_fields(descriptor: Descriptor, details: Details) -> Iterator[str]:
    if not details.fields:
        yield "FIELD_INVALID without a field"
    for path in details.fields:
        if not exists(descriptor, path):
            yield f"FIELD_INVALID names {path!r}, which {descriptor.full_name} has not"


def exists(descriptor: Descriptor, path: str) -> bool:
    """Tell whether a path such as specs[3].labels["a"] leads to a field or a choice of a message."""
    if _PATH(path) is None:
        return False
    here: Descriptor | None = descriptor
    field: FieldDescriptor | None = None
    for step in _STEP.findall(path):
        if step.startswith("["):
            if field is None or not (is_map(field) if step[1] == '"' else is_repeated(field)):
                return False
            continue
        if here is None:
            return False
        if step in here.oneofs_by_name:
            field, here = None, None
            continue
        field = here.fields_by_name.get(step)
        if field is None:
            return False
        here = field.message_type
    return True


def decodable(method: MethodDescriptor, raw: bytes) -> bool:
    """Tell whether bytes are a request of a method."""
    try:
        decoded(method.input_type, raw)
    except DecodeError:
        return False
    return True


def decoded(descriptor: Descriptor, raw: bytes) -> Message:
    """Return the message in the bytes. Raises DecodeError."""
    made: Any = GetMessageClass(descriptor)
    message: Message = made.FromString(raw)
    return message
