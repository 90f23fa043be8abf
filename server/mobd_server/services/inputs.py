"""One input as its callers see it: live from the state, ended from the events that took and ended it."""

from collections.abc import Container, Iterator, Sequence
from typing import Final, Literal

import msgspec
from msgspec import Raw, Struct

from mobd_server.actors.recent import Recent
from mobd_server.errors import InputForgotten, InputNotFound, Internal, MemberNotFound
from mobd_server.machines import events as e
from mobd_server.machines import keys
from mobd_server.machines.inbox import minted_at
from mobd_server.machines.keys import Dedupe
from mobd_server.machines.lanes import waiting
from mobd_server.machines.records import Record
from mobd_server.machines.state import NOTHING, Former, Input, Kind, Lane, Member, Mob, Usage
from mobd_server.machines.views import waiting_reason
from mobd_server.ports import Store

InputState = Literal["queued", "running", "consumed", "abandoned", "superseded", "coalesced"]

LIVE: Final = frozenset({"queued", "running"})

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
    kind: Kind = "peer_message"
    lane: Lane = "queue"
    drives: bool = True
    supersession_key: str = ""
    correlation_id: str = ""
    about: Raw = NOTHING
    replaced_by: str = ""
    # With consumed: where it was applied; see machines.events.Outcome.
    boundary_sequence: int = 0

    @property
    def ended(self) -> bool:
        """Whether this is the last that will ever be said of it."""
        return self.state not in LIVE


class Ended(Struct):
    """An input that has ended: where the log tells of it."""

    mob_id: str
    member_id: str
    canonical_input_id: str
    seq: int
    end_seq: int


def canonical_id(mob: Mob, member_id: str, name: str) -> str:
    """Return the server's name of an input. Raises what `find` raises."""
    return _known(_holder(mob, member_id), name).canonical_input_id


def advanced(view: InputView, news: Sequence[Record]) -> InputView:
    """Return a view after the published events of its input, in order."""
    if not news:
        return view
    view = msgspec.structs.replace(view, waiting_reason="")
    for record in news:
        event = record.event
        if isinstance(event, e.RunStarted | e.RunSteered):
            view.state, view.run_id = "running", event.run_id
            view.attempt = event.attempts[event.canonical_input_ids.index(view.canonical_input_id)]
        elif isinstance(event, e.RunSettled):
            _settle(view, event, record.at)
        elif isinstance(event, e.InputAbandoned):
            view.state, view.reason, view.ended_at = "abandoned", event.reason, record.at
            if event.attempts:
                view.attempt = event.attempts[event.canonical_input_ids.index(view.canonical_input_id)]
        elif isinstance(event, e.InputSuperseded | e.InputCoalesced):
            view.state = "superseded" if isinstance(event, e.InputSuperseded) else "coalesced"
            view.replaced_by, view.attempt, view.ended_at = event.by, event.attempt, record.at
    return view


def _settle(view: InputView, settled: e.RunSettled, at: int) -> None:
    outcome = next(one for one in settled.outcomes if one.canonical_input_id == view.canonical_input_id)
    view.run_id, view.attempt = settled.run_id, outcome.attempt
    if outcome.outcome == "consumed":
        view.state, view.ended_at, view.boundary_sequence = "consumed", at, outcome.sequence
        view.output, view.usage = settled.output, settled.usage
    elif outcome.outcome == "abandoned":
        view.state, view.reason, view.ended_at = "abandoned", outcome.reason, at
    else:
        view.state, view.run_id = "queued", ""


def find(mob: Mob, member_id: str, name: str, connected: Container[str]) -> InputView | Ended:
    """Find an input by the caller's id or by the canonical one; also of a member that has left the roster.

    Raises MemberNotFound, InputNotFound and InputForgotten.
    """
    holder = _holder(mob, member_id)
    known = _known(holder, name)
    if known.end_seq:
        return _ended(mob, holder, known)
    return next(_live(mob, holder, connected, known.canonical_input_id))


