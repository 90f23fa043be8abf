"""Time that moves only when a test moves it."""

import heapq
from collections.abc import Callable
from itertools import count


class ManualTimer:
    """A planned call."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class ManualClock:
    """A `ports.Clock` whose wall time and monotonic time are moved by `advance`, or apart by `step_wall`."""

    def __init__(self, now: int = 1_700_000_000_000_000) -> None:
        self._wall = now
        self._monotonic = 0.0
        self._order = count()
        self._timers: list[tuple[float, int, ManualTimer]] = []

    def now(self) -> int:
        return self._wall

    def monotonic(self) -> float:
        return self._monotonic

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> ManualTimer:
        timer = ManualTimer(callback)
        heapq.heappush(self._timers, (self._monotonic + delay_s, next(self._order), timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Let time pass and call what becomes due, in order, each at its own time."""
        end = self._monotonic + seconds
        while self._timers and self._timers[0][0] <= end:
            due, _, timer = heapq.heappop(self._timers)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                self._move(due)
                callback()
        self._move(end)

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an administrator would."""
        self._wall += round(seconds * 1_000_000)

    @property
    def planned(self) -> list[float]:
        """In how many seconds the planned calls are due, the next one first."""
        return sorted(due - self._monotonic for due, _, timer in self._timers if timer.callback is not None)

    def _move(self, monotonic: float) -> None:
        self._wall += round((monotonic - self._monotonic) * 1_000_000)
        self._monotonic = monotonic
