"""What is done for loaded mobs while nobody asks: snapshots of those whose log grew, and leave for those at rest.

A look goes over all loaded mobs every few seconds, some at a time; between looks nothing of this costs a decision
more than an integer. A snapshot is folded from the log by the rebuilder, never taken from the state of a mob that
decides, so that what is wrong in memory never reaches it.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from mobd_server.actors.actor import MobActor
from mobd_server.actors.links import Hub
from mobd_server.actors.publisher import Publisher
from mobd_server.errors import MobdError
from mobd_server.machines import snapshot as snapshots
from mobd_server.machines.decision import wake_at
from mobd_server.machines.state import Mob
from mobd_server.ports import GONE, Clock, Rebuilder, Snapshot, SnapshotMeter, Timer, Writer

log: Final = logging.getLogger(__name__)

LOOK_S: Final = 5.0
# How many mobs are looked at in one tick.
LOOK_AT_ONCE: Final = 500
# A snapshot that failed is tried again after this time.
AGAIN_S: Final = 60.0


class Keeping(Struct, frozen=True):
    """When snapshots are taken and when mobs leave memory."""

    # Events behind the newest snapshot with which the next one is due.
    snapshot_events: int = 20_000
    # The fewest events behind it for which a mob that leaves memory gets one.
    snapshot_tail: int = 500
    # Seconds without a call; 0: no mob leaves memory.
    passivate_after_s: float = 900.0


class Upkeep:
    """The upkeep of one registry's mobs. `leave` makes a mob at rest leave memory."""

    def __init__(
        self,
        keeping: Keeping,
        rebuilder: Rebuilder,
        writer: Writer,
        publisher: Publisher,
        hub: Hub,
        clock: Clock,
        actors: Mapping[str, MobActor],
        leave: Callable[[MobActor], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        meter: SnapshotMeter | None = None,
    ) -> None:
        self._keeping = keeping
        self._rebuilder = rebuilder
        self._writer = writer
        self._publisher = publisher
        self._hub = hub
        self._clock = clock
        self._actors = actors
        self._leave = leave
        self._spawn = spawn
        self._meter = meter
        self._loop = asyncio.get_running_loop()
        after = keeping.passivate_after_s
        self._look_s = min(LOOK_S, after / 4) if after else LOOK_S
        self._timer: Timer | None = None
        # When the last look began. It is noted for a mob that is used until the next one.
        self._looked_at = clock.monotonic()
        self._used: dict[str, float] = {}
        # The newest snapshot of each loaded mob.
        self._newest: dict[str, int] = {}
        # When a snapshot may be tried again.
        self._again: dict[str, float] = {}
        self._compacting: asyncio.Task[None] | None = None
        self._stopped = False

    def used(self, mob_id: str) -> None:
        """Take note that somebody uses a mob."""
        self._used[mob_id] = self._looked_at

    def loaded(self, mob_id: str, snapshot_seq: int) -> None:
        """Take note of a mob that is in memory from now on."""
        if not self._newest:
            # While memory was empty nobody looked.
            self._looked_at = self._clock.monotonic()
        self._newest[mob_id] = snapshot_seq
        self.used(mob_id)
        self._plan()

    def unloaded(self, mob_id: str) -> None:
        """Take note of a mob that is in memory no more."""
        self._newest.pop(mob_id, None)
        self._used.pop(mob_id, None)
        self._again.pop(mob_id, None)

    def stop(self) -> None:
        """Look no more, and end the fold that is in work; snapshots that are being written are written."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._compacting is not None:
            self._compacting.cancel()

    def _plan(self) -> None:
        if self._timer is None and not self._stopped:
            self._timer = self._clock.call_later(self._look_s, self._look)

    def _look(self) -> None:
        self._timer = None
        self._looked_at = self._clock.monotonic()
        self._go_on(iter(list(self._actors.values())))

    def _go_on(self, actors: Iterator[MobActor]) -> None:
        for _ in range(LOOK_AT_ONCE):
            actor = next(actors, None)
            if actor is None:
                if self._actors:
                    self._plan()
                return
            if not actor.failed and not self._stopped:
                self._look_at(actor)
        self._loop.call_soon(self._go_on, actors)

    def _look_at(self, actor: MobActor) -> None:
        mob_id = actor.mob_id
        if mob_id not in self._newest:
            return
        if self._idle(actor):
            self._passivate(actor)
            return
        behind = actor.confirmed - self._newest[mob_id]
        due = behind >= self._keeping.snapshot_events and self._looked_at >= self._again.get(mob_id, 0.0)
        if due and self._compacting is None:
            self._compacting = self._loop.create_task(self._compact(mob_id, actor.log_id, actor.confirmed))

    def _idle(self, actor: MobActor) -> bool:
        """Whether nobody has used the mob for long enough, and nothing is owed to anybody or soon will be."""
        after = self._keeping.passivate_after_s
        # The look that is noted may have been as long before the use.
        unused = self._looked_at - self._used[actor.mob_id] - self._look_s
        if not after or unused < after or not actor.at_rest:
            return False
        mob = actor.mob
        due = wake_at(mob)
        return (
            not mob.attachments
            and not mob.runs
            and (due is None or due > self._clock.now() + after * 1_000_000)
            and not self._publisher.watched(actor.mob_id)
            and self._hub.idle(actor.mob_id)
        )

    def _passivate(self, actor: MobActor) -> None:
        mob, newest = actor.mob, self._newest[actor.mob_id]
        self._leave(actor)
        if mob.head - newest >= self._keeping.snapshot_tail:
            # Nobody decides on this state any more.
            self._spawn(self._keep(mob))

    async def _keep(self, mob: Mob) -> None:
        began = self._clock.monotonic()
        try:
            text = await asyncio.to_thread(snapshots.take, mob)
        except snapshots.SnapshotUnusable:
            log.exception("snapshot_failed", extra={"mob_id": mob.mob_id, "seq": mob.head})
            self._count_failure()
            return
        await self._write(mob.mob_id, mob.log_id, mob.head, text, began)

    async def _compact(self, mob_id: str, log_id: str, seq: int) -> None:
        began = self._clock.monotonic()
        try:
            text = await self._rebuilder.state(mob_id, seq)
        except MobdError as error:
            actor = self._actors.get(mob_id)
            # One that was deleted meanwhile needs none; its name may be another's already, with another log.
            if actor is not None and actor.log_id == log_id:
                self._failed(mob_id, seq, error.message)
        except Exception:
            log.exception("snapshot_failed", extra={"mob_id": mob_id, "seq": seq})
            self._count_failure()
            self._put_off(mob_id)
        else:
            # Not once more while it is being written, and nothing is cut short any more.
            self._put_off(mob_id)
            self._spawn(self._write(mob_id, log_id, seq, text, began))
        finally:
            self._compacting = None

    async def _write(self, mob_id: str, log_id: str, seq: int, text: bytes, began: float) -> None:
        written: asyncio.Future[str] = self._loop.create_future()
        snapshot = Snapshot(seq, snapshots.FORMAT, self._clock.now(), text.decode())
        self._writer.write_snapshot(mob_id, log_id, snapshot, self._keeping.snapshot_events, written.set_result)
        error = await written
        if error:
            if error != GONE:
                self._failed(mob_id, seq, error)
            return
        log.info("snapshot_written", extra={"mob_id": mob_id, "seq": seq, "bytes": len(text)})
        if self._meter is not None:
            self._meter.snapshot_written(self._clock.monotonic() - began)
        self._again.pop(mob_id, None)
        if mob_id in self._newest:
            self._newest[mob_id] = max(seq, self._newest[mob_id])

    def _failed(self, mob_id: str, seq: int, error: str) -> None:
        log.warning("snapshot_failed", extra={"mob_id": mob_id, "seq": seq, "error": error})
        self._count_failure()
        self._put_off(mob_id)

    def _count_failure(self) -> None:
        if self._meter is not None:
            self._meter.snapshot_failed()

    def _put_off(self, mob_id: str) -> None:
        if mob_id in self._newest:
            self._again[mob_id] = self._clock.monotonic() + AGAIN_S
