"""The protocol's description, for those who may call."""

from collections.abc import AsyncIterator, Iterable
from typing import Any

from grpc_reflection.v1alpha import reflection

from mobd_server.adapters.rpc.handlers import Identify, refuse
from mobd_server.errors import MobdError


class Described(reflection.aio.ReflectionServicer):  # type: ignore[misc]  # the package has no types
    """ServerReflection, which asks who calls like every other method.

    Health does not: what probes a server, such as a load balancer, has no token.
    """

    def __init__(self, services: Iterable[str], identify: Identify) -> None:
        super().__init__(services)
        self._identify = identify

    async def ServerReflectionInfo(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802 gRPC's name
        metadata = dict(context.invocation_metadata() or ())
        try:
            self._identify(metadata.get("authorization"))
        except MobdError as error:
            await refuse(context, error)
        async for answer in super().ServerReflectionInfo(requests, context):
            yield answer
