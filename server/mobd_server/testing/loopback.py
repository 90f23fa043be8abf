"""gRPC without a network: channels whose calls run the server's handlers, as bytes, in the same process.

What stubs and the SDK use of `grpc.aio.Channel` is here with the behaviour that it has there: deadlines, metadata,
statuses with their details, cancellation from both sides, half-closing, flow control, and waiting for a server that is
not there. The door of the server, which decodes, validates and answers, is the one that the network leads to.
"""

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import grpc

from mobd_server.testing.network import Link, Network, Pipe

if TYPE_CHECKING:
    from mobd_server.testing.door import Door, Served

Code = grpc.StatusCode
Metadata = Sequence[tuple[str, str | bytes]]

# As much as the server takes on the network.
RECEIVE_BYTES: Final = (4 << 20) + (64 << 10)


class End(NamedTuple):
    """How a call ended."""

    code: grpc.StatusCode
    details: str = ""
    trailing: Metadata = ()


# What a client sends behind its last message.
HALF_CLOSED: Final = End(Code.OK)
CANCELLED: Final = End(Code.CANCELLED, "Locally cancelled by application!")
EXPIRED: Final = End(Code.DEADLINE_EXCEEDED, "Deadline Exceeded")
REFUSED: Final = End(Code.UNAVAILABLE, "failed to connect to all addresses; last error: Connection refused")
RESET: Final = End(Code.UNAVAILABLE, "recvmsg:Connection reset by peer")
TOO_LARGE: Final = End(Code.RESOURCE_EXHAUSTED, f"Received message larger than max (limit {RECEIVE_BYTES})")


class Place:
    """An address: a door may be open there."""

    def __init__(self, address: str, network: Network) -> None:
        self.address = address
        self.network = network
        self.loop = asyncio.get_running_loop()
        self.door: Door | None = None
        self._waiting: list[Callable[[], None]] = []
        self._changes: list[asyncio.Future[None]] = []
        # The calls that are connected, of whatever door.
        self.calls: dict[Call, None] = {}

    def open(self, door: "Door") -> None:
        """Let calls through, also those that wait."""
        self.door = door
        waiting, self._waiting = self._waiting, []
        for connect in waiting:
            connect()
        self._tell()

    def close(self, door: "Door") -> None:
        """Let nobody come through this door any more."""
        if self.door is door:
            self.door = None
            self._tell()

    async def changed(self) -> None:
        """Return when there is a door that was not there, or the other way round."""
        change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changes.append(change)
        await change

    def _tell(self) -> None:
        changes, self._changes = self._changes, []
        for change in changes:
            _wake(change)

    def when_open(self, connect: Callable[[], None]) -> None:
        """Call `connect` when there is a door."""
        self._waiting.append(connect)

    def disconnect(self) -> None:
        """Break every connection: both sides notice, and what is under way is lost."""
        for call in list(self.calls):
            call.reset()


