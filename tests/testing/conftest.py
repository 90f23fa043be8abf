"""Worlds, and the same server on a network and within the process."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from mobd import system
from mobd_server import compose, testing
from mobd_server.testing.plugin import mobd_world
from mobd_server.testing.world import Settings

__all__ = ["mobd_world"]


@pytest_asyncio.fixture(params=["network", "loopback"])
async def channel(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server of its own."""
    if request.param == "loopback":
        async with testing.server():
            yield system.current().open_channel("anywhere", [])
        return
    how: dict[str, Any] = {"listen": "127.0.0.1:0", "http_listen": "off", "data_dir": tmp_path}
    config = Settings(**how)
    async with compose.serving(config) as server, grpc.aio.insecure_channel(server.address) as connection:
        yield connection
