"""What was published of one mob, and those who follow it.

A follower is a cursor into the log. It reads the store up to where the feed's tail begins, and the tail from there on;
the tail holds a bounded number of bytes, once for all followers, and only while there are any.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Final, Self

from mobd_server.actors.bell import Bell
from mobd_server.actors.recent import Recent
from mobd_server.actors.watch import Watches
from mobd_server.errors import CursorAhead, CursorTooOld, Internal, LogChanged, MobdError, SlowReader
from mobd_server.machines.events import MobDestroyed
from mobd_server.machines.records import Record
from mobd_server.ports import Clock, Store

TAIL_BYTES: Final = 1 << 20
# How much the tail grows before it is looked at whether all have read its beginning.
TRIM_STEP_BYTES: Final = 1 << 16
PAGE_RECORDS: Final = 384
# What a record costs beside its payload.
RECORD_BYTES: Final = 256


def _size(record: Record) -> int:
    return len(record.payload) + RECORD_BYTES


class Feed:
    """The published part of one mob's log. It outlives the actors that append to it."""

    __slots__ = (
        "_subscriptions",
        "_tail",
        "_tail_bytes",
        "_trim_at",
        "ended",
        "first_seq",
        "head",
        "log_id",
        "mob_id",
        "recent",
        "watches",
    )

    def __init__(self, mob_id: str, log_id: str, first_seq: int, head: int, recent: Recent) -> None:
        self.mob_id = mob_id
        self.recent = recent
        self.log_id = log_id
        self.first_seq = first_seq
        # The last published event.
        self.head = head
        # Whether it is the last event that there will ever be.
        self.ended = False
        self.watches = Watches()
        self._subscriptions: dict[Subscription, None] = {}
        # The last published events, up to `head`.
        self._tail: list[Record] = []
        self._tail_bytes = 0
        self._trim_at = TRIM_STEP_BYTES

    @property
    def watched(self) -> bool:
        """Whether anybody follows the mob or waits for it."""
        return bool(self._subscriptions or self.watches)

    @property
    def subscriptions(self) -> Collection["Subscription"]:
        """Those who follow the mob; a view that changes with time."""
        return self._subscriptions

    def publish(self, records: Sequence[Record]) -> None:
        """Show durable events, each exactly once and in the order of the log."""
        if records[0].seq != self.head + 1:
            raise RuntimeError(f"event {records[0].seq} of mob {self.mob_id} would be published after {self.head}")
        last = records[-1]
        self.head = last.seq
        if type(last.event) is MobDestroyed:
            self.ended = True
        if self._subscriptions:
            self._tail.extend(records)
            self._tail_bytes += sum(map(_size, records))
            if self._tail_bytes > self._trim_at:
                self._trim()
            for subscription in self._subscriptions:
                subscription.bell.ring()
        if self.watches:
            self.watches.notify(records)
        self.recent.keep(self.log_id, records)

    def check_cursor(self, cursor: int, log_id: str | None = None) -> None:
        """Raise LogChanged, CursorAhead or CursorTooOld unless the log can be read after `cursor`.

        `log_id` is the log that the cursor is of, if the caller knows.
        """
        if log_id and log_id != self.log_id:
            raise LogChanged(
                f"the cursor belongs to log {log_id}, but mob '{self.mob_id}' now has log {self.log_id}: read it anew",
                {"log_id": self.log_id},
            )
        if cursor > self.head:
            raise CursorAhead(
                f"cursor {cursor} is ahead of the log, which ends at {self.head}",
                {"cursor": str(cursor), "head": str(self.head)},
            )
        earliest = self.first_seq - 1
        if cursor < earliest:
            raise CursorTooOld(
                f"cursor {cursor} is too old: the log begins after {earliest}",
                {"cursor": str(cursor), "earliest": str(earliest)},
            )

    def tail_after(self, cursor: int) -> list[Record] | None:
        """Return a page of published events after `cursor`, or None if only the store has them."""
        start = cursor - (self.head - len(self._tail))
        return self._tail[start : start + PAGE_RECORDS] if start >= 0 else None

    def end(self, make_error: Callable[[], MobdError]) -> None:
        """End every subscription and watch with an error."""
        for subscription in self._subscriptions:
            subscription.end(make_error())
        self.watches.end(make_error)

    def add(self, subscription: "Subscription") -> None:
        """Begin to keep what `subscription` has not read."""
        self._subscriptions[subscription] = None

    def remove(self, subscription: "Subscription") -> None:
        """Stop keeping anything for `subscription`; harmless if repeated."""
        self._subscriptions.pop(subscription, None)
        if not self._subscriptions:
            self._tail.clear()
            self._tail_bytes = 0
            self._trim_at = TRIM_STEP_BYTES

    def _trim(self) -> None:
        """Drop what all have read; if the rest is still too large, leave behind those who read slowly."""
        tail = self._tail
        read = min(subscription.cursor for subscription in self._subscriptions)
        count = max(0, read - (self.head - len(tail)))
        left = self._tail_bytes - sum(map(_size, tail[:count]))
        full = left > TAIL_BYTES
        while left > TAIL_BYTES:
            left -= _size(tail[count])
            count += 1
        del tail[:count]
        self._tail_bytes = left
        self._trim_at = min(left + TRIM_STEP_BYTES, TAIL_BYTES)
        if full:
            begin = self.head - len(tail)
            for subscription in self._subscriptions:
                if subscription.cursor < begin:
                    subscription.leave_behind()


