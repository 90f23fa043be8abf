"""GetState of EventService."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from mobd.v1 import events_pb2
from mobd_server.actors.links import Call
from mobd_server.adapters.rpc.convert_states import header_to, messages
from mobd_server.services.state import Header, States


class StateServicer:
    """Its method is GetState of EventService; see events.proto."""

    def __init__(self, states: States) -> None:
        self._states = states

    async def get_state(
        self, request: events_pb2.GetStateRequest, _: Call
    ) -> AsyncIterator[events_pb2.GetStateResponse]:
        cursor = request.at_cursor if request.HasField("at_cursor") else None
        found = self._states.state_at(request.mob_id, cursor, request.log_id)
        async with aclosing(cast("Any", found)):
            async for part in found:
                if isinstance(part, Header):
                    yield header_to(part)
                else:
                    for message in messages(part):
                        yield message
