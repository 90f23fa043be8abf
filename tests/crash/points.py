"""Injections at fault points: the server is killed, started with a fault, and led to the point.

Each is seen to have happened there.
"""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Final

import grpc
from tests.crash.injection import Injection
from tests.crash.load import CALL_S, insist
from tests.crash.stage import GRACE_S, LEASE_S, RECOVERY_S, Stage, stands_still
from tests.support.peers import DEFINITION, ROLE, Peer
from tests.support.processes import Process, until

from mobd.v1 import members_pb2, mobs_pb2
from mobd_server import faults

STALL_MS: Final = int(LEASE_S * 1_000) + 700
# PostgreSQL ends a session that leaves a transaction alone for 10 s.
TOO_LONG_MS: Final = 11_000
# The server's own work on a mob of this size is cut into slices.
SIDE_MEMBERS: Final = 1_200
SPAWNED_AT_ONCE: Final = 400
# The most often that a point is passed before the fault: callers alone lead there some hundred times in a second.
MOST_PASSED: Final = 25

# Reached once by a start.
AT_START: Final = frozenset({"before_acquire", "after_acquire", "during_recovery", "before_attach_answer"})
# Not reached by a server, or with an injection of their own.
ELSEWHERE: Final = frozenset({"during_migration", "during_backup", "during_snapshot"})


async def _destroy_another(stage: Stage, draw: random.Random) -> None:
    """Make a mob of many members, destroy it, and delete it, whatever happens meanwhile."""
    mob_id = f"side-{draw.randrange(1 << 32)}"
    async with Peer(stage.to_callers.target, mob_id) as peer:
        document = mobs_pb2.DefinitionDocument(json=DEFINITION)
        create = mobs_pb2.CreateMobRequest(mob_id=mob_id, definition=document, request_id="create")
        await insist(partial(peer.mobs.CreateMob, create, timeout=CALL_S))
        for at in range(0, SIDE_MEMBERS, SPAWNED_AT_ONCE):
            specs = [members_pb2.MemberSpec(member_id=f"m{at + n}", role=ROLE) for n in range(SPAWNED_AT_ONCE)]
            spawn = members_pb2.SpawnMembersRequest(mob_id=mob_id, specs=specs, request_id=f"spawn-{at}")
            await insist(partial(peer.members.SpawnMembers, spawn, timeout=CALL_S * 5))
        destroy = mobs_pb2.DestroyMobRequest(mob_id=mob_id, request_id="destroy")
        ended = await insist(partial(peer.mobs.DestroyMob, destroy, timeout=CALL_S * 5))
        assert ended.report.members == SIDE_MEMBERS
        await insist(partial(_delete, peer))


async def _delete(peer: Peer) -> None:
    """Delete a mob that may be deleted already, by a call whose answer was lost."""
    try:
        await peer.mobs.DeleteMob(mobs_pb2.DeleteMobRequest(mob_id=peer.mob_id), timeout=CALL_S * 5)
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.NOT_FOUND:
            raise


async def _terminate(stage: Stage, _: random.Random) -> None:
    await stage.served.serving(RECOVERY_S)
    await stage.more(5)
    stage.served.process.send(signal.SIGTERM)


# What leads to a point to which callers who deliver don't.
LEADING: Final[dict[str, Callable[[Stage, random.Random], Awaitable[None]]]] = {
    "before_slice": _destroy_another,
    "during_purge": _destroy_another,
    "during_drain": _terminate,
}
# Points that are passed seldom: the first time is the one.
SELDOM: Final = AT_START | LEADING.keys() | {"before_snapshot_written"}


def _arm(stage: Stage, draw: random.Random, point: str, action: str, times: int = 1) -> str:
    """Start the server with a fault, and have it led to the point; return the fault."""
    first = 1 if point in SELDOM else draw.randrange(1, MOST_PASSED)
    fault = f"{point}:{action}@{first}*{times}"
    stage.arm(fault)
    if point in LEADING:
        stage.later(asyncio.ensure_future(LEADING[point](stage, draw)))
    return fault


