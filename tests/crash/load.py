"""How a caller goes on whatever happens to the server."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import grpc
from tests.support.peers import PAUSE_S, pause_s, reason

T = TypeVar("T")

# Shorter than what is done to servers and wires: some calls end without an answer.
CALL_S: Final = 2.0
LIMIT_S: Final = 60.0
# Callers pause while more than this waits for the agents.
BACKLOG: Final = 40
SLOW_S: Final = 0.2
# What a caller repeats with the same ids. INTERNAL is none of them: nothing that a test does is a bug of the server.
AGAIN: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


async def insist(
    call: Callable[[], Awaitable[T]], failures: Counter[tuple[str, str]] | None = None, limit_s: float = LIMIT_S
) -> T:
    """Repeat one and the same call until it is answered."""
    async with asyncio.timeout(limit_s):
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() not in AGAIN:
                    raise
                if failures is not None:
                    failures[error.code().name, reason(error)] += 1
                pause = min(pause_s(error), PAUSE_S * 5)
            await asyncio.sleep(pause)  # noqa: TID251 a caller waits before it repeats a call
