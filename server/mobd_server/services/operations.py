"""Operations: showing them, waiting for their ends, and moving those of tools."""

from collections.abc import Sequence
from typing import Final, cast

import msgspec
from msgspec import Struct

from mobd_server.actors.links import Call, Reply
from mobd_server.actors.publisher import Publisher
from mobd_server.actors.registry import Registry
from mobd_server.errors import FieldInvalid, OperationExists, OperationNotFound, Violation
from mobd_server.machines.answers import OperationView
from mobd_server.machines.commands import MoveOperation, RegisterOperation
from mobd_server.machines.operation import view
from mobd_server.machines.operation_table import LIVE_STATUSES
from mobd_server.machines.state import Mob
from mobd_server.ports import Clock, Store
from mobd_server.services.paging import DEFAULT_PAGE, fill, page_start, page_token

_decode: Final = msgspec.json.Decoder(OperationView).decode


class OperationFilter(Struct, frozen=True):
    """Which operations to list; what is None does not filter."""

    member_id: str | None = None
    owner: str | None = None
    kind: str | None = None
    status: str | None = None


class Operations:
    """The use cases of OperationService."""

    def __init__(self, registry: Registry, publisher: Publisher, store: Store, clock: Clock) -> None:
        self._registry = registry
        self._publisher = publisher
        self._store = store
        self._clock = clock

    async def get(self, mob_id: str, operation_id: str) -> OperationView:
        """Return one operation. Raises OperationNotFound."""
        found, _ = await self._find(mob_id, [operation_id])
        return found[0]

    async def page(
        self, mob_id: str, wanted: OperationFilter, page_size: int, token: str
    ) -> tuple[list[OperationView], str]:
        """Return a page of operations in the order of (display_name, operation_id), and the token of the next."""
        question = ("operations", mob_id, wanted)
        after = page_start(question, token)
        key = cast("tuple[str, str]", tuple(after.split("\n", 1))) if after else None
        limit = page_size or DEFAULT_PAGE
        # Rows are written with the events that they follow from: what is durable now is what they say.
        await (await self._registry.load(mob_id)).read(lambda _: None)
        rows = await self._store.list_operations(
            mob_id, key, limit + 1, wanted.member_id, wanted.owner, wanted.kind, wanted.status
        )
        page, more = fill(rows, lambda row: 512 + 4 * len(row.snapshot), limit)
        last = f"{page[-1].display_name}\n{page[-1].operation_id}" if more else ""
        return [_decode(row.snapshot) for row in page], page_token(question, last)

    async def completions(self, mob_id: str, after_seq: int, limit: int) -> tuple[list[OperationView], int]:
        """Return operations that ended behind `after_seq`, in the order of their ends, and how many ever ended."""
        actor = await self._registry.load(mob_id)
        watermark = await actor.read(lambda mob: mob.completions)
        rows = await self._store.list_completions(mob_id, after_seq, limit or DEFAULT_PAGE)
        page, _ = fill(rows, lambda row: 512 + 4 * len(row.snapshot), len(rows))
        return [_decode(row.snapshot) for row in page], watermark

    async def wait(
        self, mob_id: str, operation_ids: Sequence[str], patience_s: float
    ) -> tuple[list[OperationView], list[str]]:
        """Return who has ended and who has not, when all have or `patience_s` seconds are over.

        Raises OperationNotFound, naming the first that nobody knows, and FieldInvalid for one that is named twice.
        """
        for place, name in enumerate(operation_ids):
            if name in operation_ids[:place]:
                field = f"operation_ids[{place}]"
                raise FieldInvalid([Violation(field, f"names '{name}' a second time: name each once", "DUPLICATE")])
        found, _ = await self._find(mob_id, operation_ids)
        # A member's operation, and those of its registry, end with events of that member.
        members = {name for one in found for name in (one.member_id, one.owner) if name}
        watch = self._publisher.watch_operations(mob_id, operation_ids, members)
        try:
            end = self._clock.monotonic() + patience_s
            while True:
                found, live = await self._find(mob_id, operation_ids)
                left = end - self._clock.monotonic()
                if not live or left <= 0 or not await watch.changed(left):
                    break
        finally:
            watch.close()
        return [one for one in found if one.status not in LIVE_STATUSES], live

    async def register(self, mob_id: str, command: RegisterOperation, call: Call) -> Reply:
        """Register an operation of a tool; answers an OperationView. Raises OperationExists."""
        actor = await self._registry.load(mob_id)
        # One that ended long ago is known to the store alone. It can't come back while this is decided.
        known = await actor.read(lambda mob: command.operation_id in mob.operations)
        if not known and await self._store.read_operation(mob_id, command.operation_id) is not None:
            raise OperationExists(
                f"mob '{mob_id}' had an operation '{command.operation_id}', which has ended: names are used once",
                {"mob_id": mob_id, "operation_id": command.operation_id},
            )
        return await actor.ask(command, call)

    async def move(self, mob_id: str, command: MoveOperation, call: Call) -> Reply:
        """Take one step with an operation; answers an OperationView."""
        return await (await self._registry.load(mob_id)).ask(command, call)

    async def _find(self, mob_id: str, operation_ids: Sequence[str]) -> tuple[list[OperationView], list[str]]:
        """Return operations, in the order in which they are named, and the names of those that live."""

        def known(mob: Mob) -> dict[str, OperationView]:
            return {name: view(mob.operations[name]) for name in operation_ids if name in mob.operations}

        found = await (await self._registry.load(mob_id)).read(known)
        for name in operation_ids:
            if name not in found:
                row = await self._store.read_operation(mob_id, name)
                if row is None:
                    raise OperationNotFound(
                        f"mob '{mob_id}' has no operation '{name}'", {"mob_id": mob_id, "operation_id": name}
                    )
                found[name] = _decode(row.snapshot)
        views = [found[name] for name in operation_ids]
        return views, [one.operation_id for one in views if one.status in LIVE_STATUSES]
