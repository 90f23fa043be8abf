"""Waiting for a thing that may be done already, or given up: futures and what rings for one reader."""

import asyncio
from functools import partial

from mobd_server.ports import Clock


def wake(future: asyncio.Future[None]) -> None:
    """Finish `future`, unless its waiter is gone."""
    if not future.done():
        future.set_result(None)


class Bell:
    """Wakes the one task that waits for it. A ring that nobody waits for is not remembered."""

    __slots__ = ("_clock", "_waiter")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiter: asyncio.Future[bool] | None = None

    @property
    def awaited(self) -> bool:
        """Whether a task waits, or was woken and has not run yet."""
        return self._waiter is not None

    def ring(self, rung: bool = True) -> None:
        """Wake the waiting task, if there is one."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(rung)

    async def wait(self, patience_s: float | None) -> bool:
        """Return True at the next ring, or False after `patience_s` seconds."""
        if self._waiter is not None:
            raise RuntimeError("two tasks read the same stream")
        self._waiter = asyncio.get_running_loop().create_future()
        timer = None
        if patience_s is not None:
            timer = self._clock.call_later(patience_s, partial(self.ring, rung=False))
        try:
            return await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
