"""A working mob under a steady load, its server and agents killed again and again.

MOBD_TEST_FULL=1 delivers 20,000 inputs; MOBD_TEST_SEED repeats a run.
"""

import asyncio
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from tests.faults.conftest import World
from tests.faults.ledger import (
    check_calls,
    check_consumed_once,
    check_gap_free,
    check_order,
    check_runs,
    check_seen,
    check_sent_order,
)
from tests.support.peers import CALL_S, AgentProcess, Peer, Watcher, answered, canonical, content
from tests.support.processes import Changes, say
from tests.support.served import Served

from mobd.v1 import bridge_pb2, common_pb2

FULL = os.environ.get("MOBD_TEST_FULL") == "1"
INPUTS = 20_000 if FULL else 4_000
LIMIT_S = 300 if FULL else 100
MEMBERS = [f"member-{at:03}" for at in range(100)]
AGENTS = 4
CONNECTIONS = 8
SENDERS = 32
UNANSWERED = 50
WATCHERS = 3
# Beside what is delivered fast, some turns take long enough that a kill finds them at work.
SLOW_EVERY = 40


class Load:
    """Senders, each with members of its own, to which it delivers one call after another; every answer is noted."""

    def __init__(self, seed: int, changes: Changes) -> None:
        self.acknowledged: dict[tuple[str, str], str] = {}
        self.sent: dict[str, list[str]] = defaultdict(list)
        self.unanswered = 0
        self.kinds: Counter[str] = Counter()
        self._seed = seed
        self._changes = changes

    async def send(self, peer: Peer, number: int) -> None:
        """Deliver this sender's share, alone or in batches of random size."""
        random_ = random.Random(f"{self._seed}-{number}")
        share = INPUTS // SENDERS + (number < INPUTS % SENDERS)
        mine = MEMBERS[number::SENDERS]
        names = [(random_.choice(mine), f"{number}-{at}") for at in range(share)]
        while names:
            size = random_.choice((1, 1, 4, 16, 32))
            batch, names = names[:size], names[size:]
            for member_id, input_id in batch:
                self.sent[member_id].append(input_id)
            self.unanswered += len(batch)
            self._changes.tell()
            told = await (self._batch(peer, batch) if len(batch) > 1 else self._single(peer, *batch[0]))
            self.unanswered -= len(batch)
            self.acknowledged.update(zip(batch, told, strict=True))
            self._changes.tell()

    async def _single(self, peer: Peer, member_id: str, input_id: str) -> list[str]:
        request = bridge_pb2.DeliverRequest(
            mob_id=peer.mob_id, member_id=member_id, input_id=input_id, content=order(input_id)
        )
        answer = await answered(lambda: peer.bridge.Deliver(request, wait_for_ready=True, timeout=CALL_S), LIMIT_S)
        self.kinds[answer.WhichOneof("outcome") or ""] += 1
        return [canonical(answer)]

    async def _batch(self, peer: Peer, batch: list[tuple[str, str]]) -> list[str]:
        request = bridge_pb2.DeliverBatchRequest(
            mob_id=peer.mob_id,
            deliveries=[
                bridge_pb2.Delivery(member_id=member_id, input_id=input_id, content=order(input_id))
                for member_id, input_id in batch
            ],
        )
        answer = await answered(lambda: peer.bridge.DeliverBatch(request, wait_for_ready=True, timeout=CALL_S), LIMIT_S)
        self.kinds.update(one.WhichOneof("outcome") or "" for one in answer.outcomes)
        return [canonical(one) for one in answer.outcomes]


def order(input_id: str) -> common_pb2.Content:
    """Most turns are short, some take a while."""
    if int(input_id.partition("-")[2]) % SLOW_EVERY == 0:
        return content(n=input_id, do="sleep", s=0.3)
    return content(n=input_id)


def plan(seed: int) -> Iterator[tuple[int, str]]:
    """Draw after how many acknowledgements what is killed: the server three times, agents twice."""
    draw = random.Random(seed)
    victims = ["server"] * 3 + ["agent"] * 2
    draw.shuffle(victims)
    moments = sorted(draw.randrange(INPUTS // 20, INPUTS * 17 // 20) for _ in victims)
    yield from zip(moments, victims, strict=True)


async def kill_at(
    moment: int,
    victim: str,
    load: Load,
    watcher: Watcher,
    changes: Changes,
    served: Served,
    agents: list[AgentProcess],
) -> str:
    """Kill `victim` as soon as so many inputs are acknowledged, others are not, and runs are in flight."""

    def ripe() -> bool:
        return (
            len(load.acknowledged) >= moment
            and load.unanswered >= UNANSWERED
            and watcher.runs > 0
            and any(agent.in_flight() for agent in agents)
        )

    await changes.until(ripe, f"{moment} acknowledged, {UNANSWERED} not, runs in flight", LIMIT_S)
    found = f"{len(load.acknowledged)} acknowledged, {load.unanswered} not, {watcher.runs} runs in flight"
    if victim == "server":
        served.kill9()
        await served.restart()
        return f"server: {found}"
    chosen = max(agents, key=AgentProcess.in_flight)
    calls = chosen.in_flight()
    chosen.kill9()
    chosen.start()
    return f"{chosen.name}: {found}, {calls} handler calls in it"


@pytest.mark.asyncio
@pytest.mark.timeout(LIMIT_S + 60)
async def test_every_acknowledged_input_is_consumed_once_and_in_order_whatever_is_killed(world: World) -> None:
    seed = int(os.environ.get("MOBD_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    say(f"MOBD_TEST_SEED={seed}")
    served = await world.serve(MOBD_GRACE_S="2")
    admin = await world.peer(served)
    await admin.create(MEMBERS)
    # Two come back as the host that they were, and take over at once; two as somebody new, after the grace.
    agents = [
        world.agent(served, f"agent-{at}", {"MOBD_HOST_ID": f"host-{at}"} if at % 2 else {}, capacity=16)
        for at in range(AGENTS)
    ]
    changes = Changes()
    load = Load(seed, changes)
    async with AsyncExitStack() as stack:
        watchers = []
        for _ in range(WATCHERS):
            watcher = Watcher(await world.peer(served), changes)
            stack.push_async_callback(watcher.stop)
            watchers.append(watcher)
        peers = [await world.peer(served) for _ in range(CONNECTIONS)]
        senders = [asyncio.ensure_future(load.send(peers[at % CONNECTIONS], at)) for at in range(SENDERS)]
        stack.callback(lambda: [sender.cancel() for sender in senders])
        for moment, victim in plan(seed):
            say(await kill_at(moment, victim, load, watchers[0], changes, served, agents))
        await asyncio.gather(*senders)
        assert len(load.acknowledged) == INPUTS
        # Order is kept, so a member whose last input has ended has none left.
        await asyncio.gather(*(admin.end_of(member_id, names[-1], LIMIT_S) for member_id, names in load.sent.items()))
        log = await admin.log()
        for watcher in watchers:
            await watcher.reach(len(log))

    calls = [call for agent in agents for call in agent.calls()]
    say(f"{len(log)} events, {len(calls)} handler calls, {dict(load.kinds)}")
    check_gap_free(log)
    check_consumed_once(log, load.acknowledged)
    check_sent_order(log, load.sent)
    check_runs(log)
    check_order(log)
    check_calls(log, calls)
    for watcher in watchers:
        check_seen(log[: len(watcher.seen)], watcher.seen)
        assert watcher.breaks >= len(served.kills)
