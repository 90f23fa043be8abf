"""A second, slower notion of what a mob is: it checks every event against the rules and every state against itself.

It is written from the reference (api §5-§8, runtime §2-§5, §9), not from the machines, and does not place members: it
only knows what a placement must never be, and when work must not be left waiting.
"""

from typing import Any, Final

from tests.machines.model_facts import Agent, Member
from tests.machines.model_operations import Operations

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines import keys
from mobd_server.machines.records import Record
from mobd_server.machines.state import Mob

PHASE_AFTER: Final = {
    "mob_started": {"creating": "running", "stopped": "running"},
    "mob_stopped": {"running": "stopped"},
    "mob_resumed": {"stopped": "running"},
}
# What may still become of a member whose runtime was destroyed.
AFTER_DESTRUCTION: Final = ("member_respawned", "member_retiring", "member_retired")


class Model(Operations):
    """What a mob must be after the events that were applied."""

    def begin(self, command: c.Command, connected: set[str], acting: tuple[str, int] | None) -> None:
        """A command is about to be carried out, perhaps by the agent of a run."""
        self.command, self.connected = command, set(connected)
        self.actor = self.runs[acting[0]].member_id if acting is not None else ""
        self.changed = set()
        member = self.members.get(getattr(command, "member_id", ""))
        self.had = self.holds(member) if member is not None else 0

    def apply(self, record: Record) -> None:
        """Check that this event may follow, and move."""
        member = self.members.get(record.member_id or "")
        if member is not None and member.state == "destroyed":
            assert record.kind in AFTER_DESTRUCTION, "a destroyed runtime stays as it is"
        self.follow_operations(record)
        getattr(self, f"_{record.kind}")(record.event, record)

    # Events of the mob.

    def _mob_created(self, event: e.MobCreated, record: Record) -> None:
        assert record.seq == 1

    def _move(self, event: e.Event, record: Record) -> None:
        assert self.pending == "none"
        self.phase = PHASE_AFTER[event.kind][self.phase]

    _mob_started = _mob_stopped = _mob_resumed = _move

    def _pend(self, pending: str) -> None:
        assert self.pending == "none"
        self.pending, self.reports = pending, {}

    def _mob_destroying(self, event: e.MobDestroying, record: Record) -> None:
        assert self.phase != "destroyed"
        # It does not wait for anything else to end.
        self.pending = "none"
        self._pend("destroy")

    def _mob_destroyed(self, event: e.MobDestroyed, record: Record) -> None:
        assert self.pending == "destroy"
        assert all(member.state == "destroyed" for member in self.members.values())
        assert not self.agents
        assert not self.runs
        assert event.members == len(self.members)
        self.phase, self.pending, self.cleanup = "destroyed", "none", False

    def _mob_completing(self, event: e.MobCompleting, record: Record) -> None:
        assert self.phase == "running"
        self._pend("complete")

    def _mob_completed(self, event: e.MobCompleted, record: Record) -> None:
        assert (self.phase, self.pending, self.members) == ("running", "complete", {})
        self.phase, self.pending = "completed", "none"

    def _mob_resetting(self, event: e.MobResetting, record: Record) -> None:
        assert self.phase in ("stopped", "completed")
        self._pend("reset")

    def _mob_cleanup_begun(self, event: e.MobCleanupBegun, record: Record) -> None:
        assert (self.phase in ("stopped", "completed"), self.pending, self.cleanup) == (True, "reset", False)
        self.phase, self.cleanup = "stopped", True

    def _mob_cleanup_finished(self, event: e.MobCleanupFinished, record: Record) -> None:
        assert (self.pending, self.cleanup, self.members) == ("reset", True, {})
        self.pending, self.cleanup = "none", False

    def _retire_all_begun(self, event: e.RetireAllBegun, record: Record) -> None:
        assert self.phase in ("running", "stopped")
        self._pend("retire_all")

    def _retire_all_finished(self, event: e.RetireAllFinished, record: Record) -> None:
        assert self.pending == "retire_all"
        assert all(member.leaving for member in self.members.values())
        self.pending = "none"

    # States.

    def check(self, mob: Mob) -> None:
        """Compare a state with what it must be."""
        assert (mob.phase, mob.pending, mob.cleanup_pending, mob.fences) == (
            self.phase,
            self.pending,
            self.cleanup,
            self.fences,
        )
        assert not (self.pending == "complete" and not self.members), "who waits for nobody is done"
        assert set(mob.members) == set(self.members)
        for member_id, member in self.members.items():
            self._check_member(mob, member_id, member)
        self._check_runs(mob)
        assert {a: (one.members, one.runs) for a, one in mob.attachments.items()} == {
            a: (one.members, one.runs) for a, one in self.agents.items()
        }
        for agent in self.agents.values():
            assert len(agent.runs) <= agent.capacity
            assert len(agent.members) <= agent.max_members
        packed = {run_id: fence.to_bytes(8, "big") + result for run_id, (fence, result) in self.receipts.items()}
        assert mob.receipts == packed
        self._check_former(mob)
        self._check_lists(mob)
        self.check_inputs()
        self.check_operations(mob)
        reports = {i: (one.inputs_abandoned, one.inputs_pending_drain) for i, one in mob.reports.items()}
        assert reports == self.reports

    def _check_runs(self, mob: Mob) -> None:
        assert {
            run_id: (
                run.member_id,
                run.attachment_id,
                run.fence,
                [one.canonical_input_id for one in run.inputs],
                [one.canonical_input_id for one in run.steered or []],
                "" if run.cancel == "none" else run.cancel,
                "" if run.cancel == "none" else run.cancelled_by,
                run.control_id,
                run.deadline,
            )
            for run_id, run in mob.runs.items()
        } == {
            run_id: (
                run.member_id,
                run.attachment_id,
                run.fence,
                run.inputs,
                run.steered,
                run.cancel,
                run.by,
                run.control_id,
                run.deadline,
            )
            for run_id, run in self.runs.items()
        }

    def _check_member(self, mob: Mob, member_id: str, member: Member) -> None:
        real = mob.members[member_id]
        state = "running" if member.run else "attached" if member.confirmed else "idle"
        assert real.state == (state if member.state == "active" else member.state)
        assert (real.lifecycle == "retiring") == member.leaving
        assert (real.generation, real.fence_token) == (member.generation, member.fence)
        for lane, there in (("steer", real.steer), ("queue", real.queue)):
            assert there is None or there
            assert [(one.canonical_input_id, one.attempts) for one in there or []] == [
                (one, self.inputs[one].attempts) for one in member.lanes[lane]
            ]
        assert real.queue_bytes == sum(len(self.inputs[one].content) for one in member.waiting)
        assert (real.run_id, real.retry_at, real.drain_until) == (
            member.run,
            member.paused_until,
            member.drain_until,
        )
        executor = real.executor
        assert (executor and (executor.attachment_id, executor.fence)) == member.executor
        known = [one.canonical_input_id for one in keys.remembered(real)]
        assert sorted(known) == sorted(member.known.values())
        assert keys.count_ended(real) == len(member.ended)
        assert real.forgotten_at == member.forgotten_at

    def _check_former(self, mob: Mob) -> None:
        assert {
            member_id: (one.generation, one.left_at, {it.canonical_input_id for it in keys.remembered(one)})
            for member_id, one in mob.former.items()
        } == {
            member_id: (one.generation, one.left_at, set(one.known.values())) for member_id, one in self.former.items()
        }
        assert sorted(mob.left) == sorted(self.former)
        left_at = [self.former[one].left_at for one in mob.left]
        assert left_at == sorted(left_at)

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
        timers = [(one.paused_until, "retry", i) for i, one in self.members.items() if one.paused_until]
        timers += [(one.drain_until, "drain", i) for i, one in self.members.items() if one.drain_until]
        timers += [(one.deadline, "deadline", i) for i, one in self.runs.items() if one.deadline]
        assert mob.timers == sorted(timers)
        done = {i for i, one in self.members.items() if one.leaving or one.state == "retired"}
        assert done <= set(mob.draining) <= set(self.members)

    # What must not wait.

    def check_nothing_waits_for_nothing(self, connected: set[str]) -> None:
        """No work waits while an agent that serves it is connected and has room for it."""
        for member in self.members.values():
            if self.phase == "running" and self.pending not in ("destroy", "reset") and member.state == "retired":
                self._check_drains(member)
        if not self.dispatches():
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
                asks_to_be_alone = agent.runs and any(self.goes_alone(one) for one in others)
                assert len(agent.runs) >= agent.capacity or alone or asks_to_be_alone, f"{member_id} could run"
        self.connected = set(connected)
        for run_id, run in self.runs.items():
            # What waited already when the run began keeps its turn, and so does what only drains.
            waits = [self.inputs[one] for one in self.members[run.member_id].lanes["steer"]]
            came = all(one.order >= run.since for one in waits) and any(one.drives for one in waits)
            assert not (came and self.may_be_steered(run)), f"{run_id} could take in what waits"

    def _check_drains(self, member: Member) -> None:
        if member.run is not None:
            return
        if member.waiting:
            assert member.executor is not None or member.drain_until, "who drains without an agent waits for a time"
        else:
            assert member.executor is None, "who has drained has no agent"
            assert not member.leaving, "who has drained leaves"

    def _check_no_room(self, member_id: str, member: Member, agent: Agent) -> None:
        if not agent.serves(member_id, member) or member_id in agent.declined:
            return
        assert len(agent.members) >= agent.max_members, f"{member_id} waits and {agent.host} has room"
        for other_id in agent.members:
            assert not self.is_idle(self.members[other_id]), f"{member_id} waits and {other_id} does nothing"

    def check_rests(self) -> None:
        """Everything that could run has run, and who was to leave has left."""
        assert (self.pending, self.runs) == ("none", {})
        for member_id, member in self.members.items():
            assert not member.leaving, f"{member_id} stays"
            assert not any(self.wakes(member, lane) for lane in member.lanes), f"{member_id} waits"
            assert member.state == "active" or member.executor is None
            assert (member.paused_until, member.drain_until) == (0, 0) or member.waiting
