"""Taking a mob over and folding its log, a little at a time."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from mobd_server.actors.feed import Feed
from mobd_server.actors.publisher import Publisher
from mobd_server.errors import MobNotFound, MobQuarantined
from mobd_server.machines.decision import fold, new_mob
from mobd_server.machines.records import Record
from mobd_server.machines.state import Mob
from mobd_server.ports import Store

log: Final = logging.getLogger(__name__)

PAGE_EVENTS: Final = 2_000
# What is folded in one go: others wait as long.
STEP_EVENTS: Final = 250


async def take_over(store: Store, publisher: Publisher, mob_id: str) -> tuple[Mob, int, Feed]:
    """Become the mob's only incarnation; return its state, its epoch and its feed.

    What the log holds beyond what was published is published on the way: an earlier incarnation may have committed it
    and never have learnt that. Raises MobNotFound, MobQuarantined, MobFormatNewer and Unavailable.
    """
    loaded = await store.acquire(mob_id)
    if loaded is None:
        raise MobNotFound(f"mob '{mob_id}' does not exist", {"mob_id": mob_id})
    feed = publisher.open(mob_id, loaded.log_id, loaded.first_seq, loaded.head)
    mob = new_mob(mob_id)
    while mob.head < loaded.head:
        page = await store.read_events(mob_id, mob.head, min(PAGE_EVENTS, loaded.head - mob.head))
        if not page:
            raise MobQuarantined(
                f"the log of mob '{mob_id}' ends at {mob.head} and should end at {loaded.head}", {"mob_id": mob_id}
            )
        for start in range(0, len(page), STEP_EVENTS):
            step = page[start : start + STEP_EVENTS]
            _fold(mob, step)
            if mob.head > feed.head:
                feed.publish(step[max(0, feed.head + 1 - step[0].seq) :])
            await asyncio.sleep(0)
    feed.ended = mob.phase == "destroyed"
    return mob, loaded.epoch, feed


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
