"""What agents put out while they run, on its way to those who watch now. Nothing of it is stored.

No watcher ever holds an agent up: what one is too slow for is dropped, the oldest first, and counted.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from msgspec import Struct

RING_EVENTS: Final = 1_024
# Of bodies.
RING_BYTES: Final = 1 << 18


class LiveEvent(Struct, frozen=True, gc=False):
    """One thing that a run put out. `body` is for the transport, which made it; nothing here looks into it."""

    member_id: str
    run_id: str
    attempt: int
    # When it arrived, µs since 1970.
    at: int
    body: bytes


class Lagged(Struct, frozen=True, gc=False):
    """So many events were dropped in this place."""

    count: int


class Listener:
    """A watcher's ring. `ring` is called when there is something new in it."""

    __slots__ = ("_bytes", "_events", "_live", "_lost", "_ring", "member_id", "mob_id")

    def __init__(self, live: "Live", mob_id: str, member_id: str | None, ring: Callable[[], None]) -> None:
        self.mob_id = mob_id
        self.member_id = member_id
        self._live = live
        self._ring = ring
        self._events: deque[LiveEvent] = deque()
        self._bytes = 0
        self._lost = 0

    def take(self) -> list[LiveEvent | Lagged]:
        """Return what has come since the last call, in order."""
        taken: list[LiveEvent | Lagged] = [*([Lagged(self._lost)] if self._lost else []), *self._events]
        self._events.clear()
        self._bytes = self._lost = 0
        return taken

    def offer(self, events: Iterable[LiveEvent]) -> None:
        """Take events, and drop the oldest if there is no room."""
        ring = self._events
        for event in events:
            ring.append(event)
            self._bytes += len(event.body)
            while len(ring) > RING_EVENTS or self._bytes > RING_BYTES:
                self._bytes -= len(ring.popleft().body)
                self._lost += 1
        self._ring()

    def close(self) -> None:
        """Listen no more; harmless if repeated."""
        self._live.remove(self)


class Live:
    """Those who watch what the agents of all mobs put out."""

    __slots__ = ("_by_mob",)

    def __init__(self) -> None:
        self._by_mob: dict[str, dict[Listener, None]] = {}

    def listen(self, mob_id: str, member_id: str | None, ring: Callable[[], None]) -> Listener:
        """Begin to listen to a mob, or to one of its members; close the listener at the end."""
        listener = Listener(self, mob_id, member_id, ring)
        self._by_mob.setdefault(mob_id, {})[listener] = None
        return listener

    def remove(self, listener: Listener) -> None:
        """Offer a listener nothing more; harmless if repeated."""
        listeners = self._by_mob.get(listener.mob_id)
        if listeners is not None:
            listeners.pop(listener, None)
            if not listeners:
                del self._by_mob[listener.mob_id]

    def heard(self, mob_id: str, member_id: str) -> bool:
        """Whether anybody listens to a member: else its events need not be made."""
        return any(one.member_id in (None, member_id) for one in self._by_mob.get(mob_id, ()))

    def publish(self, mob_id: str, events: Sequence[LiveEvent]) -> None:
        """Offer events of one member to those who listen to it."""
        for listener in self._by_mob.get(mob_id, ()):
            if listener.member_id in (None, events[0].member_id):
                listener.offer(events)