async def crash_at(point: str, stage: Stage, draw: random.Random) -> str:
    """Let the server die at a point."""
    fault = _arm(stage, draw, point, "crash")
    await until(lambda: stage.served.process.code is not None, f"{fault}\n{stage.said()[-2_000:]}", RECOVERY_S)
    # Its store may be away when it starts: then it says so, and is started again.
    could_start = stage.served.process.code != 1 or "\nmobd: " not in stage.said()
    if could_start:
        assert stage.served.process.code == -signal.SIGKILL, stage.said()
        assert "fault_happens" in stage.said()
    await stage.restart()
    return fault if could_start else "it could not start"


async def freeze_at(point: str, stage: Stage, draw: random.Random) -> str:
    """Let the server stand still at a point until every lease and grace has passed."""
    fault = _arm(stage, draw, point, "stop")
    await stage.happened()
    process = stage.served.process
    try:
        await until(lambda: stands_still(process.pid), "the server to stand still")
        await stage.pause(LEASE_S + GRACE_S)
    finally:
        process.send(signal.SIGCONT)
    await _go_on(stage)
    return fault


async def stall_at(point: str, stage: Stage, draw: random.Random, pause_ms: int = STALL_MS) -> str:
    """Hold up the thread that comes to a point: for longer than a lease, if nothing else is said."""
    fault = _arm(stage, draw, point, f"stall={pause_ms}ms")
    await stage.happened()
    await _go_on(stage)
    return fault


async def fail_at(point: str, stage: Stage, draw: random.Random) -> str:
    """Let what is done at a point fail: twice in a row, where callers lead to it again at once."""
    times = 1 if point in SELDOM else 2
    fault = _arm(stage, draw, point, "fail", times)
    await stage.happened(times)
    await _go_on(stage)
    return fault


async def _go_on(stage: Stage) -> None:
    """See that the server serves by itself, before it is killed for the faults that it may still have."""
    await stage.served.serving(RECOVERY_S)
    await stage.more(20)
    assert stage.served.process.code is None, stage.said()
    await stage.disarm()


async def crash_folding(stage: Stage, _: random.Random) -> str:
    """Let the process that folds states die when it has folded one: the server lives on."""
    stage.arm("during_snapshot:crash")
    await stage.happened()
    await _go_on(stage)
    return "the server went on"


async def crash_copying(stage: Stage, draw: random.Random) -> str:
    """Let a backup die before its copy has its name: there is none, and the next one succeeds."""
    copy = stage.folder / f"copy-{draw.randrange(1 << 32)}.db"
    command = ["-m", "mobd_server", "backup", str(copy)]
    log = stage.folder / "backup.log"
    died = Process(command, {**stage.served.settings, faults.VARIABLE: "during_backup:crash"}, log)
    assert await died.ended() == -signal.SIGKILL, died.output()
    assert not copy.exists()
    again = Process(command, stage.served.settings, log)
    assert await again.ended() == 0, again.output()
    return f"then {copy.stat().st_size >> 10} kB"


def injections() -> Iterator[Injection]:
    """Return all of them."""
    for point, (_, can_fail) in faults.POINTS.items():
        if point in ELSEWHERE:
            continue
        yield Injection(f"{point}: crash", partial(crash_at, point), quick=True)
        if point != "during_drain":
            yield Injection(f"{point}: stop", partial(freeze_at, point))
            yield Injection(f"{point}: stall", partial(stall_at, point))
        if can_fail:
            yield Injection(f"{point}: fail", partial(fail_at, point), quick=True)
    long = partial(stall_at, "before_commit", pause_ms=TOO_LONG_MS)
    yield Injection("before_commit: long stall", long, store="postgresql")
    yield Injection("during_snapshot: crash", crash_folding)
    yield Injection("during_backup: crash", crash_copying, quick=True, store="sqlite")
