"""Creating, starting, stopping, resuming and destroying mobs; showing and listing them."""

import asyncio
from collections.abc import Callable
from typing import cast

from msgspec import Struct

from mobd_server.actors.links import Call, Reply
from mobd_server.actors.publisher import Publisher
from mobd_server.actors.registry import Registry
from mobd_server.errors import FieldInvalid, Violation
from mobd_server.machines.answers import DestroyAnswer, MobView
from mobd_server.machines.commands import Command, CreateMob, DestroyMob, ResumeMob, StartMob, StopMob
from mobd_server.machines.mob import destroyed_answer
from mobd_server.machines.views import view_mob
from mobd_server.ports import MobListing, Store
from mobd_server.services.definitions import MAX_LABELS, Checked, Diagnostic, check
from mobd_server.services.documents import Notation
from mobd_server.services.paging import DEFAULT_PAGE, fill, page_start, page_token


class Created(Struct):
    """A mob that was created, and what its definition's author should know."""

    mob: MobView
    diagnostics: list[Diagnostic]
    cursor: int
    replayed: bool


class Destroyed(Struct):
    """A mob whose destruction is durable."""

    answer: DestroyAnswer
    cursor: int
    replayed: bool


class Mobs:
    """The use cases of MobService."""

    def __init__(self, registry: Registry, publisher: Publisher, store: Store, new_log_id: Callable[[], str]) -> None:
        self._registry = registry
        self._publisher = publisher
        self._store = store
        self._new_log_id = new_log_id

    async def create(
        self, mob_id: str, notation: Notation, document: str, labels: dict[str, str], call: Call, *, start: bool
    ) -> Created:
        """Create a mob. Raises DefinitionInvalid with every error, and MobExists."""
        checked = await self.check(notation, document)
        definition = checked.require()
        if len({**definition.labels, **labels}) > MAX_LABELS:
            message = f"must be at most {MAX_LABELS} together with those of the definition"
            raise FieldInvalid([Violation("labels", message, "TOO_MANY")])
        command = CreateMob(definition, labels, self._new_log_id(), start)
        reply = await self._registry.create(mob_id, command, call)
        return Created(cast("MobView", reply.answer), checked.diagnostics, reply.cursor, reply.replayed)

    async def check(self, notation: Notation, document: str) -> Checked:
        """Check a definition and store nothing."""
        # In a thread: a large document takes longer than others can wait.
        return await asyncio.to_thread(check, notation, document)

    async def start(self, mob_id: str, call: Call) -> Reply:
        """Start a mob."""
        return await self._ask(mob_id, StartMob(), call)

    async def stop(self, mob_id: str, call: Call) -> Reply:
        """Stop a mob."""
        return await self._ask(mob_id, StopMob(), call)

    async def resume(self, mob_id: str, call: Call) -> Reply:
        """Resume a mob."""
        return await self._ask(mob_id, ResumeMob(), call)

    async def destroy(self, mob_id: str, call: Call) -> Destroyed:
        """Destroy a mob; return when its last event is durable. Repeats join, or get the report of what was done."""
        actor = await self._registry.load(mob_id)
        watch = self._publisher.watch(mob_id)
        try:
            reply = await actor.ask(DestroyMob(), call)
            answer = cast("DestroyAnswer", reply.answer)
            if answer.done:
                return Destroyed(answer, reply.cursor, reply.replayed)
            while True:
                actor = await self._registry.load(mob_id)
                done = await actor.read(lambda mob: destroyed_answer(mob) if mob.phase == "destroyed" else None)
                if done is not None:
                    return Destroyed(done, done.mob.head, reply.replayed)
                await watch.changed()
        finally:
            watch.close()

    async def get(self, mob_id: str) -> MobView:
        """Return one mob."""
        return await (await self._registry.load(mob_id)).read(view_mob)

    async def page(
        self, phase: str | None, labels: dict[str, str], page_size: int, token: str
    ) -> tuple[list[MobListing], str]:
        """Return a page of mobs, and the token of the next."""
        question = ("mobs", phase, sorted(labels.items()))
        after = page_start(question, token)
        found, next_id = await self._store.list_mobs(after, page_size or DEFAULT_PAGE, phase, labels)
        page, more = fill(found, _listing_size, len(found))
        return page, page_token(question, page[-1].mob_id if more else next_id)

    async def _ask(self, mob_id: str, command: Command, call: Call) -> Reply:
        return await (await self._registry.load(mob_id)).ask(command, call)


def _listing_size(listing: MobListing) -> int:
    return 512 + sum(4 * (len(key) + len(value)) for key, value in listing.labels.items())
