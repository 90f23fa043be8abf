"""A world of its own for each test, on each store."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest_asyncio
from tests.faults.conftest import World


@pytest_asyncio.fixture
async def world(tmp_path: Path, store_url: str | None) -> AsyncIterator[World]:
    """For what a store could spoil."""
    async with AsyncExitStack() as stack:
        yield World(tmp_path, store_url, stack)


@pytest_asyncio.fixture
async def alone(tmp_path: Path) -> AsyncIterator[World]:
    """For what the machine decides, the same on every store: SQLite, as a server has it without any setting."""
    async with AsyncExitStack() as stack:
        yield World(tmp_path, None, stack)