class Subscription:
    """A reader's place in one mob's log: pages of records without gap, duplicate or reordering.

    It ends after the last event of a destroyed mob. It fails with SlowReader, with Draining, or with the reason why
    the mob can't be loaded; `cursor`, also in the error's details, is where to go on. Close it, or use it with `with`.
    """

    __slots__ = ("_ahead", "_error", "_feed", "_live", "_store", "bell", "cursor")

    def __init__(self, feed: Feed, store: Store, clock: Clock, cursor: int) -> None:
        self._feed = feed
        self._store = store
        # Whether it has read all that was published, and has only to keep up.
        self._live = False
        self._error: MobdError | None = None
        # A page that is being read while the one before it is on its way, and after which event it begins.
        self._ahead: tuple[int, asyncio.Task[list[Record]]] | None = None
        self.bell = Bell(clock)
        # The last event that was handed out.
        self.cursor = cursor
        feed.add(self)

    @property
    def head(self) -> int:
        """The last published event."""
        return self._feed.head

    @property
    def log_id(self) -> str:
        """The log that `cursor` is of."""
        return self._feed.log_id

    async def next(self, patience_s: float | None = None) -> list[Record] | None:
        """Return the next page; an empty one after `patience_s` seconds without any; None at the end.

        Cancelling loses nothing.
        """
        feed = self._feed
        while True:
            if self._error is not None:
                self._error.details.setdefault("cursor", str(self.cursor))
                raise self._error
            page = feed.tail_after(self.cursor)
            if page:
                self._live = True
            elif self.cursor == feed.head:
                if feed.ended:
                    return None
                self._live = True
                if not await self.bell.wait(patience_s):
                    return []
                continue
            else:
                page = await self._next_stored(feed)
            self.cursor = page[-1].seq
            return page

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Record]:
        page = await self.next()
        if page is None:
            raise StopAsyncIteration
        return page

    def close(self) -> None:
        """Stop following; harmless if repeated."""
        self._feed.remove(self)
        self._forget_ahead()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def end(self, error: MobdError) -> None:
        """Make this and every later call of `next` raise `error`."""
        self._error = error
        self.bell.ring()

    def leave_behind(self) -> None:
        """Take note that the tail no longer reaches back to the cursor."""
        # One that waits here has read everything: the burst was larger than the tail, and the store has it.
        if self._live and not self.bell.awaited:
            self._error = SlowReader(
                f"the reader is more than {TAIL_BYTES} bytes behind: go on from the cursor",
                {"cursor": str(self.cursor)},
            )
        self._live = False

    async def _next_stored(self, feed: Feed) -> list[Record]:
        """Return the page after the cursor from the store, and begin to read the one after it if it is a long way."""
        if self._ahead is not None and self._ahead[0] == self.cursor:
            (_, reading), self._ahead = self._ahead, None
            page = await reading
        else:
            self._forget_ahead()
            page = await self._read(feed, self.cursor)
        after = page[-1].seq
        if feed.head - after >= PAGE_RECORDS:
            reading = asyncio.get_running_loop().create_task(self._read(feed, after))
            # Nobody may come for its error.
            reading.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._ahead = (after, reading)
        return page

    def _forget_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead[1].cancel()
            self._ahead = None

    async def _read(self, feed: Feed, after: int) -> list[Record]:
        # What is stored but not published yet is not shown before its answer is.
        limit = min(PAGE_RECORDS, feed.head - after)
        page = await self._store.read_events(feed.mob_id, after, limit)
        if not page or page[0].seq != after + 1:
            if self._error is not None:
                # Those who follow a mob are ended before its log is deleted.
                raise self._error
            raise Internal(f"the log of mob '{feed.mob_id}' has no event {after + 1}")
        return page