class Call:
    """One call, at its client. Made by a multi-callable; awaited if its answer is one message, else read."""

    def __init__(self, method: "_Method", options: "_Options", request: Any = None) -> None:
        loop = asyncio.get_running_loop()
        self._method = method
        self._place = method.channel.place
        self._options = options
        self._deadline = None if options.timeout is None else loop.time() + options.timeout
        self._context = copy_context()
        self._served: Served | None = None
        self._end: End | None = None
        self._half_closed = False
        self._done: list[Callable[[Any], None]] = []
        # Nothing has arrived anywhere yet; with whom this is connected is known later.
        self._inbound: Pipe[End] | None = None
        self._outbound: Pipe[End] | None = None
        self._connected: asyncio.Future[None] = loop.create_future()
        self._timer = None if options.timeout is None else loop.call_later(options.timeout, self._finish, EXPIRED)
        method.channel.calls[self] = None
        self._writing: asyncio.Task[None] | None = None
        self._connect()
        if request is not None:
            self._writing = loop.create_task(self._write_all(request))

    # What grpc.aio has.

    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer().__await__()

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message

    async def read(self) -> Any:
        """Return the next message, or EOF when the server has ended the call with OK. Raises AioRpcError."""
        try:
            item = await self._next()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if isinstance(item, bytes):
            return self._method.decode(item)
        if item.code is Code.OK:
            return grpc.aio.EOF
        raise self._error(item)

    async def write(self, request: Any) -> None:
        """Send a message; wait while too much is under way."""
        if self._end is not None:
            raise asyncio.InvalidStateError("RPC already finished.")
        if self._half_closed:
            raise asyncio.InvalidStateError('RPC is half closed after calling "done_writing".')
        try:
            await self._write(request)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if self._end is not None:
            raise self._error(self._end)

    async def done_writing(self) -> None:
        """Send no more."""
        if self._half_closed or self._end is not None:
            return
        self._half_closed = True
        await self._connected
        if self._outbound is not None:
            self._outbound.end(HALF_CLOSED)

    def cancel(self) -> bool:
        """End the call from this side; return whether it had not ended."""
        return self._finish(CANCELLED)

    def cancelled(self) -> bool:
        """Whether the call was cancelled."""
        return self._end is not None and self._end.code is Code.CANCELLED

    def done(self) -> bool:
        """Whether the call has ended."""
        return self._end is not None

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call `callback` with this call when it has ended."""
        if self._end is not None:
            callback(self)
        else:
            self._done.append(callback)

    def time_remaining(self) -> float | None:
        """Return the seconds to the deadline; None: there is none."""
        return None if self._deadline is None else max(0.0, self._deadline - asyncio.get_running_loop().time())

    async def code(self) -> grpc.StatusCode:
        """Return the status, when the call has ended."""
        return (await self._ended()).code

    async def details(self) -> str:
        """Return what the status says, when the call has ended."""
        return (await self._ended()).details

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """Return nothing: mobd sends none."""
        return grpc.aio.Metadata()

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """Return what came with the status, when the call has ended."""
        return _metadata((await self._ended()).trailing)

    async def wait_for_connection(self) -> None:
        """Return when the call has reached the server. Raises AioRpcError."""
        await self._connected
        if self._served is None:
            raise self._error(await self._ended())

    # How it comes about.

    def _connect(self) -> None:
        door = self._place.door
        if self._end is not None:
            return
        if door is None and self._options.waits:
            self._place.when_open(self._connect)
            return
        link = Link(self._place.network, self._context if door is None else door.context, self._context)
        self._inbound = Pipe(link)
        if door is None:
            self._inbound.end(REFUSED)
        else:
            self._outbound = Pipe(Link(self._place.network, self._context, door.context))
            self._place.calls[self] = None
            self._served = door.accept(
                self._method.path, self._options.metadata, self._deadline, self._outbound, self._inbound
            )
        if not self._connected.done():
            self._connected.set_result(None)

    def reset(self) -> None:
        """Break the connection."""
        if self._served is not None:
            self._served.leave(at_once=True)
        if self._inbound is not None:
            link = Link(self._place.network, self._context, self._context)
            link.carry(lambda: self._inbound.cut(RESET) if self._inbound is not None else None)

    def _finish(self, end: End) -> bool:
        if self._end is not None:
            return False
        self._end = end
        if self._timer is not None:
            self._timer.cancel()
        if self._served is not None and end.code is not Code.OK:
            self._served.leave()
        if self._inbound is not None:
            self._inbound.cut(end)
        if self._outbound is not None:
            self._outbound.close()
        if not self._connected.done():
            self._connected.set_result(None)
        if self._writing is not None:
            self._writing.cancel()
        self._place.calls.pop(self, None)
        self._method.channel.calls.pop(self, None)
        for callback in self._done:
            callback(self)
        return True

    async def _next(self) -> bytes | End:
        await self._connected
        if self._end is CANCELLED:
            raise asyncio.CancelledError
        if self._end is not None or self._inbound is None:
            return self._end or CANCELLED
        item = await self._inbound.get()
        if isinstance(item, End):
            # What ended the call before counts.
            return await self._next() if not self._finish(item) else item
        return item

    async def _write(self, request: Any) -> None:
        raw = self._method.encode(request)
        await self._connected
        if self._outbound is not None and self._end is None:
            if len(raw) > RECEIVE_BYTES:
                self._finish(TOO_LARGE)
                return
            await self._outbound.put(raw)

    async def _write_all(self, requests: Any) -> None:
        if isinstance(requests, AsyncIterable):
            async for request in requests:
                await self._write(request)
        elif isinstance(requests, Iterable):
            for request in requests:
                await self._write(request)
        await self.done_writing()

    async def _answer(self) -> Any:
        answer = await self.read()
        if answer is grpc.aio.EOF:
            raise self._error(End(Code.INTERNAL, "the server has ended the call without an answer"))
        self._finish(End(Code.OK))
        return answer

    async def _ended(self) -> End:
        if self._end is None:
            ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.add_done_callback(lambda _: _wake(ended))
            await ended
        assert self._end is not None
        return self._end

    def _error(self, end: End) -> grpc.aio.AioRpcError:
        return grpc.aio.AioRpcError(
            end.code, grpc.aio.Metadata(), _metadata(end.trailing), details=end.details, debug_error_string=end.details
        )


class _Options(NamedTuple):
    timeout: float | None
    metadata: Metadata
    waits: bool


class _Method:
    """One method on one channel; called, it makes a call."""

    def __init__(
        self,
        channel: "LoopbackChannel",
        path: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
        *,
        one_request: bool,
    ) -> None:
        self.channel = channel
        self.path = path
        self.encode: Callable[[Any], bytes] = request_serializer or bytes
        self.decode: Callable[[bytes], Any] = response_deserializer or bytes
        self._one_request = one_request

    def __call__(
        self,
        request: Any = None,
        *,
        timeout: float | None = None,
        metadata: Iterable[tuple[str, str | bytes]] | None = None,
        wait_for_ready: bool | None = None,
        credentials: object = None,
        compression: object = None,
    ) -> Call:
        del credentials, compression
        self.channel.check()
        waits = self.channel.waits if wait_for_ready is None else wait_for_ready
        options = _Options(timeout, tuple(metadata or ()), waits)
        return Call(self, options, [request] if self._one_request else request)


class LoopbackChannel(grpc.aio.Channel):
    """A channel to a place."""

    def __init__(self, place: Place, options: Sequence[tuple[str, Any]] = ()) -> None:
        self.place = place
        self.calls: dict[Call, None] = {}
        self._closed = False
        # Ours either waits for the server in all of its methods, or in none.
        config = json.loads(dict(options).get("grpc.service_config", "{}"))
        self.waits = any(one.get("waitForReady", False) for one in config.get("methodConfig", ()))

    def check(self) -> None:
        """Raise if no call can be made."""
        if asyncio.get_running_loop() is not self.place.loop:
            raise RuntimeError(
                "within mobd_server.testing everything runs on one loop: use mobd.Client, and no threads"
            )
        if self._closed:
            raise grpc.aio.UsageError("Channel is closed.")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """End all calls."""
        del grace
        self._closed = True
        for call in list(self.calls):
            call.cancel()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Return whether a server is there."""
        del try_to_connect
        return grpc.ChannelConnectivity.IDLE if self.place.door is None else grpc.ChannelConnectivity.READY

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Return when the state is another."""
        if self.get_state() is last_observed_state:
            await self.place.changed()

    async def channel_ready(self) -> None:
        """Return when a server is there."""
        while self.place.door is None:
            await self.place.changed()

    def unary_unary(self, method: str, *codec: Any, **codecs: Any) -> Any:
        """Return what makes calls with one request and one answer."""
        return _Method(self, method, *codec, one_request=True, **codecs)

    def unary_stream(self, method: str, *codec: Any, **codecs: Any) -> Any:
        """Return what makes calls with one request and many answers."""
        return _Method(self, method, *codec, one_request=True, **codecs)

    def stream_unary(self, method: str, *codec: Any, **codecs: Any) -> Any:
        """Return what makes calls with many requests and one answer."""
        return _Method(self, method, *codec, one_request=False, **codecs)

    def stream_stream(self, method: str, *codec: Any, **codecs: Any) -> Any:
        """Return what makes calls with many requests and many answers."""
        return _Method(self, method, *codec, one_request=False, **codecs)


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _metadata(pairs: Metadata) -> grpc.aio.Metadata:
    return grpc.aio.Metadata(*pairs)
