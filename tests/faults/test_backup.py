"""A backup that is taken under load and restored beside the server that it was taken of."""

import asyncio
import shutil
import stat
from pathlib import Path

import pytest
from tests.faults import ledger
from tests.faults.conftest import World
from tests.support.peers import CALL_S, MOB, Peer
from tests.support.processes import Process
from tests.support.served import Served

import mobd
from mobd.v1 import events_pb2

pytestmark = pytest.mark.asyncio

FIRST = events_pb2.EventStart(after_cursor=0)
MEMBERS = ("ada", "bob", "cyd")
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


async def test_a_backup_under_load_has_what_was_acknowledged_and_is_another_log(alone: World) -> None:
    first = await alone.serve(**SETTINGS)
    peer = await alone.peer(first)
    await peer.create(MEMBERS)
    load = Load(peer)
    await load.reach(300)
    before = dict(load.acknowledged)
    target = alone.folder / "backup.db"
    process = command(first, alone.folder, "backup", str(target))
    assert await process.ended() == 0, process.output()
    count = len(load.acknowledged)
    assert count > len(before), "the backup was to be taken under load"
    await load.reach(count + 30)
    await load.end()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [one.name for one in alone.folder.iterdir() if one.name.startswith("backup.db")] == ["backup.db"]

    second = Served(alone.folder / "beside", None, SETTINGS)
    second.data.mkdir(parents=True)
    shutil.copy(target, second.data / "mobd.db")
    async with second, Peer(second.target) as copy:
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
        assert accepted.items() <= load.acknowledged.items()
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
