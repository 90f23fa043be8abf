"""The life of mobs, from their creation until they are deleted; showing and listing them."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Final, Generic, TypeVar, cast

from msgspec import Struct

from mobd_server.actors.links import Call, Reply
from mobd_server.actors.publisher import Publisher
from mobd_server.actors.registry import Registry
from mobd_server.errors import FieldInvalid, MobNotFound, MobQuarantined, Violation
from mobd_server.machines.answers import DestroyAnswer, MobReport, MobView
from mobd_server.machines.commands import (
    Command,
    CompleteMob,
    CreateMob,
    DestroyMob,
    ResetMob,
    ResumeMob,
    StartMob,
    StopMob,
)
from mobd_server.machines.records import Record
from mobd_server.machines.slices import destroyed_answer, report
from mobd_server.machines.state import NOTHING, Mob
from mobd_server.ports import MobListing, Store
from mobd_server.services.definitions import MAX_LABELS, Checked, Diagnostic, check
from mobd_server.services.documents import Notation
from mobd_server.services.paging import DEFAULT_PAGE, fill, page_start, page_token

# Characters that are read in milliseconds.
SMALL_DOCUMENT: Final = 1 << 14


class Created(Struct):
    """A mob that was created, and what its definition's author should know."""

    mob: MobView
    diagnostics: list[Diagnostic]
    reply: Reply


Ended = TypeVar("Ended", bound=DestroyAnswer | MobReport)


class Done(Struct, Generic[Ended]):
    """A command that works in slices and whose end is durable, or only what it would begin with."""

    answer: Ended
    cursor: int
    replayed: bool = False
    would: Sequence[Record] = ()


class Mobs:
    """The use cases of MobService."""

    def __init__(self, registry: Registry, publisher: Publisher, store: Store, new_log_id: Callable[[], str]) -> None:
        self._registry = registry
        self._publisher = publisher
        self._store = store
        self._new_log_id = new_log_id
        # Whose large document is being read.
        self._large = asyncio.Lock()

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
        return Created(cast("MobView", reply.answer), checked.diagnostics, reply)

    async def check(self, notation: Notation, document: str) -> Checked:
        """Check a definition and store nothing."""
        # In a thread: a large document takes longer than others can wait. One such thread, for several would leave the
        # loop a small part of its time.
        async with self._large if len(document) > SMALL_DOCUMENT else nullcontext():
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

    async def complete(self, mob_id: str, call: Call) -> Reply:
        """Retire every member and then complete the mob; answers a MobReport, whose mob says whether that goes on."""
        return await self._ask(mob_id, CompleteMob(), call)

    async def reset(self, mob_id: str, call: Call) -> Done[MobReport]:
        """Empty a mob and start it anew; return when that is durable. Repeats join."""
        return await self._to_the_end(
            mob_id, ResetMob(), call, lambda mob: report(mob) if mob.pending != "reset" else None
        )

    async def destroy(self, mob_id: str, call: Call, *, force: bool = False) -> Done[DestroyAnswer]:
        """Destroy a mob; return when its last event is durable. Repeats join, or get the report of what was done.

        With `force` also one whose log can't be read: then without an event. Else that raises MobQuarantined.
        """
        try:
            return await self._destroy(mob_id, call)
        except MobQuarantined:
            if not force or call.acting is not None:
                raise
        if not call.validate_only and not await self._registry.destroy_unreadable(mob_id):
            # It can be read after all.
            return await self._destroy(mob_id, call)
        return await self._unreadable(mob_id)

    async def delete(self, mob_id: str) -> int:
        """Remove everything that is stored of a destroyed mob; return the cursor of its last event."""
        log = await self._store.head(mob_id)
        if log is None:
            raise MobNotFound(f"mob '{mob_id}' does not exist", {"mob_id": mob_id})
        await self._registry.delete(mob_id)
        return log.head

    async def get(self, mob_id: str) -> MobReport:
        """Return one mob, with what the pending command, or the last one, did to its members."""

        def view(mob: Mob) -> MobReport:
            if mob.phase != "destroyed":
                return report(mob)
            answer = destroyed_answer(mob)
            return MobReport(answer.mob, answer.outcomes)

        return await (await self._registry.load(mob_id)).read(view)

    async def page(
        self, phase: str | None, labels: dict[str, str], page_size: int, token: str
    ) -> tuple[list[MobListing], str]:
        """Return a page of mobs, and the token of the next."""
        question = ("mobs", phase, sorted(labels.items()))
        after = page_start(question, token)
        found, next_id = await self._store.list_mobs(after, page_size or DEFAULT_PAGE, phase, labels)
        page, more = fill(found, _listing_size, len(found))
        return page, page_token(question, page[-1].mob_id if more else next_id)

    async def _to_the_end(
        self, mob_id: str, command: Command, call: Call, end: Callable[[Mob], Ended | None]
    ) -> Done[Ended]:
        """Ask for what works in slices; return what `end` makes of the state as soon as that is not None."""
        actor = await self._registry.load(mob_id)
        watch = self._publisher.watch(mob_id)
        try:
            reply = await actor.ask(command, call)
            answer = cast("Ended", reply.answer)
            ended = answer.done if isinstance(answer, DestroyAnswer) else answer.mob.pending == "none"
            if ended or call.validate_only:
                return Done(answer, reply.cursor, reply.replayed, reply.would)
            while True:
                done = await (await self._registry.load(mob_id)).read(end)
                if done is not None:
                    return Done(done, done.mob.head, reply.replayed)
                await watch.changed()
        finally:
            watch.close()

    async def _destroy(self, mob_id: str, call: Call) -> Done[DestroyAnswer]:
        return await self._to_the_end(
            mob_id, DestroyMob(), call, lambda mob: destroyed_answer(mob) if mob.phase == "destroyed" else None
        )

    async def _unreadable(self, mob_id: str) -> Done[DestroyAnswer]:
        """Return what is said of a mob that was destroyed without being read."""
        log = await self._store.head(mob_id)
        if log is None:
            raise MobNotFound(f"mob '{mob_id}' does not exist", {"mob_id": mob_id})
        # What its log holds can't be told: no more than that it is gone.
        mob = MobView(
            mob_id=mob_id,
            phase="destroyed",
            pending="none",
            labels={},
            members={},
            head=log.head,
            log_id=log.log_id,
            definition=NOTHING,
            created_at=0,
            agents=0,
            inputs_waiting=0,
        )
        return Done(DestroyAnswer(mob, [], done=True), log.head)

    async def _ask(self, mob_id: str, command: Command, call: Call) -> Reply:
        return await (await self._registry.load(mob_id)).ask(command, call)


def _listing_size(listing: MobListing) -> int:
    return 512 + sum(4 * (len(key) + len(value)) for key, value in listing.labels.items())
