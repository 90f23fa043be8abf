"""One decision: a command becomes events, an answer and reactions, or leaves no trace.

Synchronous and deterministic: the same state, command and context give the same decision. `fold` replays what was
decided. What is known of earlier requests is looked up before the phase is (api, Mutations).
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct

from mobd_server.errors import RequestConflict, StaleFence
from mobd_server.machines import (
    attachment,
    cancel,
    inbox,
    mob,
    operation,
    placement,
    retirement,
    roster,
    run,
    slices,
    steering,
)
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import (
    Answer,
    CancelAnswer,
    DestroyAnswer,
    Destroyed,
    EnsuredMember,
    MemberView,
    MobReport,
    MobView,
    OperationView,
    Reaction,
    Respawned,
    Retired,
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
    c.CompleteMob: slices.complete,
    c.ResetMob: slices.reset,
    c.DestroyMob: slices.destroy,
    c.Continue: slices.go_on,
    c.Wake: cancel.wake,
    c.SpawnMember: roster.spawn_member,
    c.SpawnMembers: roster.spawn_members,
    c.EnsureMember: roster.ensure_member,
    c.RetireMember: retirement.retire_member,
    c.RespawnMember: retirement.respawn_member,
    c.RetireAllMembers: slices.retire_all,
    c.Interrupt: cancel.interrupt,
    c.HardCancel: cancel.hard_cancel,
    c.RetireRuntime: retirement.retire_runtime,
    c.DestroyRuntime: retirement.destroy_runtime,
    c.Deliver: inbox.deliver,
    c.DeliverBatch: inbox.deliver_batch,
    c.Attach: attachment.attach,
    c.Confirm: attachment.confirm,
    c.Decline: attachment.decline,
    c.SettleRun: run.settle_run,
    c.FailRun: run.fail_run,
    c.LoseRun: run.lose_run,
    c.CancelUnsent: cancel.cancel_unsent,
    c.FenceOff: cancel.fence_off,
    c.ReportRunProgress: operation.run_progress,
    c.RegisterOperation: operation.register_operation,
    c.MoveOperation: operation.move_operation,
    c.TerminateOwner: operation.terminate_owner,
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
    e.MobCompleting: mob.completing,
    e.MobCompleted: mob.completed,
    e.MobResetting: mob.resetting,
    e.MobCleanupBegun: mob.cleanup_begun,
    e.MobCleanupFinished: mob.cleanup_finished,
    e.RetireAllBegun: mob.retire_all_begun,
    e.RetireAllFinished: mob.retire_all_finished,
    e.MemberSpawned: roster.spawned,
    e.MemberRespawned: retirement.respawned,
    e.RuntimeRetired: retirement.runtime_retired,
    e.MemberRetiring: retirement.retiring,
    e.MemberRetired: retirement.left,
    e.DrainSuspended: retirement.suspended,
    e.MemberDestroyed: retirement.destroyed,
    e.AttachmentOpened: attachment.opened,
    e.AttachmentClosed: attachment.closed,
    e.ExecutorAssigned: placement.assigned,
    e.ExecutorConfirmed: placement.confirmed,
    e.ExecutorReleased: placement.unassigned,
    e.ExecutorLost: placement.unassigned,
    e.InputAccepted: inbox.accepted,
    e.InputSuperseded: inbox.replaced,
    e.InputCoalesced: inbox.replaced,
    e.InputAbandoned: inbox.abandoned,
    e.RunStarted: run.started,
    e.RunSteered: steering.steered,
    e.RunCancelRequested: cancel.requested,
    e.RunResent: run.resent,
    e.RunSettled: run.settled,
    e.RetryDue: run.retry_due,
    e.OperationRegistered: operation.registered,
    e.OperationStarted: operation.started,
    e.OperationPeerReady: operation.peer_ready,
    e.OperationProgressed: operation.progressed,
    e.OperationRetiring: operation.retire_requested,
    e.OperationEnded: operation.operation_ended,
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
    c.CompleteMob: MobReport,
    c.ResetMob: MobReport,
    c.RetireMember: Retired,
    c.RespawnMember: Respawned,
    c.RetireAllMembers: MobReport,
    c.Interrupt: CancelAnswer,
    c.HardCancel: CancelAnswer,
    c.RetireRuntime: Retired,
    c.DestroyRuntime: Destroyed,
    c.RegisterOperation: OperationView,
    c.MoveOperation: OperationView,
}

_encode: Final = msgspec.json.Encoder().encode


class Decided(Struct, gc=False):
    """What a decision came to. `append` is None if it appended nothing."""

    answer: Answer | None
    append: Append | None
    reactions: list[Reaction]
    # The request was made before: its answer is in the row with this seq.
    replay_seq: int = 0
    # With `validate_only`: what would have been appended.
    would: list[Record] = []


def new_mob(mob_id: str) -> Mob:
    """Return the state before the first event."""
    return Mob(mob_id)


def decide(state: Mob, command: c.Command, context: c.Context, epoch: int) -> Decided:
    """Decide `command` on `state`, which has moved when this returns and is as it was when this raises.

    Raises `errors.Refused` and `errors.NotFound`. A request that was made before, with the same content, comes back
    as `replay_seq`; with other content it is refused. With `validate_only` the state is as it was in any case, and the
    events are in `would`.
    """
    if context.request_id is not None and not context.validate_only:
        seq = _replay(state, context, context.request_id)
        if seq:
            return Decided(None, None, [], seq)
    draft = Draft(state, context, _evolve)
    sealed = None
    try:
        if context.acting is not None:
            _check_acting(state, context.acting)
        answer = DECIDE[type(command)](draft, command)
        if state.draining or state.pending == "complete":
            retirement.finish(draft, everything=type(command) is c.Continue)
            slices.finish(draft)
        if context.validate_only:
            return Decided(answer, None, [], would=draft.records)
        sealed = Decided(answer, _append(draft, answer, epoch), draft.reactions)
    finally:
        if sealed is None:
            draft.rollback()
    return sealed


def _check_acting(state: Mob, acting: tuple[str, int]) -> None:
    """Raise StaleFence unless the run as whose agent the caller acts is in flight under that fence."""
    run_id, fence = acting
    held = state.runs.get(run_id)
    if held is None or held.fence != fence:
        raise StaleFence(
            f"run '{run_id}' is not in flight under executor fence {fence}: its agent may act for it no longer",
            {"run_id": run_id, "executor_fence": str(fence)},
        )


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
        state.log_id,
        epoch,
        draft.base,
        records,
        state.phase,
        wake_at(state),
        draft.create,
        draft.runs,
        draft.messages,
        draft.sessions,
        operation.rows(draft),
    )


def fold(state: Mob, record: Record) -> None:
    """Apply one stored event. Raises ValueError, KeyError or InvalidTransition if the log is broken."""
    if record.seq != state.head + 1:
        raise ValueError(f"event {record.seq} does not follow event {state.head}")
    _evolve(state, NO_UNDO, record)
    if record.request_id is not None:
        _remember(state, NO_UNDO, record)


def wake_at(state: Mob) -> int | None:
    """Return when the mob owes something: 0 for at once, µs since 1970, or None.

    A mob with agents owes them their graces, and one that is being destroyed owes its end.
    """
    if state.pending != "none" or state.attachments:
        return 0
    return state.timers[0][0] if state.timers else None


def _evolve(state: Mob, undo: Undo, record: Record) -> None:
    EVOLVE[type(record.event)](state, undo, record, record.event)
    state.head = record.seq


def _request_key(principal: str, request_id: str) -> str:
    return f"{principal}\n{request_id}"


def _replay(state: Mob, context: c.Context, request_id: str) -> int:
    known = state.requests.get(_request_key(context.principal, request_id))
    if known is None or known.at < context.now - REQUESTS_US:
        return 0
    if known.request_hash != context.request_hash:
        raise RequestConflict(
            f"request_id '{request_id}' was used for another request: use a new request_id for a new request",
            {"request_id": request_id, "cursor": str(known.seq)},
        )
    return known.seq


def _remember(state: Mob, undo: Undo, record: Record) -> None:
    request_id, request_hash = record.request_id, record.request_hash
    if request_id is None or request_hash is None:
        # Without a hash nobody could tell whether it is the same request.
        return
    key = _request_key(record.principal, request_id)
    if key in state.requests:
        # An older request of that key was too old to count.
        at = state.request_order.index(key)
        undo.splice(state.request_order, at, at + 1, ())
    undo.put(state.requests, key, Ledger(request_hash, record.seq, record.at))
    undo.append(state.request_order, key)
    if len(state.request_order) > REQUESTS:
        undo.drop(state.requests, state.request_order[0])
        undo.splice(state.request_order, 0, 1, ())
