"""Health and reflection, which gRPC's own packages describe: as typed as the rest, and nobody can stop them."""

from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from tests.fuzz import http2, machine
from tests.fuzz.generating import Generator
from tests.fuzz.judging import NEVER, decodable
from tests.fuzz.session import SETTINGS
from tests.fuzz.words import Words
from tests.rpc.speaking import refusal_of
from tests.support.served import Served, channel

pytestmark = pytest.mark.asyncio

SERVICES = (
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
)
METHODS: dict[str, MethodDescriptor] = {method.name: method for service in SERVICES for method in service.methods}
WATCHING = "/grpc.health.v1.Health/Watch"
CALL_S = 10.0


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with Served(tmp_path, None, {**SETTINGS, "MOBD_DRAIN_S": "1"}) as served:
        yield served
        if served.process.code is None:
            assert await served.terminate() == 0
        assert list(machine.misfortunes(served.log)) == []


async def told(opened: grpc.aio.Channel, method: MethodDescriptor, raw: bytes) -> grpc.aio.AioRpcError | bytes:
    """Return the first answer to bytes, or the status that there was instead."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    call: Any
    try:
        if method.client_streaming:
            talked: Any = opened.stream_stream(path)
            call = talked(timeout=CALL_S)
            await call.write(raw)
        elif method.server_streaming:
            watched: Any = opened.unary_stream(path)
            call = watched(raw, timeout=CALL_S)
        else:
            asked: Any = opened.unary_unary(path)
            return bytes(await asked(raw, timeout=CALL_S))
        answer = await call.read()
    except grpc.aio.AioRpcError as error:
        return error
    call.cancel()
    return bytes(answer)


@pytest.mark.parametrize("name", METHODS)
async def test_bytes_that_are_no_message_are_refused_as_everywhere(served: Served, name: str) -> None:
    method = METHODS[name]
    generator = Generator(Random(name), Words())
    async with channel(served.target) as opened:
        for number in range(100):
            raw = generator.raw(method.input_type) if number else b"\xff"
            answer = await told(opened, method, raw)
            if name == "List":
                assert isinstance(answer, grpc.aio.AioRpcError)
                assert answer.code() is grpc.StatusCode.UNIMPLEMENTED
                return
            elif not decodable(method, raw):
                assert isinstance(answer, grpc.aio.AioRpcError), raw
                assert refusal_of(answer).reason == "UNDECODABLE"
            elif isinstance(answer, grpc.aio.AioRpcError):
                assert answer.code() not in NEVER, raw


async def test_who_watches_health_and_does_not_read_stops_neither_others_nor_the_server(served: Served) -> None:
    """A server whose health can't be changed can't leave either: only a kill would end it."""
    request = http2.message(health_pb2.HealthCheckRequest().SerializeToString())
    # A window of nothing: not even the first answer can be sent.
    nothing = http2.frame(http2.SETTINGS, 0, 0, b"\x00\x04" + bytes(4))
    connection = await http2.connect(served.port)
    await connection.send(http2.PREFACE, nothing)
    for stream in (1, 3):
        headers = http2.frame(http2.HEADERS, http2.END_HEADERS, stream, http2.request(WATCHING))
        await connection.send(headers, http2.frame(http2.DATA, http2.END_STREAM, stream, request))
    # It has taken the calls.
    assert await connection.until(http2.HEADERS) is not None
    async with channel(served.target) as opened:
        watch: Any = health_pb2_grpc.HealthStub(opened).Watch(health_pb2.HealthCheckRequest(), timeout=CALL_S)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
    assert await served.terminate(CALL_S) == 0
    await connection.close()
