"""What clients and agents find in a world in place of their machine (mobd.system), and servers in place of theirs."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar

from sqlalchemy.engine import Engine

from mobd.loops import LoopThread
from mobd.system import System
from mobd_server.adapters.sql.lanes import lane_for
from mobd_server.adapters.sql.writer import RETRY_S, SqlWriter
from mobd_server.machines.records import Append
from mobd_server.ports import Result, Snapshot
from mobd_server.testing.loopback import LoopbackChannel, Place
from mobd_server.testing.virtual import VirtualClock, VirtualTime

T = TypeVar("T")


class Machine(System):
    """The machine of all clients and agents of a world: every channel leads to `place`, whatever its target is."""

    loops_apart = False

    def __init__(self, place: Place, clock: VirtualClock, chance: random.Random, time: VirtualTime | None) -> None:
        self._place = place
        self._clock = clock
        self._chance = chance
        self._time = time

    def time_ms(self) -> int:
        """Return the world's wall time."""
        return self._clock.now() // 1_000

    def monotonic(self) -> float:
        """Return the world's time."""
        return self._clock.monotonic()

    def random_bytes(self, count: int) -> bytes:
        """Return what follows from the seed."""
        return self._chance.randbytes(count)

    def random(self) -> float:
        """Return what follows from the seed."""
        return self._chance.random()

    def open_channel(self, target: str, options: Sequence[tuple[str, Any]]) -> LoopbackChannel:
        """Return a channel to the world's server."""
        del target
        return LoopbackChannel(self._place, options)

    def open_loop(self, name: str) -> LoopThread:
        """Return the running loop: nothing blocks it that the test does not block."""
        del name
        return SameLoop()

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Run something in a thread; no time passes meanwhile."""
        done = self._time.busy() if self._time is not None else None

        def run() -> None:
            try:
                work()
            finally:
                if done is not None:
                    done()

        Thread(target=run, name=name, daemon=True).start()


class SameLoop(LoopThread):
    """The loop that runs already, in the place of one on a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._submitted: list[Future[Any]] = []

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine."""
        future = super().submit(work)
        self._submitted.append(future)
        return future

    def stop(self) -> None:
        """Cancel what still runs."""
        for future in self._submitted:
            future.cancel()


class LoopSqlWriter(SqlWriter):
    """Commits on the loop, each group in a tick of its own: without a thread there is only one order of things."""

    def __init__(self, engine: Engine) -> None:
        # Not that of the thread's: it would start one.
        self._engine = engine
        self._open_lane = lane_for
        self._loop = asyncio.get_running_loop()
        self._retry_s = RETRY_S
        self._lane = None

    def submit(self, group: Sequence[Append], done: Callable[[list[Result]], None]) -> None:
        """Commit `group` in a later tick."""
        self._loop.call_soon(lambda: done(self._commit_or_fail(group)))

    def probe(self, done: Callable[[bool], None]) -> None:
        """Answer in a later tick."""
        self._loop.call_soon(lambda: done(self._answers()))

    def write_snapshot(
        self, mob_id: str, log_id: str, snapshot: Snapshot, spacing: int, done: Callable[[str], None]
    ) -> None:
        """Store a snapshot in a later tick."""
        self._loop.call_soon(lambda: done(self._keep(mob_id, log_id, snapshot, spacing)))

    def close(self) -> None:
        """Release the connection."""
        self._discard()
