"""One input as its callers see it: live from the state, ended from the events that took and ended it."""

from collections.abc import Container, Sequence
from typing import Final, Literal

import msgspec
from msgspec import Raw, Struct

from mobd_server.errors import InputForgotten, InputNotFound, Internal
from mobd_server.machines.events import InputAbandoned, InputAccepted, RunSettled, RunStarted
from mobd_server.machines.inbox import input_key, minted_at
from mobd_server.machines.records import Record
from mobd_server.machines.state import Dedupe, Input, Member, Mob, Usage
from mobd_server.machines.views import waiting_reason
from mobd_server.ports import Store
from mobd_server.services.members import member_of

InputState = Literal["queued", "running", "consumed", "abandoned"]

_CANONICAL_PREFIX: Final = "in-"


class InputView(Struct):
    """An input; see Input in bridge.proto."""

    mob_id: str
    member_id: str
    input_id: str
    canonical_input_id: str
    content: Raw
    sender: str
    state: InputState
    attempt: int
    accepted_at: int
    cursor: int
    run_id: str = ""
    output: Raw | None = None
    usage: Usage | None = None
    reason: str = ""
    ended_at: int = 0
    waiting_reason: str = ""

    @property
    def ended(self) -> bool:
        """Whether this is the last that will ever be said of it."""
        return self.state in ("consumed", "abandoned")


class Ended(Struct):
    """An input that has ended: where the log tells of it."""

    mob_id: str
    member_id: str
    canonical_input_id: str
    seq: int
    end_seq: int


def canonical_id(mob: Mob, member_id: str, name: str) -> str:
    """Return the server's name of an input. Raises what `find` raises."""
    return _known(member_of(mob, member_id), name).canonical_input_id


def advanced(view: InputView, news: Sequence[Record]) -> InputView:
    """Return a view after the published events of its input, in order."""
    if not news:
        return view
    view = msgspec.structs.replace(view, waiting_reason="")
    for record in news:
        event = record.event
        if isinstance(event, RunStarted):
            view.state, view.run_id = "running", event.run_id
            view.attempt = event.attempts[event.canonical_input_ids.index(view.canonical_input_id)]
        elif isinstance(event, RunSettled):
            _settle(view, event, record.at)
        elif isinstance(event, InputAbandoned):
            view.state, view.reason, view.ended_at = "abandoned", event.reason, record.at
    return view


def _settle(view: InputView, settled: RunSettled, at: int) -> None:
    outcome = next(one for one in settled.outcomes if one.canonical_input_id == view.canonical_input_id)
    view.run_id, view.attempt = settled.run_id, outcome.attempt
    if outcome.outcome == "consumed":
        view.state, view.ended_at = "consumed", at
        view.output, view.usage = settled.output, settled.usage
    elif outcome.outcome == "abandoned":
        view.state, view.reason, view.ended_at = "abandoned", outcome.reason, at
    else:
        view.state, view.run_id = "queued", ""


def find(mob: Mob, member_id: str, name: str, connected: Container[str]) -> InputView | Ended:
    """Find an input by the caller's id or by the canonical one. Raises InputNotFound and InputForgotten."""
    member = member_of(mob, member_id)
    known = _known(member, name)
    if known.end_seq:
        return Ended(mob.mob_id, member_id, known.canonical_input_id, known.seq, known.end_seq)
    canonical = known.canonical_input_id
    for one in member.queue or ():
        if one.canonical_input_id == canonical:
            return _live(mob, member, one, "queued", one.attempts, waiting_reason(mob, member, connected))
    run = mob.runs[member.run_id or ""]
    for one, attempt in zip(run.inputs, run.attempts, strict=True):
        if one.canonical_input_id == canonical:
            view = _live(mob, member, one, "running", attempt)
            view.run_id = run.run_id
            return view
    raise KeyError(canonical)


def _known(member: Member, name: str) -> Dedupe:
    dedupe = member.dedupe or {}
    known = dedupe.get(input_key(name))
    if known is None:
        known = next((one for one in dedupe.values() if one.canonical_input_id == name), None)
    if known is not None:
        return known
    details = {"member_id": member.member_id, "input_id": name}
    # Of a canonical id it can't be told when it was made; of a caller's id only if it is a UUIDv7.
    if member.forgotten_at and (name.startswith(_CANONICAL_PREFIX) or minted_at(name) <= member.forgotten_at):
        raise InputForgotten(
            f"input '{name}' of member '{member.member_id}' is not remembered any more: read its events", details
        )
    raise InputNotFound(f"member '{member.member_id}' has no input '{name}'", details)


def _live(mob: Mob, member: Member, one: Input, state: InputState, attempt: int, waits_for: str = "") -> InputView:
    return InputView(
        mob_id=mob.mob_id,
        member_id=member.member_id,
        input_id=one.input_id,
        canonical_input_id=one.canonical_input_id,
        content=one.content,
        sender=one.sender,
        state=state,
        attempt=attempt,
        accepted_at=one.at,
        cursor=one.seq,
        waiting_reason=waits_for,
    )


async def ended_view(store: Store, ended: Ended) -> InputView:
    """Read what became of an input that has ended."""
    records = await store.read_these(ended.mob_id, (ended.seq, ended.end_seq))
    if len(records) != 2 or not isinstance(records[0].event, InputAccepted):
        raise Internal(f"the log of mob '{ended.mob_id}' does not tell of input '{ended.canonical_input_id}'")
    first, accepted = records[0], records[0].event
    view = InputView(
        mob_id=ended.mob_id,
        member_id=ended.member_id,
        input_id=accepted.input_id,
        canonical_input_id=ended.canonical_input_id,
        content=accepted.content,
        sender=accepted.sender,
        state="queued",
        attempt=0,
        accepted_at=first.at,
        cursor=ended.seq,
    )
    return advanced(view, records[1:])
