"""Speaking to a server as any client might: by stubs, and by bytes that no stub would send."""

import asyncio
from typing import Any, Self

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # it has no stubs
from msgspec import Struct
from tests.rpc.cases import full_path

from mobd.v1 import (
    agents_pb2,
    agents_pb2_grpc,
    bridge_pb2,
    bridge_pb2_grpc,
    common_pb2,
    events_pb2_grpc,
    members_pb2,
    members_pb2_grpc,
    mobs_pb2,
    mobs_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
    server_pb2_grpc,
)
from mobd_server.compose import Server

TIMEOUT_S = 10.0
DEFINITION = '{"profiles": {"lead": {"instructions": "merge"}, "analyst": {"instructions": "count"}}}'


class Refusal(Struct):
    """A status as a client sees it."""

    code: grpc.StatusCode
    message: str
    reason: str
    details: dict[str, str]
    # The fields that it names, with what is wrong with each.
    fields: dict[str, str]
    retry: bool


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    found = Refusal(error.code(), error.details() or "", "", {}, {}, retry=False)
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                _take(found, detail)
    return found


def _take(found: Refusal, detail: Any) -> None:
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    if detail.Unpack(info):
        assert info.domain == "mobd"
        found.reason, found.details = info.reason, dict(info.metadata)
    elif detail.Unpack(bad):
        found.fields = {one.field: one.description for one in bad.field_violations}
    elif detail.Unpack(retry):
        found.retry = True


async def rest_of(call: Any) -> list[Any]:
    """Read a stream to its end."""
    answers = []
    while (answer := await call.read()) is not grpc.aio.EOF:
        answers.append(answer)
    return answers


class Speaker:
    """A connection to a server, with a stub for each service."""

    def __init__(self, channel: grpc.aio.Channel, server: Server) -> None:
        self.channel = channel
        self.server = server
        self.mobs: Any = mobs_pb2_grpc.MobServiceStub(channel)
        self.members: Any = members_pb2_grpc.MemberServiceStub(channel)
        self.bridge: Any = bridge_pb2_grpc.BridgeServiceStub(channel)
        self.runs: Any = runs_pb2_grpc.RunServiceStub(channel)
        self.agents: Any = agents_pb2_grpc.AgentServiceStub(channel)
        self.events: Any = events_pb2_grpc.EventServiceStub(channel)
        self.info: Any = server_pb2_grpc.ServerServiceStub(channel)

    async def create(self, mob_id: str = "m", *members: str, **more: Any) -> mobs_pb2.CreateMobResponse:
        """Create a mob with members of the role lead."""
        definition = mobs_pb2.DefinitionDocument(json=DEFINITION)
        answer = await self.mobs.CreateMob(mobs_pb2.CreateMobRequest(mob_id=mob_id, definition=definition, **more))
        if members:
            specs = [members_pb2.MemberSpec(member_id=one, role="lead") for one in members]
            await self.members.SpawnMembers(members_pb2.SpawnMembersRequest(mob_id=mob_id, specs=specs))
        assert isinstance(answer, mobs_pb2.CreateMobResponse)
        return answer

    async def deliver(self, member_id: str, input_id: str, text: str = "hi", **more: Any) -> bridge_pb2.DeliverResponse:
        content = common_pb2.Content(blocks=[common_pb2.Block(text=text)])
        request = bridge_pb2.DeliverRequest(
            mob_id=more.pop("mob_id", "m"), member_id=member_id, input_id=input_id, content=content, **more
        )
        answer = await self.bridge.Deliver(request, timeout=TIMEOUT_S)
        assert isinstance(answer, bridge_pb2.DeliverResponse)
        return answer

    async def refused(self, method: Any, request: Any) -> Refusal:
        """Return what a call that must be refused is refused with."""
        try:
            answer = await method(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return refusal_of(error)
        raise AssertionError(f"answered: {answer}")

    async def first(self, method: MethodDescriptor, raw: bytes) -> bytes | Refusal:
        """Send bytes to a method; return its first answer, or what it was refused with."""
        path = full_path(method)
        call: Any
        try:
            if method.client_streaming:
                call = self.channel.stream_stream(path)(timeout=TIMEOUT_S)
                await call.write(raw)
                answer = await call.read()
            elif method.server_streaming:
                opened: Any = self.channel.unary_stream(path)
                call = opened(raw, timeout=TIMEOUT_S)
                answer = await call.read()
            else:
                asked: Any = self.channel.unary_unary(path)
                return bytes(await asked(raw, timeout=TIMEOUT_S))
        except grpc.aio.AioRpcError as error:
            return refusal_of(error)
        call.cancel()
        return bytes(answer)


class RawAgent:
    """An agent made of frames: it serves what it is asked to, and answers runs when the test says so."""

    def __init__(self, speaker: Speaker, mob_id: str = "m", host_id: str = "host", **hello: Any) -> None:
        self._call: Any = speaker.agents.Attach()
        self._hello = {"serves": [agents_pb2.Serve(role="lead")], "capacity": 1, "max_members": 10, **hello}
        self._mob_id, self._host_id = mob_id, host_id
        self._frames: list[agents_pb2.ServerFrame] = []

    async def __aenter__(self) -> Self:
        hello = agents_pb2.Hello(mob_id=self._mob_id, host_id=self._host_id, incarnation="1", protocol=1, **self._hello)
        await self.send(hello=hello)
        self.welcome = (await self.next("welcome")).welcome
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()

    async def send(self, **frame: Any) -> None:
        await self._call.write(agents_pb2.AttachRequest(frames=[agents_pb2.AgentFrame(**frame)]))

    async def next(self, kind: str) -> agents_pb2.ServerFrame:
        """Return the next frame of a kind; members are taken on the way."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                while not self._frames:
                    response = await self._call.read()
                    assert response is not grpc.aio.EOF, f"the stream ended before {kind}"
                    self._frames.extend(response.frames)
                frame = self._frames.pop(0)
                if frame.WhichOneof("frame") == "assign":
                    fence = frame.assign.executor_fence
                    await self.send(
                        assigned=agents_pb2.Assigned(member_id=frame.assign.member_id, executor_fence=fence)
                    )
                if frame.WhichOneof("frame") == kind:
                    return frame

    async def accept_run(self) -> agents_pb2.StartRun:
        """Return the next run, accepted."""
        run = (await self.next("start_run")).start_run
        await self.send(run_accepted=agents_pb2.RunAccepted(run_id=run.run_id, executor_fence=run.executor_fence))
        return run

    async def succeed(self, run: agents_pb2.StartRun, output_json: str = '{"n": 1}') -> None:
        await self.send(
            run_result=agents_pb2.RunResult(
                run_id=run.run_id,
                executor_fence=run.executor_fence,
                output_json=output_json,
                usage=runs_pb2.Usage(input_tokens=3, detail_json='{"k": 1}'),
            )
        )
        await self.next("run_settled")

    async def fail(self, run: agents_pb2.StartRun, *, retryable: bool) -> None:
        await self.send(
            run_failed=agents_pb2.RunFailed(
                run_id=run.run_id,
                executor_fence=run.executor_fence,
                kind=agents_pb2.FAILURE_KIND_ERROR,
                message="boom",
                retryable=retryable,
            )
        )
        await self.next("run_settled")
