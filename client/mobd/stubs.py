"""The stubs of every service on one channel."""

import grpc

from mobd.v1 import (
    agents_pb2_grpc,
    bridge_pb2_grpc,
    events_pb2_grpc,
    members_pb2_grpc,
    mobs_pb2_grpc,
    operations_pb2_grpc,
    runs_pb2_grpc,
    server_pb2_grpc,
)


class Stubs:
    """A channel and what can be called on it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.agents = agents_pb2_grpc.AgentServiceStub(channel)
        self.bridge = bridge_pb2_grpc.BridgeServiceStub(channel)
        self.events = events_pb2_grpc.EventServiceStub(channel)
        self.members = members_pb2_grpc.MemberServiceStub(channel)
        self.mobs = mobs_pb2_grpc.MobServiceStub(channel)
        self.operations = operations_pb2_grpc.OperationServiceStub(channel)
        self.runs = runs_pb2_grpc.RunServiceStub(channel)
        self.server = server_pb2_grpc.ServerServiceStub(channel)
