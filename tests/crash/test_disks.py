"""Disks that are full or can't be written: the server says so in a line, and serves again when there is room."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests.crash.stage import RECOVERY_S
from tests.faults.ledger import check_gap_free
from tests.support.disks import Disk
from tests.support.peers import Peer, canonical, reason
from tests.support.served import Served

pytestmark = pytest.mark.asyncio

MEGABYTES = 16
# More inputs than fit into what SQLite has taken already.
MOST = 900


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk.mount(MEGABYTES)
    if disk is None:
        pytest.skip("to mount a disk is not permitted here: nothing is known of disks that are full")
    yield disk
    disk.unmount()


async def refused(served: Served) -> str:
    """Start a server that must not start and return the one line that it says."""
    process = served.spawn()
    assert await process.ended() not in (0, None)
    lines = process.output().strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


async def test_a_server_does_not_start_on_a_disk_that_can_not_be_written(tmp_path: Path, disk: Disk) -> None:
    served = Served(tmp_path, None, {"MOBD_DATA_DIR": str(disk.folder / "data")})
    async with served:
        assert await served.terminate() == 0
    served.log.unlink()
    disk.read_only(yes=True)
    try:
        said = await refused(served)
        assert str(disk.folder) in said
        assert "MOBD_DATA_DIR" in said
    finally:
        disk.read_only(yes=False)
    async with served:
        assert served.process.code is None


async def test_a_server_does_not_start_on_a_disk_that_is_full(tmp_path: Path, disk: Disk) -> None:
    served = Served(tmp_path, None, {"MOBD_DATA_DIR": str(disk.folder / "data")})
    disk.fill()
    said = await refused(served)
    assert str(disk.folder) in said
    assert "full" in said or "No space" in said
    disk.free()
    async with served:
        assert served.process.code is None


async def test_a_disk_that_becomes_full_stops_the_server_s_work_with_a_line_until_there_is_room(
    tmp_path: Path, disk: Disk
) -> None:
    async with Served(tmp_path, None, {"MOBD_DATA_DIR": str(disk.folder / "data")}) as served:
        async with Peer(served.target) as peer:
            await peer.create(["ada"])
            disk.fill()
            delivering = asyncio.ensure_future(deliver_until_refused(peer))
            await served.serving(RECOVERY_S, yes=False)
            acknowledged, refusal = await delivering
            assert refusal in (("UNAVAILABLE", "COMMIT_UNKNOWN"), ("UNAVAILABLE", "JOURNAL_DOWN"))
            [line] = [line for line in served.process.output().splitlines() if "store_failed" in line]
            assert "full" in line
            disk.free()
            await served.serving(RECOVERY_S)
            assert "store_answers" in served.process.output()
            # Those who were refused repeat it, and nobody's acknowledgement is gone.
            acknowledged["after"] = await peer.deliver("ada", "after")
            log = await peer.log()
        accepted = {one.input_accepted.input_id: one.input_accepted.canonical_input_id for one in log if one.member_id}
        check_gap_free(log)
        assert {name: accepted.get(name) for name in acknowledged} == acknowledged


async def deliver_until_refused(peer: Peer) -> tuple[dict[str, str], tuple[str, str]]:
    """Deliver until the store takes nothing more; return what was acknowledged, and how the next was refused."""
    acknowledged: dict[str, str] = {}
    for number in range(MOST):
        request = peer.delivery("ada", f"in-{number}", fill="x" * 10_000)
        try:
            acknowledged[f"in-{number}"] = canonical(await peer.bridge.Deliver(request, timeout=RECOVERY_S))
        except grpc.aio.AioRpcError as error:
            return acknowledged, (error.code().name, reason(error))
    raise AssertionError(f"{MOST} inputs fit on a disk that is full")
