"""A seeded workload on a real server over a socket, whose processes are killed at seeded moments, as one history.

Clients deliver, repeat, contradict, cancel, retire, respawn and read, with deadlines that are sometimes too short;
watchers follow the log from its beginning and from anywhere; agents run in processes of their own. Server and agents
are killed with SIGKILL. In the end all is healed, what waits is driven to its end, and the final log is read.
"""

import asyncio
import random
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
from tests.checker.history import Record, Recorder, merged, read
from tests.checker.recording import Caller, clock
from tests.support.peers import DEFINITION, MOB, ROLE, content
from tests.support.processes import Process
from tests.support.served import Served

from mobd.v1 import bridge_pb2, common_pb2, events_pb2, members_pb2, mobs_pb2

MEMBERS: Final = [f"m{at}" for at in range(5)]
CLIENTS: Final = 6
HOSTS: Final = 2
SETTINGS: Final = {
    "MOBD_HEARTBEAT_S": "0.5",
    "MOBD_LEASE_S": "2",
    "MOBD_GRACE_S": "2",
    "MOBD_ACCEPT_S": "2",
    "MOBD_DRAIN_S": "2",
}
# How long a healed mob is given to come to rest: a failed input waits 1 s and 10 s for its next attempts.
REST_S: Final = 25.0
BACKLOG: Final = 120
# How long a server that is to die stands still before it does.
STALL_MS: Final = 100
PROGRESS: Final = bridge_pb2.PeerResponse(request_id="asked", status=bridge_pb2.PEER_RESPONSE_STATUS_IN_PROGRESS)
_OTHERS: Final = (
    ("observe", 6),
    ("get_input", 6),
    ("list_inputs", 4),
    ("watch_input", 2),
    ("poll", 2),
    ("interrupt", 4),
    ("hard_cancel", 2),
    ("retire", 1),
    ("retire_member", 1),
    ("respawn", 2),
    ("destroy", 1),
    ("spawn", 4),
    ("ensure", 4),
    ("stop", 1),
    ("resume", 6),
)


@dataclass(slots=True)
class Plan:
    """What is drawn from a seed: for how long, and after how many seconds what is killed."""

    seed: int
    seconds: float = 6.0
    kills: int = 3
    agent_kills: int = 2
    watchers: int = 2
    # What each server process is started with beside its settings, one after another: see mobd_server.faults.
    faults: list[str] = field(default_factory=list)


