"""Inputs of a member: admission, dedupe, the queue, and the choice of the next batch (runtime §2).

An input is waiting (in `member.queue`), held by a run, or ended. It stays known by its key after its end, for 24 hours
and among the newest 4,096 of its member, so that a delivery that is repeated never runs twice. Order of the checks:
dedupe, phase of the mob, member, phase of the member, fence, forgotten, queue (api §6).
"""

from hashlib import blake2b
from typing import Final

from msgspec import Raw

from mobd_server.errors import MemberNotFound
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.admission import require_admitted
from mobd_server.machines.answers import Accepted, BatchDelivered, Deduplicated, Delivered, Rejected, UnknownMember
from mobd_server.machines.draft import Draft
from mobd_server.machines.member import accepts_inputs, relist
from mobd_server.machines.records import Record
from mobd_server.machines.sharing import serve_work
from mobd_server.machines.state import Dedupe, Input, Member, Mob
from mobd_server.machines.undo import Undo

QUEUE_INPUTS: Final = 1_000
QUEUE_BYTES: Final = 4 << 20
DEDUPE_KEYS: Final = 4_096
DEDUPE_US: Final = 24 * 3600 * 1_000_000
# Keys that one input may push out; what is left goes with the next.
FORGET_AT_ONCE: Final = 64
QUEUE_FULL_RETRY_MS: Final = 1_000


def input_key(input_id: str) -> str:
    """Return the key (96 bits, hexadecimal) under which a caller's input_id is remembered."""
    return blake2b(input_id.encode(), digest_size=12).hexdigest()


def content_hash(content: bytes | memoryview) -> bytes:
    """Return the 128-bit hash by which a repeated delivery is compared with the first."""
    return blake2b(content, digest_size=16).digest()


def deliver(d: Draft, command: c.Deliver) -> Delivered:
    """Accept one input, or say why not. Raises what the mob's phase or a missing member raises."""
    outcome = _deliver(d, command)
    if isinstance(outcome, UnknownMember):
        raise MemberNotFound(
            f"mob '{d.mob.mob_id}' has no member '{command.member_id}'",
            {"mob_id": d.mob.mob_id, "member_id": command.member_id},
        )
    return outcome


def deliver_batch(d: Draft, command: c.DeliverBatch) -> BatchDelivered:
    """Deliver in order, each for itself; only the mob's phase refuses all of them."""
    return BatchDelivered([_deliver(d, one) for one in command.deliveries])


def _deliver(d: Draft, command: c.Deliver) -> Delivered:
    mob = d.mob
    member = mob.members.get(command.member_id)
    if member is not None and member.dedupe is not None:
        seen = member.dedupe.get(input_key(command.input_id))
        if seen is not None:
            return _seen(seen, command)
    require_admitted(mob, c.Deliver)
    if member is None:
        return UnknownMember(command.member_id)
    refusal = _refusal(member, command)
    if refusal is not None:
        return refusal
    canonical = d.context.ids.new("in")
    seq = d.emit(
        e.InputAccepted(
            member.member_id,
            command.input_id,
            canonical,
            command.content,
            d.context.principal,
            _forgets(member, d.context.now),
        ),
        member.member_id,
    )
    serve_work(d, member)
    executor = member.executor
    return Accepted(command.input_id, canonical, executor.attachment_id if executor else None, seq)


def _seen(seen: Dedupe, command: c.Deliver) -> Delivered:
    if seen.content_hash == content_hash(bytes(command.content)):
        return Deduplicated(seen.canonical_input_id, seen.end_seq > 0)
    return Rejected(
        "content_conflict",
        f"input_id '{command.input_id}' was delivered with other content: use a new input_id for new content",
        canonical_input_id=seen.canonical_input_id,
    )


