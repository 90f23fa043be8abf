"""The whole state of a mob, now or as it was."""

from collections.abc import AsyncIterator, Sequence
from typing import Final

from msgspec import Struct

from mobd_server.actors.loading import check_cursor, check_undeleted
from mobd_server.actors.registry import Registry
from mobd_server.errors import MobNotFound
from mobd_server.machines.sections import Part, parts, weight
from mobd_server.machines.state import Mob
from mobd_server.ports import Loaded, Rebuilder, Store

# A state with more things in it is not written down on the loop, where others would wait for it.
SMALL: Final = 1_000


class Header(Struct, frozen=True):
    """Which state it is: the last event that is part of it, where the log stood, and the log."""

    cursor: int
    head: int
    log_id: str


class States:
    """The use cases of GetState."""

    def __init__(self, registry: Registry, store: Store, rebuilder: Rebuilder) -> None:
        self._registry = registry
        self._store = store
        self._rebuilder = rebuilder

    async def state_at(
        self, mob_id: str, cursor: int | None, log_id: str = ""
    ) -> AsyncIterator[Header | Sequence[Part]]:
        """Yield which state it is, and then all of it; all that is yielded is durable.

        Without a cursor it is the state of now, for which the mob is loaded. A state of the past is folded, also that
        of a mob in quarantine up to where its log can be folded. Raises MobNotFound, LogChanged, CursorAhead,
        CursorTooOld, MobQuarantined, MobFormatNewer and Unavailable.
        """
        if cursor is None:
            header, found = await self._now(mob_id, log_id)
        else:
            log = await self._store.head(mob_id)
            if log is None:
                raise MobNotFound(f"mob '{mob_id}' does not exist", {"mob_id": mob_id})
            check_cursor(mob_id, log, cursor, log_id)
            header, found = Header(cursor, log.head, log.log_id), None
        if found is None:
            found = await self._rebuilder.sections(mob_id, header.cursor)
            # It may be the state of another mob, which has taken the name.
            await check_undeleted(self._store, mob_id, header.log_id)
        yield header
        yield found

    async def _now(self, mob_id: str, log_id: str) -> tuple[Header, Sequence[Part] | None]:
        """Return which state is that of now, and the state itself if it is small."""

        def view(mob: Mob) -> tuple[Header, Sequence[Part] | None]:
            return Header(mob.head, mob.head, mob.log_id), list(parts(mob)) if weight(mob) <= SMALL else None

        actor = await self._registry.load(mob_id)
        header, found = await actor.read(view)
        check_cursor(mob_id, Loaded(actor.epoch, header.head, 1, header.log_id), header.head, log_id)
        return header, found
