"""Mobs that are taken over many at a time, because each would cost a transaction of its own.

Those that owe something are taken over before anybody asks, and mostly what their states begin with is at hand when
they are loaded. That is used once, by the first load that comes: nobody in this process decides on the mob before, so
it is not out of date. Those that are asked for at the same time share transactions, as appends do.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import islice
from typing import Final

from msgspec import Struct

from mobd_server.actors.publisher import Publisher
from mobd_server.errors import Unavailable
from mobd_server.faults import ARMED, reach
from mobd_server.ports import Beginning, Loaded, Store, Wanted

log: Final = logging.getLogger(__name__)

# How many are taken over in one transaction, and of how many the beginnings are read in one.
ACQUIRED: Final = 256
READ: Final = 64
# The events of one mob that are read with those of others; one that has more is read on by itself.
EVENTS: Final = 500


class Begun(Struct, gc=False):
    """A mob that was taken over, and what its state begins with if that was read."""

    # None: there is no such mob.
    loaded: Loaded | None
    beginning: Beginning | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing more must be read."""
        if self.loaded is None or self.beginning is None:
            return False
        events, snapshot = self.beginning.events, self.beginning.snapshot
        seq = events[-1].seq if events else snapshot.seq if snapshot is not None else 0
        return seq >= self.loaded.head


class Ahead:
    """What was taken over and is not loaded yet. It holds the beginnings of two groups of mobs at most."""

    __slots__ = ("_acquiring", "_asked", "_begun", "_is_known", "_publisher", "_store", "_taking")

    def __init__(self, store: Store, publisher: Publisher, is_known: Callable[[str], bool]) -> None:
        self._store = store
        self._publisher = publisher
        # Whether this process has a mob in memory, or is about to: then it must not be taken from it.
        self._is_known = is_known
        # Mobs that are being taken over, with what ends when they are.
        self._acquiring: dict[str, asyncio.Future[None]] = {}
        self._begun: dict[str, Begun] = {}
        # Mobs that somebody waits for, to be taken over with the next, and what takes them.
        self._asked: dict[str, asyncio.Future[None]] = {}
        self._taking: asyncio.Task[None] | None = None

    def whole(self, mob_id: str) -> bool:
        """Whether all of a mob is at hand."""
        begun = self._begun.get(mob_id)
        return begun is not None and begun.whole

    async def use(self, mob_id: str) -> Begun | None:
        """Return a mob that was taken over, or is now, with others that are asked for; it is the caller's from now on.

        None: it has to be taken over by itself, for it can't be had without waiting. No two callers ask for the same
        at a time.
        """
        while (acquiring := self._acquiring.get(mob_id)) is not None:
            await asyncio.shield(acquiring)
        if mob_id not in self._begun:
            asked = self._asked[mob_id] = asyncio.get_running_loop().create_future()
            if self._taking is None:
                self._taking = asyncio.create_task(self._take())
            await asked
        return self._begun.pop(mob_id, None)

    def drop(self, mob_id: str) -> None:
        """Let nobody use what was taken over, or is being."""
        self._acquiring.pop(mob_id, None)
        self._begun.pop(mob_id, None)

    async def groups(self, mob_ids: Sequence[str]) -> AsyncGenerator[Sequence[str], None]:
        """Yield mobs in groups that were taken over as far as that was possible, the next being read meanwhile.

        What was read of a group is let go when the next is asked for; `drop` what nobody has used at the end.
        """
        reading: asyncio.Task[int] | None = None
        try:
            for start in range(0, len(mob_ids), ACQUIRED):
                some = mob_ids[start : start + ACQUIRED]
                await self._acquire([mob_id for mob_id in some if not self._is_known(mob_id)])
                reading = asyncio.create_task(self._read(some))
                while some:
                    count = await reading
                    group, some = some[:count], some[count:]
                    reading = asyncio.create_task(self._read(some))
                    yield group
                    for mob_id in group:
                        if mob_id in self._begun:
                            self._begun[mob_id].beginning = None
        finally:
            if reading is not None:
                reading.cancel()

    async def _take(self) -> None:
        """Take over what is asked for: while one transaction is under way, those gather that the next is for."""
        while self._asked:
            some = dict(islice(self._asked.items(), ACQUIRED))
            for mob_id in some:
                del self._asked[mob_id]
            await self._acquire(list(some))
            for asked in some.values():
                if not asked.done():
                    asked.set_result(None)
        self._taking = None

    async def _acquire(self, mob_ids: Sequence[str]) -> None:
        taken: dict[str, Loaded | None] = {}
        done = asyncio.get_running_loop().create_future()
        self._acquiring |= dict.fromkeys(mob_ids, done)
        try:
            if ARMED:
                reach("before_acquire")
            taken = await self._store.acquire_many(mob_ids)
            if ARMED:
                reach("after_acquire")
        except Unavailable as error:
            # Each is tried by itself, and whoever asked for it is told what is wrong.
            log.warning("acquire_failed", extra={"mobs": len(mob_ids), "error": error.message})
        except Exception:
            log.exception("acquire_failed", extra={"mobs": len(mob_ids)})
        finally:
            mine = [mob_id for mob_id in mob_ids if self._acquiring.get(mob_id) is done]
            for mob_id in mine:
                del self._acquiring[mob_id]
            done.set_result(None)
        for mob_id in mine:
            if mob_id in taken:
                self._begun[mob_id] = Begun(taken[mob_id])

    async def _read(self, mob_ids: Sequence[str]) -> int:
        """Read the beginnings of some of the first; return how many of the first are done with."""
        some = mob_ids[:READ]
        taken = [(mob_id, self._begun[mob_id].loaded) for mob_id in some if mob_id in self._begun]
        wanted = [self._wanted(mob_id, loaded) for mob_id, loaded in taken if loaded is not None]
        if not wanted:
            return len(some)
        try:
            found = await self._store.read_many(wanted, EVENTS)
        except Unavailable as error:
            log.warning("read_failed", extra={"mobs": len(wanted), "error": error.message})
            return len(some)
        except Exception:
            log.exception("read_failed", extra={"mobs": len(wanted)})
            return len(some)
        for one, beginning in zip(wanted, found, strict=False):
            # Somebody may have come for it.
            begun = self._begun.get(one.mob_id)
            if begun is not None:
                begun.beginning = beginning
        return len(some) if len(found) == len(wanted) else some.index(wanted[len(found)].mob_id)

    def _wanted(self, mob_id: str, loaded: Loaded) -> Wanted:
        # Not a newer snapshot: what was not published must be read.
        feed = self._publisher.feed(mob_id)
        return Wanted(mob_id, loaded.head if feed is None else min(loaded.head, feed.head))
