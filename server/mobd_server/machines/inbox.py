"""Inputs of a member: admission, dedupe, and what is remembered of them (runtime §2).

An input is waiting (in one of the two lanes), held by a run, or ended. It stays known by its key after its end, for 24
hours and among the newest 4,096 of its member, so that a delivery that is repeated never runs twice; also after its
member has left the roster. Order of the checks: handling mode, dedupe, phase of the mob, member, phase of the member,
fence, forgotten, queue (api §6).
"""

from typing import Final

from msgspec import Raw

from mobd_server.errors import MemberNotFound
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines import keys
from mobd_server.machines.admission import require_admitted
from mobd_server.machines.answers import Accepted, BatchDelivered, Deduplicated, Delivered, Rejected, UnknownMember
from mobd_server.machines.draft import Draft
from mobd_server.machines.keys import Dedupe, content_hash
from mobd_server.machines.keys import input_key as input_key
from mobd_server.machines.lanes import add, count_waiting, take_one, waiting
from mobd_server.machines.member import accepts_inputs, relist, set_timer, unlist
from mobd_server.machines.policy import drives, mode_invalid, policy_of, shared, stamp_of
from mobd_server.machines.records import Record
from mobd_server.machines.sharing import serve_work
from mobd_server.machines.state import NOTHING, Input, Kind, Member, Mob
from mobd_server.machines.steering import steer_waiting
from mobd_server.machines.undo import Undo

QUEUE_INPUTS: Final = 1_000
QUEUE_BYTES: Final = 4 << 20
DEDUPE_KEYS: Final = 4_096
DEDUPE_US: Final = 24 * 3600 * 1_000_000
# Keys that one input may push out; what is left goes with the next.
FORGET_AT_ONCE: Final = 64
QUEUE_FULL_RETRY_MS: Final = 1_000
# Later than every time that is ever compared with it.
AGELESS: Final = 1 << 63


def deliver(d: Draft, command: c.Deliver) -> Delivered:
    """Accept one input, or say why not. Raises what the mob's phase or a missing member raises."""
    touched: dict[str, Member] = {}
    outcome = _deliver(d, command, touched)
    _serve(d, touched)
    if isinstance(outcome, UnknownMember):
        raise MemberNotFound(
            f"mob '{d.mob.mob_id}' has no member '{command.member_id}'",
            {"mob_id": d.mob.mob_id, "member_id": command.member_id},
        )
    return outcome


def deliver_batch(d: Draft, command: c.DeliverBatch) -> BatchDelivered:
    """Deliver in order, each for itself; only the mob's phase refuses all of them.

    Members run what they got when all of it is there, so that one batch of inputs makes one batch of a run.
    """
    touched: dict[str, Member] = {}
    outcomes = [_deliver(d, one, touched) for one in command.deliveries]
    _serve(d, touched)
    return BatchDelivered(outcomes)


def _serve(d: Draft, touched: dict[str, Member]) -> None:
    for member in touched.values():
        if member.run_id is None:
            serve_work(d, member)
        elif member.steer:
            steer_waiting(d, d.mob.runs[member.run_id])


def _deliver(d: Draft, command: c.Deliver, touched: dict[str, Member]) -> Delivered:
    mob = d.mob
    if mode_invalid(command.kind, command.handling_mode):
        return Rejected("handling_mode_invalid", f"a {command.kind} has no handling mode: leave it out")
    member = mob.members.get(command.member_id)
    known = member if member is not None else mob.former.get(command.member_id)
    if known is not None:
        seen = keys.find(known, input_key(command.input_id))
        if seen is not None:
            return _seen(seen, command)
    require_admitted(mob, c.Deliver)
    if member is None:
        return UnknownMember(command.member_id)
    replaced = _replaced(member, command.kind, command.supersession_key)
    refusal = _refusal(member, command, replaced)
    if refusal is not None:
        return refusal
    canonical = d.context.ids.new("in")
    seq = _accept(d, member, command, canonical, replaced)
    touched[member.member_id] = member
    executor = member.executor
    return Accepted(command.input_id, canonical, executor.attachment_id if executor else None, seq)


def accept(d: Draft, member: Member, command: c.Deliver, canonical: str) -> None:
    """Let an input in that no caller delivered, under the name `canonical`, and see to it that it runs."""
    _accept(d, member, command, canonical, None)
    _serve(d, {member.member_id: member})


def _accept(d: Draft, member: Member, command: c.Deliver, canonical: str, replaced: Input | None) -> int:
    """Let an input in, in place of `replaced`; return the seq of its event."""
    mob, kind = d.mob, command.kind
    policy = policy_of(kind, command.handling_mode, running=member.run_id is not None)
    profile = mob.definition.profiles.get(member.role)
    silent = kind == "peer_request" and profile is not None and command.intent in profile.silent_intents
    if replaced is not None:
        ended = e.InputCoalesced if policy.queue == "coalesce" else e.InputSuperseded
        event = ended(member.member_id, replaced.canonical_input_id, canonical, replaced.attempts)
        d.emit(event, member.member_id)
    return d.emit(
        e.InputAccepted(
            member.member_id,
            command.input_id,
            canonical,
            command.content,
            d.context.principal,
            _forgets(member, d.context.now),
            input_kind=kind,
            lane="steer" if policy.routing == "steer" else "queue",
            drives=drives(kind, command.handling_mode, wake=command.wake, silent=silent),
            stamp=stamp_of(kind, policy),
            supersession_key=command.supersession_key,
            correlation_id=command.correlation_id,
            about=command.about,
            consumed=policy.consume == "on_accept",
        ),
        member.member_id,
    )


