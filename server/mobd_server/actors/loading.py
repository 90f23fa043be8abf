"""Reading the state of a mob: the newest snapshot that helps, then the log behind it, a little at a time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from msgspec import Struct

from mobd_server.actors.ahead import Begun
from mobd_server.actors.feed import Feed
from mobd_server.actors.publisher import Publisher
from mobd_server.errors import CursorAhead, CursorTooOld, Internal, LogChanged, MobNotFound, MobQuarantined
from mobd_server.faults import ARMED, reach
from mobd_server.machines import snapshot as snapshots
from mobd_server.machines.decision import fold, new_mob
from mobd_server.machines.records import Record
from mobd_server.machines.state import Mob
from mobd_server.ports import Beginning, Loaded, Snapshot, Store

T = TypeVar("T")

log: Final = logging.getLogger(__name__)

PAGE_EVENTS: Final = 500
# What is folded in one go: others wait as long.
STEP_EVENTS: Final = 100


class Taken(Struct, gc=False):
    """A mob that was taken over: its state, this incarnation's epoch, its feed, and the snapshot it was read from."""

    mob: Mob
    epoch: int
    feed: Feed
    # 0: none.
    snapshot_seq: int


async def take_over(store: Store, publisher: Publisher, mob_id: str, begun: Begun | None) -> Taken:
    """Become the mob's only incarnation and read its state; `begun` is what was taken over of it already.

    What the log holds beyond what was published is published on the way: an earlier incarnation may have committed it
    and never have learnt that. Raises MobNotFound, MobQuarantined, MobFormatNewer and Unavailable.
    """
    loaded = begun.loaded if begun is not None else await _acquire(store, mob_id)
    if loaded is None:
        raise MobNotFound(f"mob '{mob_id}' does not exist", {"mob_id": mob_id})
    feed = publisher.open(mob_id, loaded.log_id, loaded.first_seq, loaded.head)

    def publish(step: Sequence[Record]) -> None:
        if ARMED:
            reach("during_recovery")
        if step[-1].seq > feed.head:
            feed.publish(step[max(0, feed.head + 1 - step[0].seq) :])

    # Not a newer snapshot: what was not published must be read.
    at_most, beginning = min(loaded.head, feed.head), begun.beginning if begun is not None else None
    reading = _read(store, mob_id, loaded, at_most, loaded.head, publish, beginning)
    # Another server may still be at its deletion, which takes nothing but the rows.
    mob, snapshot_seq = await unless_deleted(store, mob_id, loaded.log_id, reading)
    feed.ended = mob.phase == "destroyed"
    return Taken(mob, loaded.epoch, feed, snapshot_seq)


async def _acquire(store: Store, mob_id: str) -> Loaded | None:
    if ARMED:
        reach("before_acquire")
    loaded = await store.acquire(mob_id)
    if ARMED:
        reach("after_acquire")
    return loaded


async def rebuild(store: Store, mob_id: str, seq: int) -> Mob:
    """Return the state after event `seq`, without taking the mob over.

    Raises MobNotFound, CursorAhead, CursorTooOld, MobQuarantined, MobFormatNewer and Unavailable.
    """
    loaded = await store.head(mob_id)
    if loaded is None:
        raise MobNotFound(f"mob '{mob_id}' does not exist", {"mob_id": mob_id})
    check_cursor(mob_id, loaded, seq)
    reading = _read(store, mob_id, loaded, seq, seq, lambda _: None)
    mob, _ = await unless_deleted(store, mob_id, loaded.log_id, reading)
    return mob


async def unless_deleted(store: Store, mob_id: str, log_id: str, reading: Awaitable[T]) -> T:
    """Return what `reading` finds in a log; raise MobNotFound if it misses something because the mob was deleted."""
    try:
        return await reading
    except (Internal, MobQuarantined):
        await check_undeleted(store, mob_id, log_id)
        raise


async def check_undeleted(store: Store, mob_id: str, log_id: str) -> None:
    """Raise MobNotFound unless the mob still has the log that was looked at before; its name may be another's now."""
    found = await store.head(mob_id)
    if found is None or found.log_id != log_id:
        raise MobNotFound(f"mob '{mob_id}' was deleted", {"mob_id": mob_id})


