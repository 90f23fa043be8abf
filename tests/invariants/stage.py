"""A server on a store, a client of it, and the moments at which the server can be killed.

A kill at the worst moment needs a commit that has begun and does not end. `held` makes the store refuse to go on with
what writes to a table, as a lock of another session would; `doomed` does the same and then kills the server in the
middle of its transaction, and starts it again on the same store.
"""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from typing import Any, Literal

import grpc
import psycopg
from tests.faults.conftest import World
from tests.invariants.scripted import Scripted
from tests.support.peers import CALL_S, MOB, ROLE, Peer, answered, canonical, content, reason
from tests.support.processes import WAIT_S
from tests.support.served import Served

from mobd.v1 import (
    bridge_pb2,
    common_pb2,
    events_pb2,
    members_pb2,
    mobs_pb2,
    runs_pb2,
)

TableName = Literal["mobs", "events", "messages", "operations"]

# Leases and graces that a test outlives; agents that are gone are lost after GRACE_S only where a test asks for that.
SETTINGS = {"MOBD_HEARTBEAT_S": "0.5", "MOBD_LEASE_S": "3", "MOBD_GRACE_S": "20", "MOBD_ACCEPT_S": "3"}
# How long a read may take before it is said to wait for a commit.
PATIENCE_S = 0.4

IDLE = common_pb2.MEMBER_STATE_IDLE
ATTACHED = common_pb2.MEMBER_STATE_ATTACHED
RUNNING = common_pb2.MEMBER_STATE_RUNNING
RETIRED = common_pb2.MEMBER_STATE_RETIRED
DESTROYED = common_pb2.MEMBER_STATE_DESTROYED
QUEUED = bridge_pb2.INPUT_STATE_QUEUED
HELD = bridge_pb2.INPUT_STATE_RUNNING
CONSUMED = bridge_pb2.INPUT_STATE_CONSUMED
ABANDONED = bridge_pb2.INPUT_STATE_ABANDONED
STEER = common_pb2.HANDLING_MODE_STEER

# In the middle of its transaction the one connection that writes waits as long as the test wants it to.
_SLOW = """
CREATE TRIGGER slow BEFORE {what} ON {table} BEGIN
  SELECT count(*) FROM (
    WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 100000000000) SELECT x FROM n
  );
END
"""
_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


