"""Members and their agents in the model: how they come, retire, come again and go (runtime §4, core §5)."""

from tests.machines.model_facts import DAY, SECOND, Agent, Former, Member
from tests.machines.model_runs import Runs

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.records import Record

DRAIN: int = 60 * SECOND


class Members(Runs):
    """The life of members and agents."""

    # What must be answered.

    def pending_drain(self, member: Member) -> int:
        """Return how many inputs of a retired member are still to be run."""
        if self.phase != "running":
            return 0
        run = self.runs.get(member.run or "")
        return len(member.waiting) + (len(run.inputs) + len(run.steered) if run is not None else 0)

    def retirement(self, member: Member) -> tuple[int, int, bool]:
        """Return what must be answered to a retirement: abandoned, pending, whether it was so already."""
        if member.state == "destroyed":
            return (0, 0, True)
        if member.state == "retired":
            return (0, self.pending_drain(member), True)
        if member.executor is not None and self.phase == "running":
            return (0, self.pending_drain(member), False)
        return (len(member.waiting), 0, False)

    def holds(self, member: Member) -> int:
        """Return how many inputs a member has that have not ended."""
        run = self.runs.get(member.run or "")
        return len(member.waiting) + (len(run.inputs) + len(run.steered) if run is not None else 0)

    # Events of members.

    def new_fence(self, fence: int) -> None:
        assert fence == self.fences + 1
        assert fence not in self.seen_fences
        self.seen_fences.add(fence)
        self.fences = fence

    def _member_spawned(self, event: e.MemberSpawned, record: Record) -> None:
        assert (self.phase, self.pending) == ("running", "none")
        assert event.member_id not in self.members
        self.new_fence(event.fence_token)
        member = Member(event.role, event.fence_token, event.generation, event.operation_id)
        former = self.former.pop(event.member_id, None)
        if former is not None:
            assert event.generation == former.generation + 1
            member.known, member.ended = former.known, former.ended
            member.forgotten_at = former.forgotten_at
        else:
            assert event.generation == 0
        self.members[event.member_id] = member

    def _member_respawned(self, event: e.MemberRespawned, record: Record) -> None:
        old = self.members[event.member_id]
        assert isinstance(self.command, c.RespawnMember)
        assert (self.phase, self.pending) == ("running", "none")
        assert (old.run, old.waiting, old.executor) == (None, [], None)
        assert event.generation == old.generation + 1
        assert event.inputs_abandoned == self.had
        self.new_fence(event.fence_token)
        new = Member(old.role, event.fence_token, event.generation, event.operation_id)
        new.known, new.ended, new.forgotten_at, new.receipts = old.known, old.ended, old.forgotten_at, old.receipts
        self.members[event.member_id] = new

    def _runtime_retired(self, event: e.RuntimeRetired, record: Record) -> None:
        member = self.members[event.member_id]
        assert member.state == "active"
        abandoned, pending, _ = self.retirement(member)
        if self.pending == "reset":
            abandoned, pending = self.holds(member), 0
        assert (event.inputs_abandoned, event.inputs_pending_drain) == (abandoned, pending)
        assert not (abandoned and pending), "what is given up is not run"
        member.state = "retired"
        if self.pending != "none":
            self.reports[event.member_id] = (abandoned, pending)

    def _member_retiring(self, event: e.MemberRetiring, record: Record) -> None:
        member = self.members[event.member_id]
        assert not member.leaving
        member.leaving = True
        if self.pending != "none":
            # One that was retired before may still have something to run.
            self.reports[event.member_id] = (0, self.pending_drain(member) if member.state == "retired" else 0)

    def _member_retired(self, event: e.MemberRetired, record: Record) -> None:
        member = self.members.pop(event.member_id)
        assert member.leaving or self.pending == "reset"
        assert member.state in ("retired", "destroyed")
        assert (member.run, member.waiting, member.executor) == (None, [], None)
        assert event.generation == member.generation
        oldest = sorted(self.former, key=lambda one: self.former[one].left_at)
        gone = [one for one in oldest if self.former[one].left_at < record.at - DAY]
        assert sorted(event.forgets or []) == sorted(gone)
        for one in gone:
            del self.former[one]
        for run_id in member.receipts:
            del self.receipts[run_id]
        self.former[event.member_id] = Former(
            member.generation, record.at, member.known, member.ended, member.forgotten_at
        )

    def _drain_suspended(self, event: e.DrainSuspended, record: Record) -> None:
        member = self.members[event.member_id]
        assert (member.state, member.executor, member.run, member.drain_until) == ("retired", None, None, 0)
        assert member.waiting
        assert self.phase == "running"
        assert event.until == record.at + DRAIN
        member.drain_until = event.until

    def _member_destroyed(self, event: e.MemberDestroyed, record: Record) -> None:
        member = self.members[event.member_id]
        assert isinstance(self.command, c.DestroyRuntime) or self.pending == "destroy"
        assert (member.run, member.waiting, member.executor) == (None, [], None)
        assert member.state != "destroyed"
        member.state, member.paused_until, member.drain_until = "destroyed", 0, 0

    # Events of agents.

    def _attachment_opened(self, event: e.AttachmentOpened, record: Record) -> None:
        assert all(agent.host != event.host_id for agent in self.agents.values())
        self.agents[event.attachment_id] = Agent(
            event.host_id,
            event.incarnation,
            event.capacity,
            event.max_members,
            [one.role for one in event.serves if one.role],
            [one.member_id for one in event.serves if one.member_id],
            event.steers,
        )
        self.connected.add(event.attachment_id)

    def _attachment_closed(self, event: e.AttachmentClosed, record: Record) -> None:
        agent = self.agents.pop(event.attachment_id)
        assert (agent.members, agent.runs) == ({}, [])

    def _executor_assigned(self, event: e.ExecutorAssigned, record: Record) -> None:
        member, agent = self.members[event.member_id], self.agents[event.attachment_id]
        assert member.executor is None
        assert member.state == "active" or (member.state == "retired" and member.waiting)
        assert agent.serves(event.member_id, member)
        assert len(agent.members) < agent.max_members
        assert event.attachment_id in self.connected
        if self.room_made == event.attachment_id:
            assert any(self.wakes(member, lane) for lane in member.lanes), "nobody goes for one without work"
            self.room_made = ""
        self.new_fence(event.executor_fence)
        member.executor, member.confirmed = (event.attachment_id, event.executor_fence), False
        member.drain_until = 0
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
        if event.reason == "its place is needed for a member with work":
            assert self.is_idle(member)
            self.room_made = event.attachment_id
        member.executor, member.confirmed = None, False
        agent = self.agents[event.attachment_id]
        del agent.members[event.member_id]
        if isinstance(self.command, c.Decline | c.FenceOff | c.Wake):
            agent.declined.add(event.member_id)

    _executor_lost = _executor_released
