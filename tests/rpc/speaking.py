"""Speaking to a server as any client might: by stubs, and by bytes that no stub would send."""

from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from msgspec import Struct
from tests.rpc.cases import full_path

from mobd.v1 import (
    agents_pb2_grpc,
    bridge_pb2,
    bridge_pb2_grpc,
    common_pb2,
    events_pb2_grpc,
    members_pb2,
    members_pb2_grpc,
    mobs_pb2,
    mobs_pb2_grpc,
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
