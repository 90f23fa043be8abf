"""A server that can't start says in one line why, and what to do."""

from pathlib import Path

import pytest
from tests.faults.conftest import World
from tests.support.processes import Process
from tests.support.served import Served


async def refused(served: Served) -> str:
    """Start a server that must not start and return the one line that it says."""
    process = served.spawn()
    assert await process.ended() not in (0, None)
    lines = process.output().strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.asyncio
async def test_two_servers_do_not_share_a_data_directory(alone: World) -> None:
    first = await alone.serve()
    second = Served(alone.folder / "second", None, {"MOBD_DATA_DIR": str(first.data)})
    said = await refused(second)
    assert f"is in use by another mobd (pid {first.process.pid})" in said
    assert "mobd.db" in said
    first.kill9()
    await first.restart()


@pytest.mark.asyncio
async def test_a_port_that_is_taken_is_named(alone: World) -> None:
    first = await alone.serve()
    second = Served(alone.folder / "second", None, {"MOBD_LISTEN": first.target})
    assert first.target in await refused(second)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MOBD_LEASE_S", "soon"),
        ("MOBD_LISTEN", "nowhere"),
        ("MOBD_DATABASE_URL", "mysql://somewhere"),
        ("MOBD_LEESE_S", "30"),
    ],
)
async def test_a_wrong_setting_is_named(alone: World, name: str, value: str) -> None:
    assert name in await refused(Served(alone.folder, None, {name: value}))


@pytest.mark.asyncio
async def test_a_data_directory_that_can_not_be_written_is_named(alone: World, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    served = Served(alone.folder, None, {"MOBD_DATA_DIR": str(blocked / "data")})
    assert str(blocked) in await refused(served)


@pytest.mark.asyncio
async def test_postgresql_without_the_schema_is_refused_until_it_is_migrated(
    tmp_path: Path, empty_postgres_url: str
) -> None:
    served = Served(tmp_path, empty_postgres_url)
    assert "mobd migrate" in await refused(served)
    migrate = Process(["-m", "mobd_server", "migrate"], served.settings, tmp_path / "migrate.log")
    assert await migrate.ended() == 0, migrate.output()
    async with served:
        assert served.process.code is None
