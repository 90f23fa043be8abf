"""A stage whose callers only deliver and whose agents only succeed: what must come of that is known exactly.

After each injection every input that was acknowledged must have been consumed once, in the order in which it was sent.
"""

import asyncio
import random
from collections import Counter, defaultdict
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Final

from tests.checker.checker import check, told
from tests.checker.recording import Caller
from tests.crash.load import CALL_S, insist
from tests.crash.stage import CALLERS, LIMIT_S, Stage
from tests.faults import ledger
from tests.support.disks import Disk
from tests.support.peers import AgentProcess, Watcher, canonical, content
from tests.support.postgres import Cluster
from tests.support.processes import WAIT_S

from mobd.v1 import bridge_pb2, common_pb2

SLOW_S: Final = 0.2


class PlainStage(Stage):
    """See the head of this file."""

    members = tuple(f"m{at}" for at in range(8))
    unit = "inputs"
    callers = CALLERS
    hosts = 2
    watchers = 1
    # How many inputs are delivered at once, at random.
    sizes: tuple[int, ...] = (1, 1, 1, 5)
    # Callers pause while more than this waits for the agents.
    backlog = 40

    def __init__(self, folder: Path, cluster: Cluster | None, disk: Disk | None) -> None:
        super().__init__(folder, cluster, disk)
        self.acknowledged: dict[tuple[str, str], str] = {}
        self.sent: dict[str, list[str]] = defaultdict(list)
        self.failures: Counter[tuple[str, str]] = Counter()
        self._processes: list[AgentProcess] = []
        self._watchers: list[Watcher] = []
        self._over = False

    @property
    def agents(self) -> list[AgentProcess]:
        return self._processes

    async def populate(self) -> None:
        self._admin = await self.peer()
        for at in range(self.hosts):
            # Some come back as the hosts that they were and take over at once, others as somebody new, after the grace.
            settings = {"MOBD_HOST_ID": f"host-{at}"} if at % 2 else {}
            agent = AgentProcess(self.folder, f"agent-{at}", self.to_agents.target, settings=settings)
            self.stack.callback(agent.kill9)
            self._processes.append(agent.start())
        for _ in range(self.watchers):
            self._watchers.append(Watcher(await self.peer(), self.changes))
            self.stack.push_async_callback(self._watchers[-1].stop)
        self._callers = [await self.caller(f"caller-{at}") for at in range(self.callers)]
        follower = asyncio.create_task((await self.caller("follower")).follow())
        self.stack.callback(follower.cancel)
        everyone = "every agent attached"
        await self.changes.until(lambda: self._watchers[0].kinds.get("attachment_opened") == self.hosts, everyone)

    def calling(self, draw: random.Random) -> AbstractAsyncContextManager[None]:
        self._over = False
        seeds = [draw.randrange(1 << 32) for _ in self._callers]
        sending = [
            self._send(caller, self.members[at :: len(self._callers)], random.Random(seeds[at]))
            for at, caller in enumerate(self._callers)
        ]
        return self.calls_of(sending, self._enough)

    async def check(self) -> None:
        await self.caught_up()
        last = {member: names[-1] for member, names in self.sent.items() if names}
        await asyncio.gather(*(self._admin.end_of(member, name, WAIT_S * 2) for member, name in last.items()))
        log = await self._admin.log()
        for watcher in self._watchers:
            await watcher.reach(len(log))
            # It may have seen more already: of an agent whose grace has passed, say.
            ledger.check_seen(log, watcher.seen[: len(log)])
        ledger.check_gap_free(log)
        ledger.check_consumed_once(log, self.acknowledged)
        ledger.check_sent_order(log, self.sent)
        ledger.check_runs(log)
        ledger.check_order(log)
        ledger.check_calls(log, [call for agent in self._processes for call in agent.calls()])

    async def judge(self) -> None:
        await self.recorded_admin.finish(quiet=True)
        verdicts = check(self.recorder)
        assert not verdicts, told(verdicts)

    def _enough(self) -> None:
        self._over = True

    async def _send(self, caller: Caller, mine: tuple[str, ...], draw: random.Random) -> None:
        try:
            while not self._over:
                size = draw.choice(self.sizes)
                batch = [self._next(draw.choice(mine)) for _ in range(size)]
                await self._deliver(caller, batch)
                if draw.random() < 0.1:
                    # Whoever asks again is told the same.
                    await self._deliver(caller, batch)
                await self.changes.until(lambda: self._over or self._has_room(), "less waiting", LIMIT_S)
        finally:
            self.changes.tell()

    def _next(self, member_id: str) -> tuple[str, str]:
        input_id = f"in-{len(self.sent[member_id])}"
        self.sent[member_id].append(input_id)
        return member_id, input_id

    def _has_room(self) -> bool:
        return len(self.acknowledged) - self._watchers[0].consumed < self.backlog

    async def _deliver(self, caller: Caller, batch: list[tuple[str, str]]) -> None:
        if len(batch) == 1:
            [(member_id, input_id)] = batch
            single = bridge_pb2.DeliverRequest(
                mob_id=caller.mob, member_id=member_id, input_id=input_id, content=_order(input_id)
            )
            told = [canonical(await insist(partial(caller.once, "Deliver", single, CALL_S), self.failures))]
        else:
            many = bridge_pb2.DeliverBatchRequest(
                mob_id=caller.mob,
                deliveries=[
                    bridge_pb2.Delivery(member_id=member_id, input_id=input_id, content=_order(input_id))
                    for member_id, input_id in batch
                ],
            )
            answer = await insist(partial(caller.once, "DeliverBatch", many, CALL_S), self.failures)
            told = [canonical(one) for one in answer.outcomes]
        for key, name in zip(batch, told, strict=True):
            assert self.acknowledged.setdefault(key, name) == name, f"{key} was told two names"
        self.answered(len(batch))


def _order(input_id: str) -> common_pb2.Content:
    """Most turns are short, some take a while."""
    slow = int(input_id.rpartition("-")[2]) % 20 == 7
    return content(n=input_id, do="sleep", s=SLOW_S) if slow else content(n=input_id)
