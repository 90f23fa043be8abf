"""The protocol's description, for those who may call."""

from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

from google.protobuf.descriptor import ServiceDescriptor
from grpc_reflection.v1alpha import reflection, reflection_pb2

from mobd_server.actors.links import Call

SERVICE: Final[ServiceDescriptor] = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]


class Described:
    """ServerReflection, behind the same door as every other method."""

    def __init__(self, services: Iterable[str]) -> None:
        self._servicer: Any = reflection.aio.ReflectionServicer(services)

    async def server_reflection_info(self, requests: AsyncIterator[Any], _: Call) -> AsyncIterator[Any]:
        """Answer what files, services and extensions there are."""
        async for answer in self._servicer.ServerReflectionInfo(requests, None):
            yield answer
