"""Streams: what an agent may leave waiting, what ends with what, and that nobody holds up the others."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest
from msgspec import Raw
from tests.actors.hub_world import TERMS, AgentPeer, HubWorld
from tests.actors.world import soon
from tests.support.clock import ManualClock
from tests.support.loops import ticks

from mobd_server.actors import frames as f
from mobd_server.actors.connection import OUTBOX_BYTES, TAKE_BYTES, TAKE_FRAMES, Connection
from mobd_server.actors.hub import CREWS_AT_ONCE
from mobd_server.adapters.memory.store import MemoryStore
from mobd_server.errors import Unavailable
from mobd_server.machines import answers as a
from mobd_server.machines import commands as c
from mobd_server.ports import Loaded

pytestmark = pytest.mark.asyncio


def stream() -> Connection:
    return Connection(ManualClock(), "anonymous")


def start_run(size: int) -> a.SendStartRun:
    content = Raw(b'[{"text":"' + b"x" * size + b'"}]')
    return a.SendStartRun("att", "run", 1, "ada", [a.RunInput("in-1", "i1", content, "anonymous", 1)], None)


async def test_frames_leave_together_in_order_and_in_messages_that_are_not_too_long() -> None:
    connection = stream()
    settled = [a.SendSettled("att", f"run-{place}", "committed") for place in range(TAKE_FRAMES + 10)]
    connection.send(*settled)
    first = await connection.take()
    assert len(first) == TAKE_FRAMES
    assert first + await connection.take() == settled
    connection.send(*[start_run(TAKE_BYTES // 2)] * 3)
    assert [len(await connection.take()), len(await connection.take())] == [2, 1]


async def test_what_waits_is_sent_before_a_stream_ends_and_its_error_comes_last() -> None:
    connection = stream()
    connection.send(f.HeartbeatAck())
    connection.end(f.Goodbye("protocol", "why"), Unavailable("because"))
    connection.end(f.Goodbye("slow", "too late"))
    connection.send(f.HeartbeatAck())
    assert await connection.take() == [f.HeartbeatAck(), f.Goodbye("protocol", "why")]
    with pytest.raises(Unavailable):
        await connection.take()


async def test_a_reader_of_an_empty_outbox_is_woken_by_a_frame_and_by_the_end() -> None:
    connection = stream()
    taking = asyncio.ensure_future(connection.take())
    await ticks()
    connection.send(f.Resync("m"))
    assert await soon(taking) == [f.Resync("m")]
    taking = asyncio.ensure_future(connection.take())
    await ticks()
    connection.end()
    assert await soon(taking) == []


async def test_heartbeats_alone_cannot_fill_an_outbox() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    agent.stop_reading()
    await ticks()
    for _ in range(100):
        await agent.say(*[f.Heartbeat([])] * 100)
    assert not agent.connection.full
    assert await agent.connection.take() == [f.HeartbeatAck()]


async def test_an_agent_that_does_not_read_is_ended_and_suspended_and_gets_everything_when_it_is_back() -> None:
    world = HubWorld()
    names = [f"m{place}" for place in range(16)]
    await world.create(*names)
    agent = await AgentPeer(world, capacity=16).serve()
    agent.stop_reading()
    big = Raw(b'[{"text":"' + b"x" * (OUTBOX_BYTES // 8) + b'"}]')
    for name in names:
        await world.ask(c.Deliver(name, f"for-{name}", big))
        if agent.connection.state == "ended":
            break
    assert name == "m8"
    assert agent.connectivity == "suspended"
    assert await agent.connection.take() == [
        f.Goodbye("slow", "this agent read so slowly that too much waited to be sent to it", 1.0)
    ]
    with pytest.raises(Unavailable):
        await agent.connection.take()
    await agent.reconnect()
    assert sorted(one.member_id for one in agent.take(a.SendStartRun)) == sorted(names[:9])


async def test_what_one_decision_releases_is_never_too_much() -> None:
    world = HubWorld()
    names = [f"m{place}" for place in range(60)]
    await world.create()
    context = Raw(b'"' + b"x" * 60_000 + b'"')
    specs = [c.MemberSpec(name, "analyst", context=context) for name in names]
    await world.ask(c.SpawnMembers(specs))
    agent = await AgentPeer(world).serve()
    assert not agent.ended()
    assert len(world.actor.mob.attachments[agent.attachment_id].members) == 60
    agent.break_off()
    await agent.reconnect()
    assert len(agent.take(a.SendAssign)) == 60
    assert agent.connectivity == "connected"


async def test_a_long_message_lets_others_run_in_between() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    said = asyncio.ensure_future(world.hub.receive(agent.connection, [f.Heartbeat([])] * 1_000))
    turns = 0
    while not said.done():
        await ticks(1)
        turns += 1
    assert turns >= 10


async def test_many_agents_that_are_lost_at_once_are_closed_a_few_at_a_time() -> None:
    world = HubWorld()
    await world.create("ada")
    agents = [await AgentPeer(world, f"h{place}").hello() for place in range(40)]
    for agent in agents:
        agent.break_off()
    left = []
    for _ in range(round((TERMS.grace_s + 5) * 2)):
        world.clock.advance(0.5)
        await ticks(1)
        left.append(len(world.actor.mob.attachments))
    await world.elapse(1)
    assert not world.actor.mob.attachments
    steps = [before - after for before, after in pairwise(left)]
    assert max(steps) <= 8


class CountingStore(MemoryStore):
    """A memory store that counts the mobs for which it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    async def acquire_many(self, mob_ids: Sequence[str]) -> dict[str, Loaded | None]:
        self.asked.update(mob_ids)
        return await super().acquire_many(mob_ids)


async def test_of_many_mobs_some_are_looked_at_in_one_go_and_all_in_the_end() -> None:
    store = CountingStore()
    world = HubWorld(store)
    names = {f"m{place}" for place in range(2 * CREWS_AT_ONCE + 1)}
    for name in names:
        await AgentPeer(world, name).hello(mob_id=name)
    store.asked.clear()
    # Their agents wait for mobs that are not there yet: for each of them a task looks for its mob again.
    before = asyncio.all_tasks()
    world.clock.advance(TERMS.lease_s + 1)
    assert len(asyncio.all_tasks() - before) == CREWS_AT_ONCE
    turns = 0
    while store.asked.keys() != names:
        await ticks(1)
        turns += 1
        assert turns < 1_000
    assert set(store.asked.values()) == {1}


async def test_a_hub_without_agents_plans_nothing_and_remembers_nobody() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    await agent.say(f.Detach())
    await world.elapse(3)
    assert not world.clock.planned
    assert world.hub.connections == 0
    assert agent.connectivity == "none"
    assert not world.hub.is_draining("m", agent.connection.attachment_id)
    assert list(world.hub.connected("m")) == []  # type: ignore[call-overload]  # a set, though nobody is promised one