def _replaced(member: Member, kind: Kind, key: str | None) -> Input | None:
    """Return the waiting input in whose place a new one comes: the first of the same kind and key, queue lane first."""
    if key is None:
        return None
    for inputs in (member.queue, member.steer):
        for one in inputs or ():
            if one.supersession_key == key and one.kind == kind:
                return one
    return None


def _seen(seen: Dedupe, command: c.Deliver) -> Delivered:
    if seen.content_hash == content_hash(bytes(command.content)):
        return Deduplicated(seen.canonical_input_id, seen.end_seq != 0)
    return Rejected(
        "content_conflict",
        f"input_id '{command.input_id}' was delivered with other content: use a new input_id for new content",
        canonical_input_id=seen.canonical_input_id,
    )


def _refusal(member: Member, command: c.Deliver, replaced: Input | None) -> Rejected | None:
    if not accepts_inputs(member.state):
        return Rejected("not_ready", f"member '{member.member_id}' is {member.state}", state=member.state)
    if (command.generation is not None and command.generation != member.generation) or (
        command.fence_token is not None and command.fence_token != member.fence_token
    ):
        return Rejected(
            "stale_fence",
            f"member '{member.member_id}' is at generation {member.generation}, fence token {member.fence_token}",
            generation=member.generation,
            fence_token=member.fence_token,
        )
    if member.forgotten_at and minted_at(command.input_id) <= member.forgotten_at:
        return Rejected(
            "input_forgotten",
            f"input_id '{command.input_id}' is older than what is remembered: whether it ran can't be told",
        )
    count, size = count_waiting(member), member.queue_bytes
    if replaced is not None:
        count, size = count - 1, size - replaced.size
    if count >= QUEUE_INPUTS or (count and size + memoryview(command.content).nbytes > QUEUE_BYTES):
        return Rejected(
            "queue_full",
            f"{count} inputs of {size} bytes wait; at most {QUEUE_INPUTS} of {QUEUE_BYTES} may",
            retry_after_ms=QUEUE_FULL_RETRY_MS,
        )
    return None


def minted_at(input_id: str) -> int:
    """Return when a UUIDv7 was made (µs); for any other id a time that is never too old."""
    if len(input_id) == 36 and input_id[14] == "7":
        try:
            # Where its millisecond begins: an id that was accepted within that millisecond must not look younger.
            return int(input_id[:8] + input_id[9:13], 16) * 1_000
        except ValueError:
            pass
    return AGELESS


def _forgets(member: Member, now: int) -> list[str] | None:
    """Choose the keys that the next input of this member pushes out, oldest end first."""
    return keys.outlived(member, now - DEDUPE_US, DEDUPE_KEYS, FORGET_AT_ONCE) or None


def accepted(mob: Mob, undo: Undo, record: Record, event: e.InputAccepted) -> None:
    """Evolve: the input waits at the end of its lane, or is over already, and is remembered."""
    member = mob.members[event.member_id]
    undo.touch(member)
    if event.forgets:
        keys.forget(undo, member, event.forgets)
    content = bytes(event.content)
    key = input_key(event.input_id)
    keys.accept(undo, member, key, content, event.canonical_input_id, record.seq, record.at)
    if event.consumed:
        end_input(undo, member, key, record)
        return
    one = Input(
        event.canonical_input_id,
        event.input_id,
        key,
        # A copy: what was decoded is a view that would keep the whole payload.
        Raw(content),
        len(content),
        event.sender,
        record.seq,
        record.at,
        record.traceparent,
        kind=event.input_kind,
        lane=event.lane,
        drives=event.drives,
        stamp=shared(event.stamp),
        supersession_key=event.supersession_key,
        correlation_id=event.correlation_id,
        about=NOTHING if event.about is NOTHING else Raw(bytes(event.about)),
    )
    add(undo, member, one)
    member.active_seq = record.seq
    relist(mob, undo, member, record.seq)


def replaced(mob: Mob, undo: Undo, record: Record, event: e.InputSuperseded | e.InputCoalesced) -> None:
    """Evolve: a waiting input is over, for a newer one takes its place."""
    member = mob.members[event.member_id]
    undo.touch(member)
    end_input(undo, member, take_one(undo, member, event.canonical_input_id).key, record)
    relist(mob, undo, member, record.seq)


def end_input(undo: Undo, member: Member, key: str, record: Record) -> None:
    """Remember that the input with `key` ended with `record`; the member is touched."""
    keys.end(undo, member, key, record.seq, record.at)


def abandon_waiting(d: Draft, member: Member, reason: str) -> int:
    """Give up everything that waits; return how many inputs those were."""
    inputs = waiting(member)
    if inputs:
        ids, attempts = [one.canonical_input_id for one in inputs], [one.attempts for one in inputs]
        event = e.InputAbandoned(member.member_id, ids, reason, attempts if any(attempts) else [])
        d.emit(event, member.member_id)
    return len(inputs)


def abandoned(mob: Mob, undo: Undo, record: Record, event: e.InputAbandoned) -> None:
    """Evolve: everything that waits is given up."""
    member = mob.members[event.member_id]
    undo.touch(member)
    given_up = waiting(member)
    if [one.canonical_input_id for one in given_up] != event.canonical_input_ids:
        raise ValueError(f"member {member.member_id} does not hold the inputs that were abandoned")
    member.queue = member.steer = None
    member.queue_bytes = 0
    # Nothing is left to be drained, or to be tried again.
    set_timer(mob, undo, "drain", member.member_id, member.drain_until)
    set_timer(mob, undo, "retry", member.member_id, member.retry_at)
    member.drain_until = member.retry_at = 0
    for one in given_up:
        end_input(undo, member, one.key, record)
    unlist(mob, undo, member)
