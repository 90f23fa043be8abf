"""The generated stubs load and speak, with the oldest dependencies that the client supports as with the newest."""

import importlib
import pkgutil
from types import ModuleType

import grpc
import pytest
from google.protobuf.message import Message

import mobd.v1
from mobd.v1 import server_pb2, server_pb2_grpc

pytestmark = pytest.mark.floor

STUBS = sorted(module.name for module in pkgutil.iter_modules(mobd.v1.__path__, "mobd.v1."))


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_there_are_stubs() -> None:
    assert {name.rpartition("_pb2")[0] for name in STUBS} >= {"mobd.v1.bridge", "mobd.v1.mobs", "mobd.v1.agents"}


@pytest.mark.parametrize("name", [name for name in STUBS if name.endswith("_pb2")])
def test_every_message_survives_the_wire_empty(name: str) -> None:
    for message in vars(load(name)).values():
        if isinstance(message, type) and issubclass(message, Message):
            assert message.FromString(message().SerializeToString()) == message()


@pytest.mark.parametrize("name", [name for name in STUBS if name.endswith("_pb2_grpc")])
def test_every_service_has_a_stub(name: str) -> None:
    services = load(name.removesuffix("_grpc")).DESCRIPTOR.services_by_name
    with grpc.insecure_channel("localhost:1") as channel:
        for service, descriptor in services.items():
            stub = getattr(load(name), f"{service}Stub")(channel)
            assert all(callable(getattr(stub, method.name)) for method in descriptor.methods)


class Named(server_pb2_grpc.ServerServiceServicer):
    async def GetServerInfo(  # noqa: N802 the name is the protocol's
        self, request: server_pb2.GetServerInfoRequest, context: object
    ) -> server_pb2.GetServerInfoResponse:
        return server_pb2.GetServerInfoResponse()


@pytest.mark.asyncio
async def test_a_call_is_answered() -> None:
    server = grpc.aio.server()
    server_pb2_grpc.add_ServerServiceServicer_to_server(Named(), server)
    port = server.add_insecure_port("localhost:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
        answer = await server_pb2_grpc.ServerServiceStub(channel).GetServerInfo(server_pb2.GetServerInfoRequest())
    await server.stop(None)
    assert answer == server_pb2.GetServerInfoResponse()
