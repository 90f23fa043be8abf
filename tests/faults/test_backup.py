"""A backup that is taken under load and restored beside the server that it was taken of."""

import asyncio
import os
import shlex
import stat
import sys
from pathlib import Path

import psycopg
import pytest
from tests.faults import ledger
from tests.faults.conftest import World
from tests.support.pages import typed
from tests.support.peers import CALL_S, MOB, Peer
from tests.support.postgres import binary
from tests.support.processes import Process
from tests.support.served import Served

import mobd
from mobd.v1 import events_pb2

pytestmark = pytest.mark.asyncio

FIRST = events_pb2.EventStart(after_cursor=0)
MEMBERS = ("ada", "bob", "cyd")
SQLITE, POSTGRESQL = typed("docs/operations.md", "Backup and restore")
# The least distance of snapshots, so that some are copied.
SETTINGS = {"MOBD_SNAPSHOT_EVENTS": "100"}


class Load:
    """Delivers to every member, one input after the other, and notes what was acknowledged."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.acknowledged: dict[tuple[str, str], str] = {}
        self._enough = asyncio.Event()
        self._tasks = [asyncio.create_task(self._deliver(member)) for member in MEMBERS]
        self._reached = asyncio.Condition()

    async def _deliver(self, member: str) -> None:
        number = 0
        while not self._enough.is_set():
            number += 1
            name = f"{member}-{number}"
            self.acknowledged[member, name] = await self._peer.deliver(member, name)
            async with self._reached:
                self._reached.notify_all()

    async def reach(self, count: int) -> None:
        async with asyncio.timeout(CALL_S), self._reached:
            await self._reached.wait_for(lambda: len(self.acknowledged) >= count)

    async def end(self) -> None:
        self._enough.set()
        await asyncio.gather(*self._tasks)


def command(served: Served, folder: Path, *argv: str) -> Process:
    return Process(["-m", "mobd_server", *argv], served.settings, folder / f"{argv[0]}.log")


async def log_of(peer: Peer) -> str:
    page = await peer.events.PollEvents(events_pb2.PollEventsRequest(mob_id=MOB, start=FIRST, limit=1), timeout=CALL_S)
    return page.log_id


async def go_on(served: Served, cursor: int, log_id: str) -> events_pb2.PollEventsResponse:
    async with mobd.Client(served.target, timeout=CALL_S) as client:
        async with client.watch_events(MOB, after=cursor - 1, log_id=log_id) as watch:
            await anext(watch)
        await client.get_state(MOB, at_cursor=cursor, log_id=log_id)
        return await client.poll_events(MOB, after=cursor, log_id=log_id)


async def refused(served: Served, cursor: int, log_id: str) -> None:
    """Check that a cursor of another log is refused by name, whoever asks."""
    async with mobd.Client(served.target, timeout=CALL_S) as client:
        with pytest.raises(mobd.LogChanged, match=log_id):
            await client.poll_events(MOB, after=cursor, log_id=log_id)
        with pytest.raises(mobd.LogChanged, match=log_id):
            await anext(client.watch_events(MOB, after=cursor, log_id=log_id))
        with pytest.raises(mobd.LogChanged, match=log_id):
            await client.get_state(MOB, log_id=log_id)


class Shell:
    """Types what the page says, in one folder: `mobd` is that of this environment, with a server's settings."""

    def __init__(self, served: Served, folder: Path) -> None:
        self._folder = folder
        tools = binary("pg_dump")
        path = [str(Path(sys.executable).parent), *([str(Path(tools).parent)] if tools else []), os.environ["PATH"]]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MOBD_")}
        self._settings = {**kept, **served.settings, "PATH": os.pathsep.join(path)}

    async def type(self, *lines: str) -> str:
        """Return what is printed; each line must succeed."""
        process = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-ec",
            "\n".join(lines),
            cwd=self._folder,
            env=self._settings,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(2 * CALL_S):
            printed, _ = await process.communicate()
        assert process.returncode == 0, printed.decode()
        return printed.decode()


def beside(line: str, folder: Path, url: str | None = None) -> Served:
    """Return a server as the last line of a block starts it, on a free port; `url` stands for what $COPY is."""
    words = shlex.split(line)
    at = words.index("serve")
    assert words[at - 1] == "mobd"
    settings = dict(word.split("=", 1) for word in words[: at - 1])
    assert settings.pop("MOBD_HTTP_LISTEN") == "off"
    assert settings == ({"MOBD_DATABASE_URL": "$COPY"} if url is not None else {})
    options = dict(zip(words[at + 1 :: 2], words[at + 2 :: 2], strict=True))
    assert options.pop("--listen").startswith("127.0.0.1:")
    if url is None:
        return Served(folder / "beside", None, {**SETTINGS, "MOBD_DATA_DIR": str(folder / options.pop("--data-dir"))})
    assert not options
    return Served(folder / "beside", url, SETTINGS)


