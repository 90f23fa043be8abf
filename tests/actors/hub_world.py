"""A server in small with the real hub: agents are streams whose frames a test says and reads; time moves by hand."""

import asyncio
from typing import TypeVar

from msgspec import Raw
from tests.actors.world import ANYBODY, create_mob, deliver, soon
from tests.support.clock import ManualClock
from tests.support.loops import ticks
from tests.support.writers import HeldWriter

from mobd_server.actors import frames as f
from mobd_server.actors.actor import MobActor
from mobd_server.actors.connection import Connection
from mobd_server.actors.hub import Hub
from mobd_server.actors.journal import Journal
from mobd_server.actors.links import Reply
from mobd_server.actors.publisher import Publisher
from mobd_server.actors.registry import Registry
from mobd_server.adapters.memory.store import MemoryStore, MemoryWriter
from mobd_server.adapters.system import CountedIds
from mobd_server.machines import answers as a
from mobd_server.machines import commands as c
from mobd_server.machines.records import Record
from mobd_server.machines.state import Member, Serve

F = TypeVar("F")

TERMS = f.Terms()
ANALYST = Serve(role="analyst")


class StalledClock(ManualClock):
    """A clock on a machine that can be held up: time passes and nothing is called until it goes on."""

    def stall(self, seconds: float) -> None:
        self._move(self._monotonic + seconds)

    def _move(self, monotonic: float) -> None:
        # What was due meanwhile is called late, not in the past.
        super()._move(max(monotonic, self._monotonic))


class HubWorld:
    """One process."""

    def __init__(self, store: MemoryStore | None = None, slots: int = 4_096, terms: f.Terms = TERMS) -> None:
        self.clock = StalledClock()
        self.store = store or MemoryStore()
        self.writer = HeldWriter(MemoryWriter(self.store))
        self.writer.open = True
        self.journal = Journal(self.writer, self.clock, slots)
        self.publisher = Publisher(self.store, self.clock)
        self.hub = Hub(self.journal, self.store, self.clock, terms)
        self.registry = Registry(
            self.store, self.journal, self.publisher, self.hub, self.clock, lambda e: CountedIds(e, 0), lambda: 0.5
        )
        self.hub.begin(self.registry)

    async def create(self, *members: str) -> MobActor:
        """Return a mob that is durable, with members of role analyst."""
        await soon(self.registry.create("m", create_mob(), ANYBODY))
        for member_id in members:
            await self.ask(c.SpawnMember(c.MemberSpec(member_id, "analyst")))
        await ticks()
        return self.actor

    @property
    def actor(self) -> MobActor:
        actor = self.registry.get("m")
        assert actor is not None
        return actor

    def member(self, member_id: str = "ada") -> Member:
        return self.actor.mob.members[member_id]

    def served_by(self, member_id: str = "ada") -> str | None:
        """Return the host that serves a member."""
        executor = self.member(member_id).executor
        return None if executor is None else self.actor.mob.attachments[executor.attachment_id].host_id

    async def ask(self, command: c.Command) -> Reply:
        reply = await soon(self.actor.ask(command, ANYBODY))
        await ticks()
        return reply

    async def deliver(self, input_id: str, member_id: str = "ada") -> None:
        reply = await self.ask(deliver(input_id, member_id))
        assert isinstance(reply.answer, a.Accepted)

    async def elapse(self, seconds: float) -> None:
        """Let time pass on a server that is idle: everything is done when it is due."""
        for _ in range(round(seconds * 2)):
            self.clock.advance(0.5)
            await ticks(4)
        await ticks()

    async def fail_store(self) -> None:
        """Make the next group fail, and the journal go down."""
        self.writer.open = False
        asking = asyncio.ensure_future(self.actor.ask(deliver("that fails"), ANYBODY))
        await ticks()
        self.writer.fail("aborted")
        await asyncio.gather(asking, return_exceptions=True)
        self.writer.open = True
        assert self.journal.down

    async def mend_store(self) -> None:
        """Let the store answer again."""
        while not self.writer.probing():
            self.clock.advance(1)
            await ticks()
        self.writer.answer_probe(answers=True)
        await ticks()

    async def kinds(self) -> list[str]:
        """Return the kinds of all durable events, in order."""
        return [record.kind for record in await self.log()]

    async def log(self) -> list[Record]:
        records: list[Record] = []
        while page := await self.store.read_events("m", len(records), 1_000):
            records += page
        return records


