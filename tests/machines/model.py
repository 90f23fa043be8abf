"""A second, slower notion of what a mob is: it checks every event against the rules and every state against itself.

It is written from the reference (api §5-§8, runtime §2, §3, §9), not from the machines, and does not place members: it
only knows what a placement must never be, and when work must not be left waiting.
"""

from dataclasses import dataclass, field
from typing import Any, Final

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.inbox import input_key
from mobd_server.machines.records import Record
from mobd_server.machines.state import Mob

SECOND: Final = 1_000_000
DAY: Final = 86_400 * SECOND
PHASE_AFTER: Final = {
    "mob_started": {"creating": "running", "stopped": "running"},
    "mob_stopped": {"running": "stopped"},
    "mob_resumed": {"stopped": "running"},
}
# What a command means for the run that it is about.
FAILED: Final = {("error", True): "error", ("error", False): "final", ("released", True): "released"}


@dataclass
class Input:
    member_id: str
    input_id: str
    content: bytes
    state: str = "waiting"
    attempts: int = 0
    was_lost: bool = False
    ended_at: int = 0


@dataclass
class Member:
    role: str
    fence: int
    queue: list[str] = field(default_factory=list)
    run: str | None = None
    paused_until: int = 0
    # Attachment and fence.
    executor: tuple[str, int] | None = None
    confirmed: bool = False
    destroyed: bool = False
    known: dict[str, str] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    receipts: list[str] = field(default_factory=list)


@dataclass
class Run:
    member_id: str
    attachment_id: str
    fence: int
    inputs: list[str]
    exclusive: bool
    resent: int = 0


@dataclass
class Agent:
    host: str
    incarnation: str
    capacity: int
    max_members: int
    roles: list[str | None]
    names: list[str | None]
    members: dict[str, int] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    declined: set[str] = field(default_factory=set)

    def serves(self, member_id: str, member: Member) -> bool:
        return member_id in self.names or member.role in self.roles


