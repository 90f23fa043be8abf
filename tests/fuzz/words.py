"""What values mean something to the server under test: names that the run gives itself, and what answers have shown.

Random names alone never reach the code behind a look-up. A field is filled by what its name says it holds.
"""

from collections import deque
from collections.abc import Sequence
from random import Random
from typing import Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from mobd_server.adapters.rpc.validate import is_map, is_repeated

# Nothing that is sent ever names it: what happens to the others must leave it alone.
UNTOUCHED: Final = "untouched"
MOBS: Final = ("alpha", "beta", "gamma", "delta")
MEMBERS: Final = ("ada", "bob", "cyd", "dee", "eve", "fay")
ROLES: Final = ("worker", "lead")
INTENTS: Final = ("ping", "audit", "checksum_token")
EVENT_KINDS: Final = (
    "mob_created",
    "input_accepted",
    "run_started",
    "run_settled",
    "member_spawned",
    "attachment_opened",
)

MADE: Final[dict[str, tuple[str, ...]]] = {
    "mob": (*MOBS, *MOBS, *MOBS, "nobody"),
    "member": (*MEMBERS, "nobody"),
    "role": (*ROLES, *ROLES, "norole"),
    "input": tuple(f"i-{number}" for number in range(40)),
    "request": tuple(f"r-{number}" for number in range(40)),
    "operation": tuple(f"op-{number}" for number in range(24)),
    "host": ("h-0", "h-1", "h-2"),
    "incarnation": ("1", "2"),
    "intent": INTENTS,
    "kind": EVENT_KINDS,
    "key": ("k-0", "k-1", "k-2"),
    "media": ("image/png", "text/plain"),
}
# What a field of a request holds, by its name.
HOLDS: Final = {
    "mob_id": "mob",
    "member_id": "member",
    "member_ids": "member",
    "owner": "member",
    "role": "role",
    "input_id": "input",
    "steered_input_ids": "input",
    "request_id": "request",
    "operation_id": "operation",
    "operation_ids": "operation",
    "run_id": "run",
    "run_ids": "run",
    "attachment_id": "attachment",
    "host_id": "host",
    "incarnation": "incarnation",
    "control_id": "control",
    "log_id": "log",
    "page_token": "token",
    "intent": "intent",
    "event_type": "intent",
    "kinds": "kind",
    "supersession_key": "key",
    "correlation_id": "key",
    "media_type": "media",
    "executor_fence": "fence",
    "generation": "number",
    "fence_token": "number",
    "after_cursor": "cursor",
    "at_cursor": "cursor",
    "after_seq": "cursor",
    "expected_message_count": "number",
}
# What is worth learning from an answer, by the name of its field there.
LEARNT: Final = {
    "canonical_input_id": "input",
    "canonical_input_ids": "input",
    "current_run_id": "run",
    "run_id": "run",
    "operation_id": "operation",
    "attachment_id": "attachment",
    "control_id": "control",
    "log_id": "log",
    "next_page_token": "token",
    "executor_fence": "fence",
    "generation": "number",
    "fence_token": "number",
    "cursor": "cursor",
    "head": "cursor",
    "completion_seq": "cursor",
}
KEPT: Final = 48
# An answer may list thousands of things; its beginning teaches enough.
LOOKED_AT: Final = 200


class Words:
    """The values that the run knows, by what they name."""

    def __init__(self) -> None:
        self._learnt: dict[str, deque[str | int]] = {kind: deque(maxlen=KEPT) for kind in LEARNT.values()}

    def known(self, field_name: str) -> Sequence[str | int]:
        """Return what a field of this name could hold; empty if nothing is known."""
        kind = HOLDS.get(field_name, "")
        return (*MADE.get(kind, ()), *self._learnt.get(kind, ()))

    def learnt(self, kind: str) -> Sequence[str | int]:
        """Return what answers have shown of one kind."""
        return tuple(self._learnt[kind])

    def pick(self, rng: Random, field_name: str) -> str | int | None:
        """Return something that a field of this name could hold, if anything is known."""
        known = self.known(field_name)
        learnt = self._learnt.get(HOLDS.get(field_name, ""), ())
        # What came last is most likely to be still so.
        if learnt and rng.random() < 0.5:
            return learnt[-1 - int(len(learnt) * rng.random() ** 3)]
        return rng.choice(known) if known else None

    def learn(self, answer: Message) -> None:
        """Take note of the names and numbers in an answer."""
        self._walk(answer, LOOKED_AT)

    def _walk(self, message: Message, room: int) -> int:
        if getattr(message, "mob_id", "") == UNTOUCHED:
            return room
        for field, value in message.ListFields():
            if room <= 0:
                break
            room = self._field(field, value, room - 1)
        return room

    def _field(self, field: FieldDescriptor, value: object, room: int) -> int:
        values = value if is_repeated(field) and not is_map(field) else (value,)
        assert isinstance(values, Sequence)
        for one in values[:LOOKED_AT]:
            if isinstance(one, Message):
                room = self._walk(one, room)
            elif field.name in LEARNT and isinstance(one, str | int) and one:
                self._take(LEARNT[field.name], one)
        return room

    def _take(self, kind: str, value: str | int) -> None:
        if value not in self._learnt[kind]:
            self._learnt[kind].append(value)
