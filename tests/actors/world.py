"""A process in small: real registry, actors, journal, publisher and memory store; time, commits and agents by hand."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from msgspec import Raw
from tests.support.clock import ManualClock
from tests.support.writers import HeldWriter

from mobd_server.actors.actor import MobActor
from mobd_server.actors.journal import Journal
from mobd_server.actors.links import Call, Reply
from mobd_server.actors.publisher import Publisher
from mobd_server.actors.registry import Keep, Registry
from mobd_server.actors.upkeep import Keeping
from mobd_server.adapters.memory.rebuilder import InlineRebuilder
from mobd_server.adapters.memory.store import MemoryStore, MemoryWriter
from mobd_server.adapters.system import CountedIds
from mobd_server.machines import commands as c
from mobd_server.machines.answers import AgentReaction
from mobd_server.machines.records import Record
from mobd_server.machines.state import Definition, Profile, Serve

T = TypeVar("T")

DEFINITION = Definition(profiles={"analyst": Profile("analyst"), "lead": Profile("lead")})
ANYBODY = Call()


class Agents:
    """A `links.Hub` that writes down what it is told; a test says which agents are connected."""

    def __init__(self, told: list[object]) -> None:
        self.told = told
        self.online: set[str] = set()
        self.loads: list[MobActor] = []
        self.evictions: list[str] = []
        # Agents are connected, or wait.
        self.busy = False

    def connected(self, mob_id: str) -> set[str]:
        return self.online

    def dispatch(self, mob_id: str, reactions: Sequence[AgentReaction]) -> None:
        self.told.extend(type(reaction).__name__ for reaction in reactions)

    def loaded(self, actor: MobActor) -> None:
        self.loads.append(actor)

    def mob_created(self, mob_id: str) -> None:
        pass

    def evicted(self, mob_id: str) -> None:
        self.evictions.append(mob_id)

    def idle(self, mob_id: str) -> bool:
        return not self.busy


class World:
    """One process. Two of them on one store are two processes that fight for its mobs."""

    def __init__(self, store: MemoryStore | None = None, slots: int = 4_096, keeping: Keeping | None = None) -> None:
        self.clock = ManualClock()
        self.store = store or MemoryStore()
        self.memory = MemoryWriter(self.store)
        self.writer = HeldWriter(self.memory)
        self.writer.open = True
        self.journal = Journal(self.writer, self.clock, slots)
        self.publisher = Publisher(self.store, self.clock)
        # Everything that can be seen from outside, in the order in which it was.
        self.told: list[object] = []
        self.hub = Agents(self.told)
        self.registry = Registry(
            self.store,
            self.journal,
            self.publisher,
            self.hub,
            self.clock,
            self.ids,
            jitter=lambda: 0.5,
            keep=Keep(keeping, InlineRebuilder(self.store), self.writer) if keeping is not None else None,
        )

    def ids(self, epoch: int) -> CountedIds:
        return CountedIds(epoch, 0)

    async def create(self, mob_id: str = "m", *members: str) -> MobActor:
        """Return a mob that is durable, with members of role analyst."""
        await soon(self.registry.create(mob_id, create_mob(), ANYBODY))
        actor = self.actor(mob_id)
        for member_id in members:
            await soon(actor.ask(c.SpawnMember(c.MemberSpec(member_id, "analyst")), ANYBODY))
        return actor

    async def attach(self, actor: MobActor, host_id: str = "host") -> str:
        """Attach an agent that serves analysts; return its attachment."""
        reply = await soon(actor.ask(c.Attach(host_id, "1", 4, 100, [Serve(role="analyst")]), ANYBODY))
        attachment_id = next(a.attachment_id for a in actor.mob.attachments.values() if a.host_id == host_id)
        assert reply.answer is not None
        self.hub.online.add(attachment_id)
        return attachment_id

    def actor(self, mob_id: str = "m") -> MobActor:
        """Return the mob, which is in memory."""
        actor = self.registry.get(mob_id)
        assert actor is not None
        return actor

    async def confirm(self, actor: MobActor, member_id: str = "ada") -> str:
        """Attach an agent that serves the member; return its attachment."""
        attachment_id = await self.attach(actor)
        executor = actor.mob.members[member_id].executor
        assert executor is not None
        await soon(actor.ask(c.Confirm(attachment_id, member_id, executor.fence), ANYBODY))
        return attachment_id

    async def fail_attempt(self, actor: MobActor, attachment_id: str) -> None:
        """Deliver one input and fail its first attempt: it is tried again after a pause."""
        await soon(actor.ask(deliver("i1"), ANYBODY))
        (run,) = actor.mob.runs.values()
        await soon(actor.ask(c.FailRun(attachment_id, run.run_id, run.fence, "error", "boom"), ANYBODY))

    def hold(self) -> None:
        """From now on the test lets each group go."""
        self.writer.open = False

    async def log(self, mob_id: str = "m") -> list[Record]:
        """Return all that is durable of a mob."""
        records: list[Record] = []
        while page := await self.store.read_events(mob_id, len(records), 1_000):
            records += page
        return records


def create_mob(log_id: str = "log-1") -> c.CreateMob:
    """Return the command that creates a mob with two roles."""
    return c.CreateMob(DEFINITION, {}, log_id)


def deliver(input_id: str, member_id: str = "ada", text: str = "hello") -> c.Deliver:
    """Return a delivery."""
    return c.Deliver(member_id, input_id, Raw(f'[{{"text":"{text}"}}]'.encode()))


async def soon(awaited: Awaitable[T]) -> T:
    """Return the result of what needs no time to pass."""
    return await asyncio.wait_for(awaited, 10)


def asking(actor: MobActor, command: c.Command, call: Call = ANYBODY) -> "asyncio.Future[Reply]":
    """Ask now, and let the answer come in its time."""
    return actor.ask(command, call)


def noting(told: list[object], name: str) -> Callable[[Reply], None]:
    """Return a receiver that writes the name down when the reply comes, with the error's if it is one."""

    def note(reply: Reply) -> None:
        told.append(name if reply.error is None else f"{name}: {reply.error.reason}")

    return note
