"""PostgreSQL ends the server's connections under load: what was acknowledged is there, and the rest comes through."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import grpc
import psycopg
import pytest
import pytest_asyncio
from tests.faults.conftest import World
from tests.faults.ledger import (
    check_calls,
    check_consumed_once,
    check_gap_free,
    check_order,
    check_runs,
    check_seen,
    of_kind,
)
from tests.support.peers import CALL_S, Peer, Watcher, answered, canonical, reason
from tests.support.postgres import Cluster
from tests.support.processes import Changes, Process, say
from tests.support.served import Served

from mobd.v1 import bridge_pb2

BREAKS = 8
CRASHES = 2
SENDERS = 16
# What is acknowledged between two breaks, and after the last.
ROUND = 160
OTHERS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest.fixture
def own_cluster(postgres: Cluster) -> Iterator[Cluster]:
    """A cluster that may crash: one with few databases comes back at once, and nobody else uses it."""
    cluster = Cluster()
    yield cluster
    cluster.remove()


@pytest_asyncio.fixture
async def on_own_cluster(tmp_path: Path, own_cluster: Cluster) -> AsyncIterator[World]:
    url = own_cluster.new_database()
    migrate = Process(["-m", "mobd_server", "migrate"], {"MOBD_DATABASE_URL": url}, tmp_path / "migrate.log")
    assert await migrate.ended() == 0, migrate.output()
    async with AsyncExitStack() as stack:
        yield World(tmp_path, url, stack)


async def break_connections(url: str) -> int:
    """End every other session of this database; return how many there were."""
    async with await psycopg.AsyncConnection.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        cursor = await connection.execute(f"SELECT count(pg_terminate_backend(pid)) FROM ({OTHERS}) AS others")
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


class Senders:
    """One sender for each member; each delivers one input after another until it is told that it is over."""

    def __init__(self, changes: Changes) -> None:
        self.acknowledged: dict[tuple[str, str], str] = {}
        self.failures: Counter[tuple[str, str]] = Counter()
        self.last: dict[str, str] = {}
        self.over = False
        self._changes = changes

    async def send(self, peer: Peer, member_id: str) -> None:
        number = 0
        while not self.over:
            input_id = f"in-{number}"
            request = peer.delivery(member_id, input_id, n=number)
            self.acknowledged[member_id, input_id] = await answered(partial(self._once, peer, request))
            self.last[member_id] = input_id
            number += 1
            self._changes.tell()

    async def _once(self, peer: Peer, request: bridge_pb2.DeliverRequest) -> str:
        try:
            return canonical(await peer.bridge.Deliver(request, wait_for_ready=True, timeout=CALL_S))
        except grpc.aio.AioRpcError as error:
            self.failures[error.code().name, reason(error)] += 1
            raise

    async def more(self) -> None:
        """Return when some more were acknowledged."""
        enough = len(self.acknowledged) + ROUND
        await self._changes.until(lambda: len(self.acknowledged) >= enough, f"{enough} acknowledgements")


Break = Callable[[], Awaitable[None]]


async def under_load(world: World, served: Served, times: int, happen: Break) -> Senders:
    """Let something `happen` again and again while every sender delivers, and check all that was acknowledged."""
    admin = await world.peer(served)
    members = [f"m{at:02}" for at in range(SENDERS)]
    await admin.create(members)
    agent = world.agent(served, "agent", capacity=8)
    await admin.deliver(members[0], "before", n=0)
    await admin.end_of(members[0], "before")
    changes = Changes()
    senders = Senders(changes)
    async with AsyncExitStack() as stack:
        watcher = Watcher(await world.peer(served), changes)
        stack.push_async_callback(watcher.stop)
        tasks = [asyncio.ensure_future(senders.send(await world.peer(served), name)) for name in members]
        stack.callback(lambda: [task.cancel() for task in tasks])
        for _ in range(times):
            await senders.more()
            await happen()
        await senders.more()
        senders.over = True
        await asyncio.gather(*tasks)
        await asyncio.gather(*(admin.end_of(*last) for last in senders.last.items()))
        log = await admin.log()
        await watcher.reach(len(log))

    say(f"{len(senders.acknowledged)} acknowledged, {dict(senders.failures)}")
    assert served.process.code is None
    assert {status for status, _ in senders.failures} <= {"UNAVAILABLE"}
    assert all(why for _, why in senders.failures), "every refusal says its reason"
    check_gap_free(log)
    check_consumed_once(log, senders.acknowledged)
    check_runs(log)
    check_order(log)
    check_calls(log, agent.calls())
    check_seen(log, watcher.seen)
    assert not of_kind(log, "executor_lost")
    return senders


@pytest.mark.asyncio
async def test_sessions_that_the_database_ends_lose_nothing_that_was_acknowledged(on_postgresql: World) -> None:
    served = await on_postgresql.serve()
    ended = 0

    async def happen() -> None:
        nonlocal ended
        ended += await break_connections(str(on_postgresql.url))

    await under_load(on_postgresql, served, BREAKS, happen)
    say(f"{ended} sessions ended")
    assert ended >= BREAKS, "the server held no session"


@pytest.mark.asyncio
async def test_a_database_that_crashes_loses_nothing_that_was_acknowledged(
    on_own_cluster: World, own_cluster: Cluster
) -> None:
    served = await on_own_cluster.serve()

    async def happen() -> None:
        own_cluster.stop("immediate")
        await served.serving(yes=False)
        own_cluster.start()
        await served.serving()

    senders = await under_load(on_own_cluster, served, CRASHES, happen)
    assert senders.failures


@pytest.mark.asyncio
async def test_a_lock_that_another_session_holds_delays_a_commit_and_loses_nothing(on_postgresql: World) -> None:
    world = on_postgresql
    served = await world.serve()
    peer = await world.peer(served)
    await peer.create(["ada"])
    agent = world.agent(served, "agent")
    url = str(world.url).replace("+psycopg", "")
    async with await psycopg.AsyncConnection.connect(url) as other:
        await other.execute("SELECT 1 FROM mobs FOR UPDATE")
        calls = [asyncio.ensure_future(peer.deliver("ada", f"in-{at}", n=at)) for at in range(50)]
        done, _ = await asyncio.wait(calls, timeout=0.5)
        assert not done, "an answer before its commit"
        await other.rollback()
        names = await asyncio.gather(*calls)
    ends = [await peer.end_of("ada", f"in-{at}") for at in range(50)]
    log = await peer.log()
    assert [one.canonical_input_id for one in ends] == names
    check_gap_free(log)
    check_runs(log)
    check_consumed_once(log, {("ada", f"in-{at}"): name for at, name in enumerate(names)})
    check_calls(log, agent.calls())


@pytest.mark.asyncio
async def test_a_database_that_is_gone_is_noticed_also_when_nothing_can_be_loaded_to_be_changed(
    on_own_cluster: World, own_cluster: Cluster
) -> None:
    served = await on_own_cluster.serve()
    peer = await on_own_cluster.peer(served)
    await peer.create(["ada"])
    served.kill9()
    # From here on no mob is in memory: it owes nothing.
    await served.restart()
    own_cluster.stop("immediate")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await peer.bridge.Deliver(peer.delivery("ada", "one", n=1), wait_for_ready=True, timeout=CALL_S)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    await served.serving(yes=False)
    assert "store_failed" in served.process.output()
    own_cluster.start()
    await served.serving()
    await peer.deliver("ada", "one", n=1)
