"""Operations: what is long-lived and has one end, with progress on the way (runtime §5).

A member's life is one, and so is a tool that works in the background. The table says which step is legal when; what
has ended never changes again, and the first end wins. A member's operation is moved by the member's own events, so that
it needs none of its own. Ends are counted, so that their feed has no gap; the newest 256 stay in memory and all of them
in the store.
"""

from functools import lru_cache
from typing import Literal

import msgspec
from msgspec import Raw

from mobd_server.errors import (
    MemberNotFound,
    OperationExists,
    OperationNotFound,
    OperationTransition,
)
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.admission import require_admitted
from mobd_server.machines.answers import Done, OperationView
from mobd_server.machines.draft import Draft
from mobd_server.machines.operation_table import (
    LIVE_STATUSES,
    TABLE,
    Action,
    is_live,
    live_of,
    require_legal,
    require_no_other,
    require_owner,
    require_peer,
    require_room,
)
from mobd_server.machines.records import OperationRow, Record
from mobd_server.machines.state import NOTHING, OPERATIONS_KEPT, Member, Mob, Operation, OperationStatus
from mobd_server.machines.undo import Undo


def name_of(mob: Mob, operation: Operation) -> str:
    """Return what an operation is called; the life of a member has a name that is made, not kept, until it ends."""
    member = mob.members.get(operation.member_id)
    if operation.display_name or member is None:
        return operation.display_name
    return f"{mob.mob_id}/{member.role}/{member.member_id}"


def view(mob: Mob, operation: Operation) -> OperationView:
    """Return an operation as its callers see it."""
    return OperationView(
        operation_id=operation.operation_id,
        kind=operation.kind,
        owner=operation.owner,
        status=operation.status,
        display_name=name_of(mob, operation),
        created_seq=operation.created_seq,
        updated_seq=operation.updated_seq,
        created_at=operation.created_at,
        member_id=operation.member_id,
        peer_ready=operation.peer_ready,
        peer_handle=operation.peer_handle,
        progress_count=operation.progress_count,
        progress_message=operation.progress_message,
        progress_percent=operation.progress_percent,
        started_at=operation.started_at,
        ended_at=operation.ended_at,
        result=operation.result,
        is_error=operation.is_error,
        error=operation.error,
        reason=operation.reason,
        completion_seq=operation.completion_seq,
    )


def rows(d: Draft) -> list[OperationRow]:
    """Return the rows of the operations that this decision changed, each once, as they are at its end.

    Every change touches its operation first, so that also those are found that have left the state since.
    """
    return [_row(d.mob, operation) for operation in d.undo.touched(Operation)]


def _row(mob: Mob, operation: Operation) -> OperationRow:
    return OperationRow(
        operation_id=operation.operation_id,
        kind=operation.kind,
        member_id=operation.member_id or None,
        owner=operation.owner,
        status=operation.status,
        display_name=name_of(mob, operation),
        created_seq=operation.created_seq,
        updated_seq=operation.updated_seq,
        completion_seq=operation.completion_seq or None,
        snapshot=msgspec.json.encode(view(mob, operation)).decode(),
    )


# What callers ask for.


def register_operation(d: Draft, command: c.RegisterOperation) -> OperationView:
    """Register an operation; it is provisioning, or runs at once. A member has at most one that lives.

    Without an owner it belongs to the member for whose run the caller acts, else to the mob.
    """
    mob = d.mob
    require_admitted(mob, c.RegisterOperation)
    owner = command.owner or acting_member(d)
    if command.taken or command.operation_id in mob.operations:
        raise OperationExists(
            f"mob '{mob.mob_id}' has an operation '{command.operation_id}' already",
            {"mob_id": mob.mob_id, "operation_id": command.operation_id},
        )
    for member_id in (owner, command.member_id):
        if member_id and member_id not in mob.members:
            raise MemberNotFound(
                f"mob '{mob.mob_id}' has no member '{member_id}'", {"mob_id": mob.mob_id, "member_id": member_id}
            )
    if command.kind == "mob_member_child":
        require_no_other(mob, command)
    else:
        require_owner(mob, owner)
        require_room(mob, owner)
    d.emit(
        e.OperationRegistered(
            command.operation_id,
            command.kind,
            owner,
            command.display_name,
            command.member_id,
            command.expect_peer_channel,
        ),
        command.member_id or owner or None,
    )
    if command.running:
        d.emit(e.OperationStarted(command.operation_id), command.member_id or owner or None)
    return view(mob, mob.operations[command.operation_id])


def acting_member(d: Draft) -> str:
    """Return the member for whose run the caller acts; empty if it acts for none."""
    acting = d.context.acting
    return d.mob.runs[acting[0]].member_id if acting is not None else ""


