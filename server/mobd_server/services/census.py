"""Counting what a server has in memory, for its metrics.

A count walks over all mobs, a few hundred members in each tick, so that no call waits for it; and it is made again
only after a multiple of the time that it took, however often it is asked for.
"""

import asyncio
from typing import Final

from msgspec import Struct, field

from mobd_server.actors.actor import MobActor
from mobd_server.actors.hub import Hub
from mobd_server.actors.journal import Journal
from mobd_server.actors.publisher import Publisher
from mobd_server.actors.registry import Registry
from mobd_server.machines.operation_table import LIVE_STATUSES
from mobd_server.machines.state import Member, OperationStatus
from mobd_server.ports import Clock

# How long a count is good for at least, and in multiples of the time that it took.
FRESH_S: Final = 1.0
FRESH_TIMES: Final = 20
# After how many mobs and members others get their turn.
AT_ONCE: Final = 500


class Numbers(Struct):
    """What was counted. Ages are in seconds; without anything that waits they are 0."""

    mobs: int = 0
    unreadable: int = 0
    newer: int = 0
    members: int = 0
    # Of running mobs: members that have inputs and no agent.
    unserved: int = 0
    runs: int = 0
    # Of operations that have not ended, by status.
    operations: dict[OperationStatus, int] = field(default_factory=lambda: dict.fromkeys(sorted(LIVE_STATUSES), 0))
    # Of running mobs, those in runs not counted.
    inputs_waiting: int = 0
    oldest_input_s: float = 0.0
    agents_connected: int = 0
    agents_suspended: int = 0
    agents_draining: int = 0
    suspensions: int = 0
    streams: int = 0
    followers: int = 0
    waiters: int = 0
    # Of the follower that is farthest behind, in events that are published and it has not taken.
    lag: int = 0
    appends_waiting: int = 0
    append_age_s: float = 0.0
    down: bool = False


class Census:
    """Counts what the parts of a server hold. Use it on the loop."""

    def __init__(self, registry: Registry, publisher: Publisher, hub: Hub, journal: Journal, clock: Clock) -> None:
        self._registry = registry
        self._publisher = publisher
        self._hub = hub
        self._journal = journal
        self._clock = clock
        self._numbers = Numbers()
        self._fresh_until = float("-inf")
        self._lock = asyncio.Lock()

    async def numbers(self) -> Numbers:
        """Return what there is, as it was counted at most a second, or twenty times the time it takes, ago.

        The journal is looked at anew each time: it costs nothing, and says the same as health and readiness.
        """
        async with self._lock:
            began = self._clock.monotonic()
            if began >= self._fresh_until:
                self._numbers = await self._count()
                ended = self._clock.monotonic()
                self._fresh_until = ended + max(FRESH_S, FRESH_TIMES * (ended - began))
            found, journal = self._numbers, self._journal
            found.appends_waiting, found.append_age_s, found.down = journal.waiting, journal.age_s, journal.down
            return found

    async def _count(self) -> Numbers:
        found = Numbers()
        work = 0
        for actor in list(self._registry.actors):
            members = list(actor.mob.members.values())
            for start in range(0, len(members), AT_ONCE):
                page = members[start : start + AT_ONCE]
                self._count_members(found, actor, page)
                work = await _pause_after(work + len(page))
            operations = list(actor.mob.operations.values())
            for start in range(0, len(operations), AT_ONCE):
                some = operations[start : start + AT_ONCE]
                for operation in some:
                    if operation.status in LIVE_STATUSES:
                        found.operations[operation.status] += 1
                work = await _pause_after(work + len(some))
            found.runs += len(actor.mob.runs)
            work = await _pause_after(work + 1)
        await self._count_feeds(found)
        self._count_rest(found)
        return found

    def _count_members(self, found: Numbers, actor: MobActor, members: list[Member]) -> None:
        found.members += len(members)
        if actor.mob.phase != "running":
            # Nothing runs there because somebody said so.
            return
        now = self._clock.now()
        for member in members:
            waiting = [*(member.queue or ()), *(member.steer or ())]
            if waiting:
                found.inputs_waiting += len(waiting)
                found.unserved += member.executor is None
                age_s = (now - min(one.at for one in waiting)) / 1_000_000
                found.oldest_input_s = max(found.oldest_input_s, age_s)

    async def _count_feeds(self, found: Numbers) -> None:
        for place, feed in enumerate(list(self._publisher.feeds())):
            found.waiters += len(feed.watches)
            for subscription in feed.subscriptions:
                found.followers += 1
                found.lag = max(found.lag, feed.head - subscription.cursor)
            if place % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)

    def _count_rest(self, found: Numbers) -> None:
        registry, hub = self._registry, self._hub
        found.mobs = registry.loaded
        found.unreadable, found.newer = len(registry.quarantined), len(registry.newer)
        for presence in hub.presences():
            if not presence.present:
                found.agents_suspended += 1
            elif presence.draining:
                found.agents_draining += 1
            else:
                found.agents_connected += 1
        found.suspensions, found.streams = hub.suspensions, hub.connections


async def _pause_after(work: int) -> int:
    """Let others have their turn after so much; return how much was done since the last pause."""
    if work < AT_ONCE:
        return work
    await asyncio.sleep(0)
    return 0
