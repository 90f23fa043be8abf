"""Waiting for something to become true of a mob, a member or an input, by published events alone.

A watch says that a look is worth while, and hands out the events of the input that it is about, so that nobody has to
read the log for what has just been published. It names what it is about, so that a thousand who wait on one member are
not all woken by the input of one.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from mobd_server.actors.bell import Bell
from mobd_server.errors import MobdError
from mobd_server.machines import events as e
from mobd_server.machines.records import Record
from mobd_server.ports import Clock

# A watch listens to the mob's key and to those of its member and its input.
MOB_KEY: Final = ""


def member_key(member_id: str) -> str:
    """Return the key of what changes for all of a member's inputs."""
    return f"m/{member_id}"


def input_key(canonical_input_id: str) -> str:
    """Return the key of what changes for one input."""
    return f"i/{canonical_input_id}"


def life_key(member_id: str) -> str:
    """Return the key of what may bring a member nearer to being ready, or to having nothing left to do."""
    return f"l/{member_id}"


def operation_key(operation_id: str) -> str:
    """Return the key of what changes for one operation."""
    return f"o/{operation_id}"


def _operation(event: Any) -> Iterable[str]:
    return (operation_key(event.operation_id),)


def _mob(_event: e.Event) -> Iterable[str]:
    return (MOB_KEY,)


def _member(event: Any) -> Iterable[str]:
    return (member_key(event.member_id),)


def _life(event: Any) -> Iterable[str]:
    return (member_key(event.member_id), life_key(event.member_id))


def _input(event: e.InputSuperseded | e.InputCoalesced) -> Iterable[str]:
    return (input_key(event.canonical_input_id),)


def _inputs(event: e.RunStarted | e.RunSteered) -> Iterable[str]:
    return map(input_key, event.canonical_input_ids)


def _given_up(event: e.InputAbandoned) -> Iterable[str]:
    yield life_key(event.member_id)
    yield from map(input_key, event.canonical_input_ids)


def _outcomes(event: e.RunSettled) -> Iterable[str]:
    yield life_key(event.member_id)
    for outcome in event.outcomes:
        yield input_key(outcome.canonical_input_id)


# Whom each kind of event concerns; the kinds that are not here concern nobody who waits.
KEYS: Final[dict[type[e.Event], Callable[[Any], Iterable[str]]]] = {
    e.MobStarted: _mob,
    e.MobStopped: _mob,
    e.MobResumed: _mob,
    e.MobDestroying: _mob,
    e.MobDestroyed: _mob,
    e.MobCompleting: _mob,
    e.MobCompleted: _mob,
    e.MobResetting: _mob,
    e.MobCleanupBegun: _mob,
    e.MobCleanupFinished: _mob,
    e.RetireAllBegun: _mob,
    e.RetireAllFinished: _mob,
    e.AttachmentOpened: _mob,
    e.AttachmentClosed: _mob,
    e.MemberDestroyed: _life,
    e.MemberRespawned: _life,
    e.RuntimeRetired: _life,
    e.MemberRetiring: _member,
    e.MemberRetired: _life,
    e.DrainSuspended: _member,
    e.ExecutorAssigned: _member,
    e.ExecutorConfirmed: _life,
    e.ExecutorReleased: _life,
    e.ExecutorLost: _life,
    e.RetryDue: _member,
    e.InputSuperseded: _input,
    e.InputCoalesced: _input,
    e.InputAbandoned: _given_up,
    e.RunStarted: _inputs,
    e.RunSteered: _inputs,
    e.RunSettled: _outcomes,
    e.OperationRegistered: _operation,
    e.OperationStarted: _operation,
    e.OperationPeerReady: _operation,
    e.OperationProgressed: _operation,
    e.OperationRetiring: _operation,
    e.OperationEnded: _operation,
}

OF_INPUTS: Final = frozenset(
    {e.InputSuperseded, e.InputCoalesced, e.InputAbandoned, e.RunStarted, e.RunSteered, e.RunSettled}
)


class Watch:
    """One reader's wait. A change between two calls of `changed` is not missed."""

    __slots__ = ("_bell", "_board", "_changed", "_error", "_news", "_of_input", "keys")

    def __init__(self, board: "Watches", clock: Clock, keys: tuple[str, ...]) -> None:
        self._board = board
        self._bell = Bell(clock)
        self._changed = False
        self._error: MobdError | None = None
        self._news: list[Record] = []
        # A watch of many members hands out no news: nobody would take them.
        self._of_input = any(key.startswith("i/") for key in keys)
        self.keys = keys

    async def changed(self, patience_s: float | None = None) -> bool:
        """Return True when there was a change since the last call, or False after `patience_s` seconds.

        Raises what ended the watch: Draining, or why the mob can't be loaded.
        """
        if not self._changed and self._error is None:
            await self._bell.wait(patience_s)
        if self._error is not None:
            raise self._error
        changed, self._changed = self._changed, False
        return changed

    def close(self) -> None:
        """Stop watching; harmless if repeated."""
        self._board.remove(self)

    def news(self) -> list[Record]:
        """Return the events of the watch's input since the last call, in order: what took, gave back or ended it."""
        news, self._news = self._news, []
        return news

    def ring(self) -> None:
        """Take note of something that is no event of the log."""
        self._changed = True
        self._bell.ring()

    def notify(self, record: Record) -> None:
        """Take note of a change."""
        self._changed = True
        if self._of_input and type(record.event) in OF_INPUTS:
            self._news.append(record)
        self._bell.ring()

    def end(self, error: MobdError) -> None:
        """Make this and every later call of `changed` raise `error`."""
        self._error = error
        self._bell.ring()


class Watches:
    """Those who wait on one mob, by key."""

    __slots__ = ("_by_key",)

    def __init__(self) -> None:
        self._by_key: dict[str, dict[Watch, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def __len__(self) -> int:
        # Every watch listens to the mob's key.
        return len(self._by_key.get(MOB_KEY, ()))

    def add(self, watch: Watch) -> None:
        """Begin to notify `watch`."""
        for key in watch.keys:
            self._by_key.setdefault(key, {})[watch] = None

    def remove(self, watch: Watch) -> None:
        """Stop notifying `watch`; harmless if repeated."""
        for key in watch.keys:
            watches = self._by_key.get(key)
            if watches is not None:
                watches.pop(watch, None)
                if not watches:
                    del self._by_key[key]

    def notify(self, records: Sequence[Record]) -> None:
        """Notify those whom `records` concern."""
        by_key = self._by_key
        for record in records:
            keys = KEYS.get(type(record.event))
            if keys is not None:
                for key in keys(record.event):
                    for watch in by_key.get(key, ()):
                        watch.notify(record)

    def end(self, make_error: Callable[[], MobdError]) -> None:
        """End every watch."""
        # Every watch listens to the mob's key.
        for watch in self._by_key.get(MOB_KEY, ()):
            watch.end(make_error())
