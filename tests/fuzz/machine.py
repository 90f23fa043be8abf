"""What a server does to its machine and what it says: memory, descriptors, log lines, whether it answers at all."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from msgspec import Struct

PACE_S: Final = 0.1


def resident_bytes(pid: int) -> int:
    """Return how much memory a process has."""
    return _status(pid, "VmRSS")


def peak_bytes(pid: int) -> int:
    """Return how much memory a process has had at most."""
    return _status(pid, "VmHWM")


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1_024
    raise AssertionError(f"{name} is not known of process {pid}")


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def cpu_s(pid: int) -> float:
    """Return how long a process has used a core."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def misfortunes(log: Path) -> Iterator[str]:
    """Yield the lines of a server's log, written as JSON, that tell of a failure, and those that are no lines of it."""
    for line in log.read_text(errors="replace").splitlines():
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError:
            yield line
            continue
        bad = said.get("level") in ("error", "critical") or "exception" in said
        if bad or said.get("level") == "warning":
            yield line


def threads(pid: int) -> int:
    """Return how many threads a process has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def waited_s(pid: int) -> float:
    """Return how long the threads of a process have waited for a core that others had, together."""
    waited = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        # One that has ended in the meantime waits for nothing.
        with suppress(OSError):
            waited += int((task / "schedstat").read_text().split()[1])
    return waited / 1e9


class Pulse(Struct):
    """How a server answered when it was asked for its health, again and again."""

    asked: int = 0
    worst_s: float = 0.0
    failed: list[str] = []


class Doctor:
    """Asks for a server's health from a thread of its own. What a busy machine costs does not count as the server's."""

    def __init__(self, target: str, pid: int) -> None:
        self.pulse = Pulse()
        self._pids = (pid, os.getpid())
        self._stop = threading.Event()
        self._target = target
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        with grpc.insecure_channel(self._target, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            while True:
                if self._stop.wait(PACE_S):
                    return
                began = time.perf_counter() - self._waited_s()
                try:
                    check(health_pb2.HealthCheckRequest(), timeout=30, wait_for_ready=True)
                except grpc.RpcError as error:
                    self.pulse.failed.append(str(error))
                    continue
                self.pulse.asked += 1
                self.pulse.worst_s = max(self.pulse.worst_s, time.perf_counter() - self._waited_s() - began)

    def _waited_s(self) -> float:
        return sum(map(waited_s, self._pids))
