"""What the hub knows of one attachment beside the log: is its agent there, and what has it not answered yet."""

from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from mobd_server.actors.connection import Connection

# A run that is missing from so many heartbeats after its acceptance is not held.
MISSES: Final = 2


class SentRun(Struct):
    """A run that the agent was sent."""

    fence: int
    # When it must be accepted; None if it was.
    due: float | None
    # From how many heartbeats in a row it was missing since.
    missed: int = 0
    # Its result is here and being stored.
    settling: bool = False


class SentCancel(Struct):
    """A request to cancel a run that the agent was sent."""

    control_id: str
    fence: int
    # When the end of a run at once must be acknowledged; None if there is nothing to wait for.
    due: float | None


class Presence:
    """One attachment. Times are those of the hub's patience; nothing of this is ever stored."""

    __slots__ = (
        "_cancels",
        "_runs",
        "_unaccepted",
        "asked",
        "assigns",
        "attachment_id",
        "closing",
        "coming",
        "connection",
        "draining",
        "due",
        "suspended",
    )

    def __init__(self, attachment_id: str, due: float) -> None:
        self.attachment_id = attachment_id
        # The agent's stream; the stream that takes its place when that is durable.
        self.connection: Connection | None = None
        self.coming: Connection | None = None
        # The stream is broken, or was silent for too long.
        self.suspended = False
        # The agent wants no more work.
        self.draining = False
        # When the attachment ends unless its agent is there; why it is to end; whether its mob was asked to end it.
        self.due = due
        self.closing: Literal["detached", "lost"] | None = None
        self.asked = False
        # Members that the agent was asked to serve and has not answered for: fence, and until when it may.
        self.assigns: dict[str, tuple[int, float]] = {}
        self._runs: dict[str, SentRun] = {}
        self._unaccepted = 0
        # The newest request to cancel each run.
        self._cancels: dict[str, SentCancel] = {}

    @property
    def present(self) -> bool:
        """Whether the agent's stream is there and was not silent for too long."""
        return self.connection is not None and not self.suspended

    @property
    def sendable(self) -> bool:
        """Whether what a commit releases can be sent now; what can't be is derived anew when the agent attaches."""
        return self.connection is not None and not self.suspended and self.connection.state == "attached"

    def forget(self) -> None:
        """Forget what was sent: it is sent again if it must be."""
        self.assigns.clear()
        self._runs.clear()
        self._unaccepted = 0
        self._cancels.clear()

    def sent_run(self, run_id: str, fence: int, due: float) -> None:
        """Take note that the agent was sent a run."""
        self._drop(run_id)
        self._runs[run_id] = SentRun(fence, due)
        self._unaccepted += 1

    def holds_run(self, run_id: str, fence: int) -> None:
        """Take note that the agent holds a run since before."""
        self._drop(run_id)
        self._runs[run_id] = SentRun(fence, None)

    def accepted(self, run_id: str, fence: int) -> None:
        """Take note that the agent has accepted a run."""
        run = self._runs.get(run_id)
        if run is not None and run.fence == fence and run.due is not None:
            run.due = None
            self._unaccepted -= 1

    def settling(self, run_id: str, fence: int) -> None:
        """Take note that the result of a run is here."""
        self.accepted(run_id, fence)
        run = self._runs.get(run_id)
        if run is not None and run.fence == fence:
            run.settling = True

    def settled(self, run_id: str) -> None:
        """Take note that a run is over."""
        self._drop(run_id)
        self._cancels.pop(run_id, None)

    def sent_cancel(self, run_id: str, fence: int, control_id: str, due: float | None) -> None:
        """Take note that the agent was asked to end a run; with `due` it must acknowledge that by then."""
        self._cancels[run_id] = SentCancel(control_id, fence, due)

    def cancel_of(self, control_id: str) -> tuple[str, SentCancel] | None:
        """Return the run that a request is about, unless it is over, and the request."""
        return next(((run_id, one) for run_id, one in self._cancels.items() if one.control_id == control_id), None)

    def is_settling(self, run_id: str) -> bool:
        """Whether the result of a run is here and being stored."""
        run = self._runs.get(run_id)
        return run is not None and run.settling

    def heartbeat(self, held: set[str]) -> list[tuple[str, int]]:
        """Take note of a heartbeat; return the runs, with their fences, that the agent turns out not to hold."""
        lost = []
        for run_id, run in self._runs.items():
            if run_id in held:
                run.missed = 0
                self.accepted(run_id, run.fence)
            elif run.due is None and not run.settling:
                run.missed += 1
                if run.missed >= MISSES:
                    lost.append((run_id, run.fence))
        return lost

    def overdue_assigns(self, time: float) -> list[tuple[str, int]]:
        """Return the members, with their fences, for which the agent has not answered in time."""
        return [(member_id, fence) for member_id, (fence, due) in self.assigns.items() if time >= due]

    def overdue_runs(self, time: float) -> list[tuple[str, int]]:
        """Return the runs, with their fences, that the agent has not accepted in time."""
        if not self._unaccepted:
            return []
        return [(run_id, run.fence) for run_id, run in self._runs.items() if run.due is not None and time >= run.due]

    def overdue_cancels(self, time: float) -> list[tuple[str, SentCancel]]:
        """Return the runs that the agent was asked to end at once and has not answered for in time."""
        if not self._cancels:
            return []
        return [(run_id, one) for run_id, one in self._cancels.items() if one.due is not None and time >= one.due]

    def _drop(self, run_id: str) -> None:
        run = self._runs.pop(run_id, None)
        if run is not None and run.due is not None:
            self._unaccepted -= 1