class Model:
    """What a mob must be after the events that were applied."""

    def __init__(self) -> None:
        self.phase = "creating"
        self.pending = False
        self.fences = 0
        self.members: dict[str, Member] = {}
        self.inputs: dict[str, Input] = {}
        self.runs: dict[str, Run] = {}
        self.agents: dict[str, Agent] = {}
        # Results that were committed: run -> fence and hash.
        self.receipts: dict[str, tuple[int, bytes]] = {}
        self.run_ids: set[str] = set()
        # The command that is being applied, and who is connected for it.
        self.command: c.Command = c.Continue()
        self.connected: set[str] = set()

    # What must be answered.

    def delivery(self, command: c.Deliver) -> str:
        member = self.members.get(command.member_id)
        if member is not None and command.input_id in member.known:
            same = self.inputs[member.known[command.input_id]].content == bytes(command.content)
            return "deduplicated" if same else "content_conflict"
        if self.phase != "running" or self.pending:
            return "refused"
        if member is None:
            return "unknown_member"
        if command.fence_token not in (None, member.fence):
            return "stale_fence"
        return "queue_full" if len(member.queue) >= 1_000 else "accepted"

    def expired(self, member_id: str, now: int) -> list[str]:
        """Return the ended inputs that the member's next one pushes out."""
        ended = [self.inputs[one] for one in self.members[member_id].ended]
        return [one.input_id for one in ended if one.ended_at < now - DAY]

    def current(self, command: c.SettleRun | c.FailRun | c.LoseRun) -> Run | None:
        run = self.runs.get(command.run_id)
        known = run is not None and (run.attachment_id, run.fence) == (command.attachment_id, command.fence)
        return run if known else None

    def disposition(self, command: c.SettleRun | c.FailRun | c.LoseRun) -> str:
        run = self.current(command)
        if isinstance(command, c.SettleRun):
            if run is not None:
                return "committed"
            fence, result_hash = self.receipts.get(command.run_id, (0, b""))
            if fence != command.fence:
                return "fenced"
            return "duplicate" if result_hash == command.result_hash else "conflict"
        if run is None:
            return "fenced"
        gone = [self.outcome(run, one) == "abandoned" for one in run.inputs]
        return "abandoned" if all(gone) else "requeued"

    # What must become of a run.

    def cause(self, run: Run) -> str:
        match self.command:
            case c.SettleRun():
                return "result"
            case c.FailRun(kind=kind, retryable=retryable):
                return FAILED[kind, retryable]
            case c.LoseRun():
                return "lost"
            case c.CloseAttachment(reason=reason):
                return "lost" if reason == "lost" else "released"
            case c.Attach():
                agent = self.agents[run.attachment_id]
                if agent.incarnation == self.command.incarnation and agent.host == self.command.host_id:
                    assert run.resent == 2, "a run of an agent that came back is lost when it was sent twice again"
                return "lost"
            case c.Decline():
                return "released"
            case c.DestroyMob() | c.Continue():
                assert self.pending
                return "destroyed"
            case other:
                raise AssertionError(f"{other} settles no run")

    def outcome(self, run: Run, canonical: str) -> str:
        cause, attempts = self.cause(run), self.inputs[canonical].attempts
        if cause == "result":
            return "consumed"
        if cause in ("final", "destroyed"):
            return "abandoned"
        if cause == "released":
            return "requeued"
        if cause == "lost":
            return "abandoned" if attempts >= 3 and run.exclusive else "requeued"
        if attempts >= 3:
            return "abandoned"
        return "requeued_behind" if self.members[run.member_id].queue else "requeued"

    # Events.

    def apply(self, record: Record) -> None:
        """Check that this event may follow, and move."""
        getattr(self, f"_{record.kind}")(record.event, record)

    def _mob_created(self, event: e.MobCreated, record: Record) -> None:
        assert record.seq == 1

    def _move(self, event: e.Event, record: Record) -> None:
        assert not self.pending
        self.phase = PHASE_AFTER[event.kind][self.phase]

    _mob_started = _mob_stopped = _mob_resumed = _move

    def _mob_destroying(self, event: e.MobDestroying, record: Record) -> None:
        assert not self.pending
        assert self.phase != "destroyed"
        self.pending = True

    def _mob_destroyed(self, event: e.MobDestroyed, record: Record) -> None:
        assert self.pending
        assert all(member.destroyed for member in self.members.values())
        assert not self.agents
        assert not self.runs
        assert event.members == len(self.members)
        self.phase, self.pending = "destroyed", False

    def _member_spawned(self, event: e.MemberSpawned, record: Record) -> None:
        assert (self.phase, self.pending) == ("running", False)
        assert event.member_id not in self.members
        assert event.fence_token == self.fences + 1
        self.fences += 1
        self.members[event.member_id] = Member(event.role, event.fence_token)

    def _member_destroyed(self, event: e.MemberDestroyed, record: Record) -> None:
        member = self.members[event.member_id]
        assert self.pending
        assert (member.run, member.queue, member.executor, member.destroyed) == (None, [], None, False)
        member.destroyed, member.paused_until = True, 0

    def _attachment_opened(self, event: e.AttachmentOpened, record: Record) -> None:
        assert all(agent.host != event.host_id for agent in self.agents.values())
        self.agents[event.attachment_id] = Agent(
            event.host_id,
            event.incarnation,
            event.capacity,
            event.max_members,
            [one.role for one in event.serves if one.role],
            [one.member_id for one in event.serves if one.member_id],
        )
        self.connected.add(event.attachment_id)

    def _attachment_closed(self, event: e.AttachmentClosed, record: Record) -> None:
        agent = self.agents.pop(event.attachment_id)
        assert (agent.members, agent.runs) == ({}, [])

    def _executor_assigned(self, event: e.ExecutorAssigned, record: Record) -> None:
        member, agent = self.members[event.member_id], self.agents[event.attachment_id]
        assert event.executor_fence == self.fences + 1
        assert member.executor is None
        assert not member.destroyed
        assert agent.serves(event.member_id, member)
        assert len(agent.members) < agent.max_members
        assert event.attachment_id in self.connected
        self.fences += 1
        member.executor, member.confirmed = (event.attachment_id, event.executor_fence), False
        agent.members[event.member_id] = event.executor_fence
        for one in self.agents.values():
            one.declined.discard(event.member_id)

    def _executor_confirmed(self, event: e.ExecutorConfirmed, record: Record) -> None:
        member = self.members[event.member_id]
        assert member.executor == (event.attachment_id, event.executor_fence)
        assert not member.confirmed
        member.confirmed = True

    def _executor_released(self, event: e.ExecutorReleased | e.ExecutorLost, record: Record) -> None:
        member = self.members[event.member_id]
        assert member.run is None
        assert member.executor == (event.attachment_id, event.executor_fence)
        member.executor, member.confirmed = None, False
        agent = self.agents[event.attachment_id]
        del agent.members[event.member_id]
        if isinstance(self.command, c.Decline):
            agent.declined.add(event.member_id)

    _executor_lost = _executor_released

    def _input_accepted(self, event: e.InputAccepted, record: Record) -> None:
        member = self.members[event.member_id]
        expired = self.expired(event.member_id, record.at)[:64]
        assert (event.forgets or []) == [input_key(one) for one in expired]
        for one in expired:
            member.ended.remove(member.known.pop(one))
        assert (self.phase, self.pending) == ("running", False)
        assert event.input_id not in member.known
        assert event.canonical_input_id not in self.inputs
        self.inputs[event.canonical_input_id] = Input(event.member_id, event.input_id, bytes(event.content))
        member.known[event.input_id] = event.canonical_input_id
        member.queue.append(event.canonical_input_id)

    def _input_abandoned(self, event: e.InputAbandoned, record: Record) -> None:
        member = self.members[event.member_id]
        assert self.pending
        assert event.canonical_input_ids == member.queue
        for one in event.canonical_input_ids:
            self._end(member, one, "abandoned", record)
        member.queue = []

    def _end(self, member: Member, canonical: str, state: str, record: Record) -> None:
        one = self.inputs[canonical]
        assert one.state in ("waiting", "running"), "an input ends once"
        one.state, one.ended_at = state, record.at
        member.ended.append(canonical)

    def _run_started(self, event: e.RunStarted, record: Record) -> None:
        member, agent = self.members[event.member_id], self.agents[event.attachment_id]
        inputs = [self.inputs[one] for one in event.canonical_input_ids]
        assert event.run_id not in self.run_ids
        assert (self.phase, self.pending) == ("running", False)
        assert event.attachment_id in self.connected
        assert member.executor == (event.attachment_id, event.executor_fence)
        assert member.confirmed
        assert (member.run, member.paused_until) == (None, 0)
        assert inputs
        assert event.canonical_input_ids == member.queue[: len(inputs)]
        assert event.attempts == [one.attempts + 1 for one in inputs]
        assert len(inputs) == 1 or event.attempts == [1] * len(inputs), "an input that failed runs alone"
        assert len(agent.runs) < agent.capacity
        assert not any(self.runs[one].exclusive for one in agent.runs)
        assert event.exclusive == (inputs[0].attempts == 2 and inputs[0].was_lost)
        assert not (event.exclusive and agent.runs)
        for one in inputs:
            one.state, one.attempts = "running", one.attempts + 1
        del member.queue[: len(inputs)]
        member.run = event.run_id
        agent.runs.append(event.run_id)
        self.run_ids.add(event.run_id)
        self.runs[event.run_id] = Run(
            event.member_id, event.attachment_id, event.executor_fence, event.canonical_input_ids, event.exclusive
        )

    def _run_resent(self, event: e.RunResent, record: Record) -> None:
        run = self.runs[event.run_id]
        assert isinstance(self.command, c.Attach)
        assert event.run_id not in self.command.held
        assert event.count == run.resent + 1 < 3
        run.resent = event.count

    def _run_settled(self, event: e.RunSettled, record: Record) -> None:
        run = self.runs[event.run_id]
        member, agent = self.members[run.member_id], self.agents[run.attachment_id]
        expected = [(one, self.outcome(run, one)) for one in run.inputs]
        assert [(one.canonical_input_id, one.outcome) for one in event.outcomes] == expected
        cause = self.cause(run)
        pause = 0
        if cause == "error" and expected[0][1] == "requeued":
            pause = record.at + {1: 1, 2: 10}[self.inputs[run.inputs[0]].attempts] * SECOND
        assert event.retry_at == pause
        del self.runs[event.run_id]
        agent.runs.remove(event.run_id)
        member.run, member.paused_until = None, pause
        kept = []
        for canonical, outcome in expected:
            one = self.inputs[canonical]
            if outcome in ("consumed", "abandoned"):
                self._end(member, canonical, outcome, record)
                continue
            one.state = "waiting"
            one.was_lost |= cause == "lost"
            one.attempts = min(one.attempts - (cause == "released"), 2)
            kept.append(canonical)
        behind = expected[0][1] == "requeued_behind"
        member.queue = member.queue + kept if behind else kept + member.queue
        if cause == "result":
            assert isinstance(self.command, c.SettleRun)
            self.receipts[event.run_id] = (run.fence, self.command.result_hash)
            member.receipts.append(event.run_id)
            for old in member.receipts[:-16]:
                del self.receipts[old]
            member.receipts = member.receipts[-16:]

    def _retry_due(self, event: e.RetryDue, record: Record) -> None:
        member = self.members[event.member_id]
        assert 0 < member.paused_until <= record.at
        member.paused_until = 0

    # States.

    def check(self, mob: Mob) -> None:
        """Compare a state with what it must be."""
        assert (mob.phase, mob.pending, mob.fences) == (self.phase, "destroy" if self.pending else "none", self.fences)
        assert set(mob.members) == set(self.members)
        for member_id, member in self.members.items():
            self._check_member(mob, member_id, member)
        assert {
            run_id: (run.member_id, run.attachment_id, run.fence, [one.canonical_input_id for one in run.inputs])
            for run_id, run in mob.runs.items()
        } == {run_id: (run.member_id, run.attachment_id, run.fence, run.inputs) for run_id, run in self.runs.items()}
        assert {a: (one.members, one.runs) for a, one in mob.attachments.items()} == {
            a: (one.members, one.runs) for a, one in self.agents.items()
        }
        for agent in self.agents.values():
            assert len(agent.runs) <= agent.capacity
            assert len(agent.members) <= agent.max_members
        assert set(mob.receipts) == set(self.receipts)
        self._check_lists(mob)
        self._check_inputs()

    def _check_member(self, mob: Mob, member_id: str, member: Member) -> None:
        real = mob.members[member_id]
        state = "running" if member.run else "attached" if member.confirmed else "idle"
        assert real.state == ("destroyed" if member.destroyed else state)
        assert [(one.canonical_input_id, one.attempts) for one in real.queue or []] == [
            (one, self.inputs[one].attempts) for one in member.queue
        ]
        assert real.queue_bytes == sum(len(self.inputs[one].content) for one in member.queue)
        assert (real.run_id, real.retry_at) == (member.run, member.paused_until)
        executor = real.executor
        assert (executor and (executor.attachment_id, executor.fence)) == member.executor
        assert len(real.dedupe or {}) == len(member.known)
        assert [one.canonical_input_id for one in (real.dedupe or {}).values()] == list(member.known.values())

    def place_of(self, member: Member) -> str:
        """Return the list in which a member with work must be."""
        if not member.queue or member.run is not None or member.paused_until:
            return "none"
        if member.executor is None:
            return "waiting"
        return "ready" if member.confirmed else "none"

    def _check_lists(self, mob: Mob) -> None:
        waiting: dict[str, list[Any]] = {}
        ready: dict[str, list[Any]] = {attachment_id: [] for attachment_id in self.agents}
        for member_id, member in self.members.items():
            place, real = self.place_of(member), mob.members[member_id]
            assert real.listed == place
            entry = (real.listed_at, member_id)
            if place == "waiting":
                waiting.setdefault(member.role, []).append(entry)
            elif place == "ready" and member.executor is not None:
                ready[member.executor[0]].append(entry)
        assert mob.waiting == {name: sorted(entries) for name, entries in waiting.items()}
        assert {a: one.ready for a, one in mob.attachments.items()} == {a: sorted(one) for a, one in ready.items()}
        assert mob.retries == sorted((one.paused_until, m) for m, one in self.members.items() if one.paused_until)

    def _check_inputs(self) -> None:
        held = [one for member in self.members.values() for one in member.queue]
        held += [one for run in self.runs.values() for one in run.inputs]
        assert len(held) == len(set(held))
        assert set(held) == {one for one, it in self.inputs.items() if it.state in ("waiting", "running")}

    def check_nothing_waits_for_nothing(self, connected: set[str]) -> None:
        """No work waits while an agent that serves it is connected and has room for it."""
        if self.phase != "running" or self.pending:
            return
        for member_id, member in self.members.items():
            place = self.place_of(member)
            if place == "waiting":
                for attachment_id in connected & set(self.agents):
                    self._check_no_room(member_id, member, self.agents[attachment_id])
            elif place == "ready" and member.executor is not None and member.executor[0] in connected:
                agent = self.agents[member.executor[0]]
                alone = any(self.runs[one].exclusive for one in agent.runs)
                others = [self.members[one] for one in agent.members if self.place_of(self.members[one]) == "ready"]
                asks_to_be_alone = agent.runs and any(self._is_last(one) for one in others)
                assert len(agent.runs) >= agent.capacity or alone or asks_to_be_alone, f"{member_id} could run"

    def _is_last(self, member: Member) -> bool:
        head = self.inputs[member.queue[0]]
        return head.attempts == 2 and head.was_lost

    def _check_no_room(self, member_id: str, member: Member, agent: Agent) -> None:
        if not agent.serves(member_id, member) or member_id in agent.declined:
            return
        assert len(agent.members) >= agent.max_members, f"{member_id} waits and {agent.host} has room"
        for other_id in agent.members:
            other = self.members[other_id]
            idle = other.confirmed and not other.queue and other.run is None
            assert not idle, f"{member_id} waits and {other_id} has a place and nothing to do"
