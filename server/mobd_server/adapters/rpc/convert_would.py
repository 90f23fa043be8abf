"""What would be appended, as callers who only ask see it."""

from collections.abc import Sequence
from typing import Final

from mobd.v1 import events_pb2
from mobd_server.adapters.rpc.convert_events import event_to
from mobd_server.machines.records import Record

# An answer holds at most 4 MiB, and may show what was asked for beside this.
WOULD_BYTES: Final = 512 << 10


def would_append(records: Sequence[Record]) -> list[events_pb2.Event]:
    """Return the events of a decision that was rolled back, in order; those behind 512 KiB are left out."""
    shown: list[events_pb2.Event] = []
    room = WOULD_BYTES
    for record in records:
        event = event_to(record)
        room -= event.ByteSize()
        if shown and room < 0:
            break
        shown.append(event)
    return shown
