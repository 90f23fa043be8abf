"""Processes of a test: started, watched, killed and ended by their pid, never by name.

Also the one place where a test asks again and again: what another process does to a file can't be awaited.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 30.0


def free_port() -> int:
    """Return a loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without any MOBD_ setting of its own, and with `settings`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MOBD_")}
    # Servers of several tests run at once, and there is one default port.
    ours = {"PYTHONUNBUFFERED": "1", "GRPC_VERBOSITY": "NONE", "MOBD_HTTP_LISTEN": "off"}
    return {**kept, **ours, **settings}


class Process:
    """One process; its output goes to a file."""

    def __init__(self, argv: Sequence[str], settings: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [sys.executable, *argv],
                cwd=ROOT,
                env=environment(settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._popen.poll()

    def send(self, number: signal.Signals) -> None:
        """Send a signal; harmless if the process has ended."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """End it at once, as a power cut would, and return when it is gone."""
        self._popen.kill()
        self._popen.wait()

    async def ended(self, timeout_s: float = WAIT_S) -> int:
        """Return the exit code when it has ended by itself."""
        await until(lambda: self.code is not None, f"the end of process {self.pid}\n{self.output()}", timeout_s)
        assert self.code is not None
        return self.code

    def output(self) -> str:
        """Return what it and its predecessors in the same file have printed."""
        return self.log.read_text(errors="replace")


async def until(condition: Callable[[], T | None], what: str, timeout_s: float = WAIT_S) -> T:
    """Return what `condition` returns as soon as that is true; for files and processes, which tell nobody."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert loop.time() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.005)  # noqa: TID251 another process's file can only be looked at again


def say(text: str) -> None:
    """Print what repeats a run or tells what it did; shown with a failure, or with `-s`."""
    print(text, flush=True)  # noqa: T201 a run's seed and figures are for people


class Changes:
    """What tasks of the test wait on: whoever changes something says so, whoever waits looks again."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None

    def tell(self) -> None:
        """Let everyone who waits look again."""
        waiting, self._next = self._next, None
        if waiting is not None:
            waiting.set_result(None)

    async def until(
        self,
        condition: Callable[[], bool],
        what: str,
        timeout_s: float = WAIT_S,
        state: Callable[[], str] = lambda: "",
    ) -> None:
        """Return in the very step in which `condition` was seen to hold; `state` is told if that takes too long."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    if self._next is None:
                        self._next = asyncio.get_running_loop().create_future()
                    await asyncio.shield(self._next)
        except TimeoutError:
            raise AssertionError(f"not within {timeout_s} s: {what}; {state()}") from None