def move_operation(d: Draft, command: c.MoveOperation) -> OperationView:
    """Take one step with an operation."""
    mob = d.mob
    require_admitted(mob, c.MoveOperation)
    operation = mob.operations.get(command.operation_id)
    if operation is None:
        raise OperationNotFound(
            f"mob '{mob.mob_id}' has no operation '{command.operation_id}', or it ended long ago",
            {"mob_id": mob.mob_id, "operation_id": command.operation_id},
        )
    if command.action == "peer_ready":
        require_peer(operation)
    elif operation.member_id and command.action != "report_progress":
        raise OperationTransition(
            f"operation '{operation.operation_id}' is the life of member '{operation.member_id}' and ends with it: "
            "retire the member",
            {
                "operation_id": operation.operation_id,
                "status": operation.status,
                "action": command.action,
                "allowed": "peer_ready, report_progress" if operation.status in ("running", "retiring") else "",
            },
        )
    require_legal(operation, command.action)
    d.emit(_step(operation, command), operation.member_id or operation.owner or None)
    return view(mob, operation)


def _step(operation: Operation, command: c.MoveOperation) -> e.Event:
    name, action = operation.operation_id, command.action
    if action == "provisioning_succeeded":
        return e.OperationStarted(name)
    if action == "peer_ready":
        return e.OperationPeerReady(name, command.handle)
    if action == "report_progress":
        return e.OperationProgressed(name, command.message, command.percent)
    if action == "request_retire":
        return e.OperationRetiring(name)
    after = TABLE[action, operation.status]
    if action == "complete":
        return e.OperationEnded(name, after, command.result, command.is_error)
    if after == "failed":
        return e.OperationEnded(name, after, error=command.message)
    return e.OperationEnded(name, after, reason=command.message)


def terminate_owner(d: Draft, command: c.TerminateOwner) -> Done:
    """End every background operation of an owner's registry."""
    require_admitted(d.mob, c.TerminateOwner)
    for operation_id in list(d.mob.owned.get(command.owner, ())):
        d.emit(e.OperationEnded(operation_id, "terminated", reason=command.reason), command.owner or None)
    return Done(bool(d.records))


def run_progress(d: Draft, command: c.ReportRunProgress) -> Done:
    """The progress of a run is that of its member's operation; one that has ended takes none, and that is no error."""
    mob = d.mob
    run = mob.runs.get(command.run_id)
    if run is None or run.attachment_id != command.attachment_id or run.fence != command.fence:
        return Done(False)
    member = mob.members[run.member_id]
    operation = live_of(mob, member)
    if operation is None:
        return Done(False)
    if operation.status == "provisioning":
        d.emit(e.OperationStarted(operation.operation_id), member.member_id, run.run_id)
    d.emit(
        e.OperationProgressed(operation.operation_id, command.message, command.percent),
        member.member_id,
        run.run_id,
    )
    return Done()


# What the member's own events do to its operation; called by their evolve functions.


def begin(mob: Mob, undo: Undo, record: Record, operation_id: str, owner: str, member: Member) -> None:
    """The member is there: its operation is provisioning until an agent serves it."""
    _add(
        mob,
        undo,
        Operation(
            operation_id,
            "mob_member_child",
            owner,
            # See name_of: it is one text less for every member.
            "",
            record.seq,
            record.at,
            member.member_id,
            expect_peer_channel=True,
            updated_seq=record.seq,
        ),
    )


def confirmed(mob: Mob, undo: Undo, record: Record, member: Member) -> None:
    """An agent serves the member: the first time its operation starts and its peer is ready."""
    operation = live_of(mob, member)
    if operation is None or operation.status != "provisioning" or member.executor is None:
        return
    attachment_id = member.executor.attachment_id
    _start(undo, record, operation)
    operation.peer_ready = True
    operation.peer_handle = _handle(attachment_id, mob.attachments[attachment_id].host_id)


@lru_cache(maxsize=16)
def _handle(attachment_id: str, host_id: str) -> Raw:
    """Return how an agent is spoken to: one object for all the members that it serves."""
    return Raw(msgspec.json.encode({"attachment_id": attachment_id, "host_id": host_id}))


def retiring(mob: Mob, undo: Undo, record: Record, member: Member) -> None:
    """The member's runtime retires: so does its operation, or it never began."""
    operation = live_of(mob, member)
    if operation is None:
        return
    if operation.status == "provisioning":
        _end(mob, undo, record, operation, "aborted", reason="retired before provisioning completed")
    elif operation.status == "running":
        undo.touch(operation)
        operation.status = "retiring"
        operation.updated_seq = record.seq


def ended(
    mob: Mob, undo: Undo, record: Record, member: Member, how: Literal["retired", "destroyed"], reason: str
) -> None:
    """The member's incarnation is over: its operation ends with it, and those of its registry are terminated."""
    operation = live_of(mob, member)
    if operation is not None:
        after: OperationStatus = "retired" if how == "retired" else "terminated"
        if operation.status == "provisioning":
            after = "aborted"
        why = reason or ("retired before provisioning completed" if after == "aborted" else "")
        _end(mob, undo, record, operation, after, reason=why)
    for operation_id in list(mob.owned.get(member.member_id, ())):
        why = reason or "its owner has left the roster"
        _end(mob, undo, record, mob.operations[operation_id], "terminated", reason=why)


