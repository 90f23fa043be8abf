"""Inputs in the model: what becomes of a delivery, and how inputs enter and leave the lanes (runtime §2)."""

from typing import Final

from tests.machines.model_facts import DAY, SILENT, Facts, Former, Input, Member, Stamp

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.inbox import input_key
from mobd_server.machines.records import Record
from mobd_server.machines.state import Stamp as RealStamp

# An id that tells when it was made, and when that was (µs).
DATED: Final = "018bcfe5-6800-7000-8000-000000000000"
DATED_AT: Final = 1_700_000_000_000_000


def stamp_of(real: RealStamp) -> Stamp:
    return (real.boundary, real.execution, real.intent)


def is_invalid(command: c.Deliver) -> bool:
    """Whether a handling mode is given where none may be."""
    return command.kind == "peer_response_progress" and command.handling_mode is not None


def steers(command: c.Deliver) -> bool:
    """Whether an input goes into the steer lane."""
    if command.kind == "peer_response_progress":
        return True
    if command.kind == "operation":
        return False
    return command.handling_mode == "steer" or (command.handling_mode is None and command.kind == "continuation")


def stamped(command: c.Deliver) -> Stamp:
    """Return how an input is to be applied: steered ones at a boundary, but for terminal responses."""
    terminal = command.kind == "peer_response_terminal"
    return (
        "run_checkpoint" if steers(command) and not terminal else "run_start",
        "resume_pending" if command.kind == "continuation" else "content_turn",
        "append_context_and_run" if terminal else "none",
    )


