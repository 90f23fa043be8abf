"""Starting what is measured, loading it with h2load, and reading what it cost."""

import dataclasses
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mobd.v1 import bridge_pb2, common_pb2, members_pb2, members_pb2_grpc, mobs_pb2, mobs_pb2_grpc

HERE = Path(__file__).parent
MEMBERS = 100
MOB = "bench"
MARK = "@" * 12


@dataclasses.dataclass
class Measured:
    """One h2load run against one server."""

    per_second: float
    p50_ms: float
    p99_ms: float
    loop_us: float
    others_us: float


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
    """Compile stamp.c."""
    library = folder / "stamp.so"
    subprocess.run(
        ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(HERE / "stamp.c"), "-ldl"],
        check=True,
    )
    return library


def body(folder: Path, text: str) -> Path:
    """Write the body of a Deliver, as one gRPC frame with marks for stamp.c."""
    request = bridge_pb2.DeliverRequest(
        mob_id=MOB,
        member_id="m##",
        input_id=MARK,
        content=common_pb2.Content(blocks=[common_pb2.Block(text=text)]),
    ).SerializeToString()
    path = folder / "deliver.bin"
    path.write_bytes(b"\0" + len(request).to_bytes(4, "big") + request)
    return path


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

    def threads(self) -> dict[int, int]:
        """Return for each thread the time that it was on a core, in nanoseconds."""
        found = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            try:
                found[int(task.name)] = int((task / "schedstat").read_text().split()[0])
            except OSError:
                continue
        return found


def serve_echo() -> Served:
    """Start the bare echo."""
    process = subprocess.Popen([sys.executable, str(HERE / "echo_server.py")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return Served(process, int(process.stdout.readline()))


def serve_mobd(url: str | None, settings: dict[str, str]) -> Served:
    """Start `mobd serve` as shipped, on a data directory of its own, with the mob and its members."""
    folder = Path(tempfile.mkdtemp(prefix="mobd-bench-"))
    port = free_port()
    ours = {"MOBD_LISTEN": f"127.0.0.1:{port}", "MOBD_HTTP_LISTEN": "off", "MOBD_DATA_DIR": str(folder)}
    env = {**os.environ, **ours, **settings}
    env.pop("MOBD_DATABASE_URL", None)
    if url is not None:
        env["MOBD_DATABASE_URL"] = url
        subprocess.run([sys.executable, "-m", "mobd_server", "migrate"], env=env, check=True, capture_output=True)
    log = (folder / "server.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "mobd_server", "serve"], env=env, stdout=log, stderr=subprocess.STDOUT, text=True
    )
    served = Served(process, port, folder)
    _prepare(port)
    return served


def _prepare(port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=30)
        mobs_pb2_grpc.MobServiceStub(channel).CreateMob(
            mobs_pb2.CreateMobRequest(
                mob_id=MOB, definition=mobs_pb2.DefinitionDocument(json='{"profiles": {"worker": {}}}')
            )
        )
        specs = [members_pb2.MemberSpec(member_id=f"m{number:02}", role="worker") for number in range(MEMBERS)]
        members_pb2_grpc.MemberServiceStub(channel).SpawnMembers(
            members_pb2.SpawnMembersRequest(mob_id=MOB, specs=specs)
        )


def h2load(served: Served, path: str, data: Path, stamp: Path, count: int, concurrency: int) -> Measured:
    """Send `count` requests, `concurrency` at a time over 4 connections, and return what that took."""
    log = data.with_suffix(".log")
    log.unlink(missing_ok=True)
    before = served.threads()
    connections = min(4, concurrency)
    done = subprocess.run(
        [
            "h2load",
            f"-n{count}",
            f"-c{connections}",
            f"-m{max(1, concurrency // connections)}",
            "-t1",
            f"-d{data}",
            "-Hcontent-type: application/grpc",
            "-Hte: trailers",
            f"--log-file={log}",
            f"http://127.0.0.1:{served.port}{path}",
        ],
        env={**os.environ, "LD_PRELOAD": str(stamp)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    after = served.threads()
    rate = re.search(r"finished in .*?, ([\d.]+) req/s", done)
    answered = re.search(r"(\d+) succeeded, (\d+) failed", done)
    if rate is None or answered is None or int(answered[1]) != count:
        raise RuntimeError(f"h2load did not get {count} answers:\n{done}")
    times = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines())
    spent = {tid: ns - before.get(tid, 0) for tid, ns in after.items()}
    return Measured(
        per_second=float(rate[1]),
        p50_ms=times[len(times) // 2] / 1000,
        p99_ms=times[len(times) * 99 // 100] / 1000,
        loop_us=spent.get(served.pid, 0) / count / 1000,
        others_us=sum(ns for tid, ns in spent.items() if tid != served.pid) / count / 1000,
    )


def median(values: list[float]) -> float:
    """Return the median."""
    return statistics.median(values)
