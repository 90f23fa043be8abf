"""What the client takes from the machine that it runs on: time, randomness, connections and threads.

`mobd_server.testing` puts a world of its own in its place. Nothing else should.
"""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc

from mobd.loops import LoopThread


class System:
    """The machine itself."""

    #: Whether `open_loop` gives a loop that turns can't block.
    loops_apart = True

    def time_ms(self) -> int:
        """Return wall time: milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Return the seconds that deadlines of turns are told in; those of the loops, too."""
        return time.monotonic()

    def random_bytes(self, count: int) -> bytes:
        """Return bytes that nobody can guess."""
        return os.urandom(count)

    def random(self) -> float:
        """Return a number from [0, 1), for pauses."""
        return random.random()  # noqa: S311 no secret

    def open_channel(self, target: str, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
        """Return a channel to `target`."""
        return grpc.aio.insecure_channel(target, options=options)

    def open_loop(self, name: str) -> LoopThread:
        """Return a loop that goes on whatever the caller's loop does."""
        return LoopThread(name)

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Run something that may block, beside everything else."""
        threading.Thread(target=work, name=name, daemon=True).start()


_current: System = System()


def current() -> System:
    """Return the machine."""
    return _current


@contextmanager
def used(system: System) -> Iterator[None]:
    """Use another machine within the block, in all threads."""
    global _current  # noqa: PLW0603 there is one, and everything in the process runs on it
    before, _current = _current, system
    try:
        yield
    finally:
        _current = before