class Client:
    """One caller with a mind of its own. What it delivered, and saw of runs, it shares with the others."""

    def __init__(self, caller: Caller, number: int, plan: Plan, shared: "Shared") -> None:
        self.caller = caller
        self._draw = random.Random(f"{plan.seed}-client-{number}")
        self._number = number
        self._shared = shared
        self._made = 0

    async def live(self) -> None:
        """Call until the others say that it is enough."""
        while not self._shared.enough.is_set():
            draw = self._draw.random()
            if draw < 0.55:
                await self._deliver()
            elif draw < 0.62:
                await self._batch()
            else:
                names, weights = zip(*_OTHERS, strict=True)
                (what,) = self._draw.choices(names, weights)
                await getattr(self, f"_{what}")(self._draw.choice(MEMBERS))
            await asyncio.sleep(self._draw.choice((0.0, 0.001, 0.01)))  # noqa: TID251 callers have a rhythm

    async def _ask(self, rpc: str, request: Any) -> Any:
        """Call until it is answered, or give up after an attempt whose outcome is unknown; deadlines differ."""
        first_s = self._draw.choice((10.0, 10.0, 10.0, 0.004, 0.02))
        if self._draw.random() < 0.85:
            return await self.caller.ask(rpc, request, first_s=first_s)
        try:
            return await self.caller.once(rpc, request, first_s)
        except grpc.aio.AioRpcError:
            return None

    def _name(self) -> str:
        self._made += 1
        return f"{self._number}-{self._made}"

    def _delivery(self, member_id: str) -> dict[str, Any]:
        draw = self._draw.random()
        delivered = self._shared.delivered
        if draw < 0.12 and delivered:
            again = dict(self._draw.choice(delivered))
            if self._draw.random() < 0.2:
                again["content"] = content(n="something else")
            return again
        name = self._name()
        one: dict[str, Any] = {"member_id": member_id, "input_id": name, "content": content(n=name)}
        if draw < 0.2:
            one |= {"handling_mode": common_pb2.HANDLING_MODE_STEER}
        elif draw < 0.25:
            one |= {"wake": False}
        elif draw < 0.3:
            one |= {"supersession_key": self._draw.choice("ab")}
        elif draw < 0.33:
            one |= {"peer_response": PROGRESS, "supersession_key": "progress"}
        elif draw < 0.36:
            one |= {"fence": common_pb2.Fence(generation=self._draw.choice((0, 0, 1, 2)))}
        delivered.append(one)
        return one

    async def _deliver(self) -> None:
        one = self._delivery(self._draw.choice(MEMBERS))
        await self._ask("Deliver", bridge_pb2.DeliverRequest(mob_id=MOB, **one))
        if len(self._shared.delivered) % 20 == 0:
            # So much waits that agents are kept busy, and no more.
            live = await self.caller.live_inputs()
            while len(live) > BACKLOG and not self._shared.enough.is_set():
                await asyncio.sleep(0.1)  # noqa: TID251 the agents are given time
                live = await self.caller.live_inputs()

    async def _batch(self) -> None:
        them = [
            bridge_pb2.Delivery(**self._delivery(self._draw.choice(MEMBERS))) for _ in range(self._draw.randint(2, 8))
        ]
        await self._ask("DeliverBatch", bridge_pb2.DeliverBatchRequest(mob_id=MOB, deliveries=them))

    async def _observe(self, member_id: str) -> None:
        seen = await self._ask("Observe", bridge_pb2.ObserveRequest(mob_id=MOB, member_id=member_id))
        if seen is not None and seen.current_run_id:
            self._shared.runs[member_id] = seen.current_run_id

    async def _get_input(self, member_id: str) -> None:
        if self._shared.delivered:
            one = self._draw.choice(self._shared.delivered[-40:])
            names = {"member_id": one["member_id"], "input_id": one["input_id"]}
            await self._ask("GetInput", bridge_pb2.GetInputRequest(mob_id=MOB, **names))

    async def _list_inputs(self, member_id: str) -> None:
        await self._ask("ListInputs", bridge_pb2.ListInputsRequest(mob_id=MOB, member_id=member_id, page_size=1000))

    async def _watch_input(self, member_id: str) -> None:
        if self._shared.delivered:
            one = self._draw.choice(self._shared.delivered[-5:])
            self._shared.watching.append(
                asyncio.ensure_future(self.caller.watch_input(one["member_id"], one["input_id"]))
            )

    async def _poll(self, member_id: str) -> None:
        start = events_pb2.EventStart(after_cursor=0)
        await self._ask("PollEvents", events_pb2.PollEventsRequest(mob_id=MOB, start=start, limit=1))

    async def _interrupt(self, member_id: str) -> None:
        await self._ask("Interrupt", bridge_pb2.InterruptRequest(mob_id=MOB, member_id=member_id, reason="enough"))

    async def _hard_cancel(self, member_id: str) -> None:
        run_id = self._shared.runs.get(member_id)
        if run_id is not None:
            request = bridge_pb2.HardCancelRequest(mob_id=MOB, member_id=member_id, run_id=run_id)
            await self._ask("HardCancel", request)

    async def _retire(self, member_id: str) -> None:
        await self._ask("Retire", bridge_pb2.RetireRequest(mob_id=MOB, member_id=member_id, request_id=self._name()))

    async def _retire_member(self, member_id: str) -> None:
        request = members_pb2.RetireMemberRequest(mob_id=MOB, member_id=member_id, request_id=self._name())
        await self._ask("RetireMember", request)

    async def _respawn(self, member_id: str) -> None:
        request = members_pb2.RespawnMemberRequest(mob_id=MOB, member_id=member_id, request_id=self._name())
        if self._draw.random() < 0.5:
            request.initial_message.CopyFrom(content(n="initial"))
        await self._ask("RespawnMember", request)

    async def _destroy(self, member_id: str) -> None:
        await self._ask("Destroy", bridge_pb2.DestroyRequest(mob_id=MOB, member_id=member_id, request_id=self._name()))
        await self._respawn(member_id)

    async def _spawn(self, member_id: str) -> None:
        spec = members_pb2.MemberSpec(member_id=member_id, role=ROLE)
        await self._ask("SpawnMember", members_pb2.SpawnMemberRequest(mob_id=MOB, spec=spec, request_id=self._name()))

    async def _ensure(self, member_id: str) -> None:
        spec = members_pb2.MemberSpec(member_id=member_id, role=ROLE)
        await self._ask("EnsureMember", members_pb2.EnsureMemberRequest(mob_id=MOB, spec=spec, request_id=self._name()))

    async def _stop(self, member_id: str) -> None:
        await self._ask("StopMob", mobs_pb2.StopMobRequest(mob_id=MOB, request_id=self._name()))
        await self._resume(member_id)

    async def _resume(self, member_id: str) -> None:
        await self._ask("ResumeMob", mobs_pb2.ResumeMobRequest(mob_id=MOB, request_id=self._name()))


