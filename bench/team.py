"""Servers on a database that outlives them, the calls that fill it, and what a process costs."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import psycopg
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from load import Served, frame, free_port
from postgres import Cluster

from mobd.v1 import (
    bridge_pb2,
    bridge_pb2_grpc,
    common_pb2,
    events_pb2_grpc,
    members_pb2,
    members_pb2_grpc,
    mobs_pb2,
    mobs_pb2_grpc,
)

SERVER = ("-m", "mobd_server")
DEFINITION = '{"profiles": {"worker": {}}}'
TEXT = "x" * 140
MARK = "@" * 12
# The most that one request spawns.
AT_ONCE = 1_000
CHANNEL = [("grpc.max_receive_message_length", -1), ("grpc.initial_reconnect_backoff_ms", 50)]


def names(count: int) -> list[str]:
    """Return the names of `count` members: all of one length, so that they fit a mark of stamp.c."""
    width = len(str(count - 1))
    return [f"m{number:0{width}}" for number in range(count)]


def body_at(path: Path, mob_id: str, members: int, prefix: str) -> Path:
    """Write the body of a Deliver to `members` members in turn, with ids that begin with `prefix`."""
    request = bridge_pb2.DeliverRequest(
        mob_id=mob_id,
        member_id="m" + "#" * len(str(members - 1)),
        input_id=prefix + MARK,
        content=common_pb2.Content(blocks=[common_pb2.Block(text=TEXT)]),
    )
    path.write_bytes(framed(request))
    return path


def body(folder: Path, mob_id: str, members: int, prefix: str) -> Path:
    """Write such a body into a directory."""
    return body_at(folder / "deliver.bin", mob_id, members, prefix)


def framed(message: Message) -> bytes:
    """Return a message as gRPC sends it, with marks for stamp.c."""
    return frame(message.SerializeToString())


class Running(Served):
    """A server that runs, and its stubs."""

    def __init__(self, process: subprocess.Popen[str], port: int, folder: Path) -> None:
        super().__init__(process, port, folder)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", CHANNEL)
        self.mobs = mobs_pb2_grpc.MobServiceStub(self.channel)
        self.members = members_pb2_grpc.MemberServiceStub(self.channel)
        self.bridge = bridge_pb2_grpc.BridgeServiceStub(self.channel)
        self.events = events_pb2_grpc.EventServiceStub(self.channel)

    def end(self) -> None:
        """Close the channel, and end the server as a crash would; the second time there is nothing to do."""
        self.channel.close()
        self.kill()

    def durability(self) -> str:
        """Return what the server said of its store when it opened it."""
        assert self.folder is not None
        said = json.loads((self.folder / "server.log").read_text().splitlines()[0])
        return ", ".join(
            f"{key}={said[key]}" for key in ("store", "synchronous", "fsync", "journal_mode") if key in said
        )

    def create(self, mob_id: str, members: int) -> None:
        """Create a mob and its members."""
        definition = mobs_pb2.DefinitionDocument(json=DEFINITION)
        self.mobs.CreateMob(mobs_pb2.CreateMobRequest(mob_id=mob_id, definition=definition))
        found = names(members)
        for start in range(0, members, AT_ONCE):
            specs = [members_pb2.MemberSpec(member_id=name, role="worker") for name in found[start : start + AT_ONCE]]
            self.members.SpawnMembers(members_pb2.SpawnMembersRequest(mob_id=mob_id, specs=specs))

    def deliver(self, mob_id: str, member_id: str, input_id: str) -> None:
        """Deliver one input; it must be accepted."""
        content = common_pb2.Content(blocks=[common_pb2.Block(text=TEXT)])
        request = bridge_pb2.DeliverRequest(mob_id=mob_id, member_id=member_id, input_id=input_id, content=content)
        answer = self.bridge.Deliver(request)
        assert answer.WhichOneof("outcome") == "accepted", answer

    def member(self, mob_id: str, member_id: str) -> members_pb2.Member:
        """Return a member."""
        return self.members.GetMember(members_pb2.GetMemberRequest(mob_id=mob_id, member_id=member_id)).member

    def touch(self, mob_ids: Sequence[str], member_id: str, at_once: int) -> float:
        """Ask each mob for a member, so that all are in memory; return how long that took, in seconds."""
        began = time.monotonic()
        with ThreadPoolExecutor(at_once) as pool:
            found = list(pool.map(lambda mob_id: self.member(mob_id, member_id), mob_ids))
        assert [one.mob_id for one in found] == list(mob_ids)
        return time.monotonic() - began

    def wait_until_serving(self) -> None:
        """Return when health says that the server serves."""
        health = health_pb2_grpc.HealthStub(self.channel)
        while health.Check(health_pb2.HealthCheckRequest()).status != health_pb2.HealthCheckResponse.SERVING:
            time.sleep(0.005)

    def head(self, mob_id: str) -> int:
        """Return where the log of a mob ends."""
        return self.mobs.GetMob(mobs_pb2.GetMobRequest(mob_id=mob_id)).mob.head

    def rss(self) -> int:
        """Return the memory that is resident, in bytes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def said(self, event: str) -> int:
        """Return how often the server logged `event`."""
        assert self.folder is not None
        return (self.folder / "server.log").read_text().count(f'"{event}"')

    def wait_for(self, event: str, times: int, patience_s: float = 120.0) -> None:
        """Wait until the server has logged `event` so often."""
        deadline = time.monotonic() + patience_s
        while self.said(event) < times:
            if time.monotonic() > deadline:
                raise SystemExit(f"the server said '{event}' {self.said(event)} times, and not {times}")
            time.sleep(0.2)


