"""Requests to cancel runs, on their way to the agents of one mob and until they are obeyed (runtime §9.6).

The request itself is a fact, and its mob sends it again after every resume and every load. What is here is only how
long an agent may take: one that does not end a run at once when it is told to is fenced off.
"""

from collections.abc import Callable
from functools import partial

from mobd_server.actors.connection import Connection
from mobd_server.actors.frames import ControlAck
from mobd_server.actors.links import Reply
from mobd_server.actors.presence import Presence, SentCancel
from mobd_server.actors.shared import Shared
from mobd_server.machines import answers as a
from mobd_server.machines import commands as c

LoseRun = Callable[[Presence, str, int, str], None]


class Controls:
    """The cancels of one crew."""

    __slots__ = ("_lose_run", "_mob_id", "_shared")

    def __init__(self, mob_id: str, shared: Shared, lose_run: LoseRun) -> None:
        self._mob_id = mob_id
        self._shared = shared
        self._lose_run = lose_run

    def send(self, presence: Presence, connection: Connection, cancel: a.SendCancel) -> None:
        """Send a request to an agent, or take its run back if that was not sent yet."""
        if connection.take_back(cancel.run_id):
            # If its mob can't be told now, the agent will not have accepted the run in time.
            self._shared.later(partial(self._take_back, presence, cancel))
            return
        due = self._shared.patience.after(self._shared.terms.accept_s) if cancel.hard else None
        presence.sent_cancel(cancel.run_id, cancel.fence, cancel.control_id, due)
        connection.send_control(cancel)

    def acknowledged(self, presence: Presence, ack: ControlAck) -> None:
        """Take an agent's answer to a request; an answer to one that is over is passed over."""
        found = presence.cancel_of(ack.control_id)
        if found is None:
            return
        run_id, cancel = found
        if ack.result == "failed":
            # Its mob fences nobody off for an interrupt.
            self._fence_off(presence, run_id, cancel, ack.message or "its agent can't end it")
            return
        cancel.due = None
        if ack.result == "not_running" and not presence.is_settling(run_id):
            self._lose_run(presence, run_id, cancel.fence, "its agent does not hold it")

    def overdue(self, presence: Presence) -> None:
        """Fence off the agent from the runs that it was to end at once and has not answered for."""
        accept_s = self._shared.terms.accept_s
        for run_id, cancel in presence.overdue_cancels(self._shared.patience.time):
            self._fence_off(presence, run_id, cancel, f"its agent did not acknowledge the cancel within {accept_s:g} s")

    def _take_back(self, presence: Presence, cancel: a.SendCancel) -> None:
        def done(_: Reply) -> None:
            presence.settled(cancel.run_id)

        self._shared.tell(self._mob_id, c.CancelUnsent(cancel.attachment_id, cancel.run_id, cancel.fence), done)

    def _fence_off(self, presence: Presence, run_id: str, cancel: SentCancel, reason: str) -> None:
        command = c.FenceOff(presence.attachment_id, run_id, cancel.fence, cancel.control_id, reason)
        # If its mob can't be told now, the next tick tries again.
        told = self._shared.tell(self._mob_id, command)
        cancel.due = None if told else self._shared.patience.time
