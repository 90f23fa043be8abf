"""A scripted server, and what agents say."""

import logging
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from tests.client.peer import Peer, Said, serve_peer


@pytest_asyncio.fixture
async def peer() -> AsyncIterator[Peer]:
    async with serve_peer() as one:
        yield one


@pytest.fixture
def said() -> Iterator[Said]:
    handler = Said()
    logger = logging.getLogger("mobd.agent")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)
