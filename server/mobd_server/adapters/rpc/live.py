"""WatchAgentEvents of EventService: what agents put out is made into the watchers' message where it comes in, once."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from mobd.v1 import events_pb2
from mobd_server.actors.links import Call
from mobd_server.actors.live import Lagged, LiveEvent
from mobd_server.adapters.rpc.convert import time_to
from mobd_server.adapters.rpc.events import field_bytes
from mobd_server.services.live import AgentEvents

# A message ends when it is this long.
MESSAGE_BYTES = 1 << 18
_EVENT = events_pb2.WatchAgentEventsResponse.DESCRIPTOR.fields_by_name["events"].number


class LiveServicer:
    """WatchAgentEvents; the rest of EventService is beside it."""

    def __init__(self, events: AgentEvents) -> None:
        self._events = events

    async def watch_agent_events(
        self, request: events_pb2.WatchAgentEventsRequest, _: Call
    ) -> AsyncIterator[events_pb2.WatchAgentEventsResponse | bytes]:
        parts = self._events.watch(request.mob_id, request.member_id or None)
        async with aclosing(cast("Any", parts)) as taken:
            async for events in taken:
                message: list[bytes] = []
                size = 0
                for event in events:
                    message.append(field_bytes(_EVENT, _event(event)))
                    size += len(message[-1])
                    if size >= MESSAGE_BYTES:
                        yield b"".join(message)
                        message, size = [], 0
                if message or not events:
                    yield b"".join(message)


def _event(event: LiveEvent | Lagged) -> bytes:
    if isinstance(event, Lagged):
        return events_pb2.AgentEvent(lagged=events_pb2.Lagged(count=event.count)).SerializeToString()
    head = events_pb2.AgentEvent(
        member_id=event.member_id, run_id=event.run_id, attempt=event.attempt, time=time_to(event.at)
    )
    # What stands one behind the other on the wire is one message.
    return head.SerializeToString() + event.body
