"""Reading and following the log of a mob."""

from collections.abc import AsyncIterator, Sequence
from typing import Final, Literal

from msgspec import Struct

from mobd_server.actors.loading import check_cursor, check_undeleted
from mobd_server.actors.publisher import Publisher
from mobd_server.actors.registry import Registry
from mobd_server.errors import Internal, MobNotFound, MobQuarantined
from mobd_server.machines.records import Record
from mobd_server.ports import Clock, Store

DEFAULT_LIMIT: Final = 1_000
PAGE_BYTES: Final = 1 << 20
# How many events a page looks at, so that a filter that matches little does not hold a call for long.
PAGE_SCANNED: Final = 10_000
READ_AT_ONCE: Final = 500
# Readers are promised a bookmark every 10 seconds.
BOOKMARK_S: Final = 8.0


class Start(Struct, frozen=True):
    """Where to begin: `after` with a cursor, `since` with a time (µs), or `latest`."""

    kind: Literal["after", "since", "latest"]
    value: int = 0


class EventFilter(Struct, frozen=True):
    """Which events; what is empty does not filter."""

    kinds: frozenset[str] = frozenset()
    member_ids: frozenset[str] = frozenset()

    def of(self, records: Sequence[Record]) -> Sequence[Record]:
        """Return those that pass."""
        if not self.kinds and not self.member_ids:
            return records
        return [
            record
            for record in records
            if (not self.kinds or record.kind in self.kinds)
            and (not self.member_ids or record.member_id in self.member_ids)
        ]


class Page(Struct):
    """A page of a log."""

    records: list[Record]
    next_cursor: int
    head: int
    log_id: str


class Bookmark(Struct):
    """How far a stream has come."""

    cursor: int
    head: int
    log_id: str


class Events:
    """The use cases of EventService."""

    def __init__(self, registry: Registry, publisher: Publisher, store: Store, clock: Clock) -> None:
        self._registry = registry
        self._publisher = publisher
        self._store = store
        self._clock = clock

    async def poll(self, mob_id: str, start: Start, limit: int, wanted: EventFilter, log_id: str) -> Page:
        """Return a page of events. The mob need not be loaded, so that one in quarantine can be read."""
        log = await self._store.head(mob_id)
        if log is None:
            raise MobNotFound(f"mob '{mob_id}' does not exist", {"mob_id": mob_id})
        cursor = await self._cursor(mob_id, start, log.head)
        check_cursor(mob_id, log, cursor, log_id)
        limit = limit or DEFAULT_LIMIT
        page = Page([], cursor, log.head, log.log_id)
        room, scanned = PAGE_BYTES, 0
        while page.next_cursor < log.head and len(page.records) < limit and room > 0 and scanned < PAGE_SCANNED:
            count = min(READ_AT_ONCE, log.head - page.next_cursor, PAGE_SCANNED - scanned)
            records = await self._read(mob_id, page.next_cursor, count)
            if not records or records[-1].seq != page.next_cursor + len(records):
                await check_undeleted(self._store, mob_id, log.log_id)
                raise Internal(f"the log of mob '{mob_id}' has a gap behind event {page.next_cursor}")
            scanned += len(records)
            for record in records:
                if wanted.of([record]):
                    room -= len(record.payload) + 256
                    if page.records and room < 0:
                        break
                    page.records.append(record)
                page.next_cursor = record.seq
                if len(page.records) == limit:
                    break
        return page

    async def watch(
        self, mob_id: str, start: Start, wanted: EventFilter, log_id: str
    ) -> AsyncIterator[Sequence[Record] | Bookmark]:
        """Replay and then follow a log: events in order, and bookmarks. Ends after a destroyed mob's last event."""
        await self._registry.load(mob_id)
        feed = self._publisher.feed(mob_id)
        if feed is None:
            raise MobNotFound(f"mob '{mob_id}' does not exist", {"mob_id": mob_id})
        cursor = await self._cursor(mob_id, start, feed.head)
        with self._publisher.subscribe(mob_id, cursor, log_id or None) as subscription:
            due = 0.0
            while True:
                now = self._clock.monotonic()
                if now >= due:
                    yield Bookmark(subscription.cursor, subscription.head, subscription.log_id)
                    due = now + BOOKMARK_S
                records = await subscription.next(due - now)
                if records is None:
                    return
                passed = wanted.of(records)
                if passed:
                    yield passed

    async def _cursor(self, mob_id: str, start: Start, head: int) -> int:
        if start.kind == "after":
            return start.value
        if start.kind == "latest":
            return head
        return min(head, await self._store.seq_at(mob_id, start.value))

    async def _read(self, mob_id: str, after: int, count: int) -> list[Record]:
        """Read up to the first event that can't be decoded; that one alone fails."""
        while True:
            try:
                return await self._store.read_events(mob_id, after, count)
            except MobQuarantined:
                if count == 1:
                    raise
                count = max(1, count // 2)