class AgentPeer:
    """An agent at the end of a stream, as the transport sees it."""

    def __init__(self, world: HubWorld, host_id: str = "h1", incarnation: str = "1", **hello: object) -> None:
        self.world = world
        self._hello = {"serves": [ANALYST], "capacity": 4, "max_members": 100, **hello}
        self.host_id = host_id
        self.incarnation = incarnation
        # Everything that was sent to it, in order; how far the test has looked.
        self.frames: list[f.ServerFrame] = []
        self.error: Exception | None = None
        self._ended = False
        self.connection: Connection = self._open()

    def _open(self) -> Connection:
        connection = self.world.hub.open("anonymous")
        self._pump = asyncio.ensure_future(self._read(connection))
        return connection

    async def _read(self, connection: Connection) -> None:
        try:
            while frames := await connection.take():
                self.frames += frames
        except Exception as error:  # noqa: BLE001 the test looks at it
            self.error = error
        self._ended = True
        self.world.hub.gone(connection)

    def ended(self) -> bool:
        """Whether the server has ended the stream and everything of it was read."""
        return self._ended

    def stop_reading(self) -> None:
        """Read nothing more, as a process that hangs."""
        self._pump.cancel()

    def break_off(self) -> None:
        """Lose the connection."""
        self._pump.cancel()
        self.world.hub.gone(self.connection)

    async def say(self, *frames: f.AgentFrame) -> None:
        """Send frames, and give the server the time to deal with them."""
        await soon(self.world.hub.receive(self.connection, frames))
        await ticks()

    async def hello(self, *held: str, mob_id: str = "m") -> "AgentPeer":
        await self.say(f.Hello(mob_id, self.host_id, self.incarnation, held=list(held), **self._hello))  # type: ignore[arg-type]  # of all types
        return self

    async def reconnect(self, *held: str) -> None:
        """Come back on a new stream as the same process."""
        self.connection = self._open()
        self._ended = False
        await self.hello(*held)

    async def serve(self, *held: str) -> "AgentPeer":
        """Say Hello, and take every member that it is given."""
        await self.hello(*held)
        await self.accept_members()
        return self

    async def accept_members(self) -> None:
        for assign in self.take(a.SendAssign):
            await self.say(f.Assigned(assign.member_id, assign.fence))

    async def accept_run(self) -> a.SendStartRun:
        """Take the one run that it was sent."""
        (start,) = self.take(a.SendStartRun)
        await self.say(f.RunAccepted(start.run_id, start.fence))
        return start

    async def beat(self, *run_ids: str) -> None:
        await self.say(f.Heartbeat(list(run_ids)))

    def take(self, kind: type[F]) -> list[F]:
        """Return the frames of a kind that were not taken before."""
        found: list[F] = [frame for frame in self.frames if isinstance(frame, kind)]
        self.frames = [frame for frame in self.frames if not isinstance(frame, kind)]
        return found

    @property
    def attachment_id(self) -> str:
        return self.connection.attachment_id

    @property
    def connectivity(self) -> str:
        return self.world.hub.connectivity("m", self.attachment_id)


def result(start: a.SendStartRun, output: str = '{"n":1}', *messages: str, expected: int | None = None) -> f.RunResult:
    """Return the result of a run."""
    texts = [Raw(message.encode()) for message in messages]
    return f.RunResult(start.run_id, start.fence, Raw(output.encode()), texts, expected)
