"""How the client speaks to the server: the channel, and calls that repeat themselves.

gRPC repeats a call a few times by itself (the service config); what lasts longer, such as a restart of the server, is
bridged here until the caller's timeout. Everything may be repeated, because requests carry ids that make it harmless.
"""

# ruff: noqa: ASYNC109  the timeout of a call is over all of its repeats, and is told to the server

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar, cast

import grpc

from mobd import errors, statuses, system

Answer = TypeVar("Answer")
Code = grpc.StatusCode

DEFAULT_TARGET: Final = "localhost:7780"
# 4 MiB is the greatest message that the server sends; what frames it comes on top.
MAX_MESSAGE_BYTES: Final = (4 << 20) + (64 << 10)
FIRST_PAUSE_S: Final = 0.05
LAST_PAUSE_S: Final = 1.0
# A stream of events that is silent for longer is dead: the server sends a bookmark every 10 seconds.
SILENCE_S: Final = 30.0

# The server's own keepalive settings allow this; without ping_timeout_ms the core takes a minute for keepalive_timeout.
KEEPALIVE: Final = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
)
SIZES: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)
RECONNECT: Final = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

_RETRY: Final = {
    "maxAttempts": 4,
    "initialBackoff": f"{FIRST_PAUSE_S}s",
    "maxBackoff": f"{LAST_PAUSE_S}s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
# One attempt of a method may take this long; a caller who waits longer gets another attempt.
_ATTEMPT_S: Final = 30
_LONG_ATTEMPT_S: Final = 120
_LONG: Final = (
    "MobService/CreateMob",
    "MobService/ResetMob",
    "MobService/DestroyMob",
    "MobService/DeleteMob",
    "MemberService/SpawnMembers",
)
_STREAMS: Final = (
    "BridgeService/WatchInput",
    "EventService/WatchEvents",
    "EventService/WatchAgentEvents",
    "EventService/GetState",
)
_SERVICES: Final = (
    "BridgeService",
    "EventService",
    "MemberService",
    "MobService",
    "OperationService",
    "RunService",
    "AgentService",
    "ServerService",
)


def service_config() -> str:
    """Return the service config of the client's channel."""
    streams = {"name": [_name(one) for one in _STREAMS], "waitForReady": True}
    long = {"name": [_name(one) for one in _LONG], "waitForReady": True, "timeout": f"{_LONG_ATTEMPT_S}s"}
    rest = {"name": [_name(one) for one in _SERVICES], "waitForReady": True, "timeout": f"{_ATTEMPT_S}s"}
    return json.dumps({"methodConfig": [streams, {**long, "retryPolicy": _RETRY}, {**rest, "retryPolicy": _RETRY}]})


def _name(path: str) -> dict[str, str]:
    service, _, method = path.partition("/")
    return {"service": f"mobd.v1.{service}", **({"method": method} if method else {})}


def target_of(target: str | None) -> str:
    """Return the server's address: as given, else MOBD_TARGET, else this machine."""
    return target or os.environ.get("MOBD_TARGET") or DEFAULT_TARGET


def token_of(token: str | None) -> str:
    """Return the caller's token: as given, else MOBD_TOKEN, else none. Raises TokenUnknown if it can't be one."""
    found = (os.environ.get("MOBD_TOKEN", "") if token is None else token).strip()
    if not (found.isascii() and found.isprintable()) or " " in found:
        raise errors.TokenUnknown(
            "the token is damaged: it is one word of letters, digits, - and _, without a line break"
        )
    return found


class _Authorized:
    """A channel all of whose calls carry a token. Not an interceptor: that would cost each call a task of its own."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._channel = channel
        self._more = {"metadata": (("authorization", f"Bearer {token}"),)}

    def __getattr__(self, name: str) -> Any:
        made: Any = getattr(self._channel, name)
        if name not in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            return made

        def method(*args: Any, **kwargs: Any) -> Callable[..., Any]:
            return partial(made(*args, **kwargs), **self._more)

        return method


def authorized(channel: grpc.aio.Channel, token: str) -> grpc.aio.Channel:
    """Return a channel for stubs whose calls carry the token; the same channel if there is none."""
    return cast("grpc.aio.Channel", _Authorized(channel, token)) if token else channel


def open_channel(target: str) -> grpc.aio.Channel:
    """Return a channel whose calls wait for the server and repeat themselves a few times."""
    config = (("grpc.service_config", service_config()), ("grpc.service_config_disable_resolution", 1))
    return system.current().open_channel(target, [*KEEPALIVE, *SIZES, *RECONNECT, *config])


class Pauses:
    """Growing pauses with full jitter, at least as long as the server asks for."""

    def __init__(self, first_s: float = FIRST_PAUSE_S, last_s: float = LAST_PAUSE_S) -> None:
        self._first_s = first_s
        self._last_s = last_s
        self._count = 0

    def reset(self) -> None:
        """Begin anew with the first pause."""
        self._count = 0

    def next_s(self, at_least: float | None = None) -> float:
        """Return the next pause, in seconds."""
        # Beyond 2 ** 20 the greatest pause is reached whatever the first one is.
        most = min(self._last_s, self._first_s * 2.0 ** min(self._count, 20))
        self._count += 1
        return (at_least or 0.0) + system.current().random() * most


def passes(error: errors.Error) -> bool:
    """Whether the same call may succeed later, by itself: the server restarts, or is being replaced."""
    # A server that stops cancels what it can't finish; a cancel of our own never comes as a status.
    return error.code in (Code.UNAVAILABLE, Code.CANCELLED)


async def unary(target: str, method: Callable[..., Awaitable[Answer]], request: Any, timeout: float) -> Answer:
    """Make one call, again and again with the same request until it is answered or `timeout` seconds are over."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    pauses = Pauses()
    last: errors.Error | None = None
    while True:
        left = deadline - loop.time()
        try:
            return await method(request, timeout=max(left, 0.001))
        except grpc.aio.AioRpcError as failure:
            error = statuses.of_rpc(failure)
        left = deadline - loop.time()
        late = error.code is Code.DEADLINE_EXCEEDED
        if not late:
            if not passes(error):
                raise error
            last = error
        pause = pauses.next_s(error.retry_after)
        if pause >= left:
            raise _timed_out(target, timeout, last) if late else error
        await asyncio.sleep(pause)


def _timed_out(target: str, timeout: float, last: errors.Error | None) -> errors.DeadlineExceeded:
    why = f"the last thing it said was: {last}" if last is not None else "is it running there?"
    return errors.DeadlineExceeded(f"no answer from {target} within {timeout:g} s; {why}")


async def stream(
    open_call: Callable[[], Any], silence_s: float | None = None, pauses: Pauses | None = None
) -> AsyncGenerator[Any, None]:
    """Yield the answers of a stream that is opened anew whenever it breaks; end when the server ends it with OK.

    `open_call` is asked for each new call and must ask for what follows the last answer that was yielded.
    """
    pauses = pauses or Pauses()
    while True:
        call = open_call()
        pause = 0.0
        try:
            while True:
                async with asyncio.timeout(silence_s):
                    answer = await call.read()
                if answer is grpc.aio.EOF:
                    return
                pauses.reset()
                yield answer
        except TimeoutError:
            # Silence: a new stream finds the server, or fails and waits.
            pause = pauses.next_s()
        except grpc.aio.AioRpcError as failure:
            error = statuses.of_rpc(failure)
            # Too slow a reader goes on from its cursor; without a wait to keep, exhausted means a message too large.
            slow = error.code is Code.RESOURCE_EXHAUSTED and error.retry_after is not None
            if not passes(error) and not slow:
                raise error from None
            pause = pauses.next_s(error.retry_after)
        finally:
            call.cancel()
        await asyncio.sleep(pause)
