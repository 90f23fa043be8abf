"""A run of the fuzzer: one server, many requests from one seed, and what must hold during and after them."""

import asyncio
import os
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

import grpc
from msgspec import Struct, field
from tests.fuzz import machine
from tests.fuzz.attaching import ATTACH, AttachCase
from tests.fuzz.calls import METHODS, Case, Metadata, call
from tests.fuzz.generating import Generator
from tests.fuzz.judging import Code, Outcome, complaints, decoded, details_of
from tests.fuzz.shrinking import shrink
from tests.fuzz.words import MOBS, UNTOUCHED, Words
from tests.fuzz.world import World, connected
from tests.support.processes import say
from tests.support.served import Served

WORKERS: Final = 8
# How often it is looked whether there is still something to hit.
TEND_EVERY: Final = 40
GROWTH_BYTES: Final = 64 << 20
HEALTH_S: Final = 1.0
REMEMBERED: Final = 3_000
MAX_FAILURES: Final = 20
IMPATIENT: Final = 0.03
SETTINGS: Final = {
    "MOBD_LOG_FORMAT": "json",
    "MOBD_HELLO_S": "1",
    "MOBD_HEARTBEAT_S": "0.5",
    "MOBD_LEASE_S": "2",
    "MOBD_GRACE_S": "1",
    "MOBD_ACCEPT_S": "1",
    # Mobs come and go, from snapshots and from logs.
    "MOBD_PASSIVATE_AFTER_S": "0.5",
    "MOBD_SNAPSHOT_EVENTS": "200",
    "MOBD_SNAPSHOT_TAIL": "20",
}
# Those that a mob does not survive are rare; those that give it something to do are not.
WEIGHTS: Final = {
    "MobService/DestroyMob": 1,
    "MobService/DeleteMob": 2,
    "MobService/ResetMob": 1,
    "MobService/CompleteMob": 1,
    "MobService/StopMob": 1,
    "MemberService/RetireAllMembers": 1,
    "MemberService/RetireMember": 2,
    "BridgeService/Retire": 2,
    "BridgeService/Destroy": 2,
    "BridgeService/Wire": 1,
    "BridgeService/Unwire": 1,
    "BridgeService/Authorize": 1,
    "BridgeService/Revoke": 1,
    "BridgeService/Deliver": 16,
    "BridgeService/DeliverBatch": 8,
    "MemberService/SpawnMember": 8,
    "OperationService/RegisterOperation": 8,
    "OperationService/StartOperation": 8,
    ATTACH: 8,
}
NAMES: Final = list(METHODS)
CHANCES: Final = [WEIGHTS.get(name, 4) for name in NAMES]
TRACE: Final = f"00-{'a' * 32}-{'b' * 16}-01"


class Failure(Struct):
    """A call with an outcome that must not be."""

    index: int
    complaint: str
    line: str
    text: str


class Report(Struct):
    """What a run has seen."""

    seed: str
    calls: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    # Methods that were answered OK at least once.
    succeeded: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = []
    complaints: list[str] = []
    slowest: tuple[float, str] = (0.0, "")
    pulse: machine.Pulse = field(default_factory=machine.Pulse)

    @property
    def wrong(self) -> list[str]:
        """Everything that is wrong, in words."""
        told = [f"{one.complaint}\n  {one.line[:4_000]}\n{one.text}" for one in self.failures]
        return [*told, *self.complaints]

    def summary(self) -> str:
        """Return a few lines for people."""
        common = ", ".join(f"{name} {count}" for name, count in self.outcomes.most_common())
        never = ", ".join(name for name in NAMES if name not in self.succeeded) or "none"
        return (
            f"seed {self.seed}: {self.calls} calls, {len(self.wrong)} wrong\n  {common}\n  never OK: {never}\n"
            f"  slowest {self.slowest[0]:.2f} s ({self.slowest[1]}); health: {self.pulse.asked} answers, the latest"
            f" after {self.pulse.worst_s:.2f} s"
        )


def case_of(rng: Random, words: Words) -> Case | AttachCase:
    """Return the call that the dice choose."""
    name = rng.choices(NAMES, CHANCES)[0]
    if name == ATTACH:
        return AttachCase(rng, words)
    raw = Generator(rng, words).raw(METHODS[name].input_type)
    case = Case(name, [raw])
    if rng.random() < 0.1:
        case.metadata = _metadata(rng)
    if rng.random() < IMPATIENT:
        case.timeout_s = rng.choice((0.001, 0.003, 0.01))
    return case


def _metadata(rng: Random) -> Metadata:
    """Return what a caller may send along: traces, tokens, anything."""
    offers: list[tuple[str, str | bytes]] = [
        ("traceparent", TRACE),
        ("traceparent", "00-zz"),
        ("traceparent", TRACE.upper()),
        ("authorization", "Bearer x"),
        ("authorization", ""),
        ("x-bin", rng.randbytes(30)),
        ("traceparent-bin", b"\xff"),
        ("x-long", "y" * 3_000),
        ("x-odd", " !~"),
    ]
    return rng.sample(offers, rng.randrange(1, 4))


