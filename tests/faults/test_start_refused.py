"""A server that can't start says in one line why, and what to do; one that is told of other tokens goes on."""

import asyncio
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from tests.faults.conftest import World
from tests.support.postgres import Cluster
from tests.support.processes import WAIT_S, Process, free_port, until
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
    said = await refused(second)
    assert f"{first.target} can't be listened on: Address already in use; set MOBD_LISTEN to a free one" in said


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


# Runs the rest of the command line as one whom the modes of files bind, also if the tests are run by root.
BOUND = """
import ctypes, os, sys
if os.geteuid() == 0:
    for capability in (1, 2):
        if ctypes.CDLL(None).prctl(24, capability, 0, 0, 0):
            sys.exit("no capability could be dropped")
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


async def refused_to_bound(world: World, *argv: str, **settings: str) -> str:
    """Return the one line that a command says whose user may not read or write everything."""
    served = Served(world.folder, None, settings)
    process = Process(["-c", BOUND, "-m", "mobd_server", *argv], served.settings, world.folder / "bound.log")
    assert await process.ended() == 1, process.output()
    lines = process.output().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def _closed(folder: Path) -> dict[str, str]:
    folder.mkdir(mode=0)
    return {"MOBD_DATA_DIR": str(folder)}


def _within(folder: Path) -> dict[str, str]:
    folder.mkdir(mode=0)
    return {"MOBD_DATA_DIR": str(folder / "data")}


def _read_only(folder: Path) -> dict[str, str]:
    folder.mkdir(mode=0o555)
    return {"MOBD_DATA_DIR": str(folder)}


def _lock(folder: Path) -> dict[str, str]:
    folder.mkdir()
    (folder / "mobd.db.lock").touch(mode=0)
    return {"MOBD_DATA_DIR": str(folder)}


def _tokens(folder: Path) -> dict[str, str]:
    folder.touch(mode=0)
    return {"MOBD_TOKENS_FILE": str(folder)}


def _settings(folder: Path) -> dict[str, str]:
    folder.touch(mode=0)
    return {"MOBD_CONFIG": str(folder)}


def _secret(folder: Path) -> dict[str, str]:
    folder.mkdir()
    (folder / "mobd_database_password").touch(mode=0)
    return {"MOBD_SECRETS_DIR": str(folder)}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_closed, "Permission denied; set MOBD_DATA_DIR to a directory to write in"),
        (_within, "Permission denied; set MOBD_DATA_DIR to a directory to write in"),
        (_read_only, "Permission denied; set MOBD_DATA_DIR to a directory to write in"),
        (_lock, "Permission denied; set MOBD_DATA_DIR to a directory to write in"),
        (_tokens, "can't be read: Permission denied"),
        (_settings, "can't be read: Permission denied"),
        (_secret, "can't be read: Permission denied; make it readable for the user of mobd"),
    ],
)
async def test_a_file_or_directory_that_is_not_open_to_it_is_named(
    alone: World, make: Callable[[Path], dict[str, str]], says: str
) -> None:
    there = alone.folder / "there"
    said = await refused_to_bound(alone, "serve", **make(there))
    assert says in said
    assert str(there) in said


@pytest.mark.asyncio
@pytest.mark.parametrize("mode", [0o444, 0])
async def test_a_database_that_can_not_be_written_is_refused_before_anybody_calls(alone: World, mode: int) -> None:
    served = await alone.serve()
    assert await served.terminate() == 0
    file = served.data / "mobd.db"
    file.chmod(mode)
    said = await refused_to_bound(alone, "serve", MOBD_DATA_DIR=str(served.data))
    assert str(file) in said
    assert "set MOBD_DATA_DIR to a directory to write in" in said


@pytest.mark.asyncio
async def test_a_backup_to_where_nothing_can_be_written_says_so(alone: World) -> None:
    served = await alone.serve()
    (alone.folder / "closed").mkdir(mode=0)
    target = alone.folder / "closed" / "backup.db"
    said = await refused_to_bound(alone, "backup", str(target), MOBD_DATA_DIR=str(served.data))
    assert f"{target}: Permission denied" in said


@pytest.mark.asyncio
async def test_a_secret_that_is_no_setting_is_named(alone: World) -> None:
    """Otherwise a server with a misspelt one would begin with an empty database of another kind."""
    secrets = alone.folder / "secrets"
    secrets.mkdir()
    (secrets / "mobd_databse_url").write_text("postgresql://mobd@db/mobd")
    (secrets / "of_another_service").touch(mode=0)
    said = await refused(Served(alone.folder, None, {"MOBD_SECRETS_DIR": str(secrets)}))
    assert f"{secrets}/mobd_databse_url: no such setting; did you mean mobd_database_url?" in said
    # What a variable names is no setting, and may have any name.
    (secrets / "mobd_databse_url").rename(secrets / "mobd_tokens")
    (secrets / "mobd_tokens").write_text(tokens.mint("alice").line)
    await alone.serve(MOBD_SECRETS_DIR=str(secrets), MOBD_TOKENS_FILE=str(secrets / "mobd_tokens"))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("address", "says"), [("192.0.2.7:0", "Cannot assign requested address"), ("nowhere.invalid:0", "")]
)
async def test_an_address_that_is_not_of_this_machine_is_named(alone: World, address: str, says: str) -> None:
    said = await refused(Served(alone.folder, None, {"MOBD_LISTEN": address, "MOBD_INSECURE_LISTEN": "true"}))
    assert f"{address} can't be listened on: " in said
    assert says in said
    assert "set MOBD_LISTEN to a free one" in said


@pytest.fixture
def asking_for_passwords(postgres: Cluster) -> Iterator[Cluster]:
    """A cluster that lets nobody in without a password; `postgres` knows whether there may be one."""
    cluster = Cluster()
    try:
        with psycopg.connect(cluster.url("postgres"), autocommit=True) as connection:
            connection.execute("CREATE ROLE walk LOGIN PASSWORD 'right'")
            connection.execute("ALTER ROLE mobd PASSWORD 'right'")
            (cluster.data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
            connection.execute("SELECT pg_reload_conf()")
        yield cluster
    finally:
        cluster.remove()


@pytest.mark.asyncio
async def test_a_postgresql_that_can_not_be_used_is_named_with_what_to_do(
    alone: World, asking_for_passwords: Cluster
) -> None:
    port = asking_for_passwords.port

    async def said(user: str, at: int, database: str, command: str = "serve") -> str:
        settings = Served(alone.folder, f"postgresql://{user}@127.0.0.1:{at}/{database}").settings
        process = Process(["-m", "mobd_server", command], settings, alone.folder / "pg.log")
        assert await process.ended() == 1
        (line,) = process.output().splitlines()
        (alone.folder / "pg.log").unlink()
        assert "right" not in line
        return line

    assert "start it, or set MOBD_DATABASE_URL" in await said("mobd:right", free_port(), "postgres")
    assert "correct MOBD_DATABASE_PASSWORD" in await said("mobd:wrong", port, "postgres")
    assert "set MOBD_DATABASE_PASSWORD" in await said("mobd", port, "postgres")
    assert "create it with createdb" in await said("mobd:right", port, "nowhere")
    assert "run mobd migrate" in await said("mobd:right", port, "postgres")
    assert "grant it to the user" in await said("walk:right", port, "postgres", "migrate")
    url = f"postgresql://mobd:right@127.0.0.1:{port}"
    migrate = Process(
        ["-m", "mobd_server", "migrate"], {"MOBD_DATABASE_URL": f"{url}/postgres"}, alone.folder / "m.log"
    )
    assert await migrate.ended() == 0, migrate.output()
    with psycopg.connect(f"{url}/template1", autocommit=True) as connection:
        connection.execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
    assert "set MOBD_DATABASE_URL to the primary" in await said("mobd:right", port, "postgres")


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
