"""Small parts, by themselves."""

import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

import mobd
from mobd.calls import Pauses
from mobd.outbox import FRAMES, TOGETHER_BYTES, WAITING, Outbox
from mobd.v1 import agents_pb2

pytestmark = pytest.mark.floor


def beat(*run_ids: str) -> agents_pb2.AgentFrame:
    return agents_pb2.AgentFrame(heartbeat=agents_pb2.Heartbeat(run_ids=run_ids))


def test_an_id_is_a_uuid_that_tells_when_it_was_made() -> None:
    before = time.time_ns() // 1_000_000
    made = uuid.UUID(mobd.uuid7())
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert before <= made.int >> 80 <= time.time_ns() // 1_000_000
    assert len({mobd.uuid7() for _ in range(1_000)}) == 1_000


def test_pauses_grow_to_their_bound_and_keep_what_the_server_asks_for() -> None:
    pauses = Pauses(1.0, 30.0)
    drawn = [pauses.next_s() for _ in range(2_000)]
    assert all(pause <= min(30.0, 2.0**place) for place, pause in enumerate(drawn[:8]))
    assert 29.0 < max(drawn) <= 30.0
    pauses.reset()
    assert 5.0 <= pauses.next_s(5.0) <= 6.0


@pytest.mark.asyncio
async def test_an_outbox_sends_what_waits_together_within_bounds() -> None:
    outbox = Outbox()
    outbox.put(*[beat()] * (FRAMES + 1))
    outbox.put(*[beat("x" * TOGETHER_BYTES)] * 2)
    outbox.close()
    outbox.put(beat())
    sizes = []
    while (request := await outbox.take()) is not None:
        sizes.append(len(request.frames))
    assert sizes == [FRAMES, 1, 1, 1]
    assert not outbox.overflowed.is_set()
    full = Outbox()
    full.put(*[beat()] * (WAITING + 1))
    assert full.overflowed.is_set()


def test_a_program_that_forgets_to_close_its_client_ends_quietly() -> None:
    source = """
import mobd
client = mobd.SyncClient("127.0.0.1:1", timeout=0.01)
try:
    client.get_mob("x")
except mobd.Error:
    pass
"""
    path = str(Path(mobd.__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, "-c", source], env={"PYTHONPATH": path}, capture_output=True, timeout=30, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


def test_the_version_is_known_and_nothing_else_is_made_up() -> None:
    assert mobd.__version__
    assert not hasattr(mobd, "no_such_thing")
    assert all(hasattr(mobd, name) for name in mobd.__all__)