def check_cursor(mob_id: str, log: Loaded, cursor: int, log_id: str = "") -> None:
    """Raise LogChanged, CursorAhead or CursorTooOld unless the log has a place `cursor`.

    `log_id` is the log that the cursor is of, if the caller knows.
    """
    if log_id and log_id != log.log_id:
        raise LogChanged(
            f"the cursor belongs to log {log_id}, but mob '{mob_id}' now has log {log.log_id}: read it anew",
            {"log_id": log.log_id},
        )
    if cursor > log.head:
        raise CursorAhead(
            f"cursor {cursor} is ahead of the log, which ends at {log.head}",
            {"cursor": str(cursor), "head": str(log.head)},
        )
    earliest = log.first_seq - 1
    if cursor < earliest:
        raise CursorTooOld(
            f"cursor {cursor} is too old: the log begins after {earliest}",
            {"cursor": str(cursor), "earliest": str(earliest)},
        )


async def _read(
    store: Store,
    mob_id: str,
    loaded: Loaded,
    at_most: int,
    head: int,
    folded: Callable[[Sequence[Record]], None],
    beginning: Beginning | None = None,
) -> tuple[Mob, int]:
    """Return the state at `head`, and the seq of the snapshot from which it was read, which is `at_most` or before.

    `beginning` is what was read already.
    """
    mob = await _from_snapshot(store, mob_id, loaded, at_most, beginning)
    snapshot_seq = mob.head
    first = beginning.events if beginning is not None else ()
    try:
        await _fold_up_to(store, mob, head, folded, first)
    except MobQuarantined:
        if snapshot_seq == 0 or loaded.first_seq > 1:
            raise
        # It may be the snapshot that is wrong, and not the log.
        log.warning(
            "snapshot_passed_over", extra={"mob_id": mob_id, "seq": snapshot_seq, "error": "it can't be folded"}
        )
        mob, snapshot_seq = new_mob(mob_id), 0
        await _fold_up_to(store, mob, head, folded, ())
    return mob, snapshot_seq


async def _from_snapshot(store: Store, mob_id: str, loaded: Loaded, at_most: int, beginning: Beginning | None) -> Mob:
    """Return the state of the newest snapshot that can be used; without one, the state before the first event."""
    found = beginning.snapshot if beginning is not None else await store.read_snapshot(mob_id, at_most)
    while found is not None:
        mob = await _usable(found, mob_id, loaded) if found.seq <= at_most else None
        if mob is not None:
            return mob
        found = await store.read_snapshot(mob_id, min(at_most, found.seq - 1))
    if loaded.first_seq > 1:
        raise MobQuarantined(
            f"the log of mob '{mob_id}' begins at {loaded.first_seq}, and no snapshot before it can be used",
            {"mob_id": mob_id},
        )
    return new_mob(mob_id)


async def _usable(found: Snapshot, mob_id: str, loaded: Loaded) -> Mob | None:
    why = f"it is of format {found.format}"
    if found.format == snapshots.FORMAT:
        try:
            mob = await _decoded(found.state)
        except snapshots.SnapshotUnusable as error:
            why = str(error)
        else:
            if (mob.mob_id, mob.head, mob.log_id) == (mob_id, found.seq, loaded.log_id):
                return mob
            why = f"it is of mob '{mob.mob_id}' at {mob.head} in log {mob.log_id}"
    log.warning("snapshot_passed_over", extra={"mob_id": mob_id, "seq": found.seq, "error": why})
    return None


async def _decoded(state: str) -> Mob:
    reading = snapshots.read(state)
    while True:
        try:
            next(reading)
        except StopIteration as done:
            mob: Mob = done.value
            return mob
        await asyncio.sleep(0)


async def _fold_up_to(
    store: Store, mob: Mob, head: int, folded: Callable[[Sequence[Record]], None], first: Sequence[Record]
) -> None:
    """Fold the log up to `head`; `folded` is called with the events of each step, once they are part of the state.

    `first` are events that were read already; they are of use if they follow the state.
    """
    page: Sequence[Record] = [record for record in first if mob.head < record.seq <= head]
    if page and page[0].seq != mob.head + 1:
        page = ()
    while mob.head < head:
        page = page or await store.read_events(mob.mob_id, mob.head, min(PAGE_EVENTS, head - mob.head))
        if not page:
            raise MobQuarantined(
                f"the log of mob '{mob.mob_id}' ends at {mob.head} and should end at {head}", {"mob_id": mob.mob_id}
            )
        for start in range(0, len(page), STEP_EVENTS):
            step = page[start : start + STEP_EVENTS]
            _fold(mob, step)
            folded(step)
            await asyncio.sleep(0)
        page = ()


def _fold(mob: Mob, records: Sequence[Record]) -> None:
    for record in records:
        try:
            fold(mob, record)
        except Exception as error:
            log.exception("fold_failed", extra={"mob_id": mob.mob_id, "seq": record.seq})
            raise MobQuarantined(
                f"event {record.seq} of mob '{mob.mob_id}' can't be applied; its events can still be read",
                {"mob_id": mob.mob_id, "seq": str(record.seq)},
            ) from error
