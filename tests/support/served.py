"""A server as a process of its own, on one port and one store, that can be killed and started again."""

import asyncio
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.support.processes import WAIT_S, Process, free_port

# Small enough that a test lives through several leases and graces.
SETTINGS = {
    "MOBD_HEARTBEAT_S": "0.5",
    "MOBD_LEASE_S": "2",
    "MOBD_GRACE_S": "30",
    "MOBD_DRAIN_S": "5",
    "MOBD_LOG_FORMAT": "text",
}
CHANNEL = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.enable_retries", 0),
)


def channel(target: str) -> grpc.aio.Channel:
    """Return a connection of its own, which comes back quickly and repeats nothing by itself."""
    return grpc.aio.insecure_channel(target, options=CHANNEL)


class Served:
    """`python -m mobd_server serve`, again and again on the same address and store."""

    def __init__(self, folder: Path, url: str | None = None, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.port = free_port()
        self.target = f"127.0.0.1:{self.port}"
        self.settings = {
            **SETTINGS,
            "MOBD_LISTEN": self.target,
            "MOBD_DATA_DIR": str(self.data),
            **({"MOBD_DATABASE_URL": url} if url is not None else {}),
            **(settings or {}),
        }
        self.pids: list[int] = []
        # Wall time (s) of each kill.
        self.kills: list[float] = []
        self._process: Process | None = None

    @property
    def process(self) -> Process:
        assert self._process is not None, "the server was never started"
        return self._process

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def spawn(self) -> Process:
        """Start the process and don't wait for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._process = Process(["-m", "mobd_server", "serve"], self.settings, self.log)
        self.pids.append(self._process.pid)
        return self._process

    async def start(self) -> Self:
        """Start the process and return when it serves."""
        process = self.spawn()
        serving = asyncio.ensure_future(self.serving())
        ended = asyncio.ensure_future(process.ended(WAIT_S + 5))
        try:
            await asyncio.wait([serving, ended], return_when=asyncio.FIRST_COMPLETED)
            assert serving.done(), f"the server ended with {process.code}:\n{process.output()}"
            await serving
        finally:
            serving.cancel()
            ended.cancel()
            await asyncio.gather(serving, ended, return_exceptions=True)
        return self

    async def serving(self, timeout_s: float = WAIT_S, *, yes: bool = True) -> None:
        """Return when health says that the server serves, or, with `yes=False`, that it does not."""
        async with channel(self.target) as connection:
            stub = health_pb2_grpc.HealthStub(connection)
            watch = stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=timeout_s)
            async for answer in watch:
                if (answer.status == health_pb2.HealthCheckResponse.SERVING) is yes:
                    watch.cancel()
                    return
        raise AssertionError("the health of the server is not watched any more")

    def kill9(self) -> None:
        """End the server at once."""
        self.kills.append(time.time())
        self.process.kill()

    async def restart(self) -> None:
        """Start a new process in the place of one that has ended."""
        assert self.process.code is not None, "the server still runs"
        await self.start()

    async def terminate(self, timeout_s: float = WAIT_S) -> int:
        """Ask the server to end and return its exit code."""
        self.process.send(signal.SIGTERM)
        return await self.process.ended(timeout_s)

    async def __aenter__(self) -> Self:
        try:
            return await self.start()
        except BaseException:
            # Nobody else ends it: what failed to begin has no end.
            if self._process is not None:
                self._process.kill()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.code is None:
            self._process.kill()
