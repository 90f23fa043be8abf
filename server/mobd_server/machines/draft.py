"""A decision while it is being made.

`Draft.emit` applies an event at once, so that what follows in the same decision sees the state after it, and encodes
it at once, so that what can't be stored is never applied. `decision.py` opens a draft, and seals it or rolls it back.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from mobd_server.errors import DecisionTooLarge
from mobd_server.machines.answers import Reaction
from mobd_server.machines.commands import Context
from mobd_server.machines.events import Event
from mobd_server.machines.records import MessageRow, MobRow, Record, RunRow, SessionRow
from mobd_server.machines.state import Mob
from mobd_server.machines.undo import Undo

MAX_EVENTS: Final = 2_000
MAX_BYTES: Final = 4 << 20

_encode: Final = msgspec.json.Encoder().encode


class Draft:
    """The decision that is being made. Handlers read `mob`, and write it by `emit` alone."""

    __slots__ = (
        "_evolve",
        "attaching",
        "base",
        "bytes",
        "context",
        "create",
        "messages",
        "mob",
        "reactions",
        "records",
        "runs",
        "sessions",
        "undo",
    )

    def __init__(self, mob: Mob, context: Context, evolve: Callable[[Mob, Undo, Record], None]) -> None:
        self.mob = mob
        self.context = context
        self.base = mob.head
        self.undo = Undo()
        self.records: list[Record] = []
        self.reactions: list[Reaction] = []
        self.bytes = 0
        # The attachment that this decision itself opens or resumes: connected, though the hub can't know yet.
        self.attaching: str | None = None
        self.create: MobRow | None = None
        self.runs: list[RunRow] = []
        self.messages: list[MessageRow] = []
        self.sessions: list[SessionRow] = []
        self._evolve = evolve

    def emit(self, event: Event, member_id: str | None = None, run_id: str | None = None) -> int:
        """Append `event` and apply it; return its seq. The ids are columns to filter by."""
        payload = _encode(event)
        self.bytes += len(payload)
        if len(self.records) >= MAX_EVENTS or self.bytes > MAX_BYTES:
            raise DecisionTooLarge(
                f"one command may append at most {MAX_EVENTS} events or {MAX_BYTES} bytes: send it in parts"
            )
        context, mob = self.context, self.mob
        seq = mob.head + 1
        record = Record(
            seq,
            context.now,
            event.kind,
            event.v,
            member_id,
            run_id,
            # The request, its hash and its answer are those of the last event of a decision.
            None,
            None,
            None,
            context.principal,
            context.traceparent,
            payload.decode(),
            event,
        )
        self._evolve(mob, self.undo, record)
        self.records.append(record)
        return seq

    def react(self, reaction: Reaction) -> None:
        """Release `reaction` when this decision is durable."""
        self.reactions.append(reaction)

    def is_connected(self, attachment_id: str) -> bool:
        """Whether the agent is there and wants work."""
        return attachment_id == self.attaching or attachment_id in self.context.connected

    def rollback(self) -> None:
        """Leave no trace."""
        self.undo.rollback()
        self.mob.head = self.base

    @property
    def room(self) -> int:
        """How many more events fit, with a margin for what follows from them."""
        return MAX_EVENTS - 100 - len(self.records)
