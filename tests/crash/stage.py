"""One store with a server, agents and callers on it, each behind a wire that can be cut; and what must hold on it.

Everything outlives what is done to it: a stage is used for one injection after another, and after each of them all
that was ever acknowledged on it is checked.
"""

import asyncio
import random
import shutil
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import grpc
from tests.checker.history import Recorder
from tests.checker.recording import Caller, clock
from tests.support.disks import Disk
from tests.support.peers import DEFINITION, MOB, ROLE, Peer
from tests.support.postgres import Cluster
from tests.support.processes import Changes, Process, until
from tests.support.proxy import Proxy
from tests.support.served import Served

from mobd.v1 import members_pb2, mobs_pb2
from mobd_server import faults

LIMIT_S: Final = 60.0
CALLERS: Final = 4
# Long enough for a busy machine, short enough that a test lives through many.
LEASE_S: Final = 1.5
GRACE_S: Final = 2.0
SETTINGS: Final = {
    "MOBD_HEARTBEAT_S": "0.3",
    "MOBD_LEASE_S": str(LEASE_S),
    "MOBD_GRACE_S": str(GRACE_S),
    "MOBD_ACCEPT_S": "2",
    "MOBD_DRAIN_S": "3",
    "MOBD_SNAPSHOT_EVENTS": "100",
    # Mobs are looked at four times as often as they may leave.
    "MOBD_PASSIVATE_AFTER_S": "1",
}
# How long it may take until a server that had trouble serves again: it asks a store for 5 s, and then once a second.
RECOVERY_S: Final = 45.0


class Agent(Protocol):
    """An agent in a process of its own."""

    name: str

    @property
    def process(self) -> Process:
        """The process that runs."""

    def start(self) -> Self:
        """Start it, for the first time or in the place of one that has ended."""

    def kill9(self) -> None:
        """End it at once."""

    def in_flight(self) -> int:
        """Return how many handler calls it is known to be at."""


