"""What was published of every mob. It belongs to the registry and outlives the actors.

A mob's feed begins at the head of its first load in this process, so a reader of a mob that was never loaded has
nothing to wait for: load it first.
"""

from collections.abc import Callable, Collection, Iterable

from mobd_server.actors.feed import Feed, Subscription
from mobd_server.actors.loss import reloading
from mobd_server.actors.recent import Recent
from mobd_server.actors.watch import MOB_KEY, Watch, input_key, life_key, member_key, operation_key
from mobd_server.errors import Draining, LogChanged, MobdError
from mobd_server.ports import Clock, Store


def _draining() -> MobdError:
    return Draining("the server shuts down: go on from the cursor with another")


class Publisher:
    """The feeds of all mobs that were ever loaded in this process."""

    __slots__ = ("_clock", "_closed", "_feeds", "_store", "recent")

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._feeds: dict[str, Feed] = {}
        self._closed = False
        # What was published last, of all mobs.
        self.recent = Recent()

    def open(self, mob_id: str, log_id: str, first_seq: int, head: int) -> Feed:
        """Return the mob's feed, made now if this is its first load; `head` is where its log stands."""
        feed = self._feeds.get(mob_id)
        if feed is not None and (feed.log_id != log_id or feed.head > head):
            # Another log has taken its place: those who read the old one must know.
            feed.end(
                lambda: LogChanged(f"mob '{mob_id}' now has log {log_id}, which ends at {head}", {"log_id": log_id})
            )
            feed = None
        if feed is None:
            feed = self._feeds[mob_id] = Feed(mob_id, log_id, first_seq, head, self.recent)
        return feed

    def feed(self, mob_id: str) -> Feed | None:
        """Return the mob's feed, if it was ever loaded."""
        return self._feeds.get(mob_id)

    def feeds(self) -> Collection[Feed]:
        """Return all feeds; a view that changes with time."""
        return self._feeds.values()

    def watched(self, mob_id: str) -> bool:
        """Whether anybody follows the mob or waits for it."""
        feed = self._feeds.get(mob_id)
        return feed is not None and feed.watched

    def subscribe(self, mob_id: str, after: int, log_id: str | None = None) -> Subscription:
        """Follow a mob that was loaded, from the events after the cursor `after` on.

        Raises LogChanged, CursorAhead and CursorTooOld, and MobReloading if it is loaded no more.
        """
        feed = self._loaded(mob_id)
        feed.check_cursor(after, log_id)
        subscription = Subscription(feed, self._store, self._clock, after)
        if self._closed:
            subscription.end(_draining())
        return subscription

    def watch(self, mob_id: str, member_id: str | None = None, canonical_input_id: str | None = None) -> Watch:
        """Wait for changes of a mob that was loaded: of the mob itself, of one member, of one of its inputs.

        Open the watch before the state is read for the first time, and close it at the end. Raises MobReloading if the
        mob is loaded no more, as the others do.
        """
        keys = [MOB_KEY]
        if member_id is not None:
            keys.append(member_key(member_id))
        if canonical_input_id is not None:
            keys.append(input_key(canonical_input_id))
        return self._watch(mob_id, tuple(keys))

    def watch_lives(self, mob_id: str, member_ids: Iterable[str]) -> Watch:
        """Wait until members of a mob that was loaded may be ready, or have nothing left to do; see `watch`."""
        return self._watch(mob_id, (MOB_KEY, *map(life_key, member_ids)))

    def watch_operations(self, mob_id: str, operation_ids: Iterable[str], member_ids: Iterable[str]) -> Watch:
        """Wait until operations of a mob that was loaded have changed, or the members with whom they end."""
        return self._watch(mob_id, (MOB_KEY, *map(operation_key, operation_ids), *map(life_key, member_ids)))

    def _watch(self, mob_id: str, keys: tuple[str, ...]) -> Watch:
        feed = self._loaded(mob_id)
        watch = Watch(feed.watches, self._clock, keys)
        feed.watches.add(watch)
        if self._closed:
            watch.end(_draining())
        return watch

    def _loaded(self, mob_id: str) -> Feed:
        feed = self._feeds.get(mob_id)
        if feed is None:
            # It was loaded when the caller looked, and has left memory or was deleted since: a second try will tell.
            raise reloading(mob_id)
        return feed

    def fail(self, mob_id: str, make_error: Callable[[], MobdError]) -> None:
        """End all subscriptions and watches of a mob that can't be loaded."""
        feed = self._feeds.get(mob_id)
        if feed is not None:
            feed.end(make_error)

    def forget(self, mob_id: str) -> None:
        """Forget a mob that does not exist."""
        self._feeds.pop(mob_id, None)

    def close(self) -> None:
        """End all subscriptions and watches, also those to come, with Draining."""
        self._closed = True
        for feed in self._feeds.values():
            feed.end(_draining)
