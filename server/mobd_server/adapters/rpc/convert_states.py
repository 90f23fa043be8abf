"""States on the wire."""

from collections.abc import Iterator, Sequence
from typing import Final

from mobd.v1 import events_pb2
from mobd_server.machines.sections import Part
from mobd_server.services.state import Header

MESSAGE_BYTES: Final = 1 << 20
# What a section costs beside its texts.
SECTION_BYTES: Final = 32


def header_to(header: Header) -> events_pb2.GetStateResponse:
    """Return the first message of a state."""
    told = events_pb2.StateHeader(cursor=header.cursor, head=header.head, log_id=header.log_id)
    return events_pb2.GetStateResponse(header=told)


def messages(parts: Sequence[Part]) -> Iterator[events_pb2.GetStateResponse]:
    """Put sections into messages of at most MESSAGE_BYTES, made one at a time; a larger one is in its own."""
    page: list[events_pb2.StateSection] = []
    size = 0
    for part in parts:
        section = events_pb2.StateSection(kind=part.kind, id=part.id, value_json=part.value)
        bytes_more = section.ByteSize() + SECTION_BYTES
        if page and size + bytes_more > MESSAGE_BYTES:
            yield _sections(page)
            page, size = [], 0
        page.append(section)
        size += bytes_more
    if page:
        yield _sections(page)


def _sections(page: Sequence[events_pb2.StateSection]) -> events_pb2.GetStateResponse:
    return events_pb2.GetStateResponse(sections=events_pb2.StateSections(sections=page))
