"""One decision: a command becomes events, an answer and reactions, or leaves no trace.

Synchronous and deterministic: the same state, command and context give the same decision. `fold` replays what was
decided. What is known of earlier requests is looked up before the phase is (api, Mutations).
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct

from mobd_server.errors import RequestConflict
from mobd_server.machines import attachment, inbox, mob, placement, roster, run
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import (
    Answer,
    DestroyAnswer,
    EnsuredMember,
    MemberView,
    MobView,
    Reaction,
    SpawnedMembers,
)
from mobd_server.machines.draft import Draft
from mobd_server.machines.records import Append, Record
from mobd_server.machines.state import Ledger, Mob
from mobd_server.machines.undo import NO_UNDO, Undo

REQUESTS: Final = 10_000
REQUESTS_US: Final = 24 * 3600 * 1_000_000

DECIDE: Final[dict[type[c.Command], Callable[[Draft, Any], Answer]]] = {
    c.CreateMob: mob.create,
    c.StartMob: mob.start,
    c.StopMob: mob.stop,
    c.ResumeMob: mob.resume,
    c.DestroyMob: mob.destroy,
    c.Continue: mob.go_on,
    c.Wake: run.wake,
    c.SpawnMember: roster.spawn_member,
    c.SpawnMembers: roster.spawn_members,
    c.EnsureMember: roster.ensure_member,
    c.Deliver: inbox.deliver,
    c.DeliverBatch: inbox.deliver_batch,
    c.Attach: attachment.attach,
    c.Confirm: attachment.confirm,
    c.Decline: attachment.decline,
    c.SettleRun: run.settle_run,
    c.FailRun: run.fail_run,
    c.LoseRun: run.lose_run,
    c.DrainAttachment: attachment.drain,
    c.CloseAttachment: attachment.close_attachment,
}

EVOLVE: Final[dict[type[e.Event], Callable[[Mob, Undo, Record, Any], None]]] = {
    e.MobCreated: mob.created,
    e.MobStarted: mob.started,
    e.MobStopped: mob.stopped,
    e.MobResumed: mob.resumed,
    e.MobDestroying: mob.destroying,
    e.MobDestroyed: mob.destroyed,
    e.MemberSpawned: roster.spawned,
    e.MemberDestroyed: mob.member_destroyed,
    e.AttachmentOpened: attachment.opened,
    e.AttachmentClosed: attachment.closed,
    e.ExecutorAssigned: placement.assigned,
    e.ExecutorConfirmed: placement.confirmed,
    e.ExecutorReleased: placement.unassigned,
    e.ExecutorLost: placement.unassigned,
    e.InputAccepted: inbox.accepted,
    e.InputAbandoned: inbox.abandoned,
    e.RunStarted: run.started,
    e.RunResent: run.resent,
    e.RunSettled: run.settled,
    e.RetryDue: run.retry_due,
}

# The commands whose answers are stored, and their types.
ANSWER_TYPES: Final[dict[type[c.Command], type[Answer]]] = {
    c.CreateMob: MobView,
    c.StartMob: MobView,
    c.StopMob: MobView,
    c.ResumeMob: MobView,
    c.DestroyMob: DestroyAnswer,
    c.SpawnMember: MemberView,
    c.SpawnMembers: SpawnedMembers,
    c.EnsureMember: EnsuredMember,
}

_encode: Final = msgspec.json.Encoder().encode


class Decided(Struct, gc=False):
    """What a decision came to. `append` is None if it appended nothing."""

    answer: Answer | None
    append: Append | None
    reactions: list[Reaction]
    # The request was made before: its answer is in the row with this seq.
    replay_seq: int = 0


def new_mob(mob_id: str) -> Mob:
    """Return the state before the first event."""
    return Mob(mob_id)


def decide(state: Mob, command: c.Command, context: c.Context, epoch: int) -> Decided:
    """Decide `command` on `state`, which has moved when this returns and is as it was when this raises.

    Raises `errors.Refused` and `errors.NotFound`. A request that was made before, with the same content, comes back
    as `replay_seq`; with other content it is refused.
    """
    if context.request_id is not None:
        seq = _replay(state, context)
        if seq:
            return Decided(None, None, [], seq)
    draft = Draft(state, context, _evolve)
    sealed = None
    try:
        answer = DECIDE[type(command)](draft, command)
        sealed = Decided(answer, _append(draft, answer, epoch), draft.reactions)
    finally:
        if sealed is None:
            draft.rollback()
    return sealed


def _append(draft: Draft, answer: Answer, epoch: int) -> Append | None:
    records = draft.records
    if not records:
        return None
    context, state = draft.context, draft.mob
    if context.request_id is not None:
        last = records[-1]
        last.request_id = context.request_id
        last.request_hash = context.request_hash
        last.answer = _encode(answer).decode()
        _remember(state, draft.undo, last)
    return Append(
        state.mob_id,
        epoch,
        draft.base,
        records,
        state.phase,
        wake_at(state),
        draft.create,
        draft.runs,
        draft.messages,
        draft.sessions,
    )


def fold(state: Mob, record: Record) -> None:
    """Apply one stored event. Raises ValueError, KeyError or InvalidTransition if the log is broken."""
    if record.seq != state.head + 1:
        raise ValueError(f"event {record.seq} does not follow event {state.head}")
    _evolve(state, NO_UNDO, record)
    if record.request_id is not None and record.request_hash is not None:
        _remember(state, NO_UNDO, record)


def wake_at(state: Mob) -> int | None:
    """Return when the mob owes something: 0 for at once, µs since 1970, or None.

    A mob with agents owes them their graces, and one that is being destroyed owes its end.
    """
    if state.pending != "none" or state.attachments:
        return 0
    return state.retries[0][0] if state.retries else None


def _evolve(state: Mob, undo: Undo, record: Record) -> None:
    EVOLVE[type(record.event)](state, undo, record, record.event)
    state.head = record.seq


def _request_key(principal: str, request_id: str) -> str:
    return f"{principal}\n{request_id}"


def _replay(state: Mob, context: c.Context) -> int:
    known = state.requests.get(_request_key(context.principal, context.request_id or ""))
    if known is None or known.at < context.now - REQUESTS_US:
        return 0
    if known.request_hash != context.request_hash:
        raise RequestConflict(
            f"request_id '{context.request_id}' was used for another request: use a new request_id for a new request",
            {"request_id": context.request_id or "", "cursor": str(known.seq)},
        )
    return known.seq


def _remember(state: Mob, undo: Undo, record: Record) -> None:
    key = _request_key(record.principal, record.request_id or "")
    if key in state.requests:
        # An older request of that key was too old to count.
        at = state.request_order.index(key)
        undo.splice(state.request_order, at, at + 1, ())
    undo.put(state.requests, key, Ledger(record.request_hash or "", record.seq, record.at))
    undo.append(state.request_order, key)
    if len(state.request_order) > REQUESTS:
        undo.drop(state.requests, state.request_order[0])
        undo.splice(state.request_order, 0, 1, ())
