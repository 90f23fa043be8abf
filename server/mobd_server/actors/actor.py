"""One incarnation of one mob in memory: it decides, and lets nobody see what is not durable.

Commands are decided one after another on the newest state, while earlier decisions are still being committed. Every
answer, refusal and read therefore waits for its *barrier*: the head that it was computed from. A failed append takes
the whole incarnation with it: memory is ahead of the disk and is thrown away, never mended.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from msgspec import Struct

from mobd_server.actors.feed import Feed
from mobd_server.actors.journal import Journal
from mobd_server.actors.links import Call, Hub, Receiver, Reply
from mobd_server.actors.loss import Loss, internal, reloading
from mobd_server.actors.replay import replay
from mobd_server.errors import MobdError
from mobd_server.faults import ARMED, reach
from mobd_server.machines.answers import Again, AgentReaction, Answer, Reaction
from mobd_server.machines.commands import Command, Context, Continue, Ids, Wake
from mobd_server.machines.decision import ANSWER_TYPES, decide
from mobd_server.machines.records import Append
from mobd_server.machines.state import Mob
from mobd_server.ports import Clock, Result, Store

log: Final = logging.getLogger(__name__)

T = TypeVar("T")

SERVER: Final = Call(principal="mobd")
# The clock is looked at at least this often while something is due later: it may have been set.
LOOK_S: Final = 30.0


class Links(Struct):
    """What all actors of a registry share. `evict` takes an actor whose incarnation has ended."""

    journal: Journal
    store: Store
    hub: Hub
    clock: Clock
    loop: asyncio.AbstractEventLoop
    spawn: Callable[[Coroutine[Any, Any, None]], None]
    evict: "Callable[[MobActor], None]"


class MobActor:
    """A loaded mob. All of it runs on the loop, and nothing in it waits but `ask` and `read`."""

    __slots__ = (
        "_armed_at",
        "_due",
        "_feed",
        "_ids",
        "_links",
        "_loss",
        "_timer",
        "_waiting",
        "confirmed",
        "epoch",
        "failed",
        "loaded_head",
        "mob",
        "mob_id",
        "wake_at",
    )

    def __init__(self, mob: Mob, epoch: int, feed: Feed, ids: Ids, links: Links) -> None:
        self.mob_id = mob.mob_id
        self.epoch = epoch
        # The newest state; it may run ahead of the disk.
        self.mob = mob
        # The head that is durable, and when the mob owes something by that state.
        self.confirmed = self.loaded_head = mob.head
        self.wake_at: int | None = None
        # The incarnation has ended: nothing is decided on this state any more.
        self.failed = False
        self._feed = feed
        self._ids = ids
        self._links = links
        self._loss: Loss | None = None
        # What waits for its barrier, in the order of decisions.
        self._waiting: deque[tuple[int, Receiver | None, Reply, Sequence[Reaction]]] = deque()
        # Reactions whose answers were released.
        self._due: list[Reaction] = []
        self._timer: Any = None
        self._armed_at = 0

    @property
    def log_id(self) -> str:
        """The id of the mob's log."""
        return self.mob.log_id

    @property
    def owes(self) -> bool:
        """Whether the mob has something to do without being asked, in memory or by what is durable."""
        mob = self.mob
        return bool(mob.attachments or mob.runs or mob.timers or mob.pending != "none" or self.wake_at is not None)

    @property
    def at_rest(self) -> bool:
        """Whether all that was decided is durable and nobody waits for anything."""
        return not (self.failed or self._waiting or self._due or self.mob.head != self.confirmed)

    def submit(self, command: Command, call: Call, reply: Receiver | None = None, kept: bool = False) -> None:
        """Decide `command` in this tick.

        `reply` is called exactly once, on the loop, when everything that the outcome was computed from is durable:
        before this returns if that is so already. `kept` commands may use the journal's kept slots.
        """
        links = self._links
        refusal = reloading(self.mob_id) if self.failed else links.journal.refusal(kept)
        if refusal is not None:
            if reply is not None:
                reply(Reply(error=refusal))
            return
        mob = self.mob
        context = Context(
            links.clock.now(),
            self._ids,
            links.hub.connected(self.mob_id),
            call.principal,
            call.traceparent,
            call.request_id,
            call.request_hash,
            call.validate_only,
            call.acting,
        )
        try:
            decided = decide(mob, command, context, self.epoch)
        except MobdError as refused:
            self._hold(reply, Reply(error=refused, cursor=mob.head), ())
            return
        except Exception:
            error = internal(self._ids)
            what = {"mob_id": self.mob_id, "command": type(command).__name__}
            log.exception("decision_failed", extra={**what, **error.details})
            self._hold(reply, Reply(error=error), ())
            return
        append = decided.append
        if append is not None:
            links.journal.submit(append, self)
            if mob.timers or self._timer is not None:
                self._arm()
        elif decided.replay_seq and reply is not None:
            reply = partial(self._replay, ANSWER_TYPES[type(command)], decided.replay_seq, reply)
        self._hold(reply, Reply(decided.answer, None, mob.head, append=append, would=decided.would), decided.reactions)

    def ask(self, command: Command, call: Call, kept: bool = False) -> asyncio.Future[Reply]:
        """Decide `command` in this tick; return what has the reply, or raises its error, when all that it was computed
        from is durable. To cancel that does not undo the decision.
        """
        future: asyncio.Future[Reply] = self._links.loop.create_future()
        self.submit(command, call, partial(_answer, future), kept)
        return future

    async def read(self, view: Callable[[Mob], T]) -> T:
        """Return what `view` makes of the state now, or raise what it raises, when that state is durable.

        What `view` returns must not change with the state: it is looked at later.
        """
        if self.failed:
            raise reloading(self.mob_id)
        try:
            value = view(self.mob)
        except MobdError:
            await self._durable()
            raise
        await self._durable()
        return value

    def begin(self, wake_at: int | None) -> None:
        """Take up what the loaded mob owes."""
        self.wake_at = wake_at
        if wake_at == 0:
            self._go_on()
        self._arm()

    def abandon(self) -> None:
        """End the incarnation: what is queued is never written, and who waits is told to ask again."""
        if not self.failed:
            self.failed = True
            self._links.journal.drop(self)
            self._end_waiting()

    # What the journal calls: see links.Appender.

    def committed(self, append: Append) -> None:
        """Publish an append that is durable."""
        # If the incarnation has ended, the next load publishes this from the log.
        if self.failed:
            return
        try:
            if ARMED:
                reach("before_publish")
            self._feed.publish(append.records)
        except Exception:
            log.exception("publish_failed", extra={"mob_id": self.mob_id})
            self._links.evict(self)
            return
        self.confirmed = append.base + len(append.records)
        self.wake_at = append.wake_at

    def lost(self, append: Append, result: Result) -> None:
        """End the incarnation."""
        if not self.failed:
            self.failed = True
            self._loss = Loss(append, result, self._ids)

    def answer(self) -> None:
        """Release the answers whose barrier was reached; after a loss, fail the others."""
        waiting, confirmed = self._waiting, self.confirmed
        while waiting and waiting[0][0] <= confirmed:
            _, reply, outcome, reactions = waiting.popleft()
            if reactions:
                self._due.extend(reactions)
            if reply is not None:
                self._release(reply, outcome)
        if self.failed:
            self._end_waiting()

    def react(self) -> None:
        """Release the reactions whose answers were released."""
        while self._due:
            due, self._due = self._due, []
            agents = [reaction for reaction in due if isinstance(reaction, AgentReaction)]
            if len(agents) < len(due) and any(type(reaction) is Again for reaction in due):
                # In a tick of its own: a long piece of work is cut so that others get their turn.
                self._links.loop.call_soon(self._go_on)
            if agents:
                try:
                    self._links.hub.dispatch(self.mob_id, agents)
                except Exception:
                    log.exception("dispatch_failed", extra={"mob_id": self.mob_id})
            # A receiver may have decided something that had to wait for these.
            if self._waiting:
                self.answer()

    def leave(self) -> None:
        """Make room for the next incarnation."""
        self._links.evict(self)

    async def _durable(self) -> None:
        """Return when the head of now is durable."""
        if self.mob.head > self.confirmed:
            future: asyncio.Future[Reply] = self._links.loop.create_future()
            self._hold(partial(resolve, future), Reply(), ())
            reply = await future
            if reply.error is not None:
                raise reply.error

    def _hold(self, reply: Receiver | None, outcome: Reply, reactions: Sequence[Reaction]) -> None:
        """Let an outcome wait until the head of now is durable, and behind everything that waits already."""
        self._waiting.append((self.mob.head, reply, outcome, reactions))
        if len(self._waiting) == 1 and self.mob.head == self.confirmed and not self._due:
            self.answer()
            self.react()

    def _release(self, reply: Receiver, outcome: Reply) -> None:
        try:
            reply(outcome)
        except Exception:
            log.exception("reply_failed", extra={"mob_id": self.mob_id})

    def _end_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            barrier, reply, _, _ = self._waiting.popleft()
            error = self._loss.error(barrier) if self._loss is not None else reloading(self.mob_id)
            if reply is not None:
                self._release(reply, Reply(error=error))

    def _arm(self) -> None:
        """Plan the next look at the clock."""
        timers = self.mob.timers
        due = timers[0][0] if timers else 0
        if due == self._armed_at or self.failed:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed_at = due
        if due:
            clock = self._links.clock
            self._timer = clock.call_later(min(LOOK_S, max(0, due - clock.now()) / 1_000_000), self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._armed_at = 0
        if self._by_itself(Wake(), self._wake):
            # The clock may have been set back: then nothing was due.
            self._arm()

    def _go_on(self) -> None:
        if ARMED:
            reach("before_slice")
        self._by_itself(Continue(), self._go_on)

    def _by_itself(self, command: Command, again: Callable[[], None]) -> bool:
        """Decide what nobody asked for; without room in the journal, call `again` when there is."""
        if self.failed:
            return False
        if self._links.journal.refusal(kept=True) is not None:
            self._links.journal.when_room(again)
            return False
        self.submit(command, SERVER, kept=True)
        return True

    def _replay(self, kind: type[Answer], seq: int, reply: Receiver, outcome: Reply) -> None:
        """Answer a repeated request, now that its row is durable."""
        if outcome.error is not None:
            reply(outcome)
        else:
            links = self._links
            links.spawn(replay(links.store, self._ids, self.mob_id, seq, kind, reply))


def _answer(future: asyncio.Future[Reply], reply: Reply) -> None:
    """Give a reply to whoever waits for `future`, if it is still there: an error is raised there."""
    if future.done():
        return
    if reply.error is None:
        future.set_result(reply)
    else:
        future.set_exception(reply.error)
        # It is taken: who waits may be gone before it hears of it, which is nothing to complain of.
        future.exception()


def resolve(future: asyncio.Future[Reply], reply: Reply) -> None:
    """Give a reply to whoever waits for `future`, if it is still there."""
    if not future.done():
        future.set_result(reply)
