"""The other end of the client: a server that says what a test tells it to say, and shows what it heard."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # it has no stubs

import mobd
from mobd.v1 import agents_pb2, agents_pb2_grpc

T = TypeVar("T")
Code = grpc.StatusCode

WAIT_S: Final = 20.0
MOB: Final = "crew"
# What a scripted method answers: the answer, a status to end with, or a function of the request.
Answer = Any


def duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


class Refusal(Exception):
    """A status to end a call with."""

    def __init__(self, code: Code, message: str = "", *details: Message) -> None:
        super().__init__(message)
        self.code = code
        self.details = details

    async def abort(self, context: Any) -> None:
        status = status_pb2.Status(code=self.code.value[0], message=str(self))
        for detail in self.details:
            packed = Packed()
            packed.Pack(detail)
            status.details.append(packed)
        trailer = (("grpc-status-details-bin", status.SerializeToString()),) if self.details else ()
        await context.abort(self.code, str(self), trailer)


def refusal(code: Code, reason: str, message: str = "", retry_after: float | None = None, **facts: str) -> Refusal:
    """Return a status as mobd ends calls with."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain="mobd", metadata=facts)]
    if retry_after is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=duration(retry_after)))
    return Refusal(code, message, *details)


class Script:
    """A method: takes the next of its answers for each call, the last one for all that follow."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self._answers: deque[Answer] = deque()

    def will(self, *answers: Answer) -> None:
        self._answers.extend(answers)

    def next(self, request: Any) -> Answer:
        self.requests.append(request)
        answer = self._answers.popleft() if len(self._answers) > 1 else self._answers[0]
        return answer(request) if callable(answer) else answer


class Link:
    """One stream of an agent, as its server sees it."""

    def __init__(self) -> None:
        self.heard: list[agents_pb2.AgentFrame] = []
        self.ended = asyncio.Event()
        self._taken = 0
        self._changed = asyncio.Condition()
        self._said: asyncio.Queue[agents_pb2.AttachResponse | Refusal | None] = asyncio.Queue()

    async def serve(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[agents_pb2.AttachResponse]:
        listening = asyncio.ensure_future(self._listen(requests))
        try:
            while (said := await self._said.get()) is not None:
                if isinstance(said, Refusal):
                    await said.abort(context)
                else:
                    yield said
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            self.ended.set()

    async def _listen(self, requests: AsyncIterator[Any]) -> None:
        async for request in requests:
            async with self._changed:
                self.heard.extend(request.frames)
                self._changed.notify_all()
            if any(frame.HasField("detach") for frame in request.frames):
                self.end()

    async def hear(self, kind: str) -> Any:
        """Return the next entry that is no heartbeat, which must be of this kind."""
        frame = await self.hear_any()
        assert frame.WhichOneof("frame") == kind, frame
        return getattr(frame, kind)

    async def hear_any(self) -> agents_pb2.AgentFrame:
        """Return the next entry that is no heartbeat."""
        async with asyncio.timeout(WAIT_S), self._changed:
            while True:
                while self._taken == len(self.heard):
                    await self._changed.wait()
                frame = self.heard[self._taken]
                self._taken += 1
                if not frame.HasField("heartbeat"):
                    return frame

    async def heartbeats(self, count: int) -> list[agents_pb2.Heartbeat]:
        """Return the next so many heartbeats; other entries stay where they are."""
        async with asyncio.timeout(WAIT_S), self._changed:
            begin = len(self.heard)
            while True:
                found = [one.heartbeat for one in self.heard[begin:] if one.HasField("heartbeat")]
                if len(found) >= count:
                    return found
                await self._changed.wait()

    def say(self, **frame: Any) -> None:
        self._said.put_nowait(agents_pb2.AttachResponse(frames=[agents_pb2.ServerFrame(**frame)]))

    def end(self, refusal: Refusal | None = None) -> None:
        self._said.put_nowait(refusal)

    def welcome(
        self, attachment_id: str = "att-1", heartbeat_s: float = 10.0, lease_s: float = 30.0, **more: Any
    ) -> None:
        self.say(
            welcome=agents_pb2.Welcome(
                attachment_id=attachment_id,
                heartbeat=duration(heartbeat_s),
                lease=duration(lease_s),
                limits=agents_pb2.AgentLimits(message_bytes=4 << 20, output_bytes=1 << 20),
                **more,
            )
        )

    async def assign(self, member_id: str = "m-1", fence: int = 7, **more: Any) -> None:
        """Give the agent a member, and hear that it has it."""
        self.say(assign=agents_pb2.Assign(member_id=member_id, executor_fence=fence, **more))
        assert (await self.hear("assigned")).executor_fence == fence

    def start(self, run_id: str, *texts: str, member_id: str = "m-1", fence: int = 7, attempt: int = 1) -> None:
        inputs = [
            agents_pb2.RunInput(
                canonical_input_id=f"in-{number}",
                input_id=f"key-{number}",
                content=mobd.blocks(text),
                sender="anonymous",
                attempt=attempt,
            )
            for number, text in enumerate(texts or ("hello",), 1)
        ]
        self.say(start_run=agents_pb2.StartRun(run_id=run_id, executor_fence=fence, member_id=member_id, inputs=inputs))

    async def run(self, run_id: str, *texts: str, **more: Any) -> None:
        """Start a run, and hear that the agent has it."""
        self.start(run_id, *texts, **more)
        assert (await self.hear("run_accepted")).run_id == run_id

    def steer(self, run_id: str, *input_ids: str, fence: int = 7) -> None:
        inputs = [
            agents_pb2.RunInput(
                canonical_input_id=f"in-{one}",
                input_id=one,
                kind="peer_message",
                content=mobd.blocks(f"text of {one}"),
                sender="anonymous",
                attempt=1,
            )
            for one in input_ids
        ]
        self.say(
            steer_run=agents_pb2.SteerRun(run_id=run_id, executor_fence=fence, member_id="m-1", inputs=inputs),
        )

    def cancel(self, run_id: str, control_id: str, *, hard: bool = False, fence: int = 7) -> None:
        """Ask that a run ends: at its boundary, or at once."""
        kind = agents_pb2.HardCancel if hard else agents_pb2.CancelAtBoundary
        request = kind(
            control_id=control_id, run_id=run_id, executor_fence=fence, member_id="m-1", reason="somebody asked"
        )
        self.say(**{"hard_cancel" if hard else "cancel_at_boundary": request})

    def settle(
        self, run_id: str, disposition: "agents_pb2.RunDisposition.ValueType" = agents_pb2.RUN_DISPOSITION_COMMITTED
    ) -> None:
        self.say(run_settled=agents_pb2.RunSettled(run_id=run_id, disposition=disposition))

    def goodbye(self, reason: "agents_pb2.GoodbyeReason.ValueType", message: str = "") -> None:
        self.say(goodbye=agents_pb2.Goodbye(reason=reason, message=message))
        self.end()


class _Attach(agents_pb2_grpc.AgentServiceServicer):
    def __init__(self, peer: "Peer") -> None:
        self._peer = peer

    async def Attach(  # noqa: N802 the name is the protocol's
        self, requests: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[agents_pb2.AttachResponse]:
        link = Link()
        self._peer.links.put_nowait(link)
        async for answer in link.serve(requests, context):
            yield answer

    async def ListAgents(self, request: Any, context: Any) -> Any:  # noqa: N802 the name is the protocol's
        return await self._peer.answer("ListAgents", request, context)


class Peer:
    """A server on a port of its own. `links` has each Attach, in order; other methods follow their `script`."""

    def __init__(self) -> None:
        self.links: asyncio.Queue[Link] = asyncio.Queue()
        self.target = ""
        self._scripts: dict[str, Script] = {}
        self._server: Any = None

    def script(self, method: str) -> Script:
        return self._scripts.setdefault(method, Script())

    async def link(self) -> Link:
        """Return the next stream that an agent opens."""
        return await asyncio.wait_for(self.links.get(), WAIT_S)

    async def attached(self, **welcome: Any) -> Link:
        """Return the next stream, welcomed."""
        link = await self.link()
        await link.hear("hello")
        link.welcome(**welcome)
        return link

    async def start(self) -> None:
        """Listen, the second time on the same port as the first."""
        self._server = server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        agents_pb2_grpc.add_AgentServiceServicer_to_server(_Attach(self), server)
        unary = {
            "mobd.v1.BridgeService": ("Deliver", "DeliverBatch", "GetInput"),
            "mobd.v1.MobService": ("CreateMob", "GetMob", "ListMobs"),
            "mobd.v1.OperationService": ("WaitOperations", "RegisterOperation", "MarkPeerReady"),
        }
        streams = {
            "mobd.v1.BridgeService": ("WatchInput",),
            "mobd.v1.EventService": ("WatchEvents", "WatchAgentEvents", "GetState"),
        }
        for service in sorted({*unary, *streams}):
            handlers = {name: self._unary(service, name) for name in unary.get(service, ())}
            handlers |= {name: self._stream(service, name) for name in streams.get(service, ())}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        port = server.add_insecure_port(self.target or "127.0.0.1:0")
        self.target = f"127.0.0.1:{port}"
        await server.start()

    async def stop(self) -> None:
        """End every call and listen no more."""
        await self._server.stop(None)

    async def answer(self, method: str, request: Any, context: Any) -> Any:
        answer = self.script(method).next(request)
        if isinstance(answer, Refusal):
            await answer.abort(context)
        return answer

    def _unary(self, service: str, name: str) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            return await self.answer(name, request, context)

        return grpc.unary_unary_rpc_method_handler(handle, *_codec(service, name))

    def _stream(self, service: str, name: str) -> Any:
        async def handle(request: Any, context: Any) -> AsyncIterator[Any]:
            for answer in await self.answer(name, request, context):
                if isinstance(answer, Refusal):
                    await answer.abort(context)
                elif isinstance(answer, asyncio.Event):
                    await answer.wait()
                else:
                    yield answer

        return grpc.unary_stream_rpc_method_handler(handle, *_codec(service, name))


def _codec(service: str, name: str) -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
    from google.protobuf import descriptor_pool, message_factory  # noqa: PLC0415 not with the oldest client

    method = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    request = message_factory.GetMessageClass(method.input_type)
    answer = message_factory.GetMessageClass(method.output_type)
    return request.FromString, answer.SerializeToString


@asynccontextmanager
async def serve_peer() -> AsyncIterator[Peer]:
    """A server for the block."""
    one = Peer()
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


class Said(logging.Handler):
    """What agents tell people; to be waited for from any loop."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[str] = []
        self._changed = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._changed:
            self._records.append(logging.Formatter("%(levelname)s %(message)s").format(record))
            self._changed.notify_all()

    async def saying(self, part: str) -> str:
        """Return the first message that holds this part, as soon as there is one."""
        return await asyncio.to_thread(self._find, part)

    def _find(self, part: str) -> str:
        with self._changed:
            assert self._changed.wait_for(lambda: self._matching(part), WAIT_S), (part, self._records)
            return next(iter(self._matching(part)))

    def _matching(self, part: str) -> Iterable[str]:
        return [one for one in self._records if part in one]

    def count(self, part: str) -> int:
        with self._changed:
            return len(list(self._matching(part)))
