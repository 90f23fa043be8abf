"""Operations: showing them, waiting for their ends, and moving those of tools."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from mobd_server.actors.links import Call, Reply
from mobd_server.actors.publisher import Publisher
from mobd_server.actors.registry import Registry
from mobd_server.errors import FieldInvalid, OperationNotFound, OperationTransition, Violation
from mobd_server.machines.answers import OperationView
from mobd_server.machines.commands import MoveOperation, RegisterOperation
from mobd_server.machines.operation import view
from mobd_server.machines.records import OperationRow
from mobd_server.machines.state import Mob
from mobd_server.ports import Clock, Store
from mobd_server.services.paging import DEFAULT_PAGE, PAGE_BYTES, page_start, page_token

K = TypeVar("K")

# Rows are read in parts: each may carry a result of 256 KiB, and a page ends at 1 MiB of them.
ROWS_AT_ONCE: Final = 64

_decode: Final = msgspec.json.Decoder(OperationView).decode


class OperationFilter(Struct, frozen=True):
    """Which operations to list; what is None does not filter."""

    member_id: str | None = None
    owner: str | None = None
    kind: str | None = None
    status: str | None = None


class Waited(Struct, frozen=True):
    """What became of a wait. `more`: some that have ended are not in `ended`, which would have become too large."""

    ended: list[OperationView]
    pending: list[str]
    more: bool = False


class Operations:
    """The use cases of OperationService."""

    def __init__(self, registry: Registry, publisher: Publisher, store: Store, clock: Clock) -> None:
        self._registry = registry
        self._publisher = publisher
        self._store = store
        self._clock = clock
        # How many callers wait for an operation at this server.
        self._waits: Counter[tuple[str, str]] = Counter()

    def watchers(self, mob_id: str, operation_id: str) -> int:
        """Return how many callers wait for the end of an operation at this server; 0 once it has ended."""
        return self._waits[mob_id, operation_id]

    async def get(self, mob_id: str, operation_id: str) -> OperationView:
        """Return one operation. Raises OperationNotFound."""
        return (await self._find(mob_id, [operation_id]))[operation_id]

    async def page(
        self, mob_id: str, wanted: OperationFilter, page_size: int, token: str
    ) -> tuple[list[OperationView], str]:
        """Return a page of operations in the order of (display_name, operation_id), and the token of the next."""
        question = ("operations", mob_id, wanted)
        after = page_start(question, token)
        # Rows are written with the events that they follow from: what is durable now is what they say.
        await (await self._registry.load(mob_id)).read(lambda _: None)

        def rows(key: tuple[str, str] | None, limit: int) -> Awaitable[list[OperationRow]]:
            return self._store.list_operations(
                mob_id, key, limit, wanted.member_id, wanted.owner, wanted.kind, wanted.status
            )

        page, more = await _page(rows, _name, _key(after) if after else None, page_size or DEFAULT_PAGE)
        # A display name may have lines; an id has none.
        last = "\n".join(_name(page[-1])) if more else ""
        return [_decode(row.snapshot) for row in page], page_token(question, last)

    async def completions(self, mob_id: str, after_seq: int, limit: int) -> tuple[list[OperationView], int]:
        """Return operations that ended behind `after_seq`, in the order of their ends, and how many ever ended.

        What ends after that was counted is left to the next call, so that whoever has the last one has all of them.
        """
        watermark = await (await self._registry.load(mob_id)).read(lambda mob: mob.completions)
        if after_seq >= watermark:
            # It may be more than a store has numbers for.
            return [], watermark

        def rows(after: int | None, limit: int) -> Awaitable[list[OperationRow]]:
            return self._store.list_completions(mob_id, after or 0, limit)

        page, _ = await _page(rows, lambda row: row.completion_seq or 0, after_seq, limit or DEFAULT_PAGE)
        return [_decode(row.snapshot) for row in page if (row.completion_seq or 0) <= watermark], watermark

    async def wait(self, mob_id: str, operation_ids: Sequence[str], patience_s: float) -> Waited:
        """Return who has ended and who has not, when all have or `patience_s` seconds are over.

        Raises FieldInvalid for one that is named twice, and OperationNotFound, naming the first that nobody knows.
        """
        for place, name in enumerate(operation_ids):
            if name in operation_ids[:place]:
                field = f"operation_ids[{place}]"
                raise FieldInvalid([Violation(field, f"names '{name}' a second time: name each once", "DUPLICATE")])
        found = await self._find(mob_id, operation_ids)
        pending = [name for name in operation_ids if not found[name].completion_seq]
        if pending and patience_s > 0:
            found.update(await self._ended(mob_id, [found[name] for name in pending], patience_s))
        return _waited([found[name] for name in operation_ids])

    async def _ended(self, mob_id: str, live: Sequence[OperationView], patience_s: float) -> dict[str, OperationView]:
        """Wait for operations that live; return what was seen of them."""
        # A member's operation, and those of its registry, end with events of that member.
        members = {name for one in live for name in (one.member_id, one.owner) if name}
        pending = [one.operation_id for one in live]
        seen: dict[str, OperationView] = {}
        watch = self._publisher.watch_operations(mob_id, pending, members)
        self._waits.update((mob_id, name) for name in pending)
        try:
            end = self._clock.monotonic() + patience_s
            while True:
                found = await self._find(mob_id, pending)
                seen.update(found)
                for name in [name for name in pending if found[name].completion_seq]:
                    self._leave(mob_id, name)
                    pending.remove(name)
                left = end - self._clock.monotonic()
                if not pending or left <= 0 or not await watch.changed(left):
                    return seen
        finally:
            watch.close()
            for name in pending:
                self._leave(mob_id, name)

    def _leave(self, mob_id: str, operation_id: str) -> None:
        self._waits[mob_id, operation_id] -= 1
        if not self._waits[mob_id, operation_id]:
            del self._waits[mob_id, operation_id]

    async def register(self, mob_id: str, command: RegisterOperation, call: Call) -> Reply:
        """Register an operation of a tool; answers an OperationView. Raises OperationExists and OperationLimit."""
        actor = await self._registry.load(mob_id)
        if not await actor.read(lambda mob: command.operation_id in mob.operations):
            # One that ended long ago is known to the store alone. That one of this name is registered, ends and is
            # forgotten by the state between this look and the decision would take thousands of events: names are
            # the caller's, and used once.
            command.taken = await self._store.read_operation(mob_id, command.operation_id) is not None
        return await actor.ask(command, call)

    async def move(self, mob_id: str, command: MoveOperation, call: Call) -> Reply:
        """Take one step with an operation; answers an OperationView.

        Raises OperationNotFound, OperationTransition and PeerNotExpected.
        """
        actor = await self._registry.load(mob_id)
        try:
            return await actor.ask(command, call)
        except OperationNotFound:
            row = await self._store.read_operation(mob_id, command.operation_id)
            if row is None:
                raise
        # It ended so long ago that the state does not know it any more.
        raise OperationTransition(
            f"{command.action} is not legal: operation '{row.operation_id}' is {row.status}; "
            "legal: nothing, it has ended",
            {"operation_id": row.operation_id, "status": row.status, "action": command.action, "allowed": ""},
        )

    async def _find(self, mob_id: str, operation_ids: Sequence[str]) -> dict[str, OperationView]:
        """Return operations by name. Raises OperationNotFound, naming the first that nobody knows."""

        def known(mob: Mob) -> dict[str, OperationView]:
            return {name: view(mob, mob.operations[name]) for name in operation_ids if name in mob.operations}

        found = await (await self._registry.load(mob_id)).read(known)
        for name in operation_ids:
            if name not in found:
                # What the state knew when it was read is durable now, so that the store has all that it forgot.
                row = await self._store.read_operation(mob_id, name)
                if row is None:
                    raise OperationNotFound(
                        f"mob '{mob_id}' has no operation '{name}'", {"mob_id": mob_id, "operation_id": name}
                    )
                found[name] = _decode(row.snapshot)
        return found


def _name(row: OperationRow) -> tuple[str, str]:
    return row.display_name, row.operation_id


def _key(after: str) -> tuple[str, str]:
    display_name, _, operation_id = after.rpartition("\n")
    return display_name, operation_id


async def _page(
    read: Callable[[K | None, int], Awaitable[list[OperationRow]]],
    key: Callable[[OperationRow], K],
    after: K | None,
    limit: int,
) -> tuple[list[OperationRow], bool]:
    """Read rows behind `after` until the page is full; return them and whether more follow."""
    page: list[OperationRow] = []
    room = PAGE_BYTES
    while True:
        rows = await read(after, ROWS_AT_ONCE)
        for row in rows:
            room -= _size(row.snapshot)
            if page and (len(page) >= limit or room < 0):
                return page, True
            page.append(row)
        if len(rows) < ROWS_AT_ONCE:
            return page, False
        after = key(rows[-1])


def _size(text: str) -> int:
    return 512 + 4 * len(text)


def _waited(views: Sequence[OperationView]) -> Waited:
    """Return what a wait came to: at most 1 MiB of results, but always one."""
    ended: list[OperationView] = []
    room = PAGE_BYTES
    for one in views:
        if one.completion_seq:
            room -= 1024 + memoryview(one.result).nbytes + memoryview(one.peer_handle).nbytes + 4 * len(one.error)
            if ended and room < 0:
                break
            ended.append(one)
    shown = {one.operation_id for one in ended}
    pending = [one.operation_id for one in views if one.operation_id not in shown]
    return Waited(ended, pending, more=sum(one.completion_seq > 0 for one in views) > len(ended))
