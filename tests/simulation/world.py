"""One world from one number: a server, its store, agents, clients, and what goes wrong. In the end all is healed, and
what everybody saw is judged.
"""

import asyncio
import gc
import logging
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any, Final

from tests.checker.checker import check
from tests.checker.history import Record, Recorder, to_line
from tests.checker.plain import plain
from tests.simulation import agents, plan
from tests.simulation.agents import pause
from tests.simulation.clients import MOB, OTHER, Person
from tests.simulation.loop import Endless, SimLoop, Stuck
from tests.simulation.network import SimNetwork, SimSystem
from tests.simulation.passing import DEFINITION, Departed
from tests.simulation.plan import PASSING, Step
from tests.simulation.storage import Backend, SimStore, SimWriter, Storage

import mobd
from mobd.system import used
from mobd.v1 import bridge_pb2, events_pb2, members_pb2, mobs_pb2, operations_pb2
from mobd_server.adapters.memory import InlineRebuilder
from mobd_server.adapters.system import CountedIds
from mobd_server.compose import CannotStart, Outside, Server, assemble, drain, recover
from mobd_server.testing.door import Door
from mobd_server.testing.loopback import Call, Place
from mobd_server.testing.network import Node, node_of
from mobd_server.testing.virtual import VirtualClock
from mobd_server.testing.world import Settings

# Where very many calls ended without an answer, the search for their order is given up.
UNDECIDED: Final = "could not be decided in time"
SETTINGS: Final[dict[str, Any]] = {
    "http_listen": "off",
    "node": "simulated",
    "heartbeat_s": 1.0,
    "lease_s": 3.0,
    "grace_s": 6.0,
    "accept_s": 2.0,
    "hello_s": 2.0,
    "drain_s": 2.0,
    "snapshot_events": 100,
    "snapshot_tail": 10,
}
# What differs from world to world.
DRAWN: Final[dict[str, tuple[Any, ...]]] = {"passivate_after_s": (1.0, 5.0), "journal_slots": (16, 4096, 4096)}
MOST_STEPS: Final = 3_000_000
# How long everything may take to come to rest once nothing goes wrong any more.
QUIET_S: Final = 240.0
# What a server may call an error where its store fails.
EXPECTED_LINES: Final = frozenset({"store_failed"})
LIVE: Final = (bridge_pb2.INPUT_STATE_QUEUED, bridge_pb2.INPUT_STATE_RUNNING)
# What may end an agent: another one has its name, or there is nobody to serve.
EXPECTED_ENDS: Final = frozenset({"SUPERSEDED", "MOB_DESTROYED"})


@dataclass
class Outcome:
    """What became of a world."""

    seed: int
    steps: Sequence[Step]
    records: list[Record]
    failures: list[str] = field(default_factory=list)
    ticks: int = 0
    seconds: float = 0.0

    @property
    def digest(self) -> str:
        """Return what is equal for equal worlds."""
        return sha256("\n".join(map(to_line, self.records)).encode()).hexdigest()


