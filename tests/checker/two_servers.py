"""Two servers on one PostgreSQL database, each of which believes that it owns the mob: the log stays one.

This is what a server that was thought dead leaves behind. Callers deliver now to the one and now to the other; each
delivery is new, for what a server knows without asking the log may be old here.
"""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import grpc
import psycopg
from tests.checker.history import Record, Recorder
from tests.checker.recording import Caller, clock
from tests.checker.workload import SETTINGS
from tests.support.peers import DEFINITION, MOB, ROLE, content
from tests.support.served import Served

from mobd.v1 import bridge_pb2, members_pb2, mobs_pb2

MEMBERS: Final = ("ada", "bob")
ROUNDS: Final = 25


async def two_servers(folder: Path, url: str) -> list[Record]:
    """Return the history."""
    recorder = Recorder(clock)
    async with AsyncExitStack() as stack:
        callers = []
        for name in ("first", "second"):
            served = await stack.enter_async_context(Served(folder / name, url, SETTINGS))
            callers.append(await stack.enter_async_context(Caller(name, served.target, MOB, recorder)))
        first, _ = callers
        definition = mobs_pb2.DefinitionDocument(json=DEFINITION)
        await first.ask("CreateMob", mobs_pb2.CreateMobRequest(mob_id=MOB, definition=definition))
        for name in MEMBERS:
            spec = members_pb2.MemberSpec(member_id=name, role=ROLE)
            await first.ask("SpawnMember", members_pb2.SpawnMemberRequest(mob_id=MOB, spec=spec))
        for at in range(ROUNDS):
            await asyncio.gather(*(_deliver(caller, f"{caller.who}-{at}") for caller in callers))
        for caller in callers:
            await _deliver(caller, f"{caller.who}-last")
        await _read(recorder, callers[1], url)
    return list(recorder)


async def _read(recorder: Recorder, caller: Caller, url: str) -> None:
    """Read the final log; one that the server itself calls broken is read from the database, without its payloads."""
    try:
        await caller.finish(quiet=False)
    except grpc.aio.AioRpcError as error:
        recorder.note("reader", str(error.details()))
        async with await psycopg.AsyncConnection.connect(url) as session:
            rows = await session.execute("SELECT seq, kind, member_id FROM events ORDER BY id")
            async for seq, kind, member_id in rows:
                recorder.logged(MOB, {"seq": seq, "kind": kind, "member_id": member_id or ""})
        recorder.final_end(MOB, "log")


async def _deliver(caller: Caller, name: str) -> None:
    for member_id in MEMBERS:
        request = bridge_pb2.DeliverRequest(mob_id=MOB, member_id=member_id, input_id=name, content=content(n=name))
        await caller.ask("Deliver", request)