def _refusal(member: Member, command: c.Deliver) -> Rejected | None:
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
    queue = member.queue
    if queue is not None and (
        len(queue) >= QUEUE_INPUTS or member.queue_bytes + memoryview(command.content).nbytes > QUEUE_BYTES
    ):
        return Rejected(
            "queue_full",
            f"{len(queue)} inputs of {member.queue_bytes} bytes wait; at most {QUEUE_INPUTS} of {QUEUE_BYTES} may",
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
    return 1 << 63


def _forgets(member: Member, now: int) -> list[str] | None:
    """Choose the keys that the next input of this member pushes out, oldest end first."""
    ended = member.ended
    if not ended or member.dedupe is None:
        return None
    horizon = now - DEDUPE_US
    excess = len(ended) - DEDUPE_KEYS
    forgets: list[str] = []
    for key in ended[:FORGET_AT_ONCE]:
        if excess <= 0 and member.dedupe[key].end_at >= horizon:
            break
        excess -= 1
        forgets.append(key)
    return forgets or None


def accepted(mob: Mob, undo: Undo, record: Record, event: e.InputAccepted) -> None:
    """Evolve: the input waits at the end of the queue and is remembered."""
    member = mob.members[event.member_id]
    undo.touch(member)
    if event.forgets:
        _forget(undo, member, event.forgets)
    content = bytes(event.content)
    key = input_key(event.input_id)
    if member.dedupe is None:
        member.dedupe = {}
    if key in member.dedupe:
        raise ValueError(f"input {event.canonical_input_id} was accepted twice")
    undo.put(member.dedupe, key, Dedupe(content_hash(content), event.canonical_input_id, record.seq, record.at))
    if member.queue is None:
        member.queue = []
    undo.append(
        member.queue,
        Input(
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
        ),
    )
    member.queue_bytes += len(content)
    member.active_seq = record.seq
    relist(mob, undo, member, record.seq)


def _forget(undo: Undo, member: Member, keys: list[str]) -> None:
    if member.ended is None or member.dedupe is None or member.ended[: len(keys)] != keys:
        raise ValueError(f"member {member.member_id} can't forget inputs that are not its oldest")
    undo.splice(member.ended, 0, len(keys), ())
    for key in keys:
        member.forgotten_at = max(member.forgotten_at, undo.drop(member.dedupe, key).at)


def end_input(undo: Undo, member: Member, key: str, record: Record) -> None:
    """Remember that the input with `key` ended with `record`; the member is touched."""
    if member.dedupe is None:
        raise ValueError(f"member {member.member_id} knows no input")
    entry = member.dedupe[key]
    undo.touch(entry)
    entry.end_seq = record.seq
    entry.end_at = record.at
    if member.ended is None:
        member.ended = []
    undo.append(member.ended, key)


def abandoned(mob: Mob, undo: Undo, record: Record, event: e.InputAbandoned) -> None:
    """Evolve: the first waiting inputs are given up."""
    member = mob.members[event.member_id]
    undo.touch(member)
    queue = member.queue or []
    taken = queue[: len(event.canonical_input_ids)]
    if [one.canonical_input_id for one in taken] != event.canonical_input_ids:
        raise ValueError(f"member {member.member_id} does not hold the inputs that were abandoned")
    take(undo, member, len(taken))
    for one in taken:
        end_input(undo, member, one.key, record)
    relist(mob, undo, member, record.seq)


def take(undo: Undo, member: Member, count: int) -> list[Input]:
    """Remove and return the first inputs of a touched member's queue."""
    queue = member.queue
    if queue is None or len(queue) < count:
        raise ValueError(f"member {member.member_id} has no {count} waiting inputs")
    taken = queue[:count]
    undo.splice(queue, 0, count, ())
    member.queue_bytes -= sum(one.size for one in taken)
    if not queue:
        member.queue = None
    return taken


def put_back(undo: Undo, member: Member, inputs: list[Input], at_end: bool) -> None:
    """Put inputs that a run held back into a touched member's queue, in their order."""
    if not inputs:
        return
    if member.queue is None:
        member.queue = []
    at = len(member.queue) if at_end else 0
    undo.splice(member.queue, at, at, inputs)
    member.queue_bytes += sum(one.size for one in inputs)
