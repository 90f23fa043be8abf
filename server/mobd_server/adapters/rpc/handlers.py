"""Registers every method of a service, each once, through one wrapper.

The wrapper decodes, validates, and turns errors into statuses; a servicer method is left with: convert, ask, convert.
It is applied at registration because an interceptor costs each call more than all of this does. Requests reach the
wrapper as bytes: a deserialiser that fails inside gRPC would answer UNKNOWN. Answers may be bytes already.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from hashlib import sha256
from typing import Any, Final, NoReturn, cast
from uuid import uuid4

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from mobd_server.actors.calling import Calling, begin
from mobd_server.actors.links import Call
from mobd_server.adapters.rpc import status
from mobd_server.adapters.rpc.guests import Guests
from mobd_server.adapters.rpc.validate import checker
from mobd_server.errors import Draining, FieldInvalid, Internal, MobdError, Undecodable
from mobd_server.ports import CallMeter, Kind

Answer = Message | bytes
Unary = Callable[[Any, Call], Awaitable[Answer]]
ServerStream = Callable[[Any, Call], AsyncIterator[Answer]]
BothStream = Callable[[AsyncIterator[Any], Call], AsyncIterator[Answer]]
# The handlers of methods by path, such as /mobd.v1.BridgeService/Deliver.
Methods = dict[str, "grpc.RpcMethodHandler[bytes, bytes]"]
Context = grpc.aio.ServicerContext[bytes, bytes]

# Who counts the calls of a method, such as mobd.v1.BridgeService/Deliver.
MeterOf = Callable[[str, Kind], CallMeter]

# Who a caller is, by the value of its authorization header; None: it sent none. Raises TokenMissing and TokenUnknown.
Identify = Callable[[str | None], str]

ANONYMOUS: Final = "anonymous"
AUTHORIZATION: Final = "authorization"
OK: Final = "OK"
# What is left of a call when nothing else ended it: its caller did, or its deadline.
CANCELLED: Final = "CANCELLED"
# How those end who come when the server leaves.
TURNED_AWAY: Final = grpc.StatusCode.UNAVAILABLE.name

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}").fullmatch
log: Final = logging.getLogger(__name__)


def method_name(name: str) -> str:
    """Return what a servicer calls a method of the protocol: GetMob is get_mob."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Gate:
    """Who is inside: calls that were begun and have not ended. A server that leaves lets no more of them in.

    Those who come too late are told so, but only when the server has taken leave of their connections: who is told
    earlier comes again at once, on a connection whose new calls gRPC then cancels without a word.
    """

    __slots__ = ("_count", "_empty", "_released", "closed", "guests", "late")

    def __init__(self) -> None:
        self.closed = False
        self.guests = Guests()
        # How many came too late.
        self.late = 0
        self._count = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._released = asyncio.Event()

    def __enter__(self) -> None:
        self._count += 1
        if self._count == 1:
            self._empty.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if self._count == 0:
            self._empty.set()

    async def empty(self) -> None:
        """Return when nobody is inside."""
        await self._empty.wait()

    def close(self) -> None:
        """Let nobody in from now on."""
        self.closed = True

    def release(self) -> None:
        """Tell those who came too late."""
        self._released.set()

    async def turn_away(self, context: Context) -> NoReturn:
        """End a call that came too late."""
        self.late += 1
        await self._released.wait()
        await refuse(context, Draining("the server shuts down: repeat the call with the same ids"))


