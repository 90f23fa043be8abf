"""Attach of AgentService: carries frames between a stream and the hub. What they mean is not decided here."""

import asyncio
from collections.abc import AsyncIterator, Callable

from mobd.v1 import agents_pb2
from mobd_server.actors.connection import Connection
from mobd_server.actors.hub import Hub
from mobd_server.actors.links import Call
from mobd_server.adapters.rpc.convert_agents import Responses, frames_from


class AgentServicer:
    """Attach of AgentService; ListAgents is beside it."""

    def __init__(self, hub: Hub, now: Callable[[], int]) -> None:
        self._hub = hub
        self._now = now

    async def attach(
        self, requests: AsyncIterator[agents_pb2.AttachRequest], call: Call
    ) -> AsyncIterator[agents_pb2.AttachResponse]:
        """Serve one stream until either side ends it."""
        connection = self._hub.open(call.principal)
        reader = asyncio.create_task(self._read(connection, requests))
        responses = Responses(self._now)
        try:
            while frames := await connection.take():
                for response in responses.responses_to(frames):
                    yield response
        finally:
            # Nothing is awaited here: a cancellation that comes second would skip what follows.
            self._hub.gone(connection)
            reader.cancel()

    async def _read(self, connection: Connection, requests: AsyncIterator[agents_pb2.AttachRequest]) -> None:
        try:
            async for request in requests:
                await self._hub.receive(connection, frames_from(request))
        except Exception as error:  # noqa: BLE001 whatever it is, it ends the stream, and there it is raised
            self._hub.gone(connection, error)
        else:
            # An agent that has said Detach may close its side at once: the stream ends when that is durable.
            if not connection.leaving:
                self._hub.gone(connection)
