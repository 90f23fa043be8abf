"""Clients and watchers on the real stubs that take down all that they do and see, against a server on a socket."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

import grpc
from tests.checker.history import NO_EFFECT, Recorder
from tests.checker.plain import plain
from tests.support.peers import answered, pause_s, reason
from tests.support.served import channel

from mobd.v1 import (
    bridge_pb2,
    bridge_pb2_grpc,
    events_pb2,
    events_pb2_grpc,
    members_pb2,
    members_pb2_grpc,
    mobs_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
)

CALL_S: Final = 10.0
# For what is only read in the end.
PATIENT_S: Final = 60.0
clock: Final = time.monotonic_ns


class Caller:
    """One client on a connection of its own; each attempt of a call is a call of the history."""

    def __init__(self, who: str, target: str, mob: str, recorder: Recorder) -> None:
        self.who = who
        self.mob = mob
        self.recorder = recorder
        self.channel = channel(target)
        self.events = events_pb2_grpc.EventServiceStub(self.channel)
        self._stubs: tuple[Any, ...] = (
            mobs_pb2_grpc.MobServiceStub(self.channel),
            members_pb2_grpc.MemberServiceStub(self.channel),
            bridge_pb2_grpc.BridgeServiceStub(self.channel),
            operations_pb2_grpc.OperationServiceStub(self.channel),
            self.events,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.channel.close()

    def method(self, rpc: str) -> Any:
        """Return the stub's method of that name."""
        return next(getattr(stub, rpc) for stub in self._stubs if hasattr(stub, rpc))

    async def once(self, rpc: str, request: Any, timeout_s: float = CALL_S) -> Any:
        """Make one attempt and return the answer, or raise what came instead."""
        call = self.recorder.invoked(self.who, rpc, self.mob, plain(request))
        try:
            answer = await self.method(rpc)(request, timeout=timeout_s, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            self.recorder.failed(self.who, call, error.code().name, reason(error))
            raise
        except asyncio.CancelledError:
            self.recorder.failed(self.who, call, "CANCELLED")
            raise
        self.recorder.answered(self.who, call, plain(answer))
        return answer

    async def ask(self, rpc: str, request: Any, *, patience_s: float = 120.0, first_s: float = CALL_S) -> Any:
        """Repeat one and the same call until it is answered; return None if it was refused.

        `first_s` is the deadline of the first attempt. Raises TimeoutError when patience is over.
        """
        async with asyncio.timeout(patience_s):
            timeout_s = first_s
            while True:
                try:
                    return await self.once(rpc, request, timeout_s)
                except grpc.aio.AioRpcError as error:
                    full = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                    if error.code().name in NO_EFFECT and not full:
                        return None
                    pause = pause_s(error)
                timeout_s = CALL_S
                await asyncio.sleep(min(pause, 0.5))  # noqa: TID251 a caller waits before it repeats a call

    async def watch_input(self, member_id: str, input_id: str) -> None:
        """Follow an input to its end, once: a stream that breaks is not repeated."""
        request = bridge_pb2.WatchInputRequest(mob_id=self.mob, member_id=member_id, input_id=input_id)
        call = self.recorder.invoked(self.who, "WatchInput", self.mob, plain(request))
        try:
            async for answer in self.method("WatchInput")(request, wait_for_ready=True, timeout=CALL_S):
                self.recorder.answered(self.who, call, plain(answer))
        except grpc.aio.AioRpcError as error:
            self.recorder.failed(self.who, call, error.code().name, reason(error))

    async def watch(
        self, after: int | None, kinds: Sequence[str] = (), members: Sequence[str] = (), most: int = 1 << 60
    ) -> int:
        """Follow the log in one stream until it breaks or has brought `most` events; return where to go on."""
        start = events_pb2.EventStart(latest=True) if after is None else events_pb2.EventStart(after_cursor=after)
        which = events_pb2.EventFilter(kinds=kinds, member_ids=members)
        request = events_pb2.WatchEventsRequest(mob_id=self.mob, start=start, filter=which)
        stream = self.recorder.opened(self.who, self.mob, after, kinds, members)
        cursor, code = after or 0, "OK"
        call = self.events.WatchEvents(request, wait_for_ready=True)
        try:
            async for answer in call:
                for event in answer.page.events:
                    self.recorder.event(self.who, stream, plain(event))
                    cursor = event.seq
                    most -= 1
                if answer.HasField("bookmark"):
                    self.recorder.mark(self.who, stream, answer.bookmark.cursor, answer.bookmark.head)
                    cursor = max(cursor, answer.bookmark.cursor)
                if most <= 0:
                    code = "CUT"
                    return cursor
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        except asyncio.CancelledError:
            code = "CUT"
            raise
        finally:
            call.cancel()
            self.recorder.ended(self.who, stream, code)
        return cursor

    async def follow(self, after: int = 0) -> None:
        """Follow the log from a cursor, and from where it was after every break, until this is cancelled."""
        while True:
            after = await self.watch(after)
            await asyncio.sleep(0.02)  # noqa: TID251 a watcher waits before it comes back

    async def live_inputs(self) -> list[bridge_pb2.Input]:
        """Return the inputs that have not ended."""
        found: list[bridge_pb2.Input] = []
        for state in (bridge_pb2.INPUT_STATE_QUEUED, bridge_pb2.INPUT_STATE_RUNNING):
            request = bridge_pb2.ListInputsRequest(mob_id=self.mob, state=state, page_size=1000)
            answer = await self.ask("ListInputs", request)
            found.extend(answer.inputs)
        return found

    async def finish(self, *, quiet: bool) -> None:
        """Read the final log and the final state, page by page, into the history."""
        self.recorder.reading(self.mob)
        cursor, head = 0, 1
        while cursor < head:
            start = events_pb2.EventStart(after_cursor=cursor)
            request = events_pb2.PollEventsRequest(mob_id=self.mob, start=start, limit=5_000)
            page = await answered(partial(self.method("PollEvents"), request, timeout=PATIENT_S), PATIENT_S)
            for event in page.events:
                self.recorder.logged(self.mob, plain(event))
            cursor, head = page.next_cursor, page.head
        self.recorder.final_end(self.mob, "log", quiet=quiet)
        lists: tuple[tuple[str, str, str, Any, dict[str, bool]], ...] = (
            ("member", "members", "ListMembers", members_pb2.ListMembersRequest, {"include_retiring": True}),
            ("input", "inputs", "ListInputs", bridge_pb2.ListInputsRequest, {}),
            ("operation", "operations", "ListOperations", operations_pb2.ListOperationsRequest, {}),
        )
        for what, field, rpc, message, more in lists:
            token = ""
            while True:
                request = message(mob_id=self.mob, page_size=1000, page_token=token, **more)
                answer = await answered(partial(self.method(rpc), request, timeout=PATIENT_S), PATIENT_S)
                for one in getattr(answer, field):
                    self.recorder.final(self.mob, what, plain(one))
                token = answer.next_page_token
                if not token:
                    break
            self.recorder.final_end(self.mob, what)
