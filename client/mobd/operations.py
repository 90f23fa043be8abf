"""The client's calls for operations."""

# ruff: noqa: ASYNC109  the timeout of a call is over all of its repeats, and is told to the server

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final, Unpack

from google.protobuf.duration_pb2 import Duration

from mobd.base import PAGE, Base, How
from mobd.content import dump
from mobd.ids import uuid7
from mobd.v1 import operations_pb2

# One question waits this long at most, so that a connection that is cut off is noticed.
WAIT_S: Final = 20.0
# A question may name as many operations.
WAIT_OPERATIONS: Final = 256


class OperationCalls(Base):
    """Operations: the lives of members, and tools that work in the background."""

    async def get_operation(
        self, mob_id: str, operation_id: str, *, timeout: float | None = None
    ) -> operations_pb2.Operation:
        """Return an operation, also one that ended long ago."""
        request = operations_pb2.GetOperationRequest(mob_id=mob_id, operation_id=operation_id)
        answer: operations_pb2.GetOperationResponse = await self._call(
            self._stubs.operations.GetOperation, request, timeout
        )
        return answer.operation

    def list_operations(
        self,
        mob_id: str,
        *,
        member_id: str = "",
        owner: str = "",
        kind: "operations_pb2.OperationKind.ValueType" = operations_pb2.OPERATION_KIND_UNSPECIFIED,
        status: "operations_pb2.OperationStatus.ValueType" = operations_pb2.OPERATION_STATUS_UNSPECIFIED,
        timeout: float | None = None,
    ) -> AsyncIterator[operations_pb2.Operation]:
        """List operations by display name; what is given filters."""
        request = operations_pb2.ListOperationsRequest(
            mob_id=mob_id, member_id=member_id, owner=owner, kind=kind, status=status, page_size=PAGE
        )
        return self._pages(
            lambda: self._stubs.operations.ListOperations, request, lambda page: page.operations, timeout
        )

    async def list_completions(
        self, mob_id: str, *, after_seq: int = 0, limit: int = 0, timeout: float | None = None
    ) -> operations_pb2.ListCompletionsResponse:
        """Return operations in the order in which they ended, after `after_seq`; go on after the last of them."""
        request = operations_pb2.ListCompletionsRequest(mob_id=mob_id, after_seq=after_seq, limit=limit)
        return await self._call(self._stubs.operations.ListCompletions, request, timeout)

    async def wait_operations(
        self, mob_id: str, operation_ids: Iterable[str], *, timeout: float = 60.0
    ) -> operations_pb2.WaitOperationsResponse:
        """Wait until all of the operations have ended, or `timeout` seconds are over; nothing is raised for the latter.

        Those that have ended are in `ended`, in the order of their names here; the others are in
        `pending_operation_ids`. A wait goes on over restarts of the server.
        """
        end = asyncio.get_running_loop().time() + timeout
        names = list(dict.fromkeys(operation_ids))
        ended: dict[str, operations_pb2.Operation] = {}
        for at in range(0, len(names), WAIT_OPERATIONS):
            ended.update(await self._wait_for(mob_id, names[at : at + WAIT_OPERATIONS], end))
        return operations_pb2.WaitOperationsResponse(
            ended=[ended[name] for name in names if name in ended],
            pending_operation_ids=[name for name in names if name not in ended],
        )

    async def _wait_for(self, mob_id: str, names: list[str], end: float) -> dict[str, operations_pb2.Operation]:
        loop = asyncio.get_running_loop()
        ended: dict[str, operations_pb2.Operation] = {}
        while True:
            left = max(0.0, end - loop.time())
            patience = Duration()
            patience.FromMicroseconds(round(min(WAIT_S, left) * 1_000_000))
            request = operations_pb2.WaitOperationsRequest(
                mob_id=mob_id, operation_ids=[name for name in names if name not in ended], timeout=patience
            )
            answer: operations_pb2.WaitOperationsResponse = await self._call(
                self._stubs.operations.WaitOperations, request, left + self._timeout
            )
            ended.update((one.operation_id, one) for one in answer.ended)
            # What did not fit an answer is asked for whatever the time.
            if not answer.pending_operation_ids or (end <= loop.time() and not answer.more):
                return ended

    async def register_operation(
        self,
        mob_id: str,
        display_name: str,
        *,
        operation_id: str | None = None,
        owner: str = "",
        provisioning: bool = False,
        request_id: str | None = None,
        timeout: float | None = None,
        **how: Unpack[How],
    ) -> operations_pb2.RegisterOperationResponse:
        """Register an operation of a tool that works in the background; its name is made up if it is not given.

        With `provisioning` it runs from `start_operation` on, else at once. Raise OperationExists if one has that name.
        """
        request = operations_pb2.RegisterOperationRequest(
            mob_id=mob_id,
            operation_id=operation_id or uuid7(),
            display_name=display_name,
            owner=owner,
            provisioning=provisioning,
            request_id=request_id or uuid7(),
            **how,
        )
        return await self._call(self._stubs.operations.RegisterOperation, request, timeout)

    async def start_operation(
        self,
        mob_id: str,
        operation_id: str,
        *,
        request_id: str | None = None,
        timeout: float | None = None,
        **how: Unpack[How],
    ) -> operations_pb2.StartOperationResponse:
        """Say that a background operation that was provisioning runs now."""
        request = operations_pb2.StartOperationRequest(
            mob_id=mob_id, operation_id=operation_id, request_id=request_id or uuid7(), **how
        )
        return await self._call(self._stubs.operations.StartOperation, request, timeout)

    async def report_progress(
        self,
        mob_id: str,
        operation_id: str,
        message: str,
        *,
        percent: int | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
        **how: Unpack[How],
    ) -> operations_pb2.ReportProgressResponse:
        """Say how far an operation has come."""
        request = operations_pb2.ReportProgressRequest(
            mob_id=mob_id,
            operation_id=operation_id,
            message=message,
            percent=percent,
            request_id=request_id or uuid7(),
            **how,
        )
        return await self._call(self._stubs.operations.ReportProgress, request, timeout)

    async def mark_peer_ready(
        self,
        mob_id: str,
        operation_id: str,
        handle: Any = None,
        *,
        request_id: str | None = None,
        timeout: float | None = None,
        **how: Unpack[How],
    ) -> operations_pb2.MarkPeerReadyResponse:
        """Say once that the peer of a member's operation can be spoken to; `handle`, any JSON value, says how."""
        request = operations_pb2.MarkPeerReadyRequest(
            mob_id=mob_id,
            operation_id=operation_id,
            peer_handle_json="" if handle is None else dump(handle),
            request_id=request_id or uuid7(),
            **how,
        )
        return await self._call(self._stubs.operations.MarkPeerReady, request, timeout)

    async def complete_operation(
        self,
        mob_id: str,
        operation_id: str,
        result: Any = None,
        *,
        is_error: bool = False,
        request_id: str | None = None,
        timeout: float | None = None,
        **how: Unpack[How],
    ) -> operations_pb2.CompleteOperationResponse:
        """End a background operation with a result, any JSON value."""
        request = operations_pb2.CompleteOperationRequest(
            mob_id=mob_id,
            operation_id=operation_id,
            result_json=dump(result),
            is_error=is_error,
            request_id=request_id or uuid7(),
            **how,
        )
        return await self._call(self._stubs.operations.CompleteOperation, request, timeout)

    async def fail_operation(
        self,
        mob_id: str,
        operation_id: str,
        error: str,
        *,
        request_id: str | None = None,
        timeout: float | None = None,
        **how: Unpack[How],
    ) -> operations_pb2.FailOperationResponse:
        """End a background operation with an error."""
        request = operations_pb2.FailOperationRequest(
            mob_id=mob_id, operation_id=operation_id, error=error, request_id=request_id or uuid7(), **how
        )
        return await self._call(self._stubs.operations.FailOperation, request, timeout)

    async def cancel_operation(
        self,
        mob_id: str,
        operation_id: str,
        *,
        reason: str = "",
        request_id: str | None = None,
        timeout: float | None = None,
        **how: Unpack[How],
    ) -> operations_pb2.CancelOperationResponse:
        """End a background operation that nobody wants any more."""
        request = operations_pb2.CancelOperationRequest(
            mob_id=mob_id, operation_id=operation_id, reason=reason, request_id=request_id or uuid7(), **how
        )
        return await self._call(self._stubs.operations.CancelOperation, request, timeout)
