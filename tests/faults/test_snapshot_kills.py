"""Servers that are killed while they take snapshots: what they say of a mob is what its log says, now and then."""

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Engine
from tests.faults.conftest import World
from tests.support.peers import CALL_S, MOB, Peer, answered, content
from tests.support.processes import until
from tests.support.served import Served

from mobd.v1 import bridge_pb2, events_pb2
from mobd_server.adapters.sql.engine import database_url, open_engine
from mobd_server.adapters.sql.store import SqlStore
from mobd_server.machines.decision import fold, new_mob
from mobd_server.machines.sections import parts

pytestmark = pytest.mark.asyncio

EVERY = 200
SETTINGS = {
    "MOBD_SNAPSHOT_EVENTS": str(EVERY),
    # Mobs are looked at four times as often as they may leave.
    "MOBD_PASSIVATE_AFTER_S": "1",
    "MOBD_SNAPSHOT_TAIL": "50",
}
MEMBERS = [f"m{at}" for at in range(8)]

Sections = dict[tuple[str, str], Any]


class Seen:
    """What a test sees of the database behind the server's back."""

    def __init__(self, world: World, served: Served) -> None:
        self.engine: Engine = open_engine(database_url(Path(served.data), world.url))
        world.later(self.engine.dispose)

    def snapshots(self) -> list[int]:
        with self.engine.connect() as connection:
            return list(connection.execute(text("SELECT seq FROM snapshots ORDER BY seq")).scalars())

    def spoil(self) -> None:
        """Make every snapshot unreadable."""
        with self.engine.execution_options(writes=True).begin() as connection:
            connection.execute(text("UPDATE snapshots SET state = substr(state, 1, 100)"))

    async def by_hand(self, seq: int) -> Sections:
        """Return the state after an event, folded from the log alone."""
        store = SqlStore(self.engine)
        mob = new_mob(MOB)
        while mob.head < seq:
            for record in await store.read_events(MOB, mob.head, min(500, seq - mob.head)):
                fold(mob, record)
        await store.close()
        return {(part.kind, part.id): json.loads(part.value) for part in parts(mob)}


async def state(peer: Peer, at_cursor: int | None = None) -> tuple[int, Sections]:
    """Return the cursor of a state, and the state."""
    request = events_pb2.GetStateRequest(mob_id=MOB, at_cursor=at_cursor)

    async def ask() -> list[Any]:
        return [answer async for answer in peer.events.GetState(request, timeout=CALL_S, wait_for_ready=True)]

    header, *rest = await answered(ask)
    found = {(one.kind, one.id): json.loads(one.value_json) for answer in rest for one in answer.sections.sections}
    return header.header.cursor, found


async def load(peer: Peer, name: str, count: int) -> None:
    """Deliver so many inputs to each member, of which some may be lost to a kill."""
    for at in range(count):
        batch = bridge_pb2.DeliverBatchRequest(
            mob_id=MOB,
            deliveries=[
                bridge_pb2.Delivery(member_id=member, input_id=f"{name}-{at}", content=content(n=at))
                for member in MEMBERS
            ],
        )
        await answered(partial(peer.bridge.DeliverBatch, batch, timeout=CALL_S, wait_for_ready=True))


def _another(seen: Seen, have: int, loading: asyncio.Future[None]) -> bool:
    return len(seen.snapshots()) != have or loading.done()


async def test_a_server_that_is_killed_around_its_snapshots_loses_nothing(world: World) -> None:
    served = await world.serve(**SETTINGS)
    peer = await world.peer(served)
    await peer.create(MEMBERS)
    seen = Seen(world, served)
    cursor = 0
    for kill in range(4):
        loading = asyncio.ensure_future(load(peer, f"load-{kill}", 30))
        have = len(seen.snapshots())
        # At once, and when one has been written in the middle of the load.
        if kill % 2:
            await until(partial(_another, seen, have, loading), "a snapshot")
        served.kill9()
        await served.restart()
        await loading
        cursor, found = await state(peer)
        assert found == await seen.by_hand(cursor)
    await until(lambda: max(seen.snapshots(), default=0) > cursor - EVERY, "a snapshot of the last load")

    for past in (cursor, cursor // 2, cursor // 3, 1, 0):
        assert await state(peer, past) == (past, await seen.by_hand(past))
    served.kill9()
    await served.restart()
    assert await state(peer) == (cursor, await seen.by_hand(cursor))


async def test_a_snapshot_that_was_spoilt_is_passed_over(world: World) -> None:
    served = await world.serve(**SETTINGS)
    peer = await world.peer(served)
    await peer.create(MEMBERS)
    await load(peer, "load", 40)
    seen = Seen(world, served)
    before = await state(peer)
    await until(lambda: "mob_passivated" in served.process.output(), "the mob to leave memory")
    await until(seen.snapshots, "a snapshot")
    served.kill9()
    seen.spoil()
    await served.restart()
    assert await state(peer) == before
    assert "snapshot_passed_over" in served.process.output()
    assert await state(peer, 100) == (100, await seen.by_hand(100))
