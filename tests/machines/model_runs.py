"""Runs in the model: how they start, what is steered into them, how they are cancelled, and what they leave."""

from typing import Final

from tests.machines.model_facts import BATCH, SECOND, TIMEOUTS, Run
from tests.machines.model_inputs import Inputs, stamp_of

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.records import Record

Report = c.SettleRun | c.FailRun | c.LoseRun

# In what state a run settles, by why it ended; everything else gives its inputs up.
SETTLED: Final = {
    "result": "committed",
    "final": "failed",
    "error": "failed",
    "lost": "lost",
    "released": "released",
    "cancelled": "cancelled",
}
STEP: Final = 10 * SECOND


class Runs(Inputs):
    """The life of runs."""

    # What must be answered.

    def current(self, command: Report | c.CancelUnsent | c.FenceOff | c.ReportRunProgress) -> Run | None:
        run = self.runs.get(command.run_id)
        known = run is not None and (run.attachment_id, run.fence) == (command.attachment_id, command.fence)
        return run if known else None

    def disposition(self, command: Report) -> str:
        """Return what an agent must be told of what it reports."""
        self.command = command
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
        if self.cause(run) == "cancelled":
            return "cancelled"
        return "abandoned" if all(how == "abandoned" for _, how, _ in self.outcomes(run)) else "requeued"

    def refusal(self, command: c.Command, member_id: str, generation: int | None, token: int | None) -> str | None:
        """Return why a command about a member must be refused, if it must."""
        member = self.members.get(member_id)
        if not self.admits(type(command)):
            return "refused"
        if member is None:
            return "unknown"
        right = generation in (None, member.generation) and token in (None, member.fence)
        return None if right else "stale"

    def cancelling(self, command: c.Interrupt | c.HardCancel) -> str:
        """Return what must be answered to a wish to cancel."""
        refused = self.refusal(command, command.member_id, command.generation, command.fence_token)
        if refused is not None:
            return refused
        member = self.members[command.member_id]
        if command.run_id is not None and command.run_id != member.run:
            return "already_terminal"
        if member.run is not None:
            return "requested"
        return "nothing_to_interrupt" if member.state == "active" else "already_terminal"

    # What must become of a run.

    def _why(self, run: Run) -> str:
        """Return what ended a run, as the command says it."""
        found = {
            c.SettleRun: "result",
            c.Decline: "released",
            c.FenceOff: "error",
            c.Wake: "error",
            c.LoseRun: "lost",
            c.RespawnMember: "retired",
            c.DestroyRuntime: "destroyed",
        }.get(type(self.command))
        match self.command:
            case c.FailRun(kind=kind, retryable=retryable):
                found = "released" if kind == "released" else "error" if retryable else "final"
            case c.CancelUnsent():
                found = "error" if run.cancel else "released"
            case c.CloseAttachment(reason=reason):
                found = "lost" if reason == "lost" else "released"
            case c.Attach():
                agent = self.agents[run.attachment_id]
                if agent.incarnation == self.command.incarnation and agent.host == self.command.host_id:
                    assert run.resent == 2 or run.cancel, "what an agent came back without is sent again"
                found = "lost"
        return found or {"destroy": "destroyed", "reset": "reset"}[self.pending]

    def cause(self, run: Run) -> str:
        """Return why a run ends; whoever asked to cancel it does not want its inputs to run again."""
        why = self._why(run)
        return "cancelled" if run.by == "caller" and why in ("final", "error", "lost", "released") else why

    def outcomes(self, run: Run) -> list[tuple[str, str, int]]:
        """Return what must become of each input, and at which boundary it was applied."""
        cause = self.cause(run)
        command = self.command
        taken = command.steered if isinstance(command, c.SettleRun | c.FailRun) else []
        # What was steered in and not taken waits again, too.
        backlog = bool(self.members[run.member_id].lanes[run.lane]) or (
            run.lane == "steer" and any(one not in taken for one in run.steered)
        )
        found = [(one, self._fate(cause, one, backlog=backlog, alone=run.exclusive), 0) for one in run.inputs]
        applied = 0
        for one in run.steered:
            if one in taken:
                fate = self._fate(cause, one, backlog=False, alone=True)
                applied += fate == "consumed"
                found.append((one, fate, applied if fate == "consumed" else 0))
            elif cause in ("destroyed", "retired", "reset"):
                found.append((one, "abandoned", 0))
            else:
                # Whether the agent died of it can't be told.
                found.append((one, "requeued" if cause == "lost" else "returned", 0))
        return found

    def _fate(self, cause: str, canonical: str, *, backlog: bool, alone: bool) -> str:
        attempts = self.inputs[canonical].attempts
        if cause == "result":
            return "consumed"
        if cause == "released":
            return "requeued"
        if cause == "lost":
            return "abandoned" if attempts >= 3 and alone else "requeued"
        if cause == "error" and attempts < 3:
            return "requeued_behind" if backlog else "requeued"
        return "abandoned"

    # Events.

    def _run_started(self, event: e.RunStarted, record: Record) -> None:
        member, agent = self.members[event.member_id], self.agents[event.attachment_id]
        lane = self.next_lane(member)
        assert event.run_id not in self.run_ids
        assert self.dispatches()
        assert event.attachment_id in self.connected
        assert member.executor == (event.attachment_id, event.executor_fence)
        assert member.confirmed
        assert member.run is None
        assert member.state != "destroyed"
        assert event.lane == lane, "the steer lane goes first, and a lane whose head failed waits"
        assert any(self.wakes(member, one) for one in member.lanes), "a passive input starts no run by itself"
        assert event.canonical_input_ids == self.next_batch(member, lane)
        inputs = [self.inputs[one] for one in event.canonical_input_ids]
        assert "prompt" not in [one.kind for one in inputs if lane == "queue"][:-1], "a prompt is the last of its batch"
        assert len({one.stamp[1:] if lane == "queue" else one.stamp for one in inputs}) == 1
        assert stamp_of(event.stamp) == inputs[0].stamp
        assert event.attempts == [one.attempts + 1 for one in inputs]
        assert len(inputs) == 1 or event.attempts == [1] * len(inputs), "an input that failed runs alone"
        assert len(agent.runs) < agent.capacity
        assert not any(self.runs[one].exclusive for one in agent.runs)
        assert event.exclusive == (inputs[0].attempts == 2 and inputs[0].was_lost)
        assert not (event.exclusive and agent.runs)
        assert event.deadline == (record.at + TIMEOUTS[member.role] * SECOND if TIMEOUTS[member.role] else 0)
        for one in inputs:
            one.state, one.attempts = "running", one.attempts + 1
        del member.lanes[event.lane][: len(inputs)]
        member.run = event.run_id
        agent.runs.append(event.run_id)
        self.run_ids.add(event.run_id)
        self.runs[event.run_id] = Run(
            event.member_id,
            event.attachment_id,
            event.executor_fence,
            event.canonical_input_ids,
            event.exclusive,
            event.lane,
            event.deadline,
            len(self.inputs),
        )

    def may_be_steered(self, run: Run) -> bool:
        """Whether a run in flight takes in what waits in its member's steer lane: all of it, or none."""
        member = self.members[run.member_id]
        waiting = [self.inputs[one] for one in member.lanes["steer"]]
        return (
            self.agents[run.attachment_id].steers
            and run.attachment_id in self.connected
            and not run.cancel
            and self.phase == "running"
            and self.wakes(member, "steer")
            and len(run.inputs) + len(run.steered) + len(waiting) <= BATCH
            and all(not one.attempts and one.stamp == ("run_checkpoint", "content_turn", "none") for one in waiting)
        )

    def _run_steered(self, event: e.RunSteered, record: Record) -> None:
        run, member = self.runs[event.run_id], self.members[event.member_id]
        assert self.may_be_steered(run)
        assert event.canonical_input_ids == member.lanes["steer"]
        assert event.attempts == [1] * len(event.canonical_input_ids)
        for one in event.canonical_input_ids:
            self.inputs[one].state, self.inputs[one].attempts = "steered", 1
        run.steered += event.canonical_input_ids
        member.lanes["steer"] = []

    def _run_cancel_requested(self, event: e.RunCancelRequested, record: Record) -> None:
        run = self.runs[event.run_id]
        assert event.run_id == self.members[event.member_id].run
        if isinstance(self.command, c.Wake):
            assert 0 < run.deadline <= record.at
            assert event.deadline == record.at + STEP
            assert event.hard == (run.cancel == "boundary")
            assert event.by == (run.by or "deadline")
        else:
            asked = isinstance(self.command, c.HardCancel)
            assert isinstance(self.command, c.Interrupt | c.HardCancel | c.RetireMember)
            assert event.hard == (asked or run.cancel == "hard"), "an interrupt never becomes a hard cancel"
            assert (event.by, event.deadline) == ("caller", run.deadline)
            again = run.by == "caller" and (run.cancel == "hard" or not asked)
            assert not again, "what was asked for is not asked for again"
        harder = not run.cancel or (event.hard and run.cancel == "boundary")
        assert (event.control_id != run.control_id) == harder
        run.cancel, run.by = "hard" if event.hard else "boundary", event.by
        run.control_id, run.deadline = event.control_id, event.deadline

    def _run_resent(self, event: e.RunResent, record: Record) -> None:
        run = self.runs[event.run_id]
        assert isinstance(self.command, c.Attach)
        assert event.run_id not in self.command.held
        assert event.count == run.resent + 1 < 3
        assert not run.cancel, "what is to be cancelled is not sent again"
        run.resent = event.count

    def _run_settled(self, event: e.RunSettled, record: Record) -> None:
        run = self.runs[event.run_id]
        member, agent = self.members[run.member_id], self.agents[run.attachment_id]
        expected, cause = self.outcomes(run), self.cause(run)
        assert [(one.canonical_input_id, one.outcome, one.sequence) for one in event.outcomes] == expected
        assert [one.attempt for one in event.outcomes] == [self.inputs[one].attempts for one, _, _ in expected]
        assert event.state == SETTLED.get(cause, "abandoned")
        pause = 0
        own = [(self.inputs[one].attempts, how) for one, how, _ in expected[: len(run.inputs)]]
        if cause == "error" and own[0][1] == "requeued":
            pause = max(record.at + {1: 1, 2: 10}[own[0][0]] * SECOND, member.paused_until)
        assert event.retry_at == pause
        if isinstance(self.command, c.Wake):
            assert run.cancel == "hard"
            assert 0 < run.deadline <= record.at
        del self.runs[event.run_id]
        agent.runs.remove(event.run_id)
        member.run, member.paused_until = None, pause or member.paused_until
        self._give_back(run, event, record, cause)
        if cause == "result":
            self._keep_receipt(run, event)

    def _give_back(self, run: Run, event: e.RunSettled, record: Record, cause: str) -> None:
        member = self.members[run.member_id]
        kept: dict[str, list[str]] = {"steer": [], "queue": []}
        behind: dict[str, list[str]] = {"steer": [], "queue": []}
        for outcome in event.outcomes:
            canonical = outcome.canonical_input_id
            one = self.inputs[canonical]
            if outcome.outcome in ("consumed", "abandoned"):
                self.end(member, canonical, outcome.outcome, record)
                continue
            unharmed = cause == "released" or outcome.outcome == "returned"
            one.state = "waiting"
            one.was_lost |= cause == "lost"
            one.failed |= not unharmed
            one.attempts = min(one.attempts - unharmed, 2)
            (behind if outcome.outcome == "requeued_behind" else kept)[one.lane].append(canonical)
        member.lanes = {lane: kept[lane] + there + behind[lane] for lane, there in member.lanes.items()}

    def _keep_receipt(self, run: Run, event: e.RunSettled) -> None:
        assert isinstance(self.command, c.SettleRun)
        member = self.members[run.member_id]
        self.receipts[event.run_id] = (run.fence, self.command.result_hash)
        member.receipts.append(event.run_id)
        for old in member.receipts[:-16]:
            del self.receipts[old]
        member.receipts = member.receipts[-16:]

    def _retry_due(self, event: e.RetryDue, record: Record) -> None:
        member = self.members[event.member_id]
        assert isinstance(self.command, c.Wake)
        assert 0 < member.paused_until <= record.at
        member.paused_until = 0
