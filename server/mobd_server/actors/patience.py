"""The time that leases, graces and deadlines of agents are measured in.

It is monotonic time less what the server itself was late: a loop that was held up, or a machine that slept, takes
nothing from the patience that agents are owed. While the journal is down it stands still.
"""

from collections.abc import Callable
from typing import Final

from mobd_server.ports import Clock, Timer

# A tick that is later than this part of itself lets what arrived meanwhile be handled before anything expires.
LATE: Final = 0.5
SETTLE_S: Final = 0.05


class Patience:
    """Ticks while it is needed, and calls `expire` after each tick in which time went on."""

    __slots__ = ("_begun_at", "_clock", "_expire", "_frozen", "_timer", "tick_s", "time")

    def __init__(self, clock: Clock, tick_s: float, frozen: Callable[[], bool], expire: Callable[[], None]) -> None:
        self.tick_s = tick_s
        self.time = 0.0
        self._clock = clock
        self._frozen = frozen
        self._expire = expire
        self._timer: Timer | None = None
        self._begun_at = 0.0

    def after(self, seconds: float) -> float:
        """Return when `seconds` from now will certainly have passed."""
        # The time of now is known to the last tick only.
        return self.time + self.tick_s + seconds

    def start(self) -> None:
        """Tick from now on; harmless if it does."""
        if self._timer is None:
            self._begin()

    def stop(self) -> None:
        """Tick no more until the next `start`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self) -> None:
        self._begun_at = self._clock.monotonic()
        self._timer = self._clock.call_later(self.tick_s, self._tick)

    def _tick(self) -> None:
        elapsed = self._clock.monotonic() - self._begun_at
        self._begin()
        if self._frozen():
            return
        self.time += min(elapsed, self.tick_s)
        if elapsed > self.tick_s * (1 + LATE):
            self._clock.call_later(min(SETTLE_S, self.tick_s / 2), self._expire)
        else:
            self._expire()
