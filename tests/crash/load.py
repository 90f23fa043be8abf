"""Callers who deliver without pause, whatever happens to the server, and note what they were told."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

import grpc
from tests.checker.recording import Caller
from tests.support.peers import PAUSE_S, Watcher, canonical, content, pause_s, reason
from tests.support.processes import Changes

from mobd.v1 import bridge_pb2, common_pb2

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


class Load:
    """Senders, each with members of its own, to which it delivers one call after another until it is over."""

    def __init__(self, members: list[str], changes: Changes, watcher: Watcher) -> None:
        self.members = members
        # Of all loads so far.
        self.acknowledged: dict[tuple[str, str], str] = {}
        self.sent: dict[str, list[str]] = defaultdict(list)
        self.failures: Counter[tuple[str, str]] = Counter()
        self.over = False
        self._changes = changes
        self._watcher = watcher
        self._tasks: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def going(self, callers: list[Caller], draw: random.Random) -> AsyncIterator[None]:
        """Deliver within the block; at its end everything that was sent is acknowledged."""
        self.over = False
        seeds = [draw.randrange(1 << 32) for _ in callers]
        self._tasks = [
            asyncio.create_task(self._send(caller, self.members[at :: len(callers)], random.Random(seeds[at])))
            for at, caller in enumerate(callers)
        ]
        try:
            yield
            self.over = True
            self._changes.tell()
            await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()

    async def more(self, count: int) -> None:
        """Return when so many more inputs were acknowledged, or raise what ended a sender."""
        enough = len(self.acknowledged) + count
        await self._changes.until(
            lambda: len(self.acknowledged) >= enough or any(task.done() for task in self._tasks),
            f"{count} more acknowledgements",
            LIMIT_S,
            lambda: f"{len(self.acknowledged)} of {enough}, {dict(self.failures)}",
        )
        for task in self._tasks:
            if task.done():
                task.result()

    async def _send(self, caller: Caller, mine: list[str], draw: random.Random) -> None:
        try:
            while not self.over:
                size = draw.choice((1, 1, 1, 5))
                batch = [self._next(draw.choice(mine)) for _ in range(size)]
                await self._deliver(caller, batch)
                if draw.random() < 0.1:
                    # Whoever asks again is told the same.
                    await self._deliver(caller, batch)
                self._changes.tell()
                await self._changes.until(lambda: self.over or self._has_room(), "less waiting", LIMIT_S)
        finally:
            self._changes.tell()

    def _next(self, member_id: str) -> tuple[str, str]:
        input_id = f"in-{len(self.sent[member_id])}"
        self.sent[member_id].append(input_id)
        return member_id, input_id

    def _has_room(self) -> bool:
        return len(self.acknowledged) - self._watcher.consumed < BACKLOG

    async def _deliver(self, caller: Caller, batch: list[tuple[str, str]]) -> None:
        if len(batch) == 1:
            [(member_id, input_id)] = batch
            single = bridge_pb2.DeliverRequest(
                mob_id=caller.mob, member_id=member_id, input_id=input_id, content=_order(input_id)
            )
            told = [canonical(await insist(partial(caller.once, "Deliver", single, CALL_S), self.failures))]
        else:
            many = bridge_pb2.DeliverBatchRequest(
                mob_id=caller.mob,
                deliveries=[
                    bridge_pb2.Delivery(member_id=member_id, input_id=input_id, content=_order(input_id))
                    for member_id, input_id in batch
                ],
            )
            answer = await insist(partial(caller.once, "DeliverBatch", many, CALL_S), self.failures)
            told = [canonical(one) for one in answer.outcomes]
        for key, name in zip(batch, told, strict=True):
            assert self.acknowledged.setdefault(key, name) == name, f"{key} was told two names"


def _order(input_id: str) -> common_pb2.Content:
    """Most turns are short, some take a while."""
    slow = int(input_id.rpartition("-")[2]) % 20 == 7
    return content(n=input_id, do="sleep", s=SLOW_S) if slow else content(n=input_id)
