"""The client's calls about inputs and runtimes."""

# ruff: noqa: ASYNC109  the timeout of a call is over all of its repeats, and is told to the server

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Final, Unpack

from mobd import calls, errors
from mobd.base import PAGE, Base, How
from mobd.content import content_of
from mobd.deliveries import Delivery, Draft, Form, delivery_of, shape_of
from mobd.ids import uuid7
from mobd.v1 import bridge_pb2, common_pb2

ENDED: Final = (
    bridge_pb2.INPUT_STATE_CONSUMED,
    bridge_pb2.INPUT_STATE_ABANDONED,
    bridge_pb2.INPUT_STATE_SUPERSEDED,
    bridge_pb2.INPUT_STATE_COALESCED,
)


class BridgeCalls(Base):
    """Delivering inputs and following them, and ending runs and runtimes."""

    async def deliver(
        self,
        mob_id: str,
        member_id: str,
        content: Any,
        *,
        input_id: str | None = None,
        form: Form | None = None,
        steer: bool | None = None,
        wake: bool = True,
        supersession_key: str = "",
        correlation_id: str = "",
        fence: common_pb2.Fence | None = None,
        acting: common_pb2.Acting | None = None,
        timeout: float | None = None,
    ) -> Delivery:
        """Deliver one input; return when it is durable. Delivering an input_id again is harmless: see `duplicate`.

        `content` is a str (text), a mobd.Image, what `mobd.blocks` or the protocol make, or any other JSON value.
        `form` says that it is more than a message: a mobd.PeerRequest, mobd.PeerResponse or mobd.ExternalEvent.
        `steer` puts it into the run in flight (True) or behind what waits (False); None is as its form is handled.
        Without `wake` it starts no run by itself. It takes the place of a waiting input of the same form and
        `supersession_key`. Raise DeliveryRejected if the member refuses it, for example QueueFull.
        """
        request = bridge_pb2.DeliverRequest(
            mob_id=mob_id,
            member_id=member_id,
            fence=fence,
            input_id=input_id or uuid7(),
            content=content_of(content),
            acting=acting,
            **shape_of(form, steer=steer, wake=wake, supersession_key=supersession_key, correlation_id=correlation_id),
        )
        answer: bridge_pb2.DeliverResponse = await self._call(self._stubs.bridge.Deliver, request, timeout)
        outcome = delivery_of(member_id, request.input_id, answer)
        if isinstance(outcome, errors.Error):
            raise outcome
        return outcome

    async def deliver_batch(
        self,
        mob_id: str,
        drafts: Sequence[Draft],
        *,
        acting: common_pb2.Acting | None = None,
        timeout: float | None = None,
    ) -> list[Delivery | errors.Error]:
        """Deliver up to 256 inputs in one commit, in order; return each delivery, or the error it was refused with."""
        request = bridge_pb2.DeliverBatchRequest(
            mob_id=mob_id,
            deliveries=[
                bridge_pb2.Delivery(
                    member_id=one.member_id,
                    fence=one.fence,
                    input_id=one.input_id or uuid7(),
                    content=content_of(one.content),
                    **shape_of(
                        one.form,
                        steer=one.steer,
                        wake=one.wake,
                        supersession_key=one.supersession_key,
                        correlation_id=one.correlation_id,
                    ),
                )
                for one in drafts
            ],
            acting=acting,
        )
        answer: bridge_pb2.DeliverBatchResponse = await self._call(self._stubs.bridge.DeliverBatch, request, timeout)
        return [
            delivery_of(one.member_id, one.input_id, outcome)
            for one, outcome in zip(request.deliveries, answer.outcomes, strict=True)
        ]

    async def observe(
        self, mob_id: str, member_id: str, *, fence: common_pb2.Fence | None = None, timeout: float | None = None
    ) -> bridge_pb2.ObserveResponse:
        """Return the state of a member's runtime; raise StaleFence if `fence` means another incarnation."""
        request = bridge_pb2.ObserveRequest(mob_id=mob_id, member_id=member_id, fence=fence)
        return await self._call(self._stubs.bridge.Observe, request, timeout)

    async def interrupt(
        self,
        mob_id: str,
        member_id: str,
        *,
        run_id: str = "",
        reason: str = "",
        fence: common_pb2.Fence | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
        **how: Unpack[How],
    ) -> bridge_pb2.InterruptResponse:
        """Ask the run in flight to end at its next boundary: that run only, if `run_id` is given."""
        request = bridge_pb2.InterruptRequest(
            mob_id=mob_id,
            member_id=member_id,
            fence=fence,
            run_id=run_id,
            reason=reason,
            request_id=request_id or uuid7(),
            **how,
        )
        return await self._call(self._stubs.bridge.Interrupt, request, timeout)

    async def hard_cancel(
        self,
        mob_id: str,
        member_id: str,
        run_id: str,
        *,
        reason: str = "",
        fence: common_pb2.Fence | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
        **how: Unpack[How],
    ) -> bridge_pb2.HardCancelResponse:
        """End a run at once: an agent that does not obey loses the member. A later run is not touched."""
        request = bridge_pb2.HardCancelRequest(
            mob_id=mob_id,
            member_id=member_id,
            fence=fence,
            run_id=run_id,
            reason=reason,
            request_id=request_id or uuid7(),
            **how,
        )
        return await self._call(self._stubs.bridge.HardCancel, request, timeout)

    async def retire_runtime(
        self,
        mob_id: str,
        member_id: str,
        *,
        fence: common_pb2.Fence | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
        **how: Unpack[How],
    ) -> bridge_pb2.RetireResponse:
        """Retire a member's runtime: it accepts nothing more; the member stays on the roster."""
        request = bridge_pb2.RetireRequest(
            mob_id=mob_id, member_id=member_id, fence=fence, request_id=request_id or uuid7(), **how
        )
        return await self._call(self._stubs.bridge.Retire, request, timeout)

    async def destroy_runtime(
        self,
        mob_id: str,
        member_id: str,
        *,
        fence: common_pb2.Fence | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
        **how: Unpack[How],
    ) -> bridge_pb2.DestroyResponse:
        """Abandon everything that a member has and end its runtime for good; the member stays on the roster."""
        request = bridge_pb2.DestroyRequest(
            mob_id=mob_id, member_id=member_id, fence=fence, request_id=request_id or uuid7(), **how
        )
        return await self._call(self._stubs.bridge.Destroy, request, timeout)

    async def check_fence(
        self,
        mob_id: str,
        member_id: str,
        fence: common_pb2.Fence,
        *,
        run_id: str = "",
        executor_fence: int | None = None,
        timeout: float | None = None,
    ) -> bridge_pb2.CheckFenceResponse:
        """Ask, before an effect outside, whether numbers are still in force: see `current` of the answer."""
        request = bridge_pb2.CheckFenceRequest(
            mob_id=mob_id, member_id=member_id, fence=fence, run_id=run_id, executor_fence=executor_fence
        )
        return await self._call(self._stubs.bridge.CheckFence, request, timeout)

    def list_inputs(
        self,
        mob_id: str,
        *,
        member_id: str = "",
        state: "bridge_pb2.InputState.ValueType" = bridge_pb2.INPUT_STATE_UNSPECIFIED,
        timeout: float | None = None,
    ) -> AsyncIterator[bridge_pb2.Input]:
        """Yield inputs, live and ended ones that are still remembered, by member and in the order of their ids."""
        request = bridge_pb2.ListInputsRequest(mob_id=mob_id, member_id=member_id, state=state, page_size=PAGE)
        return self._pages(lambda: self._stubs.bridge.ListInputs, request, lambda answer: answer.inputs, timeout)

    async def get_input(
        self, mob_id: str, member_id: str, input_id: str, *, timeout: float | None = None
    ) -> bridge_pb2.Input:
        """Return an input, by the caller's id or by the canonical one."""
        request = bridge_pb2.GetInputRequest(mob_id=mob_id, member_id=member_id, input_id=input_id)
        answer: bridge_pb2.GetInputResponse = await self._call(self._stubs.bridge.GetInput, request, timeout)
        return answer.input

    async def watch_input(self, mob_id: str, member_id: str, input_id: str) -> AsyncGenerator[bridge_pb2.Input, None]:
        """Yield an input as it is and after each change, over breaks and restarts, until it has ended."""
        request = bridge_pb2.WatchInputRequest(mob_id=mob_id, member_id=member_id, input_id=input_id)
        last = None
        while last is None or last.state not in ENDED:
            async with aclosing(calls.stream(lambda: self._stubs.bridge.WatchInput(request))) as answers:
                async for answer in answers:
                    # A new stream begins with what the one before may have said already.
                    if answer.input != last:
                        last = answer.input
                        yield last
