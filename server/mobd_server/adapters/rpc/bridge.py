"""BridgeService: convert, ask, convert."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from mobd.v1 import bridge_pb2, common_pb2
from mobd_server.actors.hub import Hub
from mobd_server.actors.links import Call
from mobd_server.adapters.rpc.convert import MEMBER_STATES, fence_from, time_to
from mobd_server.adapters.rpc.convert_bridge import (
    INPUT_STATE_NAMES,
    connectivity,
    deliver_from,
    deliver_to,
    input_to,
    outcome_to,
)
from mobd_server.adapters.rpc.convert_would import would_append
from mobd_server.machines.answers import BatchDelivered, CancelAnswer, Destroyed, Retired
from mobd_server.machines.commands import DeliverBatch, DestroyRuntime, HardCancel, Interrupt, RetireRuntime
from mobd_server.services.bridge import Bridge, Fence


class BridgeServicer:
    """Its methods are those of BridgeService; see bridge.proto."""

    def __init__(self, bridge: Bridge, hub: Hub) -> None:
        self._bridge = bridge
        self._hub = hub

    async def deliver(self, request: bridge_pb2.DeliverRequest, call: Call) -> bridge_pb2.DeliverResponse:
        mob_id = request.mob_id
        reply = await self._bridge.deliver(mob_id, deliver_from(request), call)
        return deliver_to(reply, self._hub, mob_id)

    async def deliver_batch(
        self, request: bridge_pb2.DeliverBatchRequest, call: Call
    ) -> bridge_pb2.DeliverBatchResponse:
        command = DeliverBatch([deliver_from(delivery) for delivery in request.deliveries])
        reply = await self._bridge.deliver_batch(request.mob_id, command, call)
        return bridge_pb2.DeliverBatchResponse(
            outcomes=[
                outcome_to(one, self._hub, request.mob_id) for one in cast("BatchDelivered", reply.answer).outcomes
            ],
            would_append=would_append(reply.would),
        )

    async def observe(self, request: bridge_pb2.ObserveRequest, _: Call) -> bridge_pb2.ObserveResponse:
        observed = await self._bridge.observe(request.mob_id, request.member_id, Fence(*fence_from(request)))
        member = observed.member
        return bridge_pb2.ObserveResponse(
            state=MEMBER_STATES[member.state],
            bridge_terminal=observed.terminal,
            accepting_inputs=observed.accepting_inputs,
            current_run_id=member.run_id or "",
            connectivity=connectivity(self._hub, request.mob_id, member.attachment_id),
            last_error=member.last_error,
            inputs_waiting=member.inputs_waiting,
            inputs_running=member.inputs_running,
            generation=member.generation,
            fence_token=member.fence_token,
            observe_time=time_to(observed.observed_at),
            inputs_steering=member.inputs_steering,
        )

    async def interrupt(self, request: bridge_pb2.InterruptRequest, call: Call) -> bridge_pb2.InterruptResponse:
        command = Interrupt(request.member_id, request.run_id or None, *fence_from(request), request.reason)
        reply = await self._bridge.interrupt(request.mob_id, command, call)
        answer = cast("CancelAnswer", reply.answer)
        response = bridge_pb2.InterruptResponse(
            cursor=reply.cursor, replayed=reply.replayed, would_append=would_append(reply.would)
        )
        if answer.outcome == "requested":
            response.requested.run_id = answer.run_id
        elif answer.outcome == "already_terminal":
            response.already_terminal.SetInParent()
            response.already_terminal.run_id = answer.run_id
        else:
            response.nothing_to_interrupt.SetInParent()
        return response

    async def hard_cancel(self, request: bridge_pb2.HardCancelRequest, call: Call) -> bridge_pb2.HardCancelResponse:
        command = HardCancel(request.member_id, request.run_id, *fence_from(request), request.reason)
        reply = await self._bridge.hard_cancel(request.mob_id, command, call)
        response = bridge_pb2.HardCancelResponse(
            cursor=reply.cursor, replayed=reply.replayed, would_append=would_append(reply.would)
        )
        if cast("CancelAnswer", reply.answer).outcome == "requested":
            response.requested.run_id = request.run_id
        else:
            response.already_terminal.run_id = request.run_id
        return response

    async def retire(self, request: bridge_pb2.RetireRequest, call: Call) -> bridge_pb2.RetireResponse:
        command = RetireRuntime(request.member_id, *fence_from(request))
        reply = await self._bridge.retire(request.mob_id, command, call)
        answer = cast("Retired", reply.answer)
        return bridge_pb2.RetireResponse(
            inputs_abandoned=answer.inputs_abandoned,
            inputs_pending_drain=answer.inputs_pending_drain,
            already=answer.already,
            cursor=reply.cursor,
            replayed=reply.replayed,
            would_append=would_append(reply.would),
        )

    async def destroy(self, request: bridge_pb2.DestroyRequest, call: Call) -> bridge_pb2.DestroyResponse:
        command = DestroyRuntime(request.member_id, *fence_from(request))
        reply = await self._bridge.destroy(request.mob_id, command, call)
        answer = cast("Destroyed", reply.answer)
        return bridge_pb2.DestroyResponse(
            inputs_abandoned=answer.inputs_abandoned,
            already=answer.already,
            cursor=reply.cursor,
            replayed=reply.replayed,
            would_append=would_append(reply.would),
        )

    async def check_fence(self, request: bridge_pb2.CheckFenceRequest, _: Call) -> bridge_pb2.CheckFenceResponse:
        standing = await self._bridge.check_fence(
            request.mob_id,
            request.member_id,
            Fence(*fence_from(request)),
            request.run_id or None,
            request.executor_fence if request.HasField("executor_fence") else None,
        )
        return bridge_pb2.CheckFenceResponse(
            current=standing.current,
            fence=common_pb2.Fence(generation=standing.generation, fence_token=standing.fence_token),
            run_id=standing.run_id,
            executor_fence=standing.executor_fence,
        )

    async def authorize(self, request: bridge_pb2.AuthorizeRequest, _: Call) -> bridge_pb2.AuthorizeResponse:
        await self._bridge.confirm_authority(request.mob_id, request.member_id)
        return bridge_pb2.AuthorizeResponse()

    async def revoke(self, request: bridge_pb2.RevokeRequest, _: Call) -> bridge_pb2.RevokeResponse:
        await self._bridge.confirm_authority(request.mob_id, request.member_id)
        return bridge_pb2.RevokeResponse()

    async def wire(self, request: bridge_pb2.WireRequest, _: Call) -> bridge_pb2.WireResponse:
        await self._bridge.refuse_wiring(request.mob_id, request.member_id)
        return bridge_pb2.WireResponse()

    async def unwire(self, request: bridge_pb2.UnwireRequest, _: Call) -> bridge_pb2.UnwireResponse:
        await self._bridge.refuse_wiring(request.mob_id, request.member_id)
        return bridge_pb2.UnwireResponse()

    async def list_inputs(self, request: bridge_pb2.ListInputsRequest, _: Call) -> bridge_pb2.ListInputsResponse:
        state = INPUT_STATE_NAMES.get(request.state)
        page, token = await self._bridge.page(
            request.mob_id, request.member_id, state, request.page_size, request.page_token
        )
        return bridge_pb2.ListInputsResponse(inputs=map(input_to, page), next_page_token=token)

    async def get_input(self, request: bridge_pb2.GetInputRequest, _: Call) -> bridge_pb2.GetInputResponse:
        view = await self._bridge.get_input(request.mob_id, request.member_id, request.input_id)
        return bridge_pb2.GetInputResponse(input=input_to(view))

    async def watch_input(
        self, request: bridge_pb2.WatchInputRequest, _: Call
    ) -> AsyncIterator[bridge_pb2.WatchInputResponse]:
        views = self._bridge.watch_input(request.mob_id, request.member_id, request.input_id)
        async with aclosing(cast("Any", views)):
            async for view in views:
                yield bridge_pb2.WatchInputResponse(input=input_to(view))