def listed(
    mob: Mob, member_id: str, state: str | None, after: tuple[str, str], connected: Container[str]
) -> Iterator[InputView | Ended]:
    """Yield the inputs that are remembered after the pair `after`, in the order of member and canonical id.

    With a live state only those that are in it; else all that may be in it. Raises MemberNotFound at the first step.
    """
    names = [member_id] if member_id else sorted({*mob.members, *mob.former})
    for name in names:
        if name < after[0]:
            continue
        holder = _holder(mob, name)
        beyond = after[1] if name == after[0] else ""
        live = {
            view.canonical_input_id: view
            for view in _live(mob, holder, connected)
            if view.canonical_input_id > beyond and state in (None, view.state)
        }
        if state in LIVE:
            yield from (live[one] for one in sorted(live))
            continue
        known = (one for one in keys.remembered(holder) if one.canonical_input_id > beyond)
        for one in sorted(known, key=lambda one: one.canonical_input_id):
            if one.end_seq:
                yield _ended(mob, holder, one)
            elif one.canonical_input_id in live:
                yield live[one.canonical_input_id]


def _holder(mob: Mob, member_id: str) -> Member | Former:
    holder = mob.members.get(member_id) or mob.former.get(member_id)
    if holder is None:
        raise MemberNotFound(
            f"mob '{mob.mob_id}' has no member '{member_id}'", {"mob_id": mob.mob_id, "member_id": member_id}
        )
    return holder


def _known(holder: Member | Former, name: str) -> Dedupe:
    known = keys.find(holder, keys.input_key(name))
    if known is None:
        known = next((one for one in keys.remembered(holder) if one.canonical_input_id == name), None)
    if known is not None:
        return known
    details = {"member_id": holder.member_id, "input_id": name}
    # Of a canonical id it can't be told when it was made; of a caller's id only if it is a UUIDv7.
    if holder.forgotten_at and (name.startswith(_CANONICAL_PREFIX) or minted_at(name) <= holder.forgotten_at):
        raise InputForgotten(
            f"input '{name}' of member '{holder.member_id}' is not remembered any more: read its events", details
        )
    raise InputNotFound(f"member '{holder.member_id}' has no input '{name}'", details)


def _ended(mob: Mob, holder: Member | Former, known: Dedupe) -> Ended:
    return Ended(mob.mob_id, holder.member_id, known.canonical_input_id, known.seq, known.end_seq)


def _live(mob: Mob, holder: Member | Former, connected: Container[str], only: str = "") -> Iterator[InputView]:
    """Yield the inputs of a member that have not ended: those that wait, those of its run, those steered into it."""
    if isinstance(holder, Former):
        return
    reason = ""
    for one in waiting(holder):
        if only in ("", one.canonical_input_id):
            reason = reason or waiting_reason(mob, holder, connected)
            yield _view(mob, holder, one, "queued", one.attempts, waits_for=reason)
    run = mob.runs.get(holder.run_id or "")
    if run is not None:
        held = zip([*run.inputs, *(run.steered or ())], [*run.attempts, *(run.steered_attempts or ())], strict=True)
        for one, attempt in held:
            if only in ("", one.canonical_input_id):
                yield _view(mob, holder, one, "running", attempt, run_id=run.run_id)


def _view(
    mob: Mob, member: Member, one: Input, state: InputState, attempt: int, *, run_id: str = "", waits_for: str = ""
) -> InputView:
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
        run_id=run_id,
        waiting_reason=waits_for,
        kind=one.kind,
        lane=one.lane,
        drives=one.drives,
        supersession_key=one.supersession_key or "",
        correlation_id=one.correlation_id or "",
        about=one.about,
    )


async def ended_views(store: Store, recent: Recent, log_id: str, ended: Sequence[Ended]) -> list[InputView]:
    """Return what became of inputs of one mob that have ended, at least one, in the order of `ended`.

    What is not recent is read.
    """
    seqs = sorted({seq for one in ended for seq in (one.seq, one.end_seq)})
    found = recent.find(log_id, seqs)
    if found is None:
        found = await store.read_these(ended[0].mob_id, seqs)
    records = {record.seq: record for record in found}
    return [_ended_view(one, records.get(one.seq), records.get(one.end_seq)) for one in ended]


def _ended_view(ended: Ended, first: Record | None, last: Record | None) -> InputView:
    if first is None or last is None or not isinstance(first.event, e.InputAccepted):
        raise Internal(f"the log of mob '{ended.mob_id}' does not tell of input '{ended.canonical_input_id}'")
    accepted = first.event
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
        kind=accepted.input_kind,
        lane=accepted.lane,
        drives=accepted.drives,
        supersession_key=accepted.supersession_key or "",
        correlation_id=accepted.correlation_id or "",
        about=accepted.about,
    )
    if accepted.consumed:
        view.state, view.ended_at = "consumed", first.at
        return view
    return advanced(view, [last])
