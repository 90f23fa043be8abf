"""Which step is legal in which status of an operation (runtime §5.2), and the refusals of those that are not."""

from typing import Final, Literal

from mobd_server.errors import OperationAmbiguous, OperationLimit, OperationTransition, PeerNotExpected
from mobd_server.machines import commands as c
from mobd_server.machines.state import Member, Mob, Operation, OperationStatus

Action = Literal[
    "provisioning_succeeded",
    "provisioning_failed",
    "abort_provisioning",
    "peer_ready",
    "report_progress",
    "complete",
    "fail",
    "cancel",
    "request_retire",
    "mark_retired",
    "terminate",
]

# (action, status before) -> status after. What is not here is refused (runtime §5.2; provisioning fails only while it
# goes on).
TABLE: Final[dict[tuple[Action, OperationStatus], OperationStatus]] = {
    ("provisioning_succeeded", "provisioning"): "running",
    ("provisioning_failed", "provisioning"): "failed",
    ("abort_provisioning", "provisioning"): "aborted",
    ("peer_ready", "running"): "running",
    ("peer_ready", "retiring"): "retiring",
    ("report_progress", "running"): "running",
    ("report_progress", "retiring"): "retiring",
    ("complete", "running"): "completed",
    ("complete", "retiring"): "completed",
    ("fail", "provisioning"): "failed",
    ("fail", "running"): "failed",
    ("fail", "retiring"): "failed",
    ("cancel", "provisioning"): "cancelled",
    ("cancel", "running"): "cancelled",
    ("cancel", "retiring"): "cancelled",
    ("request_retire", "running"): "retiring",
    ("mark_retired", "running"): "retired",
    ("mark_retired", "retiring"): "retired",
    ("terminate", "provisioning"): "terminated",
    ("terminate", "running"): "terminated",
    ("terminate", "retiring"): "terminated",
}

LIVE_STATUSES: Final[frozenset[OperationStatus]] = frozenset({"provisioning", "running", "retiring"})

# Live background operations of one owner, and of a whole mob.
LIVE_OF_OWNER: Final = 256
LIVE: Final = 10_000


def is_live(operation: Operation) -> bool:
    """Whether the operation has not ended."""
    return operation.status in LIVE_STATUSES


def live_of(mob: Mob, member: Member) -> Operation | None:
    """Return the one operation of a member that lives, or None; nothing is made up for a member that has none."""
    operation = mob.operations.get(member.operation_id)
    return operation if operation is not None and is_live(operation) else None


def require_no_other(mob: Mob, command: c.RegisterOperation) -> None:
    """Refuse a second operation of a member while the first lives."""
    other = live_of(mob, mob.members[command.member_id]) if command.member_id in mob.members else None
    if other is not None:
        raise OperationAmbiguous(
            f"member '{command.member_id}' has the operation '{other.operation_id}', which lives: "
            "with a second one nobody could tell which is meant",
            {"member_id": command.member_id, "operation_ids": f"{other.operation_id},{command.operation_id}"},
        )


def require_owner(mob: Mob, owner: str) -> None:
    """Refuse an owner whose registry has been ended: nothing would ever end what is added to it."""
    if owner and mob.members[owner].state == "destroyed":
        raise OperationTransition(
            f"register is not legal: member '{owner}' is destroyed and owns no operations any more",
            {"member_id": owner, "status": "destroyed", "action": "register", "allowed": ""},
        )


def require_room(mob: Mob, owner: str) -> None:
    """Refuse more operations of tools than may live at once, of one owner and of a mob."""
    live = len(mob.owned.get(owner, ()))
    if live >= LIVE_OF_OWNER:
        raise OperationLimit(
            f"'{owner or mob.mob_id}' has {live} operations that live: at most {LIVE_OF_OWNER} may",
            {"owner": owner, "limit": str(LIVE_OF_OWNER), "active": str(live)},
        )
    live = sum(map(len, mob.owned.values()))
    if live >= LIVE:
        raise OperationLimit(
            f"mob '{mob.mob_id}' has {live} operations that live: at most {LIVE} may",
            {"limit": str(LIVE), "active": str(live)},
        )


def require_peer(operation: Operation) -> None:
    """Refuse a peer for an operation that expects none, or has one: this comes before what the table says."""
    if operation.kind != "mob_member_child" or not operation.expect_peer_channel:
        raise PeerNotExpected(
            f"operation '{operation.operation_id}' is a {operation.kind} that expects no peer",
            {"operation_id": operation.operation_id, "kind": operation.kind},
        )
    if operation.peer_ready:
        raise OperationTransition(
            f"operation '{operation.operation_id}' is peer-ready already: that happens once",
            {
                "operation_id": operation.operation_id,
                "status": operation.status,
                "action": "peer_ready",
                "allowed": legal_in(operation.status),
            },
        )


def require_legal(operation: Operation, action: Action) -> None:
    """Refuse a step that the table does not have."""
    if (action, operation.status) not in TABLE:
        allowed = legal_in(operation.status)
        raise OperationTransition(
            f"{action} is not legal: operation '{operation.operation_id}' is {operation.status}; "
            f"legal: {allowed or 'nothing, it has ended'}",
            {
                "operation_id": operation.operation_id,
                "status": operation.status,
                "action": action,
                "allowed": allowed,
            },
        )


def legal_in(status: OperationStatus) -> str:
    """Return the steps that are legal in a status, as a refusal names them; none are in one that is an end."""
    return ", ".join(sorted({action for action, before in TABLE if before == status}))
