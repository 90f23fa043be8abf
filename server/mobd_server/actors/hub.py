"""The connections of agents: where streams arrive, and what the actors of mobs see of them (architecture §5).

The hub holds no facts. It knows which agents are here, gives those that are away their grace, sends what commits
release, and tells mobs what it finds out: that an agent is gone, does not answer, or does not hold a run.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Container, Coroutine, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, Literal

from mobd_server.actors.actor import MobActor
from mobd_server.actors.connection import Connection
from mobd_server.actors.crew import COME_BACK_S, Crew
from mobd_server.actors.frames import AgentFrame, Goodbye, Hello, Terms
from mobd_server.actors.intake import Intake, hello_missing
from mobd_server.actors.journal import Journal
from mobd_server.actors.live import Live
from mobd_server.actors.patience import Patience
from mobd_server.actors.presence import Presence
from mobd_server.actors.shared import Mobs, Shared
from mobd_server.errors import Draining
from mobd_server.faults import ARMED, reach
from mobd_server.machines.answers import AgentReaction
from mobd_server.ports import Clock, Store

# What the hub does by itself is done a little at a time, each decision taking up to some milliseconds.
WORK_AT_ONCE: Final = 4
# Of how many mobs it looks in one go whose agents are late: that takes about a millisecond.
CREWS_AT_ONCE: Final = 500
MAX_TICK_S: Final = 1.0

NOBODY: Final[frozenset[str]] = frozenset()


class Hub:
    """The `links.Hub` of a server. Give it the registry by `begin` before the first stream is opened."""

    def __init__(self, journal: Journal, store: Store, clock: Clock, terms: Terms) -> None:
        self._journal = journal
        self._store = store
        self._clock = clock
        self._terms = terms
        # Those who watch what agents put out.
        self.live = Live()
        self._loop = asyncio.get_running_loop()
        tick_s = min(MAX_TICK_S, min(terms.lease_s, terms.grace_s, terms.accept_s, terms.hello_s) / 10)
        self._patience = Patience(clock, tick_s, lambda: journal.down, self._expire)
        self._crews: dict[str, Crew] = {}
        self._connections: dict[Connection, None] = {}
        self._work: deque[Callable[[], None]] = deque()
        self._working = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._shared: Shared | None = None
        self._intake: Intake | None = None
        self._draining = False
        journal.on_change(self._journal_changed)

    def begin(self, mobs: Mobs) -> None:
        """Take the registry, which is made with the hub in hand."""
        self._shared = Shared(
            mobs,
            self._journal,
            self._store,
            self._clock,
            self._terms,
            self._patience,
            self.live,
            self._later,
            self._spawn,
        )
        self._intake = Intake(self._shared)

    @property
    def connections(self) -> int:
        """How many streams are open."""
        return len(self._connections)

    @property
    def suspensions(self) -> int:
        """How often an agent was suspended, ever: its stream ended or fell silent, or its mob was read anew."""
        return 0 if self._shared is None else self._shared.suspensions

    def presences(self) -> Iterator[Presence]:
        """Return what is known of the agents of all mobs; look at it in one tick."""
        for crew in self._crews.values():
            yield from crew.presences.values()

    # What actors and their registry see: links.Hub.

    def connected(self, mob_id: str) -> Container[str]:
        """Return the attachments that are connected and want work: a set that changes with time."""
        crew = self._crews.get(mob_id)
        return NOBODY if crew is None else crew.connected

    def dispatch(self, mob_id: str, reactions: Sequence[AgentReaction]) -> None:
        """Send what a commit released, in this order; an attachment that is gone or away is passed over."""
        if ARMED:
            reach("before_dispatch")
        crew = self._crews.get(mob_id)
        if crew is not None:
            crew.dispatch(reactions)

    def loaded(self, actor: MobActor) -> None:
        """Take note of a mob that was read from its log: its agents' connections and graces begin anew."""
        if actor.mob.attachments or actor.mob_id in self._crews:
            self._crew(actor.mob_id).loaded(actor)

    def evicted(self, mob_id: str) -> None:
        """Take note that the mob is not in memory: what its agents say now can't be decided."""
        crew = self._crews.get(mob_id)
        if crew is not None:
            crew.evicted()

    def idle(self, mob_id: str) -> bool:
        """Whether no agent is connected to the mob, suspended, or waits for it."""
        crew = self._crews.get(mob_id)
        return crew is None or crew.empty

    def mob_created(self, mob_id: str) -> None:
        """Take note that a mob is there that was not: attach the agents that wait for it."""
        crew = self._crews.get(mob_id)
        if crew is not None:
            crew.attach_waiting()

    # What services show.

    def connectivity(self, mob_id: str, attachment_id: str) -> Literal["connected", "suspended", "none"]:
        """Return whether the agent of an attachment is here; also one that wants no more work is."""
        crew = self._crews.get(mob_id)
        presence = crew.presences.get(attachment_id) if crew is not None else None
        if presence is None:
            return "none"
        return "connected" if presence.present else "suspended"

    def is_draining(self, mob_id: str, attachment_id: str) -> bool:
        """Whether the agent of an attachment wants no more work."""
        crew = self._crews.get(mob_id)
        presence = crew.presences.get(attachment_id) if crew is not None else None
        return presence is not None and presence.draining

    # What the transport of streams calls.

    def open(self, principal: str) -> Connection:
        """Take a new stream. Raises Draining."""
        if self._draining:
            raise Draining("the server shuts down: attach to another, or when it is back")
        connection = Connection(self._clock, principal)
        connection.due = self._patience.after(self._terms.hello_s)
        self._connections[connection] = None
        self._patience.start()
        return connection

    async def receive(self, connection: Connection, frames: Iterable[AgentFrame]) -> None:
        """Handle the entries of one message; return when the next may be read. Raises what ends the stream."""
        assert self._intake is not None
        entries = iter(frames)
        first = 0
        if connection.state == "new":
            hello = next(entries, None)
            if not isinstance(hello, Hello):
                raise hello_missing("must be the first entry of the stream")
            first = 1
            connection.hello = hello
            connection.held = set(hello.held)
            connection.crew = self._crew(hello.mob_id)
            connection.crew.arrive(connection)
        if connection.crew is not None:
            await self._intake.receive(connection.crew, connection, entries, first)

    def gone(self, connection: Connection, error: Exception | None = None) -> None:
        """Take note that a stream is broken, or no more; `error` is what it is to end with. Harmless if repeated."""
        self._connections.pop(connection, None)
        connection.end(error=error)
        if connection.crew is not None:
            connection.crew.left(connection)

    def drain(self) -> None:
        """Say goodbye to every agent, for the server shuts down. Their attachments stay open in the log."""
        self._draining = True
        self._patience.stop()
        goodbye = Goodbye("draining", "the server shuts down: attach again", COME_BACK_S)
        for connection in list(self._connections):
            connection.end(goodbye)
        if ARMED:
            reach("during_drain")

    def _crew(self, mob_id: str) -> Crew:
        assert self._shared is not None
        crew = self._crews.get(mob_id)
        if crew is None:
            crew = self._crews[mob_id] = Crew(mob_id, self._shared)
            self._patience.start()
        return crew

    def _expire(self) -> None:
        time = self._patience.time
        for connection in list(self._connections):
            if connection.state == "new" and time >= connection.due:
                connection.end(error=hello_missing(f"must arrive within {self._terms.hello_s:g} seconds"))
        self._expire_some(iter(list(self._crews)))

    def _expire_some(self, mob_ids: Iterator[str]) -> None:
        some = list(islice(mob_ids, CREWS_AT_ONCE))
        for mob_id in some:
            crew = self._crews.get(mob_id)
            if crew is None:
                continue
            if crew.empty:
                del self._crews[mob_id]
            else:
                crew.expire()
        if len(some) == CREWS_AT_ONCE:
            self._loop.call_soon(self._expire_some, mob_ids)
        elif not self._crews and all(connection.state == "ended" for connection in self._connections):
            self._patience.stop()

    def _journal_changed(self, down: bool) -> None:
        if not down:
            for crew in self._crews.values():
                crew.journal_up()

    def _later(self, work: Callable[[], None]) -> None:
        self._work.append(work)
        if not self._working:
            self._working = True
            self._loop.call_soon(self._do_some)

    def _do_some(self) -> None:
        try:
            for _ in range(min(WORK_AT_ONCE, len(self._work))):
                self._work.popleft()()
        finally:
            self._working = bool(self._work)
            if self._working:
                self._loop.call_soon(self._do_some)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
