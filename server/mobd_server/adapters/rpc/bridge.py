"""BridgeService: convert, ask, convert."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from mobd.v1 import bridge_pb2
from mobd_server.actors.hub import Hub
from mobd_server.actors.links import Call
from mobd_server.adapters.rpc.convert import MEMBER_STATES, time_to
from mobd_server.adapters.rpc.convert_bridge import connectivity, deliver_from, deliver_to, input_to, outcome_to
from mobd_server.machines.answers import BatchDelivered, Delivered
from mobd_server.machines.commands import DeliverBatch
from mobd_server.services.bridge import Bridge


class BridgeServicer:
    """Its methods are those of BridgeService; see bridge.proto."""

    def __init__(self, bridge: Bridge, hub: Hub) -> None:
        self._bridge = bridge
        self._hub = hub

    async def deliver(self, request: bridge_pb2.DeliverRequest, call: Call) -> bridge_pb2.DeliverResponse:
        mob_id = request.mob_id
        reply = await self._bridge.deliver(mob_id, deliver_from(request), call)
        return deliver_to(cast("Delivered", reply.answer), self._hub, mob_id)

    async def deliver_batch(
        self, request: bridge_pb2.DeliverBatchRequest, call: Call
    ) -> bridge_pb2.DeliverBatchResponse:
        command = DeliverBatch([deliver_from(delivery) for delivery in request.deliveries])
        reply = await self._bridge.deliver_batch(request.mob_id, command, call)
        return bridge_pb2.DeliverBatchResponse(
            outcomes=[
                outcome_to(one, self._hub, request.mob_id) for one in cast("BatchDelivered", reply.answer).outcomes
            ]
        )

    async def observe(self, request: bridge_pb2.ObserveRequest, _: Call) -> bridge_pb2.ObserveResponse:
        observed = await self._bridge.observe(request.mob_id, request.member_id)
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
        )

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
