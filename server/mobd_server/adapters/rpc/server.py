"""The gRPC server: its services, its limits, its health."""

import asyncio
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from msgspec import Struct

from mobd.v1 import (
    agents_pb2,
    bridge_pb2,
    events_pb2,
    members_pb2,
    mobs_pb2,
    operations_pb2,
    runs_pb2,
    server_pb2,
)
from mobd_server.adapters.rpc import health, reflection
from mobd_server.adapters.rpc.handlers import Gate, Identify, MeterOf, OneLookUp, anyone, service_handler

SERVICES: Final[tuple[ServiceDescriptor, ...]] = tuple(
    service
    for module in (
        mobs_pb2,
        members_pb2,
        bridge_pb2,
        operations_pb2,
        runs_pb2,
        agents_pb2,
        events_pb2,
        server_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
)
# What is longer is refused by gRPC itself. The room above 4 MiB lets our own limits answer first, who can name a field.
RECEIVE_BYTES: Final = (4 << 20) + (64 << 10)
METADATA_BYTES: Final = 16 << 10
# Calls of one connection at a time, each of which takes about twenty kilobytes; more of them wait at their client.
CONCURRENT_CALLS: Final = 2_048
# Calls of all connections that have arrived and not begun. Beyond that gRPC cancels calls of anybody, and does so from
# a thousand on unless it is told otherwise.
PENDING_CALLS: Final = 1 << 16
# How long new calls are held back while those in flight end, before connections are told to end.
HOLD_S: Final = 1.0
# Without a new call for this long there is none under way.
QUIET_S: Final = 0.03
# How long it takes at most until the end of a connection was told.
GOAWAY_S: Final = 0.05
# Answers that were made are given this long to leave when nothing else is in flight.
FLUSH_S: Final = 1.0


class AddressTaken(Exception):
    """The address can't be listened on; the message says why."""


class Transport(Struct, frozen=True):
    """How the server listens and holds connections; see config.py."""

    listen: str
    keepalive_s: float
    keepalive_timeout_s: float
    min_ping_interval_s: float
    max_connection_age_s: float
    max_connection_age_grace_s: float
    reflection: bool


class RpcServer:
    """Serves mobd's services, gRPC health and reflection on one address; `servicers` by the name of their service."""

    def __init__(
        self,
        transport: Transport,
        servicers: Mapping[str, Sequence[object]],
        meter_of: MeterOf,
        identify: Identify = anyone,
    ) -> None:
        self._server = grpc.aio.server(options=_options(transport))
        names = [service.full_name for service in SERVICES]
        self._health = health.Health(names)
        self._gate = Gate()
        self._identify = identify
        self._listen = transport.listen
        handlers = [
            service_handler(service, servicers[service.name], self._gate, meter_of, identify) for service in SERVICES
        ]
        handlers.append(self._health.methods())
        if transport.reflection:
            described = reflection.Described([*names, health.SERVICE, reflection.SERVICE.full_name])
            # Behind a gate of its own: who looks at the protocol holds up no server that leaves.
            handlers.append(service_handler(reflection.SERVICE, [described], Gate(), identify=identify))
        self._server.add_generic_rpc_handlers([OneLookUp(handlers)])

    async def start(self) -> str:
        """Listen, not yet serving by its health; return the address. Raises AddressTaken."""
        try:
            port = self._server.add_insecure_port(self._listen)
        except RuntimeError:
            port = 0
        if port == 0:
            raise AddressTaken(_why_not(self._listen))
        await self._server.start()
        return f"{self._listen.rpartition(':')[0]}:{port}"

    async def serve(self) -> None:
        """Say by its health that the server serves."""
        self._health.set_serving(True)

    def set_serving(self, serving: bool) -> None:
        """Change the server's health."""
        self._health.set_serving(serving)

    def ask_again(self) -> int:
        """Ask whom each open stream is of: those whose callers are not known any more end; return how many."""
        return self._gate.guests.ask_again(self._identify)

    async def leave(self) -> None:
        """Say for good that the server does not serve, and begin no more calls."""
        self._health.leave()
        self._gate.close()

    async def stop(self, patience_s: float) -> None:
        """Take leave of all connections, and give the calls in flight some time to end. Call `leave` before."""
        with suppress(TimeoutError):
            # Not longer: those who wait at the gate could be served elsewhere.
            async with asyncio.timeout(min(HOLD_S, patience_s)):
                await self._gate.empty()
                await self._quiet()
        stopping = asyncio.ensure_future(self._server.stop(patience_s))
        await asyncio.sleep(GOAWAY_S)
        self._gate.release()
        # Not the end of all calls: those who watch our health would hold us up.
        ended = asyncio.ensure_future(self._gate.empty())
        await asyncio.wait([stopping, ended], return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        await self._server.stop(min(FLUSH_S, patience_s))
        await stopping

    async def _quiet(self) -> None:
        """Return when everything that was under way has arrived at the gate: gRPC would cancel the rest of it."""
        arrived = -1
        while arrived != self._gate.late:
            arrived = self._gate.late
            await asyncio.sleep(QUIET_S)


def _why_not(listen: str) -> str:
    """Return why an address can't be listened on: gRPC does not tell."""
    host, _, port = listen.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen(1)
    except OSError as error:
        return str(error.strerror)
    return "another server may have it"


def _options(transport: Transport) -> list[tuple[str, int]]:
    def ms(seconds: float) -> int:
        return round(seconds * 1_000)

    return [
        # Otherwise a second server on the same port gets half of the connections and nobody notices.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", RECEIVE_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.max_concurrent_streams", CONCURRENT_CALLS),
        ("grpc.server.max_pending_requests", PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", 2 * PENDING_CALLS),
        ("grpc.keepalive_time_ms", ms(transport.keepalive_s)),
        # Both are needed: without the second a peer that is cut off is noticed only after a minute.
        ("grpc.keepalive_timeout_ms", ms(transport.keepalive_timeout_s)),
        ("grpc.http2.ping_timeout_ms", ms(transport.keepalive_timeout_s)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", ms(transport.min_ping_interval_s)),
        ("grpc.max_connection_age_ms", ms(transport.max_connection_age_s)),
        ("grpc.max_connection_age_grace_ms", ms(transport.max_connection_age_grace_s)),
    ]
