"""Time that passes by itself: whenever nothing is ready, the clock jumps to the next timer.

`VirtualTime` works on a loop that runs already, so that it needs no configuration of a test runner. It replaces what a
selector loop of asyncio asks for the time, and what it waits with. Work in other threads takes real time, during which
virtual time stands still.
"""

import asyncio
import selectors
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from mobd_server.ports import Timer

# When a world begins, unless it is told otherwise.
EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
# What is closer than this is now. Sums of floats are not more exact than that.
RESOLUTION_S: Final = 1e-6


class VirtualTime:
    """The time of one loop, in seconds. Use `installed` on the loop's own thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        if not isinstance(loop, asyncio.SelectorEventLoop) or not hasattr(loop, "_selector"):
            raise TypeError(
                f"virtual time needs a selector loop of asyncio, and this is {type(loop).__name__}: "
                "run the test on asyncio's own loop"
            )
        self._loop = loop
        self._now = loop.time()
        # Threads that are under way: what they will do is not known, so no time passes.
        self._busy = 0
        self._lock = threading.Lock()

    def time(self) -> float:
        """Return the time."""
        return self._now

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Make the loop's time virtual within the block; after it, time goes on from where it was."""
        attributes = vars(self._loop)
        selector, resolution = attributes["_selector"], attributes["_clock_resolution"]
        real_time, real_executor = self._loop.time, self._loop.run_in_executor

        def run_in_executor(executor: Any, func: Callable[..., Any], *arguments: Any) -> "asyncio.Future[Any]":
            done = self.busy()
            try:
                future = real_executor(executor, func, *arguments)
            except BaseException:
                done()
                raise
            future.add_done_callback(lambda _: done())
            return future

        attributes.update(
            _selector=_Jumping(selector, self),
            _clock_resolution=RESOLUTION_S,
            time=self.time,
            run_in_executor=run_in_executor,
        )
        try:
            yield
        finally:
            ahead = self._now - real_time()
            attributes.update(_selector=selector, _clock_resolution=resolution, time=lambda: real_time() + ahead)
            del attributes["run_in_executor"]

    def busy(self) -> Callable[[], None]:
        """Let no time pass until what is returned is called, which may be in any thread."""
        with self._lock:
            self._busy += 1
        return self._done

    def _done(self) -> None:
        with self._lock:
            self._busy -= 1
        # Whoever waits for threads looks again.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_nothing)

    def wait(self, selector: selectors.BaseSelector, timeout: float | None) -> list[Any]:
        """Return what is ready; if nothing is, let the time pass that the loop would have waited."""
        found = selector.select(0)
        if found or (timeout is not None and timeout <= 0):
            return found
        with self._lock:
            busy = self._busy
        if busy or timeout is None:
            return selector.select(None)
        self._now += timeout
        return found


class _Jumping:
    """A selector that never waits for time."""

    def __init__(self, selector: selectors.BaseSelector, time: VirtualTime) -> None:
        self._selector = selector
        self._time = time

    def select(self, timeout: float | None = None) -> list[Any]:
        return self._time.wait(self._selector, timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._selector, name)


def _nothing() -> None:
    return


class VirtualClock:
    """A `ports.Clock` on the running loop: wall time goes on with the loop's time, and can be set apart from it."""

    def __init__(self, start: datetime = EPOCH) -> None:
        self._loop = asyncio.get_running_loop()
        # µs since 1970, at the loop's time 0.
        self._offset = round(start.timestamp() * 1_000_000) - self._elapsed()

    def _elapsed(self) -> int:
        return round(self._loop.time() * 1_000_000)

    def now(self) -> int:
        return self._offset + self._elapsed()

    def monotonic(self) -> float:
        return self._loop.time()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        return self._loop.call_later(delay_s, callback)

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an administrator would."""
        self._offset += round(seconds * 1_000_000)
