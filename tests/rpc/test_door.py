"""Bad requests over the wire: every RPC, every field, every rule; and bytes that are no request at all."""

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.rpc.cases import METHODS, breakages, name, valid
from tests.rpc.speaking import Refusal, Speaker

from mobd_server.adapters.rpc.server import SERVICES

pytestmark = pytest.mark.asyncio(loop_scope="module")


def string_path(descriptor: Descriptor) -> list[FieldDescriptor]:
    """The way to a string field of a message, through as many messages as it takes."""
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            return [field]
    for field in descriptor.fields:
        if field.message_type is not None and (inner := string_path(field.message_type)):
            return [field, *inner]
    return []


def bad_utf8(descriptor: Descriptor) -> bytes:
    raw = b"\xc3\x28"
    for field in reversed(string_path(descriptor)):
        raw = bytes([field.number << 3 | 2, len(raw)]) + raw
    return raw


@pytest.mark.parametrize("method", METHODS, ids=name)
async def test_every_broken_rule_is_refused_by_name(method: MethodDescriptor, door: Speaker) -> None:
    for breakage in breakages(method.input_type):
        request = valid(method.input_type)
        breakage.do(request)
        answer = await door.first(method, request.SerializeToString())
        assert isinstance(answer, Refusal), f"{breakage.path}: {breakage.what} was answered"
        assert answer.code is grpc.StatusCode.INVALID_ARGUMENT, breakage
        assert answer.reason == "FIELD_INVALID", breakage
        assert list(answer.fields) == [breakage.path], breakage


@pytest.mark.parametrize("method", METHODS, ids=name)
async def test_a_request_without_fault_passes_the_door(method: MethodDescriptor, door: Speaker) -> None:
    request = valid(method.input_type)
    if "page_token" in request.DESCRIPTOR.fields_by_name:
        request.ClearField("page_token")
    answer = await door.first(method, request.SerializeToString())
    if isinstance(answer, Refusal):
        assert answer.reason not in ("FIELD_INVALID", "UNDECODABLE", "INTERNAL", ""), answer


@pytest.mark.parametrize("method", METHODS, ids=name)
async def test_truncated_bytes_are_undecodable(method: MethodDescriptor, door: Speaker) -> None:
    whole = valid(method.input_type).SerializeToString()
    for raw in (whole[:-1] if whole else b"\x0a", whole + b"\x0a\x05a", b"\xff" * 11):
        answer = await door.first(method, raw)
        assert isinstance(answer, Refusal)
        assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNDECODABLE")


@pytest.mark.parametrize("method", [m for m in METHODS if string_path(m.input_type)], ids=name)
async def test_bad_utf8_is_undecodable(method: MethodDescriptor, door: Speaker) -> None:
    answer = await door.first(method, bad_utf8(method.input_type))
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNDECODABLE")


async def test_only_requests_without_text_escape_the_test_of_utf8() -> None:
    assert [name(method) for method in METHODS if not string_path(method.input_type)] == ["ServerService.GetServerInfo"]


@pytest.mark.parametrize("service", ["", *(service.full_name for service in SERVICES)])
async def test_every_service_is_healthy(service: str, door: Speaker) -> None:
    answer = await health_pb2_grpc.HealthStub(door.channel).Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_message_over_4_mib_is_refused_by_the_core(door: Speaker) -> None:
    method = next(method for method in METHODS if method.name == "Deliver")
    answer = await door.first(method, b"\x0a" * (5 << 20))
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "")