class Run:
    """One run against one server, which has been started on an empty store."""

    def __init__(self, served: Served, seed: str) -> None:
        self.report = Report(seed)
        self._served = served
        self._words = Words()
        self._failed: set[tuple[str, str]] = set()
        # What was sent last, for a failure that one request alone does not repeat.
        self.history: deque[str] = deque(maxlen=REMEMBERED)

    async def play(self, first: int, count: int) -> Report:
        """Make the calls from number `first` on, then look at what they have left behind."""
        async with connected(self._served.target) as world:
            await world.begin()
            untouched = await world.state(UNTOUCHED)
            indices = iter(range(first, first + count))
            with machine.Doctor(self._served.target, self._served.process.pid) as doctor:
                await asyncio.gather(*(self._work(world, indices) for _ in range(WORKERS)))
            self.report.pulse = doctor.pulse
            if await world.state(UNTOUCHED) != untouched:
                self.report.complaints.append("a mob that nobody named has changed")
            await self._folds(world)
        await self._look_after(untouched)
        return self.report

    async def replay(self, cases: list[Case]) -> Report:
        """Make these calls one after the other."""
        async with connected(self._served.target) as world:
            await world.begin()
            for index, case in enumerate(cases):
                await self._judge(world.channel, index, case, await call(world.channel, case))
        self.report.complaints += machine.misfortunes(self._served.log)
        return self.report

    async def _work(self, world: World, indices: Iterator[int]) -> None:
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 4 << 20))
        async with grpc.aio.insecure_channel(self._served.target, options=options) as channel:
            for index in indices:
                if len(self.report.failures) >= MAX_FAILURES:
                    return
                if index % TEND_EVERY == 0:
                    await world.tend()
                await self._one(channel, index)

    async def _one(self, channel: grpc.aio.Channel, index: int) -> None:
        case = case_of(Random(f"{self.report.seed}/{index}"), self._words)
        if isinstance(case, AttachCase):
            outcome = await case.play(channel)
            case = Case(ATTACH, case.sent or [b""])
        else:
            outcome = await call(channel, case)
        self.history.append(case.line())
        await self._judge(channel, index, case, outcome)

    async def _judge(self, channel: grpc.aio.Channel, index: int, case: Case, outcome: Outcome) -> None:
        report = self.report
        report.calls += 1
        reason = details_of(outcome.details).reason if outcome.details else ""
        report.outcomes[f"{outcome.code.name}{f'/{reason}' if reason else ''}"] += 1
        report.slowest = max(report.slowest, (outcome.seconds, case.method))
        if outcome.code is Code.OK or (case.descriptor.server_streaming and outcome.answers):
            report.succeeded[case.method] += 1
        for complaint in complaints(case.descriptor, case.messages, outcome):
            await self._failure(channel, index, case, complaint)
            return
        for answer in outcome.answers if case.method != ATTACH else ():
            self._words.learn(decoded(case.descriptor.output_type, answer))

    async def _failure(self, channel: grpc.aio.Channel, index: int, case: Case, complaint: str) -> None:
        # One of a kind is enough.
        kind = (case.method, complaint[:24])
        if kind in self._failed:
            return
        self._failed.add(kind)
        if not case.descriptor.client_streaming:
            case = await shrink(channel, case)
        failure = Failure(index, f"{case.method} (call {index}): {complaint}", case.line(), case.text())
        self.report.failures.append(failure)
        say(f"seed {self.report.seed}: {failure.complaint}\n  ONLY={failure.line[:4_000]}\n{failure.text}")

    async def _folds(self, world: World) -> None:
        """See that the log of each mob adds up to the state that is in memory."""
        for mob_id in MOBS:
            if await world.mob(mob_id) is None:
                continue
            cursor, log_id, sections = await world.state(mob_id)
            if await world.state(mob_id, cursor) != (cursor, log_id, sections):
                self.report.complaints.append(f"the log of {mob_id} does not add up to its state at {cursor}")

    async def _look_after(self, untouched: object) -> None:
        served, report = self._served, self.report
        pulse = report.pulse
        if pulse.failed:
            report.complaints.append(f"health was not answered: {pulse.failed[0]}")
        if pulse.worst_s > HEALTH_S:
            report.complaints.append(f"health was answered after {pulse.worst_s:.2f} s")
        if served.process.code is not None:
            report.complaints.append(f"the server ended with {served.process.code}")
        else:
            grown = machine.resident_bytes(served.process.pid)
            code = await served.terminate()
            if code != 0:
                report.complaints.append(f"the server ended with {code} when it was told to end")
            await self._again(untouched, grown)
        report.complaints += machine.misfortunes(served.log)

    async def _again(self, untouched: object, grown: int) -> None:
        """Start the server on what is stored: every mob must load, and its memory explain what the first one had."""
        await self._served.restart()
        async with connected(self._served.target) as world:
            for mob_id in await world.names():
                if await world.mob(mob_id) is None:
                    self.report.complaints.append(f"{mob_id} is listed and not there")
            if await world.state(UNTOUCHED) != untouched:
                self.report.complaints.append("a mob that nobody named has changed over a restart")
            stored = machine.resident_bytes(self._served.process.pid)
            say(f"memory: {grown >> 20} MiB after the calls, {stored >> 20} MiB with the same mobs after a restart")
            if grown - stored > GROWTH_BYTES:
                self.report.complaints.append(f"{grown - stored >> 20} MiB more than what is stored explains")

    def keep(self, folder: Path) -> Path:
        """Write what was sent last to a file, one call a line, and return where it is."""
        path = folder / f"fuzz-{os.getpid()}.calls"
        path.write_text("".join(f"{line}\n" for line in self.history))
        return path
