"""A whole server in this process, on SQLite in a directory of its own, spoken to over a socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from tests.rpc.speaking import Speaker

from mobd_server import compose
from mobd_server.config import Config, load


@asynccontextmanager
async def speaking(config: Config) -> AsyncIterator[Speaker]:
    async with compose.serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        yield Speaker(channel, server)


def settings(folder: Path, **more: Any) -> Config:
    return load(**{"listen": "127.0.0.1:0", "http_listen": "off", "data_dir": folder / "data", "drain_s": 5.0, **more})


@pytest.fixture(autouse=True)
def no_settings_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOBD_LISTEN", "MOBD_DATABASE_URL", "MOBD_CONFIG", "MOBD_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest_asyncio.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Speaker]:
    async with speaking(settings(tmp_path)) as speaker:
        yield speaker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Speaker]:
    async with speaking(settings(tmp_path_factory.mktemp("door"))) as speaker:
        yield speaker
