"""A store that is slow, refuses, and may not say whether it has committed. What it has is what survives a crash."""

import asyncio
import random
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

from sqlalchemy import event, func, select

from mobd_server.adapters.memory import MemoryStore, MemoryWriter
from mobd_server.adapters.sql import migrate
from mobd_server.adapters.sql.engine import database_url, open_engine
from mobd_server.adapters.sql.store import SqlStore
from mobd_server.adapters.sql.tables import METADATA
from mobd_server.errors import Unavailable
from mobd_server.machines.records import Append
from mobd_server.ports import Result, Snapshot, Store
from mobd_server.testing.machine import LoopSqlWriter
from mobd_server.testing.network import Node

USUAL_S: Final = 0.004
LATE: Final = 0.05
LATE_S: Final = 1.0


Backend = Literal["memory", "sqlite"]


@cache
def _empty_database() -> bytes:
    """Return a SQLite database with the schema of this build."""
    with TemporaryDirectory(prefix="mobd-sim-") as folder:
        engine = open_engine(database_url(Path(folder), None))
        migrate.upgrade(engine)
        engine.dispose()
        return (Path(folder) / "mobd.db").read_bytes()


class Storage:
    """The store's own node: what it was asked to commit it commits, whatever becomes of who asked."""

    def __init__(self, backend: Backend, chance: random.Random, loop: asyncio.AbstractEventLoop) -> None:
        self.chance = chance
        self.loop = loop
        self.close: Callable[[], None] = _nothing
        self.reader: Store
        self.write: Callable[[Sequence[Append]], list[Result]]
        # How many things are there of a mob.
        self.left: Callable[[str], int]
        self.keep: Callable[[str, str, Snapshot, int], str]
        self._open(backend)
        self.node = Node("store")
        # What the next groups meet, in order:
        # aborted       nothing is written, and that is told
        # lost          nothing is written, and it is not known whether it was
        # unknown       all is written, and it is not known whether it was
        # crash_before  the server is gone, and nothing is written
        # crash_after   all is written, and the server is gone
        # crash_late    the server is gone, and what it sent is written when the next one may be at work already
        self.faults: list[str] = []
        # Ends the server.
        self.crash: Callable[[], None] = _nothing
        # Until when nothing is answered.
        self.away_until = 0.0
        self.healed = False

    def _open(self, backend: Backend) -> None:
        if backend == "memory":
            memory = MemoryStore()
            writer = MemoryWriter(memory)
            self.reader, self.write, self.keep = memory, writer._write, writer._keep
            self.left = lambda mob_id: int(mob_id in memory.logs)
            return
        folder = TemporaryDirectory(prefix="mobd-sim-")
        (Path(folder.name) / "mobd.db").write_bytes(_empty_database())
        engine = open_engine(database_url(Path(folder.name), None))
        # No machine fails here, and the disk need not be waited for.
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
        sql = LoopSqlWriter(engine)
        self.reader, self.write, self.keep = SqlStore(engine), sql.commit, sql._keep

        def left(mob_id: str) -> int:
            with engine.connect() as connection:
                counts = [
                    select(func.count()).select_from(table).where(table.c.mob_id == mob_id)
                    for table in METADATA.tables.values()
                ]
                return sum(connection.execute(count).scalar_one() for count in counts)

        self.left = left

        def close() -> None:
            sql.close()
            engine.dispose()
            folder.cleanup()

        self.close = close

    @property
    def away(self) -> bool:
        return self.loop.time() < self.away_until

    def delay(self) -> float:
        """Return how long the next step takes."""
        drawn = self.chance.random()
        late = not self.healed and self.chance.random() < LATE
        return drawn * (LATE_S if late else USUAL_S)

    def heal(self) -> None:
        self.healed = True
        self.faults.clear()
        self.away_until = 0.0

    def fault(self) -> str:
        """Return what the next group meets: "" is nothing."""
        if self.away:
            return "aborted"
        return self.faults.pop(0) if self.faults else ""


class SimWriter:
    """A `ports.Writer` of one server."""

    def __init__(self, storage: Storage, node: Node) -> None:
        self._storage = storage
        self._node = node

    def submit(self, group: Sequence[Append], done: Callable[[list[Result]], None]) -> None:
        self._at_store(partial(self._commit, list(group), done))

    def probe(self, done: Callable[[bool], None]) -> None:
        self._at_store(lambda: self._tell(done, not self._storage.away))

    def write_snapshot(
        self, mob_id: str, log_id: str, snapshot: Snapshot, spacing: int, done: Callable[[str], None]
    ) -> None:
        def keep() -> None:
            failed = self._storage.fault() if self._storage.away else ""
            self._tell(done, failed or self._storage.keep(mob_id, log_id, snapshot, spacing))

        self._at_store(keep)

    def close(self) -> None:
        """Nothing is held."""

    def _commit(self, group: list[Append], done: Callable[[list[Result]], None]) -> None:
        fault = self._storage.fault()
        if fault in ("aborted", "lost"):
            fate: Any = "aborted" if fault == "aborted" else "unknown"
            self._tell(done, [Result(fate, "drawn") for _ in group])
            return
        if fault.startswith("crash"):
            self._storage.crash()
            if fault == "crash_late":
                delay = self._storage.chance.random() * 3
                self._storage.loop.call_later(delay, self._storage.write, group, context=self._storage.node.context)
            if fault != "crash_after":
                return
        results = self._storage.write(group)
        self._tell(done, [Result("unknown", "drawn") for _ in group] if fault == "unknown" else results)

    def _at_store(self, work: Callable[[], None]) -> None:
        self._storage.loop.call_later(self._storage.delay(), work, context=self._storage.node.context)

    def _tell(self, done: Callable[..., None], outcome: object) -> None:
        self._storage.loop.call_later(self._storage.delay(), done, outcome, context=self._node.context)


def _nothing() -> None:
    return


class SimStore:
    """A `ports.Store`: a real one, each of whose answers takes its time or does not come."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.name = storage.reader.name

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._storage.reader, name)

        async def call(*arguments: Any, **named: Any) -> Any:
            await asyncio.sleep(self._storage.delay())  # noqa: TID251 the store's own time
            if self._storage.away:
                raise Unavailable("the store does not answer")
            result = await method(*arguments, **named)
            await asyncio.sleep(self._storage.delay())  # noqa: TID251 the store's own time
            if self._storage.away:
                raise Unavailable("the store did as it was asked, and its answer does not come")
            return result

        return call