def mob_ended(mob: Mob, undo: Undo, record: Record) -> None:
    """The mob is destroyed: nobody can move what still lives, so it ends."""
    for owner in sorted(mob.owned):
        for operation_id in list(mob.owned[owner]):
            _end(mob, undo, record, mob.operations[operation_id], "terminated", reason="the mob was destroyed")


# Evolve.


def registered(mob: Mob, undo: Undo, record: Record, event: e.OperationRegistered) -> None:
    """Evolve: the operation is there."""
    _add(
        mob,
        undo,
        Operation(
            event.operation_id,
            event.operation_kind,
            event.owner,
            event.display_name,
            record.seq,
            record.at,
            event.member_id,
            expect_peer_channel=event.expect_peer_channel,
            updated_seq=record.seq,
        ),
    )
    if event.operation_kind == "mob_member_child" and event.member_id in mob.members:
        member = mob.members[event.member_id]
        undo.touch(member)
        member.operation_id = event.operation_id


def _add(mob: Mob, undo: Undo, operation: Operation) -> None:
    if operation.operation_id in mob.operations:
        raise ValueError(f"operation {operation.operation_id} was registered twice")
    # Nothing of it is to be restored, but its row is to be written.
    undo.touch(operation)
    undo.put(mob.operations, operation.operation_id, operation)
    if operation.kind == "background_tool":
        if operation.owner not in mob.owned:
            undo.put(mob.owned, operation.owner, [])
        undo.append(mob.owned[operation.owner], operation.operation_id)


def _moved(mob: Mob, undo: Undo, record: Record, operation_id: str, action: Action) -> Operation:
    """Return the operation of an event, touched; raise ValueError if the table forbids its step."""
    operation = mob.operations[operation_id]
    if (action, operation.status) not in TABLE:
        raise ValueError(f"operation {operation_id} is {operation.status}: {action} is not legal")
    undo.touch(operation)
    operation.updated_seq = record.seq
    return operation


def _start(undo: Undo, record: Record, operation: Operation) -> None:
    undo.touch(operation)
    operation.status = "running"
    operation.started_at = record.at
    operation.updated_seq = record.seq


def started(mob: Mob, undo: Undo, record: Record, event: e.OperationStarted) -> None:
    """Evolve: the operation runs."""
    _start(undo, record, _moved(mob, undo, record, event.operation_id, "provisioning_succeeded"))


def peer_ready(mob: Mob, undo: Undo, record: Record, event: e.OperationPeerReady) -> None:
    """Evolve: the operation's peer can be spoken to."""
    operation = _moved(mob, undo, record, event.operation_id, "peer_ready")
    operation.peer_ready = True
    operation.peer_handle = _copy(event.handle)


def progressed(mob: Mob, undo: Undo, record: Record, event: e.OperationProgressed) -> None:
    """Evolve: the operation came further; the newest progress is kept."""
    operation = _moved(mob, undo, record, event.operation_id, "report_progress")
    operation.progress_count += 1
    operation.progress_message = event.message
    operation.progress_percent = event.percent


def retire_requested(mob: Mob, undo: Undo, record: Record, event: e.OperationRetiring) -> None:
    """Evolve: the operation is to end."""
    _moved(mob, undo, record, event.operation_id, "request_retire").status = "retiring"


def operation_ended(mob: Mob, undo: Undo, record: Record, event: e.OperationEnded) -> None:
    """Evolve: the operation has ended."""
    operation = mob.operations[event.operation_id]
    if not is_live(operation) or event.status in LIVE_STATUSES:
        raise ValueError(f"operation {event.operation_id} is {operation.status} and can't become {event.status}")
    _end(
        mob,
        undo,
        record,
        operation,
        event.status,
        reason=event.reason,
        error=event.error,
        result=_copy(event.result),
        is_error=event.is_error,
    )


def _copy(value: Raw) -> Raw:
    # What was decoded is a view that would keep the whole payload.
    return NOTHING if value is NOTHING else Raw(bytes(value))


def _end(
    mob: Mob,
    undo: Undo,
    record: Record,
    operation: Operation,
    status: OperationStatus,
    *,
    reason: str,
    error: str = "",
    result: Raw = NOTHING,
    is_error: bool = False,
) -> None:
    undo.touch(operation)
    undo.touch(mob)
    # Its member may leave, and it is shown for longer.
    operation.display_name = name_of(mob, operation)
    operation.status = status
    operation.reason, operation.error, operation.result, operation.is_error = reason, error, result, is_error
    operation.ended_at = record.at
    operation.updated_seq = record.seq
    mob.completions += 1
    operation.completion_seq = mob.completions
    undo.append(mob.completed, operation.operation_id)
    if operation.kind == "background_tool":
        live = mob.owned[operation.owner]
        at = live.index(operation.operation_id)
        undo.splice(live, at, at + 1, ())
        if not live:
            undo.drop(mob.owned, operation.owner)
    if len(mob.completed) > OPERATIONS_KEPT:
        undo.drop(mob.operations, mob.completed[0])
        undo.splice(mob.completed, 0, 1, ())
