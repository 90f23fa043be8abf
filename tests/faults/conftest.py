"""A server of its own for each test, on each store."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest_asyncio
from tests.support.peers import MOB, AgentProcess, Peer
from tests.support.served import Served


class World:
    """What a test started, ended with it in the opposite order."""

    def __init__(self, folder: Path, url: str | None, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.url = url
        self._stack = stack

    async def serve(self, **settings: str) -> Served:
        return await self._stack.enter_async_context(Served(self.folder, self.url, settings))

    async def peer(self, served: Served, mob_id: str = MOB) -> Peer:
        return await self._stack.enter_async_context(Peer(served.target, mob_id))

    def agent(
        self,
        served: Served,
        name: str,
        settings: Mapping[str, str] | None = None,
        *,
        capacity: int = 8,
        members: int = 100,
    ) -> AgentProcess:
        """Start an agent process."""
        agent = AgentProcess(self.folder, name, served.target, settings=settings, capacity=capacity, members=members)
        self._stack.callback(agent.kill9)
        return agent.start()

    def later(self, callback: Callable[[], None]) -> None:
        """Call this at the end."""
        self._stack.callback(callback)


@pytest_asyncio.fixture
async def alone(tmp_path: Path) -> AsyncIterator[World]:
    """For what is the same on every store: SQLite, as a server has it without any setting."""
    async with AsyncExitStack() as stack:
        yield World(tmp_path, None, stack)


@pytest_asyncio.fixture
async def on_postgresql(tmp_path: Path, postgres_url: str) -> AsyncIterator[World]:
    """For what only PostgreSQL does."""
    async with AsyncExitStack() as stack:
        yield World(tmp_path, postgres_url, stack)


@pytest_asyncio.fixture
async def world(tmp_path: Path, store_url: str | None) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield World(tmp_path, store_url, stack)