class OneLookUp(grpc.GenericRpcHandler):
    """Finds a method of any service at once: gRPC asks one handler after the other, for every call."""

    def __init__(self, services: Iterable[Methods]) -> None:
        self._methods: Methods = {path: handler for methods in services for path, handler in methods.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Return the handler of the method that is called."""
        return self._methods.get(handler_call_details.method)


class Uncounted:
    """A ports.CallMeter that counts nothing."""

    def began(self) -> None:
        """Do nothing."""

    def received(self) -> None:
        """Do nothing."""

    def sent(self) -> None:
        """Do nothing."""

    def ended(self, code: str, seconds: float) -> None:
        """Do nothing."""


def _uncounted(_method: str, _kind: Kind) -> CallMeter:
    return Uncounted()


def anyone(_authorization: str | None) -> str:
    """Let everybody come, and know nobody."""
    return ANONYMOUS


def service_handler(
    service: ServiceDescriptor,
    servicers: Sequence[object],
    gate: Gate,
    meter_of: MeterOf = _uncounted,
    identify: Identify = anyone,
) -> Methods:
    """Return the handlers of a service by path; each of its methods must be on exactly one of `servicers`."""
    handlers = {}
    for method in service.methods:
        found = [getattr(one, method_name(method.name)) for one in servicers if hasattr(one, method_name(method.name))]
        if len(found) != 1:
            message = f"{service.full_name}.{method.name} has {len(found)} servicers instead of one"
            raise TypeError(message)
        name = f"{service.full_name}/{method.name}"
        meter = meter_of(name, _kind(method))
        handlers[f"/{name}"] = _handler(Door(f"/{name}", method, gate, meter, identify), method, found[0])
    return handlers


def _kind(method: MethodDescriptor) -> Kind:
    if method.client_streaming:
        return "bidi_stream"
    return "server_stream" if method.server_streaming else "unary"


def _handler(door: "Door", method: MethodDescriptor, behaviour: Any) -> "grpc.RpcMethodHandler[bytes, bytes]":
    if method.client_streaming:
        return grpc.stream_stream_rpc_method_handler(_both_stream(door, behaviour))
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(_server_stream(door, behaviour))
    return grpc.unary_unary_rpc_method_handler(_unary(door, behaviour))


class Door:
    """What one method does with a request before its servicer sees it."""

    def __init__(
        self, path: str, method: MethodDescriptor, gate: Gate, meter: CallMeter, identify: Identify = anyone
    ) -> None:
        self.path = path
        self.gate = gate
        self.meter = meter
        self._identify = identify
        self._type = method.input_type.full_name
        self._decode = GetMessageClass(method.input_type).FromString
        self._check = checker(method.input_type)
        fields = method.input_type.fields_by_name
        self._has_mob_id = "mob_id" in fields
        self._has_request_id = "request_id" in fields
        self._has_validate_only = "validate_only" in fields
        self._has_acting = "acting" in fields

    def request(self, raw: bytes) -> Any:
        """Return the request in `raw`, decoded and valid."""
        try:
            request = self._decode(raw)
        except DecodeError:
            raise Undecodable(f"the request of {self.path} is not a {self._type}") from None
        violations = self._check(request)
        if violations is not None:
            raise FieldInvalid(violations)
        return request

    def call(self, context: Context, calling: Calling) -> Call:
        """Return who calls, and within which trace; raise TokenMissing or TokenUnknown. Nothing was decoded before."""
        authorization = traceparent = None
        for key, value in context.invocation_metadata() or ():
            if key == "traceparent" and isinstance(value, str) and _TRACEPARENT(value):
                traceparent = value
            elif key == AUTHORIZATION and isinstance(value, str):
                authorization = value
        calling.principal = principal = self._identify(authorization)
        return Call(principal, traceparent)

    def unary_call(self, request: Any, call: Call, calling: Calling) -> Call:
        """Return the call of one request: with the caller's key, as whose agent it acts, and whether it only asks.

        What log lines name of it goes to `calling`.
        """
        if self._has_mob_id:
            calling.mob_id = request.mob_id
        if self._has_request_id and request.request_id:
            call.request_id = calling.request_id = request.request_id
            call.request_hash = self._hash(request)
        if self._has_validate_only and request.validate_only:
            call.validate_only = True
        if self._has_acting and request.HasField("acting"):
            call.acting = (request.acting.run_id, request.acting.executor_fence)
        return call

    def _hash(self, request: Any) -> str:
        bare = type(request)()
        bare.CopyFrom(request)
        bare.ClearField("request_id")
        if self._has_acting:
            # Who acts is no content: an agent that repeats its request in the next attempt gets the stored answer.
            bare.ClearField("acting")
        return sha256(self.path.encode() + b"\0" + bare.SerializeToString(deterministic=True)).hexdigest()


def _unary(door: Door, behaviour: Unary) -> Callable[[bytes, Context], Awaitable[bytes]]:
    gate, meter, path = door.gate, door.meter, door.path
    now = time.perf_counter

    # Every line of this is run for every call: what it does is not spread over more coroutines than this one.
    async def handle(raw: bytes, context: Context) -> bytes:
        began, code, calling = now(), CANCELLED, begin(path)
        meter.began()
        try:
            if gate.closed:
                code = TURNED_AWAY
                await gate.turn_away(context)
            with gate:
                try:
                    call = door.call(context, calling)
                    request = door.request(raw)
                    answer = await behaviour(request, door.unary_call(request, call, calling))
                    answered = answer if isinstance(answer, bytes) else answer.SerializeToString()
                    code = OK
                    return answered
                except MobdError as error:
                    failure = _named(path, error)
                except Exception as bug:  # noqa: BLE001 whatever it is, the caller learns an error id and nothing else
                    failure = _internal(path, bug)
                code = status.code_of(failure).name
                return await refuse(context, failure)
        finally:
            calling.ended = True
            meter.ended(code, now() - began)

    return handle


def _server_stream(door: Door, behaviour: ServerStream) -> Callable[[bytes, Context], AsyncIterator[bytes]]:
    async def handle(raw: bytes, context: Context) -> AsyncIterator[bytes]:
        def answers(calling: Calling) -> AsyncIterator[Answer]:
            call = door.call(context, calling)
            request = door.request(raw)
            return behaviour(request, door.unary_call(request, call, calling))

        async with aclosing(cast("Any", _stream(door, answers, context))) as stream:
            async for answer in stream:
                yield answer

    return handle


def _both_stream(door: Door, behaviour: BothStream) -> Callable[[AsyncIterable[bytes], Context], AsyncIterator[bytes]]:
    async def handle(raws: AsyncIterable[bytes], context: Context) -> AsyncIterator[bytes]:
        async def requests() -> AsyncIterator[Any]:
            async for raw in raws:
                door.meter.received()
                yield door.request(raw)

        def answers(calling: Calling) -> AsyncIterator[Answer]:
            return behaviour(requests(), door.call(context, calling))

        async with aclosing(cast("Any", _stream(door, answers, context))) as stream:
            async for answer in stream:
                yield answer

    return handle


async def _stream(
    door: Door, open_answers: Callable[[Calling], AsyncIterator[Answer]], context: Context
) -> AsyncIterator[bytes]:
    began, code, calling = time.perf_counter(), CANCELLED, begin(door.path)
    door.meter.began()
    try:
        if door.gate.closed:
            code = TURNED_AWAY
            await door.gate.turn_away(context)
        with door.gate, door.gate.guests.enter(_authorization(context)) as guest:
            try:
                async with aclosing(cast("Any", open_answers(calling))) as answers:
                    guest.principal = calling.principal or None
                    guest.waits = True
                    async for answer in answers:
                        guest.waits = False
                        door.meter.sent()
                        yield answer if isinstance(answer, bytes) else answer.SerializeToString()
                        if guest.refusal is not None:
                            raise guest.refusal
                        guest.waits = True
                code = OK
                return
            except MobdError as error:
                failure = _named(door.path, error)
            except asyncio.CancelledError:
                interrupted = guest.interrupted()
                if interrupted is None:
                    raise
                failure = interrupted
            except Exception as bug:  # noqa: BLE001 as above
                failure = _internal(door.path, bug)
            guest.waits = False
            code = status.code_of(failure).name
            await refuse(context, failure)
    finally:
        calling.ended = True
        door.meter.ended(code, time.perf_counter() - began)


def _authorization(context: Context) -> str | None:
    found = [value for key, value in context.invocation_metadata() or () if key == AUTHORIZATION]
    return found[-1] if found and isinstance(found[-1], str) else None


def _named(path: str, error: MobdError) -> MobdError:
    """Return an error as it is told; one of ours that nobody can do anything about has an id, and a line in the log."""
    if isinstance(error, Internal) and "error_id" not in error.details:
        error.details["error_id"] = uuid4().hex
        log.error("call_failed", extra={"method": path, "error": error.message, **error.details})
    return error


def _internal(path: str, bug: Exception) -> Internal:
    error_id = uuid4().hex
    log.error("call_failed", extra={"method": path, "error_id": error_id}, exc_info=bug)
    return Internal(f"internal error {error_id}; the server's log has more", {"error_id": error_id})


async def refuse(context: Context, error: MobdError) -> NoReturn:
    """End the call with the status of `error`."""
    await context.abort(
        status.code_of(error), status.message_of(error), ((status.DETAILS_KEY, status.details_of(error)),)
    )
    raise AssertionError
