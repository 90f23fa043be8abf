"""Between protobuf and the domain: operations."""

from typing import Final

from mobd.v1 import operations_pb2
from mobd_server.adapters.rpc.convert import json_to, time_to
from mobd_server.machines.answers import OperationView
from mobd_server.machines.state import OperationKind, OperationStatus

KINDS: Final[dict[OperationKind, operations_pb2.OperationKind.ValueType]] = {
    "mob_member_child": operations_pb2.OPERATION_KIND_MOB_MEMBER_CHILD,
    "background_tool": operations_pb2.OPERATION_KIND_BACKGROUND_TOOL,
}
KIND_NAMES: Final[dict[int, OperationKind]] = {number: name for name, number in KINDS.items()}
STATUSES: Final[dict[OperationStatus, operations_pb2.OperationStatus.ValueType]] = {
    "provisioning": operations_pb2.OPERATION_STATUS_PROVISIONING,
    "running": operations_pb2.OPERATION_STATUS_RUNNING,
    "retiring": operations_pb2.OPERATION_STATUS_RETIRING,
    "completed": operations_pb2.OPERATION_STATUS_COMPLETED,
    "failed": operations_pb2.OPERATION_STATUS_FAILED,
    "aborted": operations_pb2.OPERATION_STATUS_ABORTED,
    "cancelled": operations_pb2.OPERATION_STATUS_CANCELLED,
    "retired": operations_pb2.OPERATION_STATUS_RETIRED,
    "terminated": operations_pb2.OPERATION_STATUS_TERMINATED,
}
STATUS_NAMES: Final[dict[int, OperationStatus]] = {number: name for name, number in STATUSES.items()}


def operation_to(view: OperationView, mob_id: str, watchers: int = 0) -> operations_pb2.Operation:
    """Return an operation as callers see it."""
    return operations_pb2.Operation(
        mob_id=mob_id,
        operation_id=view.operation_id,
        kind=KINDS[view.kind],
        owner=view.owner,
        member_id=view.member_id,
        status=STATUSES[view.status],
        display_name=view.display_name,
        peer_ready=view.peer_ready,
        peer_handle_json=json_to(view.peer_handle),
        progress_count=view.progress_count,
        progress_message=view.progress_message,
        progress_percent=view.progress_percent,
        result_json=json_to(view.result),
        is_error=view.is_error,
        error=view.error,
        reason=view.reason,
        create_time=time_to(view.created_at),
        start_time=time_to(view.started_at),
        end_time=time_to(view.ended_at),
        completion_seq=view.completion_seq,
        cursor=view.updated_seq,
        watchers=watchers,
    )
