"""What is equal becomes one object: a state that was read from a text has every name as often as the text has it.

After a fold it has them once. Without this a member that was read takes half as much memory again as one that was
folded. Nothing is read by identity; only memory depends on it.
"""

from sys import intern

from msgspec import Raw

from mobd_server.machines.state import NOTHING, Member, Mob, Operation


class Sharing:
    """Shares what is equal in a mob that is read in pieces: all its operations and receipts, then its members."""

    __slots__ = ("_handles", "_mob", "_runs")

    def __init__(self, mob: Mob) -> None:
        self._mob = mob
        self._handles: dict[bytes, Raw] = {}
        # The names of receipts, once the members begin.
        self._runs: dict[str, str] | None = None

    def operations(self, some: dict[str, Operation]) -> None:
        """Let operations that were read have what is equal in common."""
        for name, operation in some.items():
            if operation.operation_id == name:
                operation.operation_id = name
            if operation.peer_handle is not NOTHING:
                operation.peer_handle = self._handles.setdefault(bytes(operation.peer_handle), operation.peer_handle)
            if operation.updated_seq == operation.created_seq:
                operation.updated_seq = operation.created_seq

    def members(self, some: dict[str, Member]) -> None:
        """Let members that were read have names in common with their operations and receipts."""
        operations = self._mob.operations
        for name, member in some.items():
            if member.member_id == name:
                member.member_id = name
            member.role = intern(member.role)
            if member.receipts:
                member.receipts = self._receipts(member.receipts)
            operation = operations.get(member.operation_id)
            if operation is not None:
                _life(name, member, operation)

    def _receipts(self, run_ids: tuple[str, ...]) -> tuple[str, ...]:
        if self._runs is None:
            self._runs = {run_id: run_id for run_id in self._mob.receipts}
        return tuple([self._runs.get(run_id, run_id) for run_id in run_ids])


def _life(name: str, member: Member, operation: Operation) -> None:
    member.operation_id = operation.operation_id
    if operation.member_id == name:
        operation.member_id = name
    if operation.created_at == member.created_at:
        operation.created_at = member.created_at
    if operation.created_seq == member.active_seq:
        member.active_seq = operation.created_seq
