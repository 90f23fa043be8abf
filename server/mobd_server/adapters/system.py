"""The machine's own time and randomness, for servers."""

import asyncio
import random
import time
from collections.abc import Callable

from mobd_server.ports import Timer


class SystemClock:
    """A `ports.Clock` on the running loop."""

    __slots__ = ("_loop",)

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def now(self) -> int:
        return time.time_ns() // 1_000

    def monotonic(self) -> float:
        return self._loop.time()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        return self._loop.call_later(delay_s, callback)


class CountedIds:
    """The ids of one load of one mob: a stem that no other load has, and a counter.

    The epoch keeps loads apart that are both valid; the random part those of copies and of stores that were set back.
    """

    __slots__ = ("_count", "_stem")

    def __init__(self, epoch: int, drawn: int) -> None:
        self._stem = f"{epoch:08x}{drawn:08x}"
        self._count = 0

    def new(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}-{self._stem}{self._count:08x}"


def system_ids(epoch: int) -> CountedIds:
    """Return the ids of a load; a `ports.IdsFactory`."""
    return CountedIds(epoch, random.SystemRandom().getrandbits(32))


def system_jitter() -> float:
    """Return a number from [0, 1) that spreads what would otherwise happen at once."""
    return random.SystemRandom().random()
