"""A working mob under a steady load, its server and agents killed again and again.

MOBD_TEST_FULL=1 delivers 20,000 inputs; MOBD_TEST_SEED repeats a run.
"""

import asyncio
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
from tests.support.settings import setting

from mobd.v1 import bridge_pb2, common_pb2

FULL = setting("MOBD_TEST_FULL") == "1"
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
# Senders pause while more than this waits for the agents.
BACKLOG = 2_000


class Load:
    """Senders, each with members of its own, to which it delivers one call after another; every answer is noted."""

    def __init__(self, seed: int, changes: Changes, watcher: Watcher) -> None:
        self.acknowledged: dict[tuple[str, str], str] = {}
        self.sent: dict[str, list[str]] = defaultdict(list)
        self.unanswered = 0
        self.kinds: Counter[str] = Counter()
        # Senders go on until this is set, and longer if they have not sent all.
        self.killed_all = False
        self._seed = seed
        self._changes = changes
        self._watcher = watcher

    async def send(self, peer: Peer, number: int) -> None:
        """Deliver this sender's share, alone or in batches of random size."""
        draw = random.Random(f"{self._seed}-{number}")
        mine = MEMBERS[number::SENDERS]
        count = 0
        while count < INPUTS // SENDERS or not self.killed_all:
            size = draw.choice((1, 1, 4, 16, 32))
            batch = [(draw.choice(mine), f"{number}-{count + at}") for at in range(size)]
            count += size
            for member_id, input_id in batch:
                self.sent[member_id].append(input_id)
            self.unanswered += size
            self._changes.tell()
            told = await (self._batch(peer, batch) if size > 1 else self._single(peer, *batch[0]))
            self.unanswered -= size
            self.acknowledged.update(zip(batch, told, strict=True))
            self._changes.tell()
            await self._changes.until(self._has_room, "less waiting", LIMIT_S)

    def _has_room(self) -> bool:
        """Whether so little waits that agents are kept busy, and more is wanted."""
        return len(self.acknowledged) - self._watcher.consumed < BACKLOG

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
    if int(input_id.partition("-")[2]) % SLOW_EVERY == 7:
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
    watchers: list[Watcher],
    changes: Changes,
    served: Served,
    agents: list[AgentProcess],
) -> str:
    """Kill `victim` as soon as so many inputs are acknowledged, others are not, and runs are in flight.

    Every watcher is in the middle of its stream then.
    """

    def ripe() -> bool:
        return (
            len(load.acknowledged) >= moment
            and load.unanswered >= UNANSWERED
            and watchers[0].runs > 0
            and all(watcher.live for watcher in watchers)
            and any(agent.in_flight() for agent in agents)
        )

    def found() -> str:
        return f"{len(load.acknowledged)} acknowledged, {load.unanswered} not, {watchers[0].runs} runs in flight"

    await changes.until(ripe, f"a moment after {moment} acknowledgements to kill the {victim}", LIMIT_S, found)
    state = found()
    if victim == "server":
        served.kill9()
        await served.restart()
        return f"server: {state}"
    chosen = max(agents, key=AgentProcess.in_flight)
    calls = chosen.in_flight()
    chosen.kill9()
    chosen.start()
    return f"{chosen.name}: {state}, {calls} handler calls in it"


@pytest.mark.asyncio
@pytest.mark.timeout(LIMIT_S + 60)
async def test_every_acknowledged_input_is_consumed_once_and_in_order_whatever_is_killed(world: World) -> None:
    seed = int(setting("MOBD_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    say(f"MOBD_TEST_SEED={seed}")
    served = await world.serve(MOBD_GRACE_S="15" if FULL else "8")
    admin = await world.peer(served)
    await admin.create(MEMBERS)
    # Two come back as the host that they were, and take over at once; two as somebody new, after the grace.
    agents = [
        world.agent(served, f"agent-{at}", {"MOBD_HOST_ID": f"host-{at}"} if at % 2 else {}, capacity=8, members=25)
        for at in range(AGENTS)
    ]
    changes = Changes()
    async with AsyncExitStack() as stack:
        watchers = []
        for _ in range(WATCHERS):
            watcher = Watcher(await world.peer(served), changes)
            stack.push_async_callback(watcher.stop)
            watchers.append(watcher)
        everyone = "every agent attached"
        await changes.until(lambda: watchers[0].kinds.get("attachment_opened") == AGENTS, everyone)
        load = Load(seed, changes, watchers[0])
        peers = [await world.peer(served) for _ in range(CONNECTIONS)]
        senders = [asyncio.ensure_future(load.send(peers[at % CONNECTIONS], at)) for at in range(SENDERS)]
        stack.callback(lambda: [sender.cancel() for sender in senders])
        for moment, victim in plan(seed):
            say(await kill_at(moment, victim, load, watchers, changes, served, agents))
        load.killed_all = True
        await asyncio.gather(*senders)
        assert len(load.acknowledged) >= INPUTS
        # Order is kept, so a member whose last input has ended has none left.
        await asyncio.gather(*(admin.end_of(member_id, names[-1], LIMIT_S) for member_id, names in load.sent.items()))
        log = await admin.log()
        for watcher in watchers:
            await watcher.reach(len(log))

    calls = [call for agent in agents for call in agent.calls()]
    say(f"{len(load.acknowledged)} inputs, {len(log)} events, {len(calls)} handler calls, {dict(load.kinds)}")
    check_gap_free(log)
    check_consumed_once(log, load.acknowledged)
    check_sent_order(log, load.sent)
    check_runs(log)
    check_order(log)
    check_calls(log, calls)
    for watcher in watchers:
        check_seen(log[: len(watcher.seen)], watcher.seen)
        assert watcher.breaks >= len(served.kills)