class Stage(ABC):
    """A store and all who use it. `cluster` is that of PostgreSQL; None: SQLite. `disk` is what the store is on."""

    members: Sequence[str]
    # What its callers are counted in.
    unit: str
    # How many injections it is used for: then to check all of it takes a while.
    uses = 8

    def __init__(self, folder: Path, cluster: Cluster | None, disk: Disk | None) -> None:
        self.folder = folder
        self.cluster = cluster
        self.disk = disk
        self.changes = Changes()
        # How many calls were answered, ever.
        self.done = 0
        self.calls: list[asyncio.Task[None]] = []
        self.stack = AsyncExitStack()
        # Of its servers.
        self.settings = dict(SETTINGS)
        # What callers saw, for the checker.
        self.recorder = Recorder(clock, "t-")
        self._later: list[asyncio.Future[None]] = []
        # Where the server's log stood when it was armed.
        self._said_before = 0
        # The name of PostgreSQL's database.
        self.database = ""

    @property
    def store(self) -> str:
        """The name of the store."""
        return "sqlite" if self.cluster is None else "postgresql"

    async def __aenter__(self) -> Self:
        try:
            await self._build()
        except BaseException:
            await self.stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._later:
            task.cancel()
        await asyncio.gather(*self._later, return_exceptions=True)
        await self.stack.aclose()

    async def _build(self) -> None:
        self.folder.mkdir(parents=True)
        url = await self._open_store()
        self.served = await self.stack.enter_async_context(Served(self.folder, url, self.settings))
        self.to_callers = await self.stack.enter_async_context(Proxy(self.served.port))
        self.to_agents = await self.stack.enter_async_context(Proxy(self.served.port))
        self.recorded_admin = await self.caller("admin")
        await self._create()
        await self.populate()

    async def _open_store(self) -> str | None:
        if self.cluster is None:
            if self.disk is not None:
                data = self.disk.folder / self.folder.name
                self.settings["MOBD_DATA_DIR"] = str(data)
                self.stack.callback(shutil.rmtree, data, ignore_errors=True)
            return None
        direct = self.cluster.new_database()
        self.stack.callback(self.cluster.drop_database, direct)
        self.database = direct.rpartition("/")[2]
        migrate = Process(["-m", "mobd_server", "migrate"], {"MOBD_DATABASE_URL": direct}, self.folder / "migrate.log")
        assert await migrate.ended() == 0, migrate.output()
        self.to_store = await self.stack.enter_async_context(Proxy(self.cluster.port))
        return direct.replace(f":{self.cluster.port}/", f":{self.to_store.own_port}/")

    async def _create(self) -> None:
        definition = mobs_pb2.DefinitionDocument(json=DEFINITION)
        create = mobs_pb2.CreateMobRequest(mob_id=MOB, definition=definition, request_id="create")
        await self.recorded_admin.ask("CreateMob", create)
        specs = [members_pb2.MemberSpec(member_id=name, role=ROLE) for name in self.members]
        spawn = members_pb2.SpawnMembersRequest(mob_id=MOB, specs=specs, request_id="spawn")
        await self.recorded_admin.ask("SpawnMembers", spawn)

    async def caller(self, who: str) -> Caller:
        """Return a client whose every call and answer is taken down."""
        return await self.stack.enter_async_context(Caller(who, self.to_callers.target, MOB, self.recorder))

    async def peer(self) -> Peer:
        """Return a client of whom nothing is taken down."""
        return await self.stack.enter_async_context(Peer(self.to_callers.target, MOB))

    @property
    @abstractmethod
    def agents(self) -> Sequence[Agent]:
        """All agents."""

    def answered(self, count: int = 1) -> None:
        """Take note that callers were answered."""
        self.done += count
        self.changes.tell()

    async def more(self, count: int) -> None:
        """Return when so many more calls were answered, or raise what ended a caller."""
        enough = self.done + count
        await self.changes.until(
            lambda: self.done >= enough or any(task.done() for task in self.calls), f"{count} more answers", LIMIT_S
        )
        for task in self.calls:
            if task.done():
                task.result()

    @asynccontextmanager
    async def calls_of(
        self, calls: Iterable[Coroutine[Any, Any, None]], enough: Callable[[], None]
    ) -> AsyncIterator[None]:
        """Let callers call within the block; at its end tell them that it is enough, and await them."""
        self.calls = [asyncio.create_task(call) for call in calls]
        try:
            yield
            enough()
            self.changes.tell()
            await asyncio.gather(*self.calls)
        finally:
            for task in self.calls:
                task.cancel()

    async def caught_up(self) -> None:
        """Return when what was interrupted is done."""
        await asyncio.gather(*self._later)
        self._later.clear()

    # What injections do.

    def arm(self, fault: str) -> Process:
        """Kill the server and start it with a fault; return the process, which may die before it serves."""
        assert faults.parse(fault)
        self.served.kill9()
        self._said_before = self.served.log.stat().st_size
        self.served.settings[faults.VARIABLE] = fault
        try:
            return self.served.spawn()
        finally:
            del self.served.settings[faults.VARIABLE]

    def said(self) -> str:
        """Return what the server has said since it was armed."""
        with self.served.log.open("rb") as file:
            file.seek(self._said_before)
            return file.read().decode(errors="replace")

    async def happened(self, count: int = 1) -> None:
        """Return when what the server was armed with has happened so often."""
        what = "what is armed to happen"
        try:
            await until(lambda: self.said().count("fault_happens") >= count, what, RECOVERY_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.said()[-4_000:]}") from error

    async def disarm(self) -> None:
        """Start the server anew without faults, killing it if it lives."""
        if self.served.process.code is None:
            self.served.kill9()
        await self.restart()

    async def restart(self) -> None:
        """Start the server in the place of one that has ended, again and again while it says why it can't start."""
        async with asyncio.timeout(RECOVERY_S * 2):
            while True:
                before = self.served.log.stat().st_size
                try:
                    await self.served.restart()
                except grpc.aio.AioRpcError:
                    # A busy machine takes its time to start it.
                    await self.served.serving(RECOVERY_S)
                    return
                except AssertionError:
                    said = self.served.log.read_bytes()[before:].decode().splitlines()
                    if self.served.process.code != 1 or len(said) != 1 or not said[0].startswith("mobd: "):
                        raise
                else:
                    return

    def later(self, task: asyncio.Future[None]) -> None:
        """Have a task awaited when the server serves again: it repeats what was interrupted."""
        self._later.append(task)

    async def pause(self, seconds: float) -> None:
        """Let time pass, where it is time itself that matters: leases and graces end meanwhile."""
        await asyncio.sleep(seconds)  # noqa: TID251 see above

    async def second_server(self) -> None:
        """Start a second server on the same database, and lead everybody to it."""
        first = self.served
        settings = {name: value for name, value in first.settings.items() if name != "MOBD_LISTEN"}
        second = Served(self.folder / f"after-{first.port}", settings["MOBD_DATABASE_URL"], settings)
        self.served = await self.stack.enter_async_context(second)
        for wire in (self.to_callers, self.to_agents):
            wire.port = second.port
            wire.cut()

    def victim(self, draw: random.Random) -> Agent:
        """Return the agent with most at work, or any."""
        busiest = max(self.agents, key=lambda agent: agent.in_flight())
        return busiest if busiest.in_flight() else draw.choice(self.agents)

    # What kinds of stages differ in.

    @abstractmethod
    async def populate(self) -> None:
        """Start agents, callers and those who watch."""

    @abstractmethod
    def calling(self, draw: random.Random) -> AbstractAsyncContextManager[None]:
        """Let callers call within the block; at its end nobody waits for an answer."""

    @abstractmethod
    async def check(self) -> None:
        """Let what the callers began come to its end, and check it."""

    @abstractmethod
    async def judge(self) -> None:
        """Judge the whole history of the stage: all that was done and seen, against the log at its end."""


def stands_still(pid: int) -> bool:
    """Whether a process was stopped by a signal."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