class Inputs(Facts):
    """The life of inputs."""

    # What must be answered.

    def delivery(self, command: c.Deliver) -> str:
        """Return what must become of a delivery."""
        if is_invalid(command):
            return "handling_mode_invalid"
        member = self.members.get(command.member_id)
        known: Member | Former | None = member or self.former.get(command.member_id)
        if known is not None and command.input_id in known.known:
            same = self.inputs[known.known[command.input_id]].content == bytes(command.content)
            return "deduplicated" if same else "content_conflict"
        if not self.admits(c.Deliver):
            return "refused"
        if member is None:
            return "unknown_member"
        if member.state != "active":
            return "not_ready"
        if command.fence_token not in (None, member.fence) or command.generation not in (None, member.generation):
            return "stale_fence"
        if command.input_id == DATED and member.forgotten_at >= DATED_AT:
            return "input_forgotten"
        return "accepted"

    def expired(self, member_id: str, now: int) -> list[str]:
        """Return the ended inputs that the member's next one pushes out."""
        member = self.members.get(member_id)
        ended = [self.inputs[one] for one in member.ended] if member is not None else []
        return [one.input_id for one in ended if one.ended_at < now - DAY]

    def to_be_replaced(self, member: Member, kind: str, key: str | None) -> str | None:
        """Return the waiting input in whose place one of this kind and key comes."""
        same = [one for one in (*member.lanes["queue"], *member.lanes["steer"]) if self.inputs[one].kind == kind]
        return next((one for one in same if key is not None and self.inputs[one].key == key), None)

    def _delivered(self, event: e.InputAccepted) -> c.Deliver:
        """Return what was delivered with an input that was accepted."""
        match self.command:
            case c.Deliver():
                return self.command
            case c.DeliverBatch(deliveries=many):
                same = [one for one in many if (one.member_id, one.input_id) == (event.member_id, event.input_id)]
                return next(one for one in same if not is_invalid(one))
            case c.RespawnMember(initial_message=content):
                assert content is not None
                return c.Deliver(event.member_id, event.canonical_input_id, content, kind="prompt")
            case c.SpawnMember(spec=spec) | c.EnsureMember(spec=spec):
                assert spec.initial_message is not None
                return c.Deliver(event.member_id, event.canonical_input_id, spec.initial_message, kind="prompt")
            case other:
                raise AssertionError(f"{other} delivers nothing")

    # Events.

    def _input_accepted(self, event: e.InputAccepted, record: Record) -> None:
        member = self.members[event.member_id]
        expired = self.expired(event.member_id, record.at)[:64]
        assert (event.forgets or []) == [input_key(one) for one in expired]
        for one in expired:
            canonical = member.known.pop(one)
            member.ended.remove(canonical)
            member.forgotten_at = max(member.forgotten_at, self.accepted_at[canonical])
        assert (self.phase, self.pending, member.state) == ("running", "none", "active")
        assert event.input_id not in member.known
        assert event.canonical_input_id not in self.inputs
        asked = self._delivered(event)
        assert bytes(event.content) == bytes(asked.content)
        silent = asked.kind == "peer_request" and asked.intent in SILENT[member.role]
        never = asked.kind in ("peer_response_progress", "operation")
        lane = "steer" if steers(asked) else "queue"
        assert (event.input_kind, event.lane) == (asked.kind, lane)
        assert event.drives == (asked.wake and not silent and not never)
        assert stamp_of(event.stamp) == stamped(asked)
        assert event.consumed == (asked.kind == "operation")
        assert self.to_be_replaced(member, asked.kind, asked.supersession_key) is None, "what it replaces ended before"
        entered = Input(
            event.member_id,
            event.input_id,
            bytes(event.content),
            len(self.inputs),
            asked.kind,
            lane,
            event.drives,
            stamped(asked),
            asked.supersession_key,
        )
        self.inputs[event.canonical_input_id] = entered
        self.accepted_at[event.canonical_input_id] = record.at
        member.known[event.input_id] = event.canonical_input_id
        if event.consumed:
            self.end(member, event.canonical_input_id, "consumed", record)
        else:
            member.lanes[lane].append(event.canonical_input_id)

    def _input_superseded(self, event: e.InputSuperseded | e.InputCoalesced, record: Record) -> None:
        member, old = self.members[event.member_id], self.inputs[event.canonical_input_id]
        assert isinstance(self.command, c.Deliver | c.DeliverBatch)
        assert event.canonical_input_id == self.to_be_replaced(member, old.kind, old.key)
        coalesced = old.kind == "peer_response_progress"
        assert isinstance(event, e.InputCoalesced) == coalesced
        assert event.by not in self.inputs
        assert event.attempt == old.attempts
        member.lanes[old.lane].remove(event.canonical_input_id)
        self.end(member, event.canonical_input_id, "coalesced" if coalesced else "superseded", record)

    _input_coalesced = _input_superseded

    def _input_abandoned(self, event: e.InputAbandoned, record: Record) -> None:
        member = self.members[event.member_id]
        assert event.canonical_input_ids == member.waiting != []
        attempts = [self.inputs[one].attempts for one in event.canonical_input_ids]
        assert event.attempts == (attempts if any(attempts) else [])
        match self.command:
            case c.Wake():
                assert 0 < member.drain_until <= record.at
                assert event.reason == "retired"
            case c.RespawnMember():
                assert event.reason == "retired"
            case c.DestroyRuntime():
                assert event.reason == "destroyed"
            case _ if self.pending in ("destroy", "reset"):
                assert event.reason == {"destroy": "destroyed", "reset": "reset"}[self.pending]
            case _:
                assert member.state == "retired"
                assert event.reason == "retired"
                assert member.executor is None or self.phase != "running"
        for one in event.canonical_input_ids:
            self.end(member, one, "abandoned", record)
        member.lanes = {"steer": [], "queue": []}
        member.drain_until = member.paused_until = 0

    def end(self, member: Member, canonical: str, state: str, record: Record) -> None:
        """An input is over."""
        one = self.inputs[canonical]
        assert one.state in ("waiting", "running", "steered"), "an input ends once"
        one.state, one.ended_at = state, record.at
        member.ended.append(canonical)

    # States.

    def check_inputs(self) -> None:
        """Every input is in exactly one place, and those that never failed are in the order of their admission."""
        held: list[str] = []
        for member in self.members.values():
            for lane, waiting in member.lanes.items():
                held += waiting
                assert all((self.inputs[one].state, self.inputs[one].lane) == ("waiting", lane) for one in waiting)
                orders = [self.inputs[one].order for one in waiting if not self.inputs[one].failed]
                assert orders == sorted(orders), "who never failed keeps its place"
        for run in self.runs.values():
            held += run.inputs + run.steered
            assert {self.inputs[one].state for one in run.inputs} == {"running"}
            assert {self.inputs[one].state for one in run.steered} <= {"steered"}
        assert len(held) == len(set(held))
        live = ("waiting", "running", "steered")
        assert set(held) == {one for one, it in self.inputs.items() if it.state in live}