@dataclass(slots=True)
class Shared:
    """What the callers of a workload know of each other."""

    enough: asyncio.Event = field(default_factory=asyncio.Event)
    delivered: list[dict[str, Any]] = field(default_factory=list)
    runs: dict[str, str] = field(default_factory=dict)
    watching: list[asyncio.Task[None]] = field(default_factory=list)


class Workload:
    """One run of the workload against one server, again and again killed."""

    def __init__(self, folder: Path, url: str | None, plan: Plan, settings: Mapping[str, str] | None = None) -> None:
        self.plan = plan
        self.recorder = Recorder(clock, "t-")
        self._folder = folder
        self._served = Served(folder, url, {**SETTINGS, **(settings or {})})
        self._draw = random.Random(f"{plan.seed}-kills")
        self._agents: list[Process] = []
        self._incarnations = 0
        self._books: list[Path] = []

    async def run(self) -> list[Record]:
        """Return the history."""
        self._arm()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._served)
            stack.callback(self._end_agents)
            admin = await stack.enter_async_context(self._caller("admin"))
            await self._create(admin)
            self._agents = [self._agent(host) for host in range(HOSTS)]
            shared = Shared()
            clients = [
                Client(await stack.enter_async_context(self._caller(f"client-{at}")), at, self.plan, shared)
                for at in range(CLIENTS)
            ]
            tasks = [asyncio.ensure_future(client.live()) for client in clients]
            watchers = [
                asyncio.ensure_future((await stack.enter_async_context(self._caller(f"watcher-{at}"))).follow())
                for at in range(self.plan.watchers)
            ]
            reader = await stack.enter_async_context(self._caller("reader"))
            watchers.append(asyncio.ensure_future(self._read_about(reader)))
            onlooker = await stack.enter_async_context(self._caller("onlooker"))
            watchers.append(asyncio.ensure_future(self._look_on(onlooker, shared)))
            stack.callback(lambda: [task.cancel() for task in [*tasks, *watchers, *shared.watching]])
            await self._kill_around(tasks)
            shared.enough.set()
            await asyncio.gather(*tasks)
            await self._rest(admin)
            for task in [*watchers, *shared.watching]:
                task.cancel()
            await asyncio.gather(*watchers, *shared.watching, return_exceptions=True)
            self._end_agents()
            await admin.finish(quiet=True)
        return merged(self.recorder, *(read(book) for book in self._books))

    def _caller(self, who: str) -> Caller:
        return Caller(who, self._served.target, MOB, self.recorder)

    def _arm(self) -> None:
        self._served.settings.pop("MOBD_FAULT", None)
        if self.plan.faults:
            self._served.settings["MOBD_FAULT"] = self.plan.faults.pop(0)

    def _agent(self, host: int) -> Process:
        self._incarnations += 1
        incarnation = str(self._incarnations)
        book = self._folder / f"agent-{incarnation}.jsonl"
        book.touch()
        self._books.append(book)
        names = [self._served.target, MOB, ROLE, f"host-{host}", incarnation, f"{self.plan.seed}-{incarnation}"]
        argv = ["-m", "tests.checker.agent", *names, str(book)]
        return Process(argv, {}, self._folder / f"agent-{incarnation}.log")

    async def _create(self, admin: Caller) -> None:
        definition = mobs_pb2.DefinitionDocument(json=DEFINITION)
        await admin.ask("CreateMob", mobs_pb2.CreateMobRequest(mob_id=MOB, definition=definition, request_id="create"))
        specs = [members_pb2.MemberSpec(member_id=name, role=ROLE) for name in MEMBERS]
        await admin.ask("SpawnMembers", members_pb2.SpawnMembersRequest(mob_id=MOB, specs=specs, request_id="spawn"))

    async def _kill_around(self, tasks: list[asyncio.Task[None]]) -> None:
        """Let the callers live for a while, and kill what the seed says at the moments that it says."""
        plan = self.plan
        victims = ["server"] * plan.kills + ["agent"] * plan.agent_kills
        self._draw.shuffle(victims)
        moments = sorted(self._draw.uniform(0.3, plan.seconds) for _ in victims)
        begun = asyncio.get_running_loop().time()
        for moment, victim in zip([*moments, plan.seconds], [*victims, ""], strict=True):
            while (rest := begun + moment - asyncio.get_running_loop().time()) > 0:
                # The moment of a kill is a time; meanwhile a server that died of a fault is started again.
                done, _ = await asyncio.wait(tasks, timeout=min(rest, 0.05), return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    await task
                if self._served.process.code is not None:
                    await self._restart()
            if victim == "agent":
                at = self._draw.randrange(len(self._agents))
                self._agents[at].kill()
                # Another process of the same host, or of another one.
                self._agents[at] = self._agent(self._draw.choice((at, HOSTS + at)))
            elif victim == "server":
                await self._restart()

    async def _restart(self) -> None:
        """Kill the server, if it lives, and start the next one."""
        self._served.kill9()
        self.recorder.note("workload", "the server is killed")
        while True:
            self._arm()
            try:
                await self._served.restart()
            except AssertionError:
                # It came to its fault before it served.
                if not self.plan.faults:
                    raise
            else:
                return

    def _end_agents(self) -> None:
        for agent in self._agents:
            agent.kill()

    async def _read_about(self, reader: Caller) -> None:
        """Open streams anywhere in the log, with and without a filter, and leave them after a while."""
        draw = random.Random(f"{self.plan.seed}-reader")
        head = 0
        while True:
            after = draw.choice((None, 0, draw.randint(0, head), head))
            kinds = draw.choice(((), (), ("input_accepted", "run_settled")))
            members = draw.choice(((), (), (MEMBERS[0],)))
            try:
                async with asyncio.timeout(2):
                    head = max(head, await reader.watch(after, kinds, members, draw.choice((5, 50, 500))))
            except TimeoutError:
                pass
            await asyncio.sleep(0.02)  # noqa: TID251 a reader waits before it comes back

    async def _look_on(self, onlooker: Caller, shared: Shared) -> None:
        """Look at what was delivered last, again and again: it may not be durable yet."""
        while True:
            if shared.delivered:
                names = {name: shared.delivered[-1][name] for name in ("member_id", "input_id")}
                with suppress(grpc.aio.AioRpcError):
                    await onlooker.once("GetInput", bridge_pb2.GetInputRequest(mob_id=MOB, **names))
            await asyncio.sleep(0.01)  # noqa: TID251 an onlooker looks now and then

    async def _rest(self, admin: Caller) -> None:
        """Heal everything, wake what waits, and return when nothing is left to be run, or after a while."""
        if "MOBD_FAULT" in self._served.settings or self._served.process.code is not None:
            self.plan.faults.clear()
            await self._restart()
        await admin.ask("ResumeMob", mobs_pb2.ResumeMobRequest(mob_id=MOB, request_id="resume"))
        for name in MEMBERS:
            last = f"last-{name}"
            request = bridge_pb2.DeliverRequest(mob_id=MOB, member_id=name, input_id=last, content=content(n=last))
            await admin.ask("Deliver", request)
        deadline = asyncio.get_running_loop().time() + REST_S
        while await admin.live_inputs():
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(0.1)  # noqa: TID251 what is left the agents do


POINTS: Final = ("before_commit", "after_commit", "before_publish", "before_answer", "before_dispatch", "after_settle")


def faults(seed: int, points: Sequence[str] = POINTS) -> list[str]:
    """Draw what makes each of a workload's servers die in the middle of something."""
    draw = random.Random(f"{seed}-faults")
    found = []
    for _ in range(8):
        point, count = draw.choice(points), draw.randint(30, 300)
        # First it stands still for a moment, so that what should not have left it yet has time to.
        found.append(f"{point}:stall={STALL_MS}ms@{count},{point}:crash@{count}")
    return found
