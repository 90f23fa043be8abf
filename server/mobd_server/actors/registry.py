"""The mobs that are in memory: at most one incarnation of each, read from the log at the first touch.

Those that nobody uses leave it again (actors/upkeep.py); a touch reads them anew.

An incarnation that failed is thrown away. If its mob owes something to agents, clocks or watchers it is read again by
itself, else at the next touch. One mob that can't be read never keeps another from it.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Final

from msgspec import Struct

from mobd_server.actors.actor import Links, MobActor, resolve
from mobd_server.actors.ahead import Ahead
from mobd_server.actors.journal import Journal
from mobd_server.actors.links import Call, Hub, Reply
from mobd_server.actors.loading import take_over
from mobd_server.actors.loss import internal
from mobd_server.actors.publisher import Publisher
from mobd_server.actors.upkeep import Keeping, Upkeep
from mobd_server.errors import (
    Draining,
    JournalDown,
    MobdError,
    MobExists,
    MobFormatNewer,
    MobNotFound,
    MobQuarantined,
)
from mobd_server.machines.commands import CreateMob
from mobd_server.machines.decision import new_mob, wake_at
from mobd_server.ports import Clock, IdsFactory, Rebuilder, SnapshotMeter, Store, Timer, Writer

log: Final = logging.getLogger(__name__)

# How many mobs are read at once by themselves; those that are asked for don't wait for one another.
RELOADS: Final = 4
# Reloads begin within this time.
SPREAD_S: Final = 0.1
BACKOFF_S: Final = 1.0
MAX_BACKOFF_S: Final = 30.0


class Keep(Struct, frozen=True):
    """What a registry needs to take snapshots and to let mobs leave memory."""

    keeping: Keeping
    rebuilder: Rebuilder
    writer: Writer
    meter: SnapshotMeter | None = None


class Registry:
    """Loads, creates, evicts and deletes mobs. Without `keep` no snapshot is taken and no mob leaves memory unasked."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        publisher: Publisher,
        hub: Hub,
        clock: Clock,
        ids_factory: IdsFactory,
        jitter: Callable[[], float],
        keep: Keep | None = None,
    ) -> None:
        self._store = store
        self._journal = journal
        self._publisher = publisher
        self._hub = hub
        self._clock = clock
        self._ids_factory = ids_factory
        self._ids = ids_factory(0)
        self._jitter = jitter
        self._links = Links(journal, store, hub, clock, asyncio.get_running_loop(), self._spawn, self.evict)
        self._actors: dict[str, MobActor] = {}
        self._loading: dict[str, asyncio.Task[MobActor]] = {}
        # Mobs to be read by themselves, with the timer that begins it; None while the journal is down.
        self._owed: dict[str, Timer | None] = {}
        # How often in a row a mob failed without getting anywhere.
        self._failures: dict[str, int] = {}
        self._reloads = asyncio.Semaphore(RELOADS)
        self._ahead = Ahead(store, publisher, lambda mob_id: mob_id in self._actors or mob_id in self._loading)
        self._tasks: set[asyncio.Task[None]] = set()
        # Mobs that are being marked as deleted, each with the deletion of its rows as the result.
        self._marking: dict[str, asyncio.Task[asyncio.Task[None]]] = {}
        # Mobs whose rows are being deleted.
        self._deleting: dict[str, asyncio.Task[None]] = {}
        self._upkeep = (
            Upkeep(
                keep.keeping,
                keep.rebuilder,
                keep.writer,
                publisher,
                hub,
                clock,
                self._actors,
                self._leave,
                self._spawn,
                keep.meter,
            )
            if keep is not None
            else None
        )
        # Mobs that this process can't load, and why.
        self.quarantined: dict[str, MobQuarantined] = {}
        self.newer: dict[str, MobFormatNewer] = {}
        self.draining = False
        journal.on_change(self._journal_changed)

    @property
    def loaded(self) -> int:
        """How many mobs are in memory."""
        return len(self._actors)

    @property
    def actors(self) -> Collection[MobActor]:
        """The mobs that are in memory; a view that changes with time. To look is not to use."""
        return self._actors.values()

    def get(self, mob_id: str) -> MobActor | None:
        """Return the mob if it is in memory, and nobody is deleting it."""
        if mob_id in self._marking:
            return None
        actor = self._actors.get(mob_id)
        if actor is not None and self._upkeep is not None:
            self._upkeep.used(mob_id)
        return actor

    async def load(self, mob_id: str) -> MobActor:
        """Return the mob, read from its log if it is not in memory. To cancel this does not cancel the reading.

        Raises MobNotFound, MobQuarantined, MobFormatNewer and Unavailable.
        """
        while (marking := self._marking.get(mob_id)) is not None:
            # The store may say already that the mob is gone: whoever heard that must not find it here.
            await asyncio.wait([marking])
        actor = self.get(mob_id)
        if actor is not None:
            return actor
        loading = self._loading.get(mob_id)
        if loading is None:
            self._check(mob_id)
            loading = self._links.loop.create_task(self._load(mob_id))
            # Nobody may be left to take its error.
            loading.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._loading[mob_id] = loading
        return await asyncio.shield(loading)

    async def create(self, mob_id: str, command: CreateMob, call: Call) -> Reply:
        """Create a mob, unless it exists: of two creators the store's fence lets one win.

        Raises MobExists, and what `load` and `MobActor.ask` raise.
        """
        while (actor := self.get(mob_id)) is None:
            if mob_id in self._deleting:
                # The name is free when the last row is gone.
                await asyncio.wait([self._deleting[mob_id]])
            try:
                actor = await self.load(mob_id)
            except MobNotFound:
                # While this waited, another may have begun to load, to create or to delete it.
                others = (self._actors, self._loading, self._marking, self._deleting)
                if not any(mob_id in one for one in others):
                    return await self._create(mob_id, command, call)
            else:
                break
        return await actor.ask(command, call)

    async def recover(self) -> None:
        """Read the mobs that owe something: those that are due before this returns, the others in their time.

        Deletions that were begun are gone on with.
        """
        for mob_id in await self._store.deleting():
            self._begin_deleting(mob_id)
        due = []
        now = self._clock.now()
        for mob_id, at in await self._store.owing():
            if at <= now:
                due.append(mob_id)
            else:
                self._plan(mob_id, (at - now) / 1_000_000)
        await self._reload_many(due)

    def evict(self, actor: MobActor) -> None:
        """Throw an incarnation away; harmless if it is gone already."""
        actor.abandon()
        mob_id = actor.mob_id
        if self._actors.get(mob_id) is not actor:
            return
        self._unload(mob_id)
        watched = self._publisher.watched(mob_id)
        if not actor.confirmed and not watched:
            # It was never created.
            self._publisher.forget(mob_id)
        if actor.confirmed > actor.loaded_head:
            self._failures.pop(mob_id, None)
        log.warning("mob_evicted", extra={"mob_id": mob_id, "epoch": actor.epoch, "head": actor.confirmed})
        if watched or actor.owes:
            self._plan_again(mob_id)

    async def delete(self, mob_id: str) -> None:
        """Delete a destroyed mob: return when no row of it is left. To cancel this does not stop the deleting.

        From its first moment on the mob is not found, and a crash in between is made good at the next start. Raises
        MobNotFound, InvalidTransition and Unavailable; after the last of these, ask again.
        """
        self._check_accepting()
        deleting = self._deleting.get(mob_id)
        if deleting is None:
            marking = self._marking.get(mob_id)
            if marking is None:
                marking = self._marking[mob_id] = self._links.loop.create_task(self._mark(mob_id))
                # Nobody may be left to take its error.
                marking.add_done_callback(lambda task: task.cancelled() or task.exception())
            deleting = await asyncio.shield(marking)
        await asyncio.shield(deleting)

    async def _mark(self, mob_id: str) -> asyncio.Task[None]:
        try:
            await self._store.mark_deleting(mob_id)
            loading = self._loading.get(mob_id)
            if loading is not None:
                # It began before the mark, and may end with a mob that is gone.
                await asyncio.wait([loading])
            self._forget(mob_id)
            self._begin_deleting(mob_id)
            return self._deleting[mob_id]
        finally:
            del self._marking[mob_id]

    async def destroy_unreadable(self, mob_id: str) -> bool:
        """Make a mob destroyed whose log can't be folded, so that it can be deleted; its events can still be read.

        Return False, and do nothing, if the mob can be loaded: it is destroyed like any other. Raises MobNotFound,
        MobFormatNewer and Unavailable.
        """
        self._check_accepting()
        if mob_id not in self.quarantined:
            try:
                await self.load(mob_id)
            except MobQuarantined:
                pass
            else:
                return False
        await self._store.destroy_unreadable(mob_id)
        log.warning("mob_destroyed_unread", extra={"mob_id": mob_id})
        return True

    async def drain(self) -> None:
        """End all subscriptions and watches, load nothing more, and return when all that was decided is durable."""
        self.draining = True
        self._publisher.close()
        if self._upkeep is not None:
            self._upkeep.stop()
        for timer in self._owed.values():
            if timer is not None:
                timer.cancel()
        self._owed.clear()
        await asyncio.gather(*self._marking.values(), return_exceptions=True)
        for deleting in self._deleting.values():
            # What is left is deleted at the next start.
            deleting.cancel()
        await asyncio.gather(*self._loading.values(), *self._deleting.values(), return_exceptions=True)
        await self._journal.drain()
        await asyncio.gather(*self._tasks)
        for actor in self._actors.values():
            actor.abandon()

    def _leave(self, actor: MobActor) -> None:
        """Let a mob at rest leave memory; one that will owe something is read again in time."""
        mob_id = actor.mob_id
        self._unload(mob_id)
        actor.abandon()
        self._publisher.forget(mob_id)
        due = wake_at(actor.mob)
        if due is not None:
            self._plan(mob_id, max(0, due - self._clock.now()) / 1_000_000)
        log.info("mob_passivated", extra={"mob_id": mob_id, "head": actor.confirmed})

    def _unload(self, mob_id: str) -> None:
        del self._actors[mob_id]
        self._hub.evicted(mob_id)
        if self._upkeep is not None:
            self._upkeep.unloaded(mob_id)

    def _forget(self, mob_id: str) -> None:
        """Leave nothing of a mob that is being deleted; those who follow it are told that it is gone."""
        actor = self._actors.get(mob_id)
        if actor is not None:
            self._unload(mob_id)
            actor.abandon()
        timer = self._owed.pop(mob_id, None)
        if timer is not None:
            timer.cancel()
        self._ahead.drop(mob_id)
        self._failures.pop(mob_id, None)
        self.quarantined.pop(mob_id, None)
        self.newer.pop(mob_id, None)
        self._publisher.fail(mob_id, lambda: MobNotFound(f"mob '{mob_id}' was deleted", {"mob_id": mob_id}))
        self._publisher.forget(mob_id)

    def _begin_deleting(self, mob_id: str) -> None:
        if mob_id not in self._deleting:
            deleting = self._deleting[mob_id] = self._links.loop.create_task(self._delete_rows(mob_id))
            # Nobody may be left to take its error.
            deleting.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _delete_rows(self, mob_id: str) -> None:
        try:
            await self._store.delete_rows(mob_id)
            log.info("mob_deleted", extra={"mob_id": mob_id})
        except MobdError as error:
            log.warning("delete_failed", extra={"mob_id": mob_id, "error": error.message})
            raise
        finally:
            del self._deleting[mob_id]

    def _check_accepting(self) -> None:
        if self.draining:
            raise Draining("the server shuts down")
        refusal = self._journal.refusal_while_down()
        if refusal is not None:
            raise refusal

    def _check(self, mob_id: str) -> None:
        if self.draining:
            raise Draining("the server shuts down")
        known = self.quarantined.get(mob_id) or self.newer.get(mob_id)
        if known is not None:
            raise _anew(known)
        self._check_accepting()

    async def _load(self, mob_id: str) -> MobActor:
        try:
            begun = await self._ahead.use(mob_id)
            taken = await take_over(self._store, self._publisher, mob_id, begun)
            actor = MobActor(taken.mob, taken.epoch, taken.feed, self._ids_factory(taken.epoch), self._links)
            self._enter(actor, taken.snapshot_seq)
        except MobdError as refused:
            self._refuse(mob_id, refused)
            raise
        except Exception:
            error = internal(self._ids)
            log.exception("load_failed", extra={"mob_id": mob_id, **error.details})
            raise error from None
        finally:
            del self._loading[mob_id]
        timer = self._owed.pop(mob_id, None)
        if timer is not None:
            timer.cancel()
        self._hub.loaded(actor)
        actor.begin(wake_at(actor.mob))
        return actor

    def _enter(self, actor: MobActor, snapshot_seq: int) -> None:
        self._actors[actor.mob_id] = actor
        if self._upkeep is not None:
            self._upkeep.loaded(actor.mob_id, snapshot_seq)

    def _refuse(self, mob_id: str, error: MobdError) -> None:
        """Remember why a mob can't be loaded, and tell those who wait for it, unless it is worth another try."""
        if isinstance(error, MobQuarantined):
            self.quarantined[mob_id] = error
            log.error("mob_quarantined", extra={"mob_id": mob_id, "error": error.message})
        elif isinstance(error, MobFormatNewer):
            # To try again would take the mob from a server that can read it.
            self.newer[mob_id] = error
            log.error("mob_format_newer", extra={"mob_id": mob_id, "error": error.message})
        elif not isinstance(error, MobNotFound):
            self._journal.suspect()
            return
        self._publisher.fail(mob_id, lambda: _anew(error))
        if isinstance(error, MobNotFound):
            self._publisher.forget(mob_id)

    async def _create(self, mob_id: str, command: CreateMob, call: Call) -> Reply:
        feed = self._publisher.open(mob_id, command.log_id, 1, 0)
        actor = MobActor(new_mob(mob_id), 1, feed, self._ids_factory(1), self._links)
        future: asyncio.Future[Reply] = self._links.loop.create_future()
        actor.submit(command, call, partial(resolve, future))
        if actor.mob.head:
            # From now on it is there for others, whose answers wait for its creation to be durable.
            self._enter(actor, 0)
            self._hub.mob_created(mob_id)
        else:
            self._publisher.forget(mob_id)
        reply = await future
        if reply.error is None:
            return reply
        if isinstance(reply.error, MobExists):
            # Another process was first, or this very request was, and nobody learnt of it: then it is repeated.
            return await (await self.load(mob_id)).ask(command, call)
        raise reply.error

    def _journal_changed(self, down: bool) -> None:
        if not down:
            self._clock.call_later(self._jitter() * SPREAD_S, self._begin_parked)

    def _plan_again(self, mob_id: str) -> None:
        """Plan to read a mob whose incarnation or reading failed."""
        failures = self._failures.get(mob_id, 0)
        self._failures[mob_id] = failures + 1
        if failures == 0:
            self._plan(mob_id, self._jitter() * SPREAD_S)
        else:
            backoff = min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (failures - 1))
            self._plan(mob_id, backoff * (1 + self._jitter()) / 2)

    def _plan(self, mob_id: str, delay_s: float) -> None:
        if not self.draining:
            self._owed[mob_id] = self._clock.call_later(delay_s, partial(self._begin_reload, mob_id))

    def _begin_reload(self, mob_id: str) -> None:
        self._owed.pop(mob_id, None)
        self._spawn(self._reload(mob_id))

    def _begin_parked(self) -> None:
        parked = [mob_id for mob_id, timer in self._owed.items() if timer is None]
        for mob_id in parked:
            del self._owed[mob_id]
        if parked and not self.draining:
            self._spawn(self._reload_many(parked))

    async def _reload_many(self, mob_ids: Sequence[str]) -> None:
        """Read mobs that were taken over together, one after another; what may take its time is read beside them."""
        apart: list[asyncio.Task[None]] = []
        try:
            async with aclosing(self._ahead.groups(mob_ids)) as groups:
                async for group in groups:
                    for mob_id in group:
                        if self._ahead.whole(mob_id):
                            await self._try_load(mob_id)
                        else:
                            apart.append(self._links.loop.create_task(self._reload(mob_id)))
            await asyncio.gather(*apart)
        finally:
            for mob_id in mob_ids:
                self._ahead.drop(mob_id)

    async def _reload(self, mob_id: str) -> None:
        async with self._reloads:
            await self._try_load(mob_id)

    async def _try_load(self, mob_id: str) -> None:
        try:
            await self.load(mob_id)
        except JournalDown:
            self._owed[mob_id] = None
        except (Draining, MobNotFound, MobQuarantined, MobFormatNewer):
            # Nothing more can be done by itself.
            return
        except MobdError as error:
            log.warning("reload_failed", extra={"mob_id": mob_id, "error": error.message})
            self._plan_again(mob_id)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._links.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _anew(error: MobdError) -> MobdError:
    # One that is raised again and again would keep the frames of all who got it.
    return type(error)(error.message, error.details)
