"""A server, its clients and its agents in one process, on one loop, in virtual time."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, TypeVar

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

import mobd
from mobd.system import used
from mobd_server.adapters.memory import InlineRebuilder, MemoryStore, MemoryWriter
from mobd_server.adapters.sql import migrate as schema
from mobd_server.adapters.sql.engine import database_url, open_engine
from mobd_server.adapters.sql.store import SqlStore
from mobd_server.adapters.system import CountedIds
from mobd_server.compose import Outside, Server, assemble, drain, recover
from mobd_server.config import OFF, Config
from mobd_server.ports import Store, Writer
from mobd_server.testing.door import Door
from mobd_server.testing.loopback import Place
from mobd_server.testing.machine import LoopSqlWriter, Machine
from mobd_server.testing.network import Network, Node
from mobd_server.testing.virtual import EPOCH, VirtualClock, VirtualTime

T = TypeVar("T")

ADDRESS: Final = "mobd-in-this-process:7780"
# Makes the writer of one start of the server. What it has stored is there at the next start.
WriterOf = Callable[[], Writer]
StoreKind = Literal["memory", "sqlite"]


class Settings(Config):
    """The settings of a world's server: those that are given, and nothing from the environment."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


class Serving:
    """An agent that serves in a world."""

    def __init__(self, task: "asyncio.Task[None]") -> None:
        self._task = task

    def ended(self) -> bool:
        """Whether it serves no more: it drained, or was refused."""
        return self._task.done()

    async def leave(self) -> None:
        """Let it leave at once and give back what it has; return when it has."""
        self._task.cancel()
        await asyncio.wait([self._task])

    def check(self) -> None:
        """Raise what ended it, if it was not told to leave."""
        if self._task.done() and not self._task.cancelled():
            self._task.result()


class World:
    """What a test has: a server, a client of it, and the time. Made by `mobd_server.testing.server`."""

    def __init__(self, config: Config, seed: int, clock: VirtualClock, place: Place, stores: "_Stores") -> None:
        #: What all randomness of the world follows from.
        self.seed = seed
        self.config = config
        self.clock = clock
        #: The address of the server. Within the world every target leads to it.
        self.target = place.address
        #: A client of the server.
        self.client: mobd.Client
        self.chance = random.Random(seed)  # noqa: S311 no secret: it must repeat
        self._place = place
        self._stores = stores
        self._server: Server | None = None
        self._node = Node("server")
        self._agents: list[Serving] = []

    @property
    def now(self) -> datetime:
        """The wall time of the world."""
        return datetime.fromtimestamp(self.clock.now() / 1_000_000, UTC)

    async def advance(
        self, seconds: float = 0.0, *, minutes: float = 0.0, hours: float = 0.0, days: float = 0.0
    ) -> None:
        """Let so much time pass, and all happen that is due in it: leases, deadlines, pauses, timers of your own."""
        span = timedelta(seconds=seconds, minutes=minutes, hours=hours, days=days)
        await asyncio.sleep(span.total_seconds())

    def serve(self, agent: mobd.Agent) -> Serving:
        """Let an agent serve until the end of the world, or until it is told to leave.

        What it raises, as one does that the server refuses for good, is raised at the end of the world.
        """
        serving = Serving(asyncio.get_running_loop().create_task(agent.serve()))
        self._agents.append(serving)
        return serving

    def disconnect(self) -> None:
        """Break every connection of clients and agents, once: they come back by themselves."""
        self._place.disconnect()

    async def stop(self) -> None:
        """Shut the server down as SIGTERM does; clients and agents wait for it until `start`."""
        server, self._server = self._server, None
        if server is not None:
            await self._on_node(self._ending(server))

    async def start(self) -> None:
        """Start the server again, on what the last one stored."""
        if self._server is None:
            self._server = await self._on_node(self._starting())

    async def restart(self) -> None:
        """Shut the server down and start it again."""
        await self.stop()
        await self.start()

    async def end(self) -> None:
        """Let agents leave and shut the server down. Raises what an agent raised."""
        for agent in self._agents:
            if not agent.ended():
                await agent.leave()
        await self.client.close()
        await self.stop()
        await self._stores.store.close()
        for agent in self._agents:
            agent.check()

    async def _on_node(self, work: Any) -> Any:
        """Run something of the server's in its own context: what it begins is its own."""
        return await asyncio.get_running_loop().create_task(work, context=self._node.context.copy())

    async def _starting(self) -> Server:
        chance = self.chance
        store, writer = self._stores.store, self._stores.writer_of()
        outside = Outside(
            self.clock,
            lambda epoch: CountedIds(epoch, chance.getrandbits(32)),
            chance.random,
            store,
            writer,
            InlineRebuilder(store),
            partial(CountedIds(0, chance.getrandbits(32)).new, "log"),
            partial(Door, self._place),
        )
        server = assemble(self.config, outside, None)
        server.address = await server.rpc.start()
        await recover(server)
        self._stores.writer = writer
        return server

    async def _ending(self, server: Server) -> None:
        await drain(server)
        await server.rebuilder.close()
        if self._stores.writer is not None:
            self._stores.writer.close()


class _Stores:
    """What outlives the server."""

    def __init__(self, store: Store, writer_of: WriterOf) -> None:
        self.store = store
        self.writer_of = writer_of
        self.writer: Writer | None = None


@contextmanager
def _stores(kind: StoreKind, data_dir: Path | None) -> Iterator[_Stores]:
    if kind == "memory":
        memory = MemoryStore()
        yield _Stores(memory, lambda: MemoryWriter(memory))
        return
    with TemporaryDirectory(prefix="mobd-") as folder:
        engine = open_engine(database_url(data_dir or Path(folder), None))
        schema.upgrade(engine)
        stores = _Stores(SqlStore(engine), lambda: LoopSqlWriter(engine))
        try:
            yield stores
        finally:
            engine.dispose()


@asynccontextmanager
async def server(
    *,
    seed: int = 0,
    store: StoreKind = "memory",
    data_dir: Path | None = None,
    start: datetime = EPOCH,
    **settings: Any,
) -> AsyncIterator[World]:
    """Run a server within the block, in virtual time; `settings` are those of the server, such as `grace_s=5`.

    Within the block the running loop's time is virtual: as soon as everything waits, it jumps to the next timer. Every
    `mobd.Client` and `mobd.Agent` of the process is connected to this server, whatever its target is, and takes its
    time and its ids from the world. One world at a time.
    """
    config = Settings(http_listen=OFF, node="testing", **settings)
    time = VirtualTime(asyncio.get_running_loop())
    with time.installed(), _stores(store, data_dir) as stores:
        clock, place = VirtualClock(start), Place(ADDRESS, Network())
        world = World(config, seed, clock, place, stores)
        with used(Machine(place, clock, world.chance, time)):
            world.client = mobd.Client(place.address)
            await world.start()
            try:
                yield world
            finally:
                await world.end()


def run(test: Callable[[World], Awaitable[T]], **how: Any) -> T:
    """Run `test` with a world and return what it returns: for tests without asyncio. `how` is for `server`."""

    async def main() -> T:
        async with server(**how) as world:
            return await test(world)

    return asyncio.run(main())