async def rehearse(peer: Peer, copy: Peer, first: Served, second: Served, before: dict[tuple[str, str], str]) -> None:
    """Check a copy that was taken of `first` under load and is served beside it: `before` was acknowledged before."""
    # Before anything else, so that what is in the log is what was copied.
    found, original = await copy.log(), await peer.log()
    ledger.check_gap_free(found)
    assert [one.seq for one in found] == [one.seq for one in original[: len(found)]]
    accepted = {
        (one.member_id, one.input_accepted.input_id): one.input_accepted.canonical_input_id
        for one in found
        if one.kind == "input_accepted"
    }
    assert before.items() <= accepted.items()
    assert len(found) < len(original)

    old, new = await log_of(peer), await log_of(copy)
    assert old
    assert new
    assert old != new
    cursor = len(found)
    await refused(second, cursor, old)
    await refused(first, cursor, new)
    assert (await go_on(first, cursor, old)).log_id == old
    assert (await go_on(second, cursor, new)).log_id == new
    # Each goes its own way, and what was delivered before is known to both.
    for one in (peer, copy):
        await one.deliver("ada", "later")
        assert await one.deliver("ada", "ada-1") == before["ada", "ada-1"]
    assert "snapshot_passed_over" not in second.process.output()


async def test_a_backup_under_load_has_what_was_acknowledged_and_is_another_log(alone: World) -> None:
    first = await alone.serve(**SETTINGS)
    peer = await alone.peer(first)
    await peer.create(MEMBERS)
    load = Load(peer)
    await load.reach(300)
    before = dict(load.acknowledged)
    *take, serve = SQLITE
    shell = Shell(first, alone.folder)
    assert "1 mobs" in await shell.type(take[0])
    count = len(load.acknowledged)
    assert count > len(before), "the backup was to be taken under load"
    await load.reach(count + 30)
    await load.end()
    target = alone.folder / "mobd-backup.db"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [one.name for one in alone.folder.iterdir() if one.name.startswith(target.name)] == [target.name]
    await shell.type(*take[1:])
    async with beside(serve, alone.folder) as second, Peer(second.target) as copy:
        await rehearse(peer, copy, first, second, before)


async def test_a_dump_under_load_has_what_was_acknowledged_and_becomes_another_log(on_postgresql: World) -> None:
    world = on_postgresql
    first = await world.serve(**SETTINGS)
    peer = await world.peer(first)
    await peer.create(MEMBERS)
    load = Load(peer)
    await load.reach(300)
    before = dict(load.acknowledged)
    names, dump, create, restore, new_log, serve = POSTGRESQL
    assert names.split()[0] == "export"
    original = str(world.url)
    # The name of the copy is that of the page; the database is where the original is.
    copied = original.rpartition("/")[0] + "/mobd_copy"
    assert shlex.split(create)[-1] == "mobd_copy"
    shell, here = Shell(first, world.folder), f"export ORIGINAL={original} COPY={copied}"
    await shell.type(here, dump)
    count = len(load.acknowledged)
    assert count > len(before), "the dump was to be taken under load"
    await shell.type(here, create, restore)
    assert "1 mobs" in await shell.type(here, new_log)
    await load.reach(count + 30)
    await load.end()
    async with beside(serve, world.folder, copied) as second, Peer(second.target) as copy:
        await rehearse(peer, copy, first, second, before)
        in_use = command(second, world.folder, "new-log")
        assert await in_use.ended() == 1
        assert "in use by another mobd" in in_use.output()
    await drop(original, "mobd_copy")


async def drop(url: str, name: str) -> None:
    """Remove a database, from another one of its server."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


async def test_a_copy_made_otherwise_gets_other_logs_when_nobody_serves_it(world: World) -> None:
    served = await world.serve(**SETTINGS)
    peer = await world.peer(served)
    await peer.create(MEMBERS)
    for number in range(60):
        await asyncio.gather(*(peer.deliver(member, f"{member}-{number}") for member in MEMBERS))
    old = await log_of(peer)
    in_use = command(served, world.folder, "new-log")
    assert await in_use.ended() == 1
    assert "in use by another mobd" in in_use.output()
    assert len(in_use.output().splitlines()) == 1
    assert await served.terminate() == 0
    done = command(served, world.folder, "new-log")
    assert await done.ended() == 0, done.output()
    await served.restart()
    new = await log_of(peer)
    assert new not in {"", old}
    await refused(served, 2, old)
    assert (await go_on(served, 2, new)).log_id == new
    assert len(await peer.log()) == 1 + 1 + len(MEMBERS) + 60 * len(MEMBERS)
    assert "snapshot_passed_over" not in served.process.output()


@pytest.mark.parametrize("there", ["target", "nothing"])
async def test_a_backup_that_can_not_be_says_why(alone: World, there: str) -> None:
    served = Served(alone.folder)
    target = alone.folder / "backup.db"
    if there == "target":
        served.data.mkdir()
        (served.data / "mobd.db").touch()
        target.write_text("mine")
    process = command(served, alone.folder, "backup", str(target))
    assert await process.ended() == 1
    assert len(process.output().splitlines()) == 1
    assert str(target if there == "target" else served.data) in process.output()
    assert target.exists() is (there == "target")
    assert not target.exists() or target.read_text() == "mine"


async def test_postgresql_is_backed_up_by_its_own_tools(on_postgresql: World) -> None:
    served = Served(on_postgresql.folder, on_postgresql.url)
    process = command(served, on_postgresql.folder, "backup", str(on_postgresql.folder / "backup.db"))
    assert await process.ended() == 1
    assert "pg_dump" in process.output()
    assert "mobd new-log" in process.output()
