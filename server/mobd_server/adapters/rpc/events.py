"""EventService: pages are put together from events that are serialised already."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Final, cast

from mobd.v1 import events_pb2
from mobd_server.actors.links import Call
from mobd_server.adapters.rpc.convert import time_from
from mobd_server.adapters.rpc.convert_events import wire
from mobd_server.machines.records import Record
from mobd_server.services.events import Bookmark, EventFilter, Events, Start

# A message of a stream: small enough for any reader, large enough that one who lags catches up.
MESSAGE_BYTES: Final = 1 << 18
# How many events are serialised in one go: others wait as long.
STEP_EVENTS: Final = 128

_LENGTH_DELIMITED: Final = 2


def field_bytes(number: int, payload: bytes) -> bytes:
    """Return one field of a message on the wire, as protobuf writes it."""
    return varint(number << 3 | _LENGTH_DELIMITED) + varint(len(payload)) + payload


def varint(value: int) -> bytes:
    """Return a number as protobuf writes it."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


_EVENT_IN_PAGE: Final = events_pb2.EventPage.DESCRIPTOR.fields_by_name["events"].number
_EVENT_IN_POLL: Final = events_pb2.PollEventsResponse.DESCRIPTOR.fields_by_name["events"].number
_PAGE: Final = events_pb2.WatchEventsResponse.DESCRIPTOR.fields_by_name["page"].number


class EventServicer:
    """Its methods are those of EventService; see events.proto."""

    def __init__(self, events: Events) -> None:
        self._events = events

    async def poll_events(self, request: events_pb2.PollEventsRequest, _: Call) -> bytes:
        page = await self._events.poll(
            request.mob_id, _start(request.start), request.limit, _filter(request.filter), request.log_id
        )
        rest = events_pb2.PollEventsResponse(next_cursor=page.next_cursor, head=page.head, log_id=page.log_id)
        parts = [rest.SerializeToString()]
        for begin in range(0, len(page.records), STEP_EVENTS):
            parts += [field_bytes(_EVENT_IN_POLL, wire(record)) for record in page.records[begin : begin + STEP_EVENTS]]
            await asyncio.sleep(0)
        return b"".join(parts)

    async def watch_events(
        self, request: events_pb2.WatchEventsRequest, _: Call
    ) -> AsyncIterator[events_pb2.WatchEventsResponse | bytes]:
        parts = self._events.watch(request.mob_id, _start(request.start), _filter(request.filter), request.log_id)
        async with aclosing(cast("Any", parts)):
            async for part in parts:
                if isinstance(part, Bookmark):
                    yield events_pb2.WatchEventsResponse(
                        bookmark=events_pb2.Bookmark(cursor=part.cursor, head=part.head, log_id=part.log_id)
                    )
                else:
                    for message in messages(part):
                        yield message


def messages(records: Sequence[Record]) -> Iterator[bytes]:
    """Put events into as few messages as their size allows."""
    page: list[bytes] = []
    size = 0
    for record in records:
        event = field_bytes(_EVENT_IN_PAGE, wire(record))
        if page and size + len(event) > MESSAGE_BYTES:
            yield field_bytes(_PAGE, b"".join(page))
            page, size = [], 0
        page.append(event)
        size += len(event)
    yield field_bytes(_PAGE, b"".join(page))


def _start(start: events_pb2.EventStart) -> Start:
    kind = start.WhichOneof("start")
    if kind == "after_cursor":
        return Start("after", start.after_cursor)
    if kind == "since":
        return Start("since", time_from(start.since))
    return Start("latest")


def _filter(wanted: events_pb2.EventFilter) -> EventFilter:
    return EventFilter(frozenset(wanted.kinds), frozenset(wanted.member_ids))
