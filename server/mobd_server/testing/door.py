"""The server's end of a loopback: the same doors of the same methods as on the network, without one."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from contextvars import copy_context
from typing import Any, Final, NoReturn, cast

import grpc

from mobd_server.adapters.rpc.handlers import Gate, Identify, MeterOf, Methods, service_handler
from mobd_server.adapters.rpc.server import SERVICES
from mobd_server.testing.loopback import RECEIVE_BYTES, TOO_LARGE, Code, End, Metadata, Place
from mobd_server.testing.network import Pipe

GONE: Final = End(Code.CANCELLED, "the client is gone")
STOPPED: Final = End(Code.UNAVAILABLE, "the server has ended")


class Door:
    """A server that listens at a place; see compose.Rpc. Made in the context of the server's node."""

    def __init__(
        self, place: Place, servicers: Mapping[str, Sequence[object]], meter_of: MeterOf, identify: Identify
    ) -> None:
        self.context = copy_context()
        self._place = place
        self._gate = Gate()
        self._identify = identify
        self._methods: Methods = {}
        for service in SERVICES:
            self._methods |= service_handler(service, servicers[service.name], self._gate, meter_of, identify)
        self._calls: dict[Served, None] = {}

    async def start(self) -> str:
        """Listen; return the address."""
        self._place.open(self)
        return self._place.address

    async def serve(self) -> None:
        """Do nothing: nobody asks for the health of a server in a test."""

    def set_serving(self, serving: bool) -> None:
        """Do nothing, for the same reason."""

    def ask_again(self) -> int:
        """End the streams of callers who are not known any more."""
        return self._gate.guests.ask_again(self._identify)

    async def leave(self) -> None:
        """Begin no more calls."""
        self._gate.close()

    async def stop(self, patience_s: float) -> None:
        """Give the calls in flight some time to end."""
        self._place.close(self)
        self._gate.release()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._gate.empty()
        for call in list(self._calls):
            call.leave(STOPPED, at_once=True)
        while self._calls:
            await asyncio.wait([call.task for call in self._calls])

    def accept(
        self, path: str, metadata: Metadata, deadline: float | None, requests: Pipe[End], answers: Pipe[End]
    ) -> "Served":
        """Take a call. Runs at the client; what the server does with it begins when it has arrived."""
        return Served(self._methods.get(path), self._calls, self.context, Rpc(metadata, deadline, requests, answers))


class Rpc:
    """What a handler sees of a call: the part of grpc.aio.ServicerContext that there is a use for."""

    def __init__(self, metadata: Metadata, deadline: float | None, requests: Pipe[End], answers: Pipe[End]) -> None:
        self._metadata = metadata
        self.deadline = deadline
        self.requests = requests
        self.answers = answers

    def invocation_metadata(self) -> Metadata:
        """Return what the client sent along."""
        return self._metadata

    def peer(self) -> str:
        """Return where the client is."""
        return "loopback"

    def time_remaining(self) -> float | None:
        """Return the seconds to the deadline; None: there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - asyncio.get_running_loop().time())

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """End the call with a status."""
        raise _Aborted(End(code, details, tuple(trailing_metadata)))


class _Aborted(Exception):
    def __init__(self, end: End) -> None:
        super().__init__(end.details)
        self.end = end


class Served:
    """A call at the server."""

    def __init__(self, handler: Any, calls: "dict[Served, None]", context: Any, rpc: Rpc) -> None:
        self._loop = asyncio.get_running_loop()
        self._handler = handler
        self._calls = calls
        self._context = context
        self._rpc = rpc
        self._end = GONE
        self._left = False
        self.task: asyncio.Task[None]
        self._begun = False
        rpc.requests.link.carry(self._begin)

    def leave(self, end: End = GONE, *, at_once: bool = False) -> None:
        """End the call from outside: its client is gone, or its connection. Any side may say so."""
        if at_once:
            self._loop.call_soon(self._leave, end, context=self._context)
        else:
            self._rpc.requests.link.carry(lambda: self._leave(end))

    def _begin(self) -> None:
        if self._left:
            return
        self._begun = True
        self._calls[self] = None
        self.task = self._loop.create_task(self._serve(), context=self._context.copy())
        left = self._rpc.time_remaining()
        timer = None if left is None else self._loop.call_later(left, self._leave, GONE)
        self.task.add_done_callback(lambda _: self._over(timer))

    def _over(self, timer: asyncio.TimerHandle | None) -> None:
        self._calls.pop(self, None)
        if timer is not None:
            timer.cancel()

    def _leave(self, end: End) -> None:
        self._left = True
        self._end = end
        self._rpc.answers.close()
        self._rpc.requests.cut(end)
        if self._begun:
            self.task.cancel()

    async def _serve(self) -> None:
        try:
            await self._handle()
            end = End(Code.OK)
        except _Aborted as aborted:
            end = aborted.end
        except asyncio.CancelledError:
            end = self._end
        except Exception as error:  # noqa: BLE001 as gRPC does
            end = End(Code.UNKNOWN, f"Unexpected {type(error)}: {error}")
        self._rpc.answers.end(end)

    async def _handle(self) -> None:
        handler, rpc, context = self._handler, self._rpc, cast("Any", self._rpc)
        if handler is None:
            raise _Aborted(End(Code.UNIMPLEMENTED, "Method not found!"))
        if handler.request_streaming:
            await self._stream(handler.stream_stream(self._requests(), context))
            return
        async with aclosing(self._requests()) as requests:
            raw = await anext(requests)
        if handler.response_streaming:
            await self._stream(handler.unary_stream(raw, context))
        else:
            await rpc.answers.put(await handler.unary_unary(raw, context))

    async def _stream(self, answers: Any) -> None:
        async with aclosing(answers) as stream:
            async for answer in stream:
                await self._rpc.answers.put(answer)

    async def _requests(self) -> AsyncGenerator[bytes, None]:
        while isinstance(raw := await self._rpc.requests.get(), bytes):
            if len(raw) > RECEIVE_BYTES:
                raise _Aborted(TOO_LARGE)
            yield raw
