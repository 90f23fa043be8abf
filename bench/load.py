"""Starting the bare echo, loading a server with h2load, and reading what that cost the server."""

import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

HERE = Path(__file__).parent
PATIENCE_S = 300.0
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class Measured(msgspec.Struct):
    """One h2load run against one server; CPU is of the server, in µs for each call."""

    per_second: float
    p50_ms: float
    p99_ms: float
    loop_us: float
    others_us: float

    def numbers(self) -> dict[str, float]:
        """Return it as the metrics of a cell."""
        return {name: float(getattr(self, name)) for name in self.__struct_fields__}


def free_port() -> int:
    """Return a loopback port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def need_tools() -> str | None:
    """Return what is missing on this machine, or None."""
    missing = [tool for tool in ("h2load", "cc") if shutil.which(tool) is None]
    if missing:
        return f"missing: {', '.join(missing)} (Debian: apt-get install nghttp2-client gcc libc6-dev)"
    return None


def build_stamp(folder: Path) -> Path:
    """Compile stamp.c, and return the library."""
    library = folder / "stamp.so"
    if not library.exists():
        source = str(HERE / "stamp.c")
        subprocess.run(
            ["cc", "-O2", "-shared", "-fPIC", "-pthread", "-o", str(library), source, "-ldl"],
            check=True,
        )
    return library


def frame(message: bytes) -> bytes:
    """Return a message as gRPC sends it."""
    return b"\0" + len(message).to_bytes(4, "big") + message


class Served:
    """A process that serves, with its port."""

    def __init__(self, process: subprocess.Popen[str], port: int, folder: Path | None = None) -> None:
        self.process = process
        self.port = port
        self.folder = folder

    @property
    def pid(self) -> int:
        """The process."""
        return self.process.pid

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def threads(self) -> dict[int, int]:
        """Return for each thread the time that it was on a core, in nanoseconds."""
        found = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            try:
                found[int(task.name)] = _on_core(task)
            except OSError:
                # It has ended meanwhile.
                continue
        return found

    def spent(self, before: Mapping[int, int], calls: int) -> tuple[float, float]:
        """Return what the loop's thread and what all other threads have used since, in µs for each call."""
        now = self.threads()
        used = {tid: ns - before.get(tid, 0) for tid, ns in now.items()}
        others = sum(ns for tid, ns in used.items() if tid != self.pid)
        return used.get(self.pid, 0) / calls / 1_000, others / calls / 1_000


def _on_core(task: Path) -> int:
    """Nanoseconds; a kernel without schedstat counts in ticks."""
    try:
        return int((task / "schedstat").read_text().split()[0])
    except FileNotFoundError:
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK_NS


def serve_echo(loop: str = "asyncio") -> Served:
    """Start the bare echo on asyncio or on uvloop."""
    command = [sys.executable, str(HERE / "echo_server.py"), loop]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return Served(process, int(process.stdout.readline()))


def h2load_command(port: int, path: str, data: Path, count: int, shape: Sequence[str]) -> list[str]:
    """Return the command that sends `count` requests with the body `data`; `shape` says over what."""
    return [
        "h2load",
        f"-n{count}",
        *shape,
        f"-d{data}",
        "-Hcontent-type: application/grpc",
        "-Hte: trailers",
        f"http://127.0.0.1:{port}{path}",
    ]


def preloaded(stamp: Path, data: Path, **more: object) -> dict[str, str]:
    """Return an environment in which h2load stamps the body; see stamp.c."""
    asked = {f"STAMP_{name.upper()}": str(value) for name, value in more.items()}
    return {**os.environ, "LD_PRELOAD": str(stamp), "STAMP_BODY": str(data), **asked}


def answered(said: str, count: int) -> float:
    """Return the rate that h2load said; it must have got `count` answers."""
    rate = re.search(r"finished in .*?, ([\d.]+) req/s", said)
    found = re.search(r"(\d+) succeeded, (\d+) failed", said)
    if rate is None or found is None or int(found[1]) != count:
        raise RuntimeError(f"h2load did not get {count} answers:\n{said}")
    return float(rate[1])


def h2load(
    served: Served, path: str, data: Path, stamp: Path, count: int, concurrency: int, *, connections: int = 4
) -> Measured:
    """Send `count` requests, `concurrency` at a time over some connections, and return what that took."""
    log = data.with_suffix(".log")
    log.unlink(missing_ok=True)
    connections = min(connections, concurrency)
    shape = [f"-c{connections}", f"-m{max(1, concurrency // connections)}", "-t1", f"--log-file={log}"]
    before = served.threads()
    done = subprocess.run(
        h2load_command(served.port, path, data, count, shape),
        env=preloaded(stamp, data),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    loop_us, others_us = served.spent(before, count)
    rate = answered(done.stdout, count)
    times = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines())
    return Measured(rate, percentile(times, 50) / 1_000, percentile(times, 99) / 1_000, loop_us, others_us)


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return a percentile of numbers that are in order."""
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)