class Stage:
    """One mob on one server, seen by a client in another process."""

    def __init__(self, world: World, served: Served, peer: Peer, stack: AsyncExitStack) -> None:
        self.world = world
        self.served = served
        self.peer = peer
        self._stack = stack

    # The server.

    async def crash(self) -> None:
        """Kill the server and start it again on the same store."""
        self.served.kill9()
        await self.served.restart()

    @property
    def _url(self) -> str:
        return str(self.world.url).replace("+psycopg", "")

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Let no commit end while the block runs; afterwards all go on. For less than 4 s: then the server gives up."""
        if self.world.url is None:
            with closing(sqlite3.connect(self.served.data / "mobd.db", isolation_level=None, timeout=10)) as lock:
                lock.execute("BEGIN IMMEDIATE")
                try:
                    yield
                finally:
                    lock.execute("ROLLBACK")
        else:
            async with await psycopg.AsyncConnection.connect(self._url) as lock_session:
                await lock_session.execute("LOCK TABLE mobs IN EXCLUSIVE MODE")
                try:
                    yield
                finally:
                    await lock_session.rollback()

    @asynccontextmanager
    async def doomed(self, table: TableName = "mobs") -> AsyncIterator[None]:
        """Kill the server after the block, in the middle of what it writes to `table`, and start it again."""
        if self.world.url is None:
            what = "UPDATE" if table == "mobs" else "INSERT"
            await asyncio.to_thread(self._sqlite, _SLOW.format(what=what, table=table))
            yield
            self.served.kill9()
            await asyncio.to_thread(self._sqlite, "DROP TRIGGER slow")
        else:
            async with await psycopg.AsyncConnection.connect(self._url, autocommit=False) as session:
                await session.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE".encode())
                yield
                self.served.kill9()
                # A session of a process that is gone might go on when it gets the lock.
                await session.execute(_OTHERS)
                await session.rollback()
        await self.served.restart()

    def _sqlite(self, statement: str) -> None:
        with closing(sqlite3.connect(self.served.data / "mobd.db", isolation_level=None, timeout=10)) as connection:
            connection.execute(statement)

    async def broken(self, *calls: Awaitable[Any]) -> None:
        """Check that calls ended with the server, and that their callers were told nothing but that."""
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, grpc.aio.AioRpcError), f"answered: {outcome}"
            assert outcome.code() == grpc.StatusCode.UNAVAILABLE

    async def decided(self, member_id: str) -> None:
        """Return when the mob has decided something that is not durable: reads wait for it."""
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    await self.peer.bridge.Observe(self._observe(member_id), timeout=PATIENCE_S)
                except grpc.aio.AioRpcError as error:
                    if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                        raise
                    return

    # Agents.

    async def agent(self, **more: Any) -> Scripted:
        """Return an agent that is attached."""
        agent = self.unattached(**more)
        return await agent.attach()

    def unattached(self, **more: Any) -> Scripted:
        """Return an agent that has not dialled yet."""
        agent = Scripted(self.served.target, **more)
        self._stack.push_async_callback(agent.close)
        return agent

    # What callers do. Each is repeated until the server answers, with the same ids.

    async def ask(self, method: Callable[..., Any], request: Any) -> Any:
        """Return the answer."""
        return await answered(lambda: method(request, wait_for_ready=True, timeout=CALL_S))

    async def refused(self, method: Callable[..., Any], request: Any) -> tuple[str, str]:
        """Return the status and the reason with which a call is refused."""
        try:
            answer = await self.ask(method, request)
        except grpc.aio.AioRpcError as error:
            return error.code().name, reason(error)
        raise AssertionError(f"answered: {answer}")

    async def spawn(self, member_id: str, initial: common_pb2.Content | None = None) -> members_pb2.Member:
        """Spawn a member, with a prompt if `initial` is given."""
        spec = members_pb2.MemberSpec(member_id=member_id, role=ROLE, initial_message=initial)
        request = members_pb2.SpawnMemberRequest(mob_id=MOB, spec=spec)
        member = (await self.ask(self.peer.members.SpawnMember, request)).member
        assert isinstance(member, members_pb2.Member)
        return member

    def delivery(self, member_id: str, input_id: str, **fields: Any) -> bridge_pb2.DeliverRequest:
        fields.setdefault("content", content(n=input_id))
        return bridge_pb2.DeliverRequest(mob_id=MOB, member_id=member_id, input_id=input_id, **fields)

    async def send(self, member_id: str, input_id: str, **fields: Any) -> bridge_pb2.DeliverResponse:
        """Deliver and return the outcome, whatever it is."""
        answer = await self.ask(self.peer.bridge.Deliver, self.delivery(member_id, input_id, **fields))
        assert isinstance(answer, bridge_pb2.DeliverResponse)
        return answer

    async def deliver(self, member_id: str, input_id: str, **fields: Any) -> str:
        """Deliver what must be accepted, and return its canonical id."""
        answer = await self.send(member_id, input_id, **fields)
        assert answer.HasField("accepted"), answer
        return answer.accepted.canonical_input_id

    async def deliver_all(self, member_id: str, *deliveries: tuple[str, dict[str, Any]]) -> list[str]:
        """Deliver several inputs in one decision; return their canonical ids."""
        batch = [
            bridge_pb2.Delivery(member_id=member_id, input_id=input_id, **{"content": content(n=input_id), **fields})
            for input_id, fields in deliveries
        ]
        request = bridge_pb2.DeliverBatchRequest(mob_id=MOB, deliveries=batch)
        answer = await self.ask(self.peer.bridge.DeliverBatch, request)
        return [canonical(one) for one in answer.outcomes]

    async def input(self, member_id: str, input_id: str) -> bridge_pb2.Input:
        request = bridge_pb2.GetInputRequest(mob_id=MOB, member_id=member_id, input_id=input_id)
        found = (await self.ask(self.peer.bridge.GetInput, request)).input
        assert isinstance(found, bridge_pb2.Input)
        return found

    async def no_input(self, member_id: str, input_id: str) -> None:
        """Check that nobody knows of an input."""
        request = bridge_pb2.GetInputRequest(mob_id=MOB, member_id=member_id, input_id=input_id)
        assert await self.refused(self.peer.bridge.GetInput, request) == ("NOT_FOUND", "INPUT_NOT_FOUND")

    def _observe(self, member_id: str) -> bridge_pb2.ObserveRequest:
        return bridge_pb2.ObserveRequest(mob_id=MOB, member_id=member_id)

    async def observe(self, member_id: str) -> bridge_pb2.ObserveResponse:
        answer = await self.ask(self.peer.bridge.Observe, self._observe(member_id))
        assert isinstance(answer, bridge_pb2.ObserveResponse)
        return answer

    async def member(self, member_id: str) -> members_pb2.Member:
        request = members_pb2.GetMemberRequest(mob_id=MOB, member_id=member_id)
        member = (await self.ask(self.peer.members.GetMember, request)).member
        assert isinstance(member, members_pb2.Member)
        return member

    async def run_of(self, run_id: str) -> runs_pb2.Run:
        run = (await self.ask(self.peer.runs.GetRun, runs_pb2.GetRunRequest(mob_id=MOB, run_id=run_id))).run
        assert isinstance(run, runs_pb2.Run)
        return run

    async def interrupt(self, member_id: str, **fields: Any) -> bridge_pb2.InterruptResponse:
        request = bridge_pb2.InterruptRequest(mob_id=MOB, member_id=member_id, **fields)
        answer = await self.ask(self.peer.bridge.Interrupt, request)
        assert isinstance(answer, bridge_pb2.InterruptResponse)
        return answer

    async def hard_cancel(self, member_id: str, run_id: str, **fields: Any) -> bridge_pb2.HardCancelResponse:
        request = bridge_pb2.HardCancelRequest(mob_id=MOB, member_id=member_id, run_id=run_id, **fields)
        answer = await self.ask(self.peer.bridge.HardCancel, request)
        assert isinstance(answer, bridge_pb2.HardCancelResponse)
        return answer

    async def retire(self, member_id: str, **fields: Any) -> bridge_pb2.RetireResponse:
        request = bridge_pb2.RetireRequest(mob_id=MOB, member_id=member_id, **fields)
        answer = await self.ask(self.peer.bridge.Retire, request)
        assert isinstance(answer, bridge_pb2.RetireResponse)
        return answer

    async def destroy(self, member_id: str, **fields: Any) -> bridge_pb2.DestroyResponse:
        request = bridge_pb2.DestroyRequest(mob_id=MOB, member_id=member_id, **fields)
        answer = await self.ask(self.peer.bridge.Destroy, request)
        assert isinstance(answer, bridge_pb2.DestroyResponse)
        return answer

    async def respawn(self, member_id: str, **fields: Any) -> members_pb2.RespawnMemberResponse:
        request = members_pb2.RespawnMemberRequest(mob_id=MOB, member_id=member_id, **fields)
        answer = await self.ask(self.peer.members.RespawnMember, request)
        assert isinstance(answer, members_pb2.RespawnMemberResponse)
        return answer

    # What watchers see.

    async def log(self) -> list[events_pb2.Event]:
        return await self.peer.log()

    async def watched(self, member_id: str, input_id: str) -> list[bridge_pb2.Input]:
        """Follow an input to its end and return all that was shown, the end last. A break fails it."""
        request = bridge_pb2.WatchInputRequest(mob_id=MOB, member_id=member_id, input_id=input_id)
        stream = self.peer.bridge.WatchInput(request, wait_for_ready=True, timeout=WAIT_S)
        return [answer.input async for answer in stream]

    async def end_of(self, member_id: str, input_id: str) -> bridge_pb2.Input:
        """Follow an input to its end, over restarts."""
        shown = await answered(lambda: self.watched(member_id, input_id))
        return shown[-1]

    async def event(
        self, kind: str, member_id: str = "", *, count: int = 1, where: Callable[[events_pb2.Event], bool] | None = None
    ) -> events_pb2.Event:
        """Return the event of a kind that is the `count`th of the log, as soon as it is there."""
        event_filter = events_pb2.EventFilter(kinds=[kind], member_ids=[member_id] if member_id else [])
        start = events_pb2.EventStart(after_cursor=0)
        request = events_pb2.WatchEventsRequest(mob_id=MOB, start=start, filter=event_filter)

        async def follow() -> events_pb2.Event:
            left = count
            async for answer in self.peer.events.WatchEvents(request, wait_for_ready=True, timeout=WAIT_S):
                for event in answer.page.events:
                    left -= where is None or where(event)
                    if not left:
                        return event
            raise AssertionError(f"the log ended before {kind}")

        return await answered(follow)


@asynccontextmanager
async def staged(
    world: World, members: tuple[str, ...] = ("ada",), *, profile: dict[str, Any] | None = None, **settings: str
) -> AsyncIterator[Stage]:
    """A server with a running mob that has these members, all of one role; `profile` is what is special about it."""
    async with AsyncExitStack() as stack:
        served = await world.serve(**{**SETTINGS, **settings})
        peer = await world.peer(served)
        stage = Stage(world, served, peer, stack)
        definition = mobs_pb2.DefinitionDocument(json=json.dumps({"profiles": {ROLE: profile or {}}}))
        await stage.ask(peer.mobs.CreateMob, mobs_pb2.CreateMobRequest(mob_id=MOB, definition=definition))
        for member_id in members:
            await stage.spawn(member_id)
        yield stage
