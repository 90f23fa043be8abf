"""What is equal becomes one object: a state that was read from a text has every name as often as the text has it.

After a fold it has them once. Without this a member that was read takes half as much memory again as one that was
folded. Nothing is read by identity; only memory depends on it.
"""

from sys import intern

from msgspec import Raw
from msgspec.structs import force_setattr

from mobd_server.machines.roster import EMPTY_DIGEST
from mobd_server.machines.state import NOTHING, Member, Mob, Operation


def share(mob: Mob) -> None:
    """Let members, their operations and their receipts have what is equal in common."""
    _operations(mob)
    runs = {run_id: run_id for run_id in mob.receipts}
    for name, member in mob.members.items():
        _member(name, member, runs)
        operation = mob.operations.get(member.operation_id)
        if operation is not None:
            _life(name, member, operation)
    for receipt in mob.receipts.values():
        served = mob.members.get(receipt.member_id)
        if served is not None and served.member_id == receipt.member_id:
            force_setattr(receipt, "member_id", served.member_id)


def _operations(mob: Mob) -> None:
    handles: dict[bytes, Raw] = {}
    for name, operation in mob.operations.items():
        if operation.operation_id == name:
            operation.operation_id = name
        if operation.peer_handle is not NOTHING:
            operation.peer_handle = handles.setdefault(bytes(operation.peer_handle), operation.peer_handle)
        if operation.updated_seq == operation.created_seq:
            operation.updated_seq = operation.created_seq


def _member(name: str, member: Member, runs: dict[str, str]) -> None:
    if member.member_id == name:
        member.member_id = name
    member.role = intern(member.role)
    if member.digest == EMPTY_DIGEST:
        member.digest = EMPTY_DIGEST
    if member.receipts:
        member.receipts = [runs.get(run_id, run_id) for run_id in member.receipts]


def _life(name: str, member: Member, operation: Operation) -> None:
    member.operation_id = operation.operation_id
    if operation.member_id == name:
        operation.member_id = name
    if operation.created_at == member.created_at:
        operation.created_at = member.created_at
    if operation.created_seq == member.active_seq:
        member.active_seq = operation.created_seq
