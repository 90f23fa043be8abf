"""The health of the server, as grpc.health.v1 describes it: of all services together, for they live and end together.

Not gRPC's own servicer: there one who watches and does not read keeps all others waiting, and the server, which says
by it that it leaves. Health has no door: what probes a server, such as a load balancer, has no token.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Final, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from mobd_server.adapters.rpc.handlers import Context, Methods, refuse
from mobd_server.errors import Undecodable

SERVICE: Final = "grpc.health.v1.Health"
SERVING: Final = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """Whether the server serves: not at first. It is told to whoever asks, and to those who watch when it changes."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(["", *services])
        self._serving = False
        self._left = False
        self._watching: set[asyncio.Event] = set()

    def set_serving(self, serving: bool) -> None:
        """Change it, unless the server has left."""
        if not self._left and serving is not self._serving:
            self._serving = serving
            for changed in self._watching:
                changed.set()

    def leave(self) -> None:
        """Say for good that the server does not serve."""
        self.set_serving(False)
        self._left = True

    def methods(self) -> Methods:
        """Return the handlers by path."""
        return {
            f"/{SERVICE}/Check": grpc.unary_unary_rpc_method_handler(self._check),
            f"/{SERVICE}/Watch": grpc.unary_stream_rpc_method_handler(self._watch),
        }

    async def _check(self, raw: bytes, context: Context) -> bytes:
        service = await _service(raw, context)
        if service not in self._services:
            await _unknown(service, context)
        return self._answer(service)

    async def _watch(self, raw: bytes, context: Context) -> AsyncIterator[bytes]:
        service = await _service(raw, context)
        changed = asyncio.Event()
        self._watching.add(changed)
        try:
            told = b""
            while True:
                changed.clear()
                answer = self._answer(service)
                if answer != told:
                    told = answer
                    yield answer
                await changed.wait()
        finally:
            self._watching.discard(changed)

    def _answer(self, service: str) -> bytes:
        status = SERVING if self._serving else NOT_SERVING
        answer = health_pb2.HealthCheckResponse(status=status if service in self._services else UNKNOWN)
        return bytes(answer.SerializeToString())


async def _service(raw: bytes, context: Context) -> str:
    """Return whose health is asked for, or end the call."""
    try:
        request = health_pb2.HealthCheckRequest.FromString(raw)
    except DecodeError:
        await refuse(context, Undecodable("the request is not a grpc.health.v1.HealthCheckRequest"))
    return str(request.service)


async def _unknown(service: str, context: Context) -> NoReturn:
    # As the protocol of health has it: without a reason of ours.
    await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {service[:200]!r}")
    raise AssertionError
