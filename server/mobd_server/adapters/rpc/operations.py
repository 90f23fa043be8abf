"""OperationService: convert, ask, convert."""

from typing import Any, TypeVar, cast

from msgspec import Raw

from mobd.v1 import operations_pb2 as pb
from mobd_server.actors.links import Call, Reply
from mobd_server.adapters.rpc.convert import json_from
from mobd_server.adapters.rpc.convert_operations import KIND_NAMES, STATUS_NAMES, operation_to
from mobd_server.adapters.rpc.convert_would import would_append
from mobd_server.machines.answers import OperationView
from mobd_server.machines.commands import MoveOperation, RegisterOperation
from mobd_server.machines.state import NOTHING
from mobd_server.services.operations import OperationFilter, Operations

R = TypeVar("R")


class OperationServicer:
    """Its methods are those of OperationService; see operations.proto."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def get_operation(self, request: pb.GetOperationRequest, _: Call) -> pb.GetOperationResponse:
        view = await self._operations.get(request.mob_id, request.operation_id)
        return pb.GetOperationResponse(operation=self._show(view, request.mob_id))

    async def list_operations(self, request: pb.ListOperationsRequest, _: Call) -> pb.ListOperationsResponse:
        wanted = OperationFilter(
            request.member_id or None,
            request.owner or None,
            KIND_NAMES.get(request.kind),
            STATUS_NAMES.get(request.status),
        )
        page, token = await self._operations.page(request.mob_id, wanted, request.page_size, request.page_token)
        operations = [self._show(view, request.mob_id) for view in page]
        return pb.ListOperationsResponse(operations=operations, next_page_token=token)

    async def wait_operations(self, request: pb.WaitOperationsRequest, _: Call) -> pb.WaitOperationsResponse:
        patience_s = request.timeout.ToMilliseconds() / 1_000
        waited = await self._operations.wait(request.mob_id, list(request.operation_ids), patience_s)
        return pb.WaitOperationsResponse(
            ended=[self._show(view, request.mob_id) for view in waited.ended],
            pending_operation_ids=waited.pending,
            more=waited.more,
        )

    async def list_completions(self, request: pb.ListCompletionsRequest, _: Call) -> pb.ListCompletionsResponse:
        page, watermark = await self._operations.completions(request.mob_id, request.after_seq, request.limit)
        operations = [self._show(view, request.mob_id) for view in page]
        return pb.ListCompletionsResponse(operations=operations, watermark=watermark)

    async def register_operation(
        self, request: pb.RegisterOperationRequest, call: Call
    ) -> pb.RegisterOperationResponse:
        command = RegisterOperation(
            request.operation_id, request.display_name, request.owner, running=not request.provisioning
        )
        reply = await self._operations.register(request.mob_id, command, call)
        return _changed(pb.RegisterOperationResponse, request.mob_id, reply)

    async def start_operation(self, request: pb.StartOperationRequest, call: Call) -> pb.StartOperationResponse:
        command = MoveOperation(request.operation_id, "provisioning_succeeded")
        return await self._move(pb.StartOperationResponse, request, command, call)

    async def report_progress(self, request: pb.ReportProgressRequest, call: Call) -> pb.ReportProgressResponse:
        percent = request.percent if request.HasField("percent") else None
        command = MoveOperation(request.operation_id, "report_progress", request.message, percent)
        return await self._move(pb.ReportProgressResponse, request, command, call)

    async def mark_peer_ready(self, request: pb.MarkPeerReadyRequest, call: Call) -> pb.MarkPeerReadyResponse:
        command = MoveOperation(request.operation_id, "peer_ready", handle=_json(request.peer_handle_json))
        return await self._move(pb.MarkPeerReadyResponse, request, command, call)

    async def complete_operation(
        self, request: pb.CompleteOperationRequest, call: Call
    ) -> pb.CompleteOperationResponse:
        result = _json(request.result_json)
        command = MoveOperation(request.operation_id, "complete", result=result, is_error=request.is_error)
        return await self._move(pb.CompleteOperationResponse, request, command, call)

    async def fail_operation(self, request: pb.FailOperationRequest, call: Call) -> pb.FailOperationResponse:
        command = MoveOperation(request.operation_id, "fail", request.error)
        return await self._move(pb.FailOperationResponse, request, command, call)

    async def cancel_operation(self, request: pb.CancelOperationRequest, call: Call) -> pb.CancelOperationResponse:
        command = MoveOperation(request.operation_id, "cancel", request.reason)
        return await self._move(pb.CancelOperationResponse, request, command, call)

    async def _move(self, response: type[R], request: Any, command: MoveOperation, call: Call) -> R:
        return _changed(response, request.mob_id, await self._operations.move(request.mob_id, command, call))

    def _show(self, view: OperationView, mob_id: str) -> pb.Operation:
        watchers = 0 if view.completion_seq else self._operations.watchers(mob_id, view.operation_id)
        return operation_to(view, mob_id, watchers)


def _json(text: str) -> Raw:
    return json_from(text) if text else NOTHING


def _changed(response: type[R], mob_id: str, reply: Reply) -> R:
    make: Any = response
    changed: R = make(
        # Without those who wait: a stored answer is the same whoever waits now.
        operation=operation_to(cast("OperationView", reply.answer), mob_id),
        cursor=reply.cursor,
        replayed=reply.replayed,
        would_append=would_append(reply.would),
    )
    return changed
