"""One suite, every store: a backend is a store and a writer on one database."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy.engine import Engine

from mobd_server.adapters.memory import MemoryStore, MemoryWriter
from mobd_server.adapters.sql import migrate
from mobd_server.adapters.sql.engine import database_url, open_engine
from mobd_server.adapters.sql.store import SqlStore
from mobd_server.adapters.sql.writer import SqlWriter
from mobd_server.machines.records import Append
from mobd_server.ports import Result, Store, Writer

WAIT_S = 20


class Backend:
    """A store and its writer, as a server has them."""

    def __init__(self, store: Store, writer: Writer, engine: Engine | None = None) -> None:
        self.store = store
        self.writer = writer
        self.engine = engine

    async def fates(self, *group: Append) -> list[str]:
        """Commit one group and return the fate of each append."""
        return [result.fate for result in await commit(self.writer, group)]


async def commit(writer: Writer, group: Sequence[Append]) -> list[Result]:
    """Commit one group through a writer."""
    done: asyncio.Future[list[Result]] = asyncio.get_running_loop().create_future()
    writer.submit(group, done.set_result)
    async with asyncio.timeout(WAIT_S):
        return await done


EngineOf = Callable[[str], Engine]


@pytest.fixture
def engine_of(tmp_path: Path, request: pytest.FixtureRequest) -> EngineOf:
    """Return a function that opens a migrated database of a kind."""

    def opened(kind: str) -> Engine:
        url = request.getfixturevalue("postgres_url") if kind == "postgresql" else None
        engine = open_engine(database_url(tmp_path, url))
        request.addfinalizer(engine.dispose)
        if kind == "sqlite":
            migrate.upgrade(engine)
        return engine

    return opened


@pytest_asyncio.fixture(params=["memory", "sqlite", "postgresql"])
async def backend(request: pytest.FixtureRequest, engine_of: EngineOf) -> AsyncIterator[Backend]:
    """Every store in turn."""
    if request.param == "memory":
        memory = MemoryStore()
        yield Backend(memory, MemoryWriter(memory))
        return
    engine = engine_of(request.param)
    backend = Backend(SqlStore(engine), SqlWriter(engine), engine)
    yield backend
    backend.writer.close()
    await backend.store.close()


@pytest_asyncio.fixture(params=["sqlite", "postgresql"])
async def sql(request: pytest.FixtureRequest, engine_of: EngineOf) -> AsyncIterator[Backend]:
    """Every SQL store in turn."""
    engine = engine_of(request.param)
    backend = Backend(SqlStore(engine), SqlWriter(engine, retry_s=0.5), engine)
    yield backend
    backend.writer.close()
    await backend.store.close()