class World:
    """See the module."""

    def __init__(self, seed: int, steps: Sequence[Step], backend: Backend = "memory") -> None:
        self.seed = seed
        self._backend: Backend = backend
        self.steps = steps
        self.loop = SimLoop(self._chance("loop"), MOST_STEPS)
        self.recorder = Recorder(lambda: self.loop.steps)
        self.failures: list[str] = []
        # What clients do, and all else that goes on.
        self._calls: list[asyncio.Task[None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._started = 0
        self._server: Server | None = None
        self._server_node: Node | None = None
        self._people: dict[str, tuple[Node, Person]] = {}
        self._agents: dict[str, list[tuple[Node, mobd.Agent]]] = {}
        self._named: dict[str, int] = {}
        self._departed = Departed()
        self._over = False
        # How far the server's clock was set apart.
        self._wrong_s = 0.0

    def run(self) -> Outcome:
        """Run the world to its end and judge it."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            with self._listening():
                self.loop.run_until_complete(self._live())
        except (Stuck, Endless, mobd.Error) as error:
            self.failures.append(f"{type(error).__name__}: {error}")
        finally:
            self.failures += [f"uncaught: {one}" for one in self.loop.uncaught]
            outcome = Outcome(
                self.seed, self.steps, self.recorder.records[:], self.failures[:], self.loop.steps, self.loop.time()
            )
            with used(self._system), self._listening():
                self.loop.discard()
            self.storage.close()
            if collecting:
                gc.enable()
        if not outcome.failures:
            outcome.failures += [str(one) for one in check(outcome.records) if UNDECIDED not in one.text]
        return outcome

    def _chance(self, what: str) -> random.Random:
        return random.Random(f"{self.seed}/{what}")

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Take what the server calls an error for a failure, and let agents be silent."""
        server, client, ear = logging.getLogger("mobd_server"), logging.getLogger("mobd"), _Ear(self.failures)
        levels = server.level, client.level
        server.addHandler(ear)
        server.setLevel(logging.ERROR)
        client.setLevel(logging.CRITICAL + 1)
        propagates, server.propagate = server.propagate, False
        try:
            yield
        finally:
            server.removeHandler(ear)
            server.propagate = propagates
            server.setLevel(levels[0])
            client.setLevel(levels[1])

    async def _live(self) -> None:
        chance = self._chance("settings")
        self._drawn = {name: chance.choice(values) for name, values in DRAWN.items()}
        self.loop.shuffles = self._chance("shuffling").random() < 0.25
        self.network = SimNetwork(self._chance("network"), self.loop)
        self.storage = Storage(self._backend, self._chance("storage"), self.loop)
        fate, context = self._chance("crashes"), Node("fate").context
        self.storage.crash = lambda: context.copy().run(self._crash, fate.random() * 2)
        self.place = Place("sim:7780", self.network)
        self.clock = VirtualClock()
        self.ids = self._chance("ids")
        self._system = SimSystem(self.place, self.network, VirtualClock(), self.recorder, self.seed)
        with used(self._system):
            self._boot()
            founder = self._person("founder").client
            for mob in (MOB, OTHER):
                await founder.create_mob(mob, DEFINITION, request_id="create", timeout=60)
            await founder.spawn(OTHER, "solo", "lead", timeout=60)
            for step in self.steps:
                self.loop.call_later(step.at, self._begin, step)
            await pause(plan.HORIZON_S)
            await self._heal()
            quiet = {mob: await self._rest(mob) for mob in (MOB, OTHER)}
            # What they see from now on may not be in what is read now.
            self._end_agents(silently=True)
            await self._clear()
            for mob, all_ended in quiet.items():
                await self._finish(mob, quiet=all_ended)
            self._over = True

    def _begin(self, step: Step) -> None:
        self.recorder.note("fate", str(step))
        if step.who == "fate":
            getattr(self, f"_{step.what}")(**step.how)
        elif step.who == "agents":
            self._start_agent(step.how)
        else:
            self._calls.append(self._run_on(self._node_of(step.who), self._do(step)))

    def _run_on(self, node: Node, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        return self.loop.create_task(work, context=node.context.copy())

    async def _do(self, step: Step) -> None:
        try:
            came = await self._person(step.who).do(step.what, step.how)
        except Exception as error:  # noqa: BLE001 whatever it is, it is what this looks for
            self.failures.append(f"{step}: {type(error).__name__}: {error}")
        else:
            self.recorder.note(step.who, f"{step.what}: {came}")

    # Clients and agents.

    def _node_of(self, name: str) -> Node:
        self._person(name)
        return self._people[name][0]

    def _person(self, name: str) -> Person:
        if name not in self._people:
            self._people[name] = (Node(name), Person(mobd.Client("sim"), name, self._departed))
        return self._people[name][1]

    def _start_agent(self, how: dict[str, Any], *, good: bool = False) -> None:
        host = how["host"]
        self._named[host] = self._named.get(host, 0) + 1
        node = Node(f"{host}.{self._named[host]}")
        chance = self._chance(node.name)

        def made() -> mobd.Agent:
            return agents.make(chance, how, mobd.Client("sim"), good=good)

        agent = node.context.copy().run(made)
        self._agents.setdefault(host, []).append((node, agent))
        self._tasks.append(self._run_on(node, self._serve(agent, node.name)))

    async def _serve(self, agent: mobd.Agent, name: str) -> None:
        try:
            await agent.serve()
        except mobd.AgentStopped as stopped:
            self.recorder.note(name, f"stopped: {stopped}")
            if stopped.reason not in EXPECTED_ENDS:
                self.failures.append(f"agent {name} was stopped: {stopped.reason}: {stopped}")

    def _calls_of(self, node: Node) -> list[Call]:
        return [call for call in self.place.calls if node_of(call._context) is node]

    def _newest(self, host: str) -> list[tuple[Node, mobd.Agent]]:
        return [(node, agent) for node, agent in self._agents.get(host, ())[-1:] if node.alive]

    def _break(self, host: str) -> None:
        for node, _ in self._newest(host):
            for call in self._calls_of(node):
                call.reset()

    def _cut(self, host: str, seconds: float) -> None:
        for node, _ in self._newest(host):
            self.network.cut(node, seconds)

    def _freeze_agent(self, host: str, seconds: float) -> None:
        for node, _ in self._newest(host):
            self.loop.freeze(node, seconds)

    def _drain_agent(self, host: str) -> None:
        for node, agent in self._newest(host):
            self.loop.call_soon(agent.drain, context=node.context)

    def _kill_agent(self, host: str, silently: bool) -> None:
        for node, _ in self._newest(host):
            self._kill(node, silently=silently)

    def _kill(self, node: Node, *, silently: bool) -> None:
        self.loop.kill(node)
        for call in self._calls_of(node):
            del self.place.calls[call]
            if not silently and call._served is not None:
                call._served.leave(at_once=True)

    def _end_agents(self, *, silently: bool) -> None:
        for node, _ in [one for ones in self._agents.values() for one in ones]:
            if node.alive:
                self._kill(node, silently=silently)

    def _cut_client(self, client: str, seconds: float) -> None:
        self.network.cut(self._node_of(client), seconds)

    # The server and its store.

    def _boot(self) -> None:
        if self._server_node is None and not self._over:
            self._started += 1
            self._server_node = node = Node(f"server-{self._started}")
            self._tasks.append(self._run_on(node, self._start(node)))

    async def _start(self, node: Node) -> None:
        store, chance = SimStore(self.storage), self.ids
        outside = Outside(
            self.clock,
            lambda epoch: CountedIds(epoch, chance.getrandbits(32)),
            chance.random,
            store,
            SimWriter(self.storage, node),
            InlineRebuilder(store),
            partial(CountedIds(0, chance.getrandbits(32)).new, "log"),
            partial(Door, self.place),
        )
        server = assemble(Settings(**SETTINGS, **self._drawn), outside, None)
        self._server = server
        server.address = await server.rpc.start()
        try:
            await recover(server)
        except CannotStart as error:
            self.recorder.note(node.name, str(error))
            self.loop.call_later(0.5, self._crash, 0.5, context=Node("test").context)

    def _crash(self, down_s: float) -> None:
        node, self._server_node, self._server = self._server_node, None, None
        if node is None:
            return
        self.loop.kill(node)
        self._lose_server()
        self.loop.call_later(down_s, self._boot)

    def _zombie(self, seconds: float) -> None:
        """Let another server take over while the first only stands still; then that goes on for a while."""
        old = self._server_node
        if old is None:
            return
        self.loop.freeze(old, seconds)
        self._server_node = self._server = None
        self._lose_server()
        self._boot()
        self.loop.call_later(seconds + 1.5, self.loop.kill, old)

    def _lose_server(self) -> None:
        self.place.door = None
        for call in list(self.place.calls):
            call.reset()

    def _restart(self) -> None:
        node, server = self._server_node, self._server
        if node is not None and server is not None:
            self._tasks.append(self._run_on(node, self._leave(server, node)))

    async def _leave(self, server: Server, node: Node) -> None:
        await drain(server)
        if self._server_node is node:
            self._server_node = self._server = None
            self.loop.kill(node)
            self.loop.call_soon(self._boot, context=Node("test").context)

    def _freeze(self, seconds: float) -> None:
        if self._server_node is not None:
            self.loop.freeze(self._server_node, seconds)

    def _disconnect(self) -> None:
        self.place.disconnect()

    def _clock(self, seconds: float) -> None:
        self.clock.step_wall(seconds)
        self._wrong_s += seconds

    def _store_away(self, seconds: float) -> None:
        self.storage.away_until = self.loop.time() + seconds

    def _store_fault(self, faults: list[str]) -> None:
        self.storage.faults += faults

    # The end.

    async def _heal(self) -> None:
        self.recorder.note("fate", "healed")
        self.network.heal()
        self.storage.heal()
        self._clock(-self._wrong_s)
        self._end_agents(silently=self.seed % 2 == 0)
        for mob in (MOB, OTHER):
            how = {"host": f"good-{mob}", "mob": mob, "roles": ["analyst", "lead"], "capacity": 4}
            self._start_agent(how, good=True)
        _, waiting = await asyncio.wait(self._calls or [asyncio.ensure_future(pause(0))], timeout=QUIET_S)
        if waiting:
            self.failures.append(f"{len(waiting)} calls never ended")

    async def _rest(self, name: str) -> bool:
        """Wait until nothing is under way; say whether every input has ended."""
        client = self._person("judge").client
        end = self.loop.time() + QUIET_S
        while True:
            mob = await client.get_mob(name, timeout=60)
            if mob.phase == mobs_pb2.MOB_PHASE_STOPPED and mob.pending == mobs_pb2.MOB_PENDING_UNSPECIFIED:
                await client.resume_mob(name, timeout=60)
            inputs = [one async for one in client.list_inputs(name, timeout=60)]
            live = [one for one in inputs if one.state in LIVE]
            if not live and mob.pending == mobs_pb2.MOB_PENDING_UNSPECIFIED:
                return True
            # What wakes nobody waits for what does.
            await self._wake(mob, {one.member_id for one in live})
            if self.loop.time() > end:
                self.failures.append(f"never at rest: {mob}; {[plain(one) for one in live]}")
                return False
            await pause(1.0)

    async def _wake(self, mob: mobs_pb2.Mob, members: set[str]) -> None:
        for member in sorted(members) if mob.phase == mobs_pb2.MOB_PHASE_RUNNING else ():
            try:
                await self._person("judge").client.deliver(mob.mob_id, member, "wake up", input_id="wake", timeout=60)
            except (mobd.DeliveryRejected, mobd.InvalidTransition, mobd.MemberNotFound):
                # It, or its mob, leaves, and so it runs what it has.
                continue

    async def _clear(self) -> None:
        """Remove what passes, and see that nothing of it is left."""
        client = self._person("judge").client
        for mob in PASSING:
            await self._departed.remove_for_good(client, mob)
        there = [one.mob_id async for one in client.list_mobs(timeout=60)]
        if there != [MOB, OTHER]:
            self.failures.append(f"these mobs are there: {there}")
        self.failures += [
            f"{count} things are left of mob {mob}" for mob in PASSING if (count := self.storage.left(mob))
        ]

    async def _finish(self, mob: str, *, quiet: bool) -> None:
        """Read the final log and state into the history, as one who was not there."""
        client = self._person("judge").client
        stubs, recorder = client._stubs, self.recorder
        live = await client.get_state(mob, timeout=60)
        folded = await client.get_state(mob, at_cursor=live.cursor, timeout=60)
        differs = [
            f"{kind} {name}: {parts.get(name)} in memory, {folded.parts.get(kind, {}).get(name)} from the log"
            for kind, parts in live.parts.items()
            for name in {**parts, **folded.parts.get(kind, {})}
            if parts.get(name) != folded.parts.get(kind, {}).get(name)
        ]
        if differs:
            self.failures.append(f"memory is not the log: {differs}")
        recorder.reading(MOB)
        cursor, head = 0, 1
        while cursor < head:
            start = events_pb2.EventStart(after_cursor=cursor)
            page = await stubs.events.PollEvents(
                events_pb2.PollEventsRequest(mob_id=mob, start=start, limit=5_000), timeout=60
            )
            for event in page.events:
                recorder.logged(mob, plain(event))
            cursor, head = page.next_cursor, page.head
        recorder.final_end(mob, "log", quiet=quiet)
        await self._list(
            mob, "member", "members", stubs.members.ListMembers, members_pb2.ListMembersRequest, include_retiring=True
        )
        await self._list(mob, "input", "inputs", stubs.bridge.ListInputs, bridge_pb2.ListInputsRequest)
        await self._list(
            mob, "operation", "operations", stubs.operations.ListOperations, operations_pb2.ListOperationsRequest
        )

    async def _list(
        self, mob: str, what: str, items: str, method: Callable[..., Any], request: Any, **more: Any
    ) -> None:
        token = ""
        while True:
            answer = await method(request(mob_id=mob, page_size=1000, page_token=token, **more), timeout=60)
            for one in getattr(answer, items):
                self.recorder.final(mob, what, plain(one))
            token = answer.next_page_token
            if not token:
                break
        self.recorder.final_end(mob, what)


class _Ear(logging.Handler):
    def __init__(self, failures: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._failures = failures

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg not in EXPECTED_LINES:
            more = {name: value for name, value in vars(record).items() if name in ("error", "mob_id", "method")}
            self._failures.append(f"logged: {self.format(record)} {more}")


def simulate(seed: int, steps: Sequence[Step] | None = None, backend: Backend = "memory") -> Outcome:
    """Run the world of a seed: with its own plan, or with what is left of it."""
    return World(seed, plan.draw(seed) if steps is None else steps, backend).run()
