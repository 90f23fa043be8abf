"""What the agents of one mob say of their runs while these go on: progress, which is stored, and live events, which
are not.

What a run says that is not in flight any more under its fence is dropped, as everything that a zombie says.
"""

from typing import Final

from msgspec import Struct

from mobd_server.actors.frames import RunEvents, RunProgress
from mobd_server.actors.links import Call
from mobd_server.actors.live import LiveEvent
from mobd_server.actors.shared import Shared
from mobd_server.machines import commands as c
from mobd_server.machines.run import current
from mobd_server.machines.state import Run

# Of one member's progress, at most so much is stored: one in this time.
PAUSE_S: Final = 1.0


class _Pause(Struct):
    """A member whose progress was stored a moment ago."""

    until: float
    call: Call
    # The newest that has come since.
    held: c.ReportRunProgress | None = None


class Progress:
    """The progress and the live events of one crew."""

    __slots__ = ("_mob_id", "_pauses", "_shared")

    def __init__(self, mob_id: str, shared: Shared) -> None:
        self._mob_id = mob_id
        self._shared = shared
        self._pauses: dict[str, _Pause] = {}

    def report(self, attachment_id: str, frame: RunProgress, call: Call) -> None:
        """Show progress at once, and have it stored when its member's turn has come."""
        run = self._show(attachment_id, frame)
        if run is None:
            return
        command = c.ReportRunProgress(attachment_id, frame.run_id, frame.fence, frame.message, frame.percent)
        pause = self._pauses.setdefault(run.member_id, _Pause(0.0, call))
        pause.held, pause.call = command, call
        if self._shared.patience.time >= pause.until:
            self._store(pause)

    def show(self, attachment_id: str, frame: RunEvents) -> None:
        """Show what a run puts out to those who watch."""
        self._show(attachment_id, frame)

    def flush(self, run_id: str) -> None:
        """Have what waits of a run stored now, for it ends; what can't be stored now is lost with the run."""
        for pause in self._pauses.values():
            if pause.held is not None and pause.held.run_id == run_id:
                self._store(pause)

    def expire(self) -> None:
        """Store what has waited for long enough."""
        time = self._shared.patience.time
        for member_id, pause in list(self._pauses.items()):
            if time < pause.until:
                continue
            if pause.held is None:
                del self._pauses[member_id]
            else:
                self._store(pause)

    def _store(self, pause: _Pause) -> None:
        if pause.held is not None and self._shared.tell(self._mob_id, pause.held, call=pause.call):
            pause.held = None
            pause.until = self._shared.patience.after(PAUSE_S)

    def _show(self, attachment_id: str, frame: RunProgress | RunEvents) -> Run | None:
        actor = self._shared.mobs.get(self._mob_id)
        run = current(actor.mob, attachment_id, frame.run_id, frame.fence) if actor is not None else None
        if run is not None and self._shared.live.heard(self._mob_id, run.member_id):
            attempt, at = max(run.attempts), self._shared.clock.now()
            bodies = frame.bodies()
            self._shared.live.publish(
                self._mob_id, [LiveEvent(run.member_id, run.run_id, attempt, at, body) for body in bodies]
            )
        return run