class Site:
    """A data directory, and a database on one of the stores."""

    def __init__(self, parent: Path, store: str, cluster: Cluster | None) -> None:
        self.store = store
        self.folder = Path(tempfile.mkdtemp(prefix=f"{store}-", dir=parent))
        self.url = cluster.new_database() if store == "postgresql" and cluster is not None else None
        if self.url is not None:
            subprocess.run([sys.executable, *SERVER, "migrate"], env=self._env(0), check=True, capture_output=True)

    def input_ids(self, mob_id: str) -> set[str]:
        """Return the input ids that a mob's log holds, read from the store itself."""
        query = "SELECT payload FROM events WHERE kind = 'input_accepted' AND mob_id = "
        if self.url is not None:
            with psycopg.connect(self.url) as remote:
                rows = remote.execute(f"{query}%s".encode(), [mob_id]).fetchall()
        else:
            with closing(sqlite3.connect(self.folder / "mobd.db")) as local:
                rows = local.execute(f"{query}?", [mob_id]).fetchall()
        return {json.loads(payload)["input_id"] for (payload,) in rows}

    def _env(self, port: int, **settings: Any) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("MOBD_")}
        env |= {"MOBD_LISTEN": f"127.0.0.1:{port}", "MOBD_DATA_DIR": str(self.folder), "MOBD_LOG_FORMAT": "json"}
        env |= {"MOBD_HTTP_LISTEN": "off"}
        if self.url is not None:
            env["MOBD_DATABASE_URL"] = self.url
        return env | {f"MOBD_{name.upper()}": str(value) for name, value in settings.items()}

    def start(self, program: Sequence[str] = SERVER, **settings: Any) -> Running:
        """Start a server, or another program that is one, and return when it listens."""
        port = free_port()
        with (self.folder / "server.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, *program, "serve"],
                env=self._env(port, **settings),
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        try:
            self._wait_until_it_listens(process, port)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return Running(process, port, self.folder)

    def _wait_until_it_listens(self, process: subprocess.Popen[str], port: int) -> None:
        while process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.002)
        raise SystemExit((self.folder / "server.log").read_text()[-2_000:])

    @contextmanager
    def serving(self, program: Sequence[str] = SERVER, **settings: Any) -> Iterator[Running]:
        """Serve within the block, and kill the server at its end."""
        running = self.start(program, **settings)
        try:
            yield running
        finally:
            running.end()


def conditions() -> str:
    """Say how busy the machine is."""
    return f"load average {os.getloadavg()[0]:.1f}"
