"""The table of statuses is total, and every status says what it must."""

import inspect
import re
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # it has no stubs

from mobd_server import errors
from mobd_server.adapters.rpc import status

ABSTRACT = {errors.MobdError, errors.Refused, errors.NotFound}
CLASSES = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, errors.MobdError)]
CONCRETE = [one for one in CLASSES if one not in ABSTRACT]


def make(kind: type[errors.MobdError]) -> errors.MobdError:
    if issubclass(kind, errors.InvalidTransition):
        return kind("StartMob", "running", "running", ["creating", "stopped"])
    if issubclass(kind, errors.FieldInvalid):
        return kind([errors.Violation("spec.role", "must be given", "REQUIRED")])
    return kind("what is wrong", {"mob_id": "m"})


def details(error: errors.MobdError) -> status_pb2.Status:
    return status_pb2.Status.FromString(status.details_of(error))


def unpack(found: status_pb2.Status, kind: type) -> list[Any]:
    return [message for message in (unpacked(one, kind) for one in found.details) if message is not None]


def unpacked(packed: Any, kind: type) -> object:
    message = kind()
    return message if packed.Unpack(message) else None


def test_the_table_is_total_and_holds_nothing_else() -> None:
    assert set(status.STATUS) == set(CONCRETE)


@pytest.mark.parametrize("kind", CONCRETE, ids=lambda kind: kind.__name__)
def test_every_status_carries_its_reason(kind: type[errors.MobdError]) -> None:
    error = make(kind)
    found = details(error)
    assert found.code == status.code_of(error).value[0]
    (info,) = unpack(found, error_details_pb2.ErrorInfo)
    assert (info.domain, info.reason) == ("mobd", kind.reason)
    assert re.fullmatch(r"[A-Z][A-Z0-9_]+", info.reason)
    assert dict(info.metadata) == error.details


@pytest.mark.parametrize("kind", CONCRETE, ids=lambda kind: kind.__name__)
def test_what_may_succeed_later_says_when(kind: type[errors.MobdError]) -> None:
    retries = unpack(details(make(kind)), error_details_pb2.RetryInfo)
    later = status.STATUS[kind] in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert bool(retries) == later
    assert all(retry.retry_delay.ToMicroseconds() > 0 for retry in retries)


def test_what_an_adapter_adds_has_the_status_of_its_kind() -> None:
    class StoreAway(errors.Unavailable):
        reason = "STORE_AWAY"

    error = StoreAway("away")
    assert status.code_of(error) is grpc.StatusCode.UNAVAILABLE
    (info,) = unpack(details(error), error_details_pb2.ErrorInfo)
    assert info.reason == "STORE_AWAY"


def test_reasons_are_used_once() -> None:
    reasons = [kind.reason for kind in CONCRETE]
    assert len(reasons) == len(set(reasons))


def test_broken_fields_are_named() -> None:
    (request,) = unpack(details(make(errors.FieldInvalid)), error_details_pb2.BadRequest)
    (violation,) = request.field_violations
    assert (violation.field, violation.description, violation.reason) == ("spec.role", "must be given", "REQUIRED")


def test_a_status_fits_into_the_metadata_of_any_client() -> None:
    many = [errors.Violation(f"specs[{i}].role" * 10, "é" * 300, "REQUIRED") for i in range(1000)]
    error = errors.DefinitionInvalid(many)
    raw = status.details_of(error)
    # In base64, beside the message, whose other-than-ASCII bytes are written as three characters.
    assert len(raw) * 4 / 3 + len(status.message_of(error).encode()) * 3 < 8_000
    (info,) = unpack(status_pb2.Status.FromString(raw), error_details_pb2.ErrorInfo)
    (request,) = unpack(status_pb2.Status.FromString(raw), error_details_pb2.BadRequest)
    assert int(info.metadata["violations_left_out"]) + len(request.field_violations) == 1000


def test_one_violation_is_always_shown() -> None:
    error = errors.FieldInvalid([errors.Violation("f" * 10_000, "d" * 10_000, "TOO_LONG")])
    (request,) = unpack(details(error), error_details_pb2.BadRequest)
    assert len(request.field_violations) == 1
