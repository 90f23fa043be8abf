"""What an agent holds: members that were assigned to it, and runs that it accepted and that are not settled.

This is the agent's side of the protocol, without any I/O: frames go in, frames to send come out. A run is held, and its
report kept, until the server says what became of it, over any number of streams; so it runs once and is never lost.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from mobd import reports
from mobd.v1 import agents_pb2

Frame = agents_pb2.AgentFrame

SETTLED_KEPT: Final = 4096


@dataclass
class Assignment:
    """A member that the agent serves."""

    assign: agents_pb2.Assign
    message_count: int


@dataclass
class Held:
    """A run that is not settled."""

    start: agents_pb2.StartRun
    assignment: Assignment
    #: What the transcript held when it started.
    message_count: int
    report: Frame | None = None
    #: The requests to cancel it that were obeyed, with what was answered; None as long as that is not known.
    controls: dict[str, Frame | None] = field(default_factory=dict)


class Holding:
    """The assignments and runs of one agent."""

    def __init__(self) -> None:
        self.assignments: dict[str, Assignment] = {}
        self.runs: dict[str, Held] = {}
        self.draining = False
        self._settled: OrderedDict[str, None] = OrderedDict()

    @property
    def run_ids(self) -> list[str]:
        """Every run that was accepted and is not settled."""
        return list(self.runs)

    @property
    def reports(self) -> list[Frame]:
        """Every report that is not settled, in the order of their runs."""
        return [held.report for held in self.runs.values() if held.report is not None]

    def welcome(self) -> None:
        """A stream was attached: the server names every assignment again."""
        self.assignments.clear()

    def assign(self, assign: agents_pb2.Assign) -> Frame:
        """Take a member, or decline it: while draining only those with a run are kept."""
        fence = assign.executor_fence
        if self.draining and not any(held.start.member_id == assign.member_id for held in self.runs.values()):
            return Frame(
                declined=agents_pb2.Declined(member_id=assign.member_id, executor_fence=fence, reason="it drains")
            )
        self.assignments[assign.member_id] = Assignment(assign, assign.message_count)
        return Frame(assigned=agents_pb2.Assigned(member_id=assign.member_id, executor_fence=fence))

    def unassign(self, unassign: agents_pb2.Unassign) -> None:
        """Give a member up, unless it was assigned anew since."""
        assignment = self.assignments.get(unassign.member_id)
        if assignment is not None and assignment.assign.executor_fence == unassign.executor_fence:
            del self.assignments[unassign.member_id]

    def start(self, start: agents_pb2.StartRun) -> tuple[list[Frame], Held | None]:
        """Accept a run; return what to answer, and the run if it is to begin now."""
        accepted = Frame(run_accepted=agents_pb2.RunAccepted(run_id=start.run_id, executor_fence=start.executor_fence))
        held = self.runs.get(start.run_id)
        if held is not None:
            return [accepted] if held.report is None else [accepted, held.report], None
        refusal = self._refusal(start)
        if refusal:
            return [reports.release(start.run_id, start.executor_fence, refusal)], None
        assignment = self.assignments[start.member_id]
        held = Held(start, assignment, assignment.message_count)
        self.runs[start.run_id] = held
        return [accepted], held

    def _refusal(self, start: agents_pb2.StartRun) -> str:
        if start.run_id in self._settled:
            return "this agent was told that the run is settled"
        if self.draining:
            return "the agent drains"
        assignment = self.assignments.get(start.member_id)
        if assignment is None or assignment.assign.executor_fence != start.executor_fence:
            return "the agent does not serve the member under this fence"
        return ""

    def steer(self, steer: agents_pb2.SteerRun) -> Held | None:
        """Return the run that more inputs are for, if its turn is still under way."""
        return self._under_way(steer.run_id, steer.executor_fence)

    def control(self, control_id: str, run_id: str, fence: int) -> tuple[Frame | None, Held | None]:
        """Take a request to cancel a run; return what to answer now, and the run if its turn is to be told."""
        held = self._under_way(run_id, fence)
        if held is None:
            return reports.control_ack(control_id, agents_pb2.CONTROL_RESULT_NOT_RUNNING), None
        if control_id in held.controls:
            return held.controls[control_id], None
        held.controls[control_id] = None
        return None, held

    def acknowledge(self, run_id: str, ack: Frame) -> None:
        """Keep what was answered to a request: it may come again."""
        held = self.runs.get(run_id)
        if held is not None:
            held.controls[ack.control_ack.control_id] = ack

    def _under_way(self, run_id: str, fence: int) -> Held | None:
        held = self.runs.get(run_id)
        return held if held is not None and held.report is None and held.start.executor_fence == fence else None

    def finish(self, run_id: str, report: Frame) -> bool:
        """Keep the report of a run until it is settled; say whether the run is still held."""
        held = self.runs.get(run_id)
        if held is None:
            return False
        held.report = report
        return True

    def settle(self, settled: agents_pb2.RunSettled) -> Held | None:
        """Let go of a run; return it if it was held."""
        held = self.runs.pop(settled.run_id, None)
        if held is None:
            return None
        self._settled[settled.run_id] = None
        if len(self._settled) > SETTLED_KEPT:
            self._settled.popitem(last=False)
        if held.report is not None and settled.disposition in (
            agents_pb2.RUN_DISPOSITION_COMMITTED,
            agents_pb2.RUN_DISPOSITION_DUPLICATE,
        ):
            self._grow(held, len(held.report.run_result.messages_json))
        return held

    def _grow(self, held: Held, messages: int) -> None:
        # The member may have been assigned anew since, before or after the result was stored: count up to the same
        # number in both cases.
        assignment = self.assignments.get(held.start.member_id)
        if assignment is not None and assignment.assign.generation == held.assignment.assign.generation:
            assignment.message_count = max(assignment.message_count, held.message_count + messages)
