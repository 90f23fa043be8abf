"""A server that can't start says in one line why, and what to do; one that is told of other tokens goes on."""

import asyncio
import os
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests.faults.conftest import World
from tests.support.processes import WAIT_S, Process, until
from tests.support.served import Served

import mobd
from mobd_server.adapters import tokens


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
        ("MOBD_INSECURE_LISTEN", "perhaps"),
        ("MOBD_LISTEN", "0.0.0.0:0"),
        ("MOBD_HTTP_LISTEN", "everywhere"),
    ],
)
async def test_a_wrong_setting_is_named(alone: World, name: str, value: str) -> None:
    assert name in await refused(Served(alone.folder, None, {name: value}))


@pytest.mark.asyncio
async def test_a_settings_file_that_is_not_there_is_named(alone: World) -> None:
    assert "/nowhere/mobd.toml" in await refused(Served(alone.folder, None, {"MOBD_CONFIG": "/nowhere/mobd.toml"}))


@pytest.mark.asyncio
async def test_a_port_for_http_that_is_taken_is_named(alone: World) -> None:
    first = await alone.serve()
    said = await refused(Served(alone.folder / "second", None, {"MOBD_HTTP_LISTEN": first.target}))
    assert first.target in said
    assert "MOBD_HTTP_LISTEN" in said


def _locked(file: Path) -> Callable[[], None]:
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    return connection.close


def _no_database(file: Path) -> Callable[[], None]:
    file.write_bytes(b"no database" * 1_000)
    return lambda: None


def _a_directory(file: Path) -> Callable[[], None]:
    file.mkdir()
    return lambda: None


def _newer(file: Path) -> Callable[[], None]:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.execute("INSERT INTO alembic_version VALUES ('9999')")
    return lambda: None


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_locked, "database is locked; end the other program"),
        (_no_database, "not a database; restore a backup"),
        (_a_directory, "unable to open database file; set MOBD_DATA_DIR"),
        (_newer, "newer mobd: run that one"),
    ],
)
async def test_a_database_that_can_not_be_used_is_named(
    alone: World, spoil: Callable[[Path], Callable[[], None]], says: str
) -> None:
    served = Served(alone.folder)
    served.data.mkdir()
    alone.later(spoil(served.data / "mobd.db"))
    said = await refused(served)
    assert says in said
    assert str(served.data) in said


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "No such file"), ("", "mobd token new"), ("alice:secret\n", "line 1"), ("\x00\xff", "")],
)
async def test_a_tokens_file_that_can_not_be_used_is_named(alone: World, text: str | None, says: str) -> None:
    file = alone.folder / "tokens"
    if text is not None:
        file.write_text(text, encoding="latin-1")
    said = await refused(Served(alone.folder, None, {"MOBD_TOKENS_FILE": str(file)}))
    assert says in said
    assert str(file) in said
    assert "secret" not in said


@pytest.mark.asyncio
@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
async def test_a_directory_or_file_that_others_own_is_named(alone: World) -> None:
    closed = alone.folder / "closed"
    closed.mkdir(mode=0)
    assert str(closed) in await refused(Served(alone.folder, None, {"MOBD_DATA_DIR": str(closed)}))
    served = Served(alone.folder / "second", None, {"MOBD_TOKENS_FILE": str(closed / "tokens")})
    assert "Permission denied" in await refused(served)


@pytest.mark.asyncio
async def test_what_would_keep_a_server_from_starting_is_told_by_check_config(alone: World) -> None:
    served = Served(alone.folder, None, {"MOBD_LISTEN": "0.0.0.0:7780"})
    check = Process(["-m", "mobd_server", "check-config"], served.settings, alone.folder / "check.log")
    assert await check.ended() == 1
    assert "MOBD_TOKENS_FILE" in check.output()
    assert len(check.output().splitlines()) == 1


async def rest_of(watch: AsyncIterator[object]) -> list[object]:
    return [event async for event in watch]


@pytest.mark.asyncio
async def test_a_signal_makes_a_server_read_its_tokens_again(alone: World) -> None:
    file = alone.folder / "tokens"
    alice, bob = tokens.mint("alice"), tokens.mint("bob")
    file.write_text(alice.line)
    served = await alone.serve(MOBD_TOKENS_FILE=str(file))

    async def hang_up(line: str, says: str) -> None:
        file.write_text(line)
        served.process.send(signal.SIGHUP)
        await until(lambda: says in served.process.output(), says)

    async def knows(token: str) -> bool:
        async with mobd.Client(served.target, token=token) as client:
            try:
                await client.server_info()
            except mobd.TokenUnknown:
                return False
            return True

    assert (await knows(alice.token), await knows(bob.token)) == (True, False)
    async with mobd.Client(served.target, token=alice.token) as client:
        await client.create_mob("m", {"profiles": {"lead": {}}})
        async with client.watch_events("m") as watch:
            await anext(watch)
            await hang_up("bob", "tokens_kept")
            assert (await knows(alice.token), await knows(bob.token)) == (True, False)
            await hang_up(bob.line, "tokens_read")
            assert (await knows(alice.token), await knows(bob.token)) == (False, True)
            # Who follows something is told so at once, and not when the connection is old.
            with pytest.raises(mobd.TokenUnknown):
                await asyncio.wait_for(rest_of(watch), WAIT_S)


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
