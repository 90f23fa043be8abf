"""A fixture for pytest: write `pytest_plugins = ["mobd_server.testing.plugin"]` in the topmost conftest.py."""

from collections.abc import AsyncIterator

import pytest_asyncio

from mobd_server.testing.world import World, server


@pytest_asyncio.fixture
async def mobd_world() -> AsyncIterator[World]:
    """A server in the process of the test, in virtual time; see mobd_server.testing."""
    async with server() as world:
        yield world
