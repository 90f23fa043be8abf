"""The newest events in which inputs begin and end, of all mobs together.

Whoever waits for an input asks for it when it has just ended, and what it became of is in two events. They were
published a moment ago: to read them again from the store takes longer than all the rest of the call. What is here is
what the log holds; what is not here is read.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

from mobd_server.machines import events as e
from mobd_server.machines.records import Record

KEPT: Final = frozenset({e.InputAccepted, e.RunSettled, e.InputAbandoned, e.InputSuperseded, e.InputCoalesced})
RECORDS: Final = 4_096
BYTES: Final = 8 << 20


class Recent:
    """Events by log and seq; the oldest make room. A log's id is never another's, so nothing has to be forgotten."""

    __slots__ = ("_bytes", "_order", "_records")

    def __init__(self) -> None:
        self._records: dict[tuple[str, int], Record] = {}
        self._order: deque[tuple[str, int]] = deque()
        self._bytes = 0

    def keep(self, log_id: str, records: Sequence[Record]) -> None:
        """Keep what was published, if inputs begin or end in it."""
        for record in records:
            if type(record.event) in KEPT:
                key = (log_id, record.seq)
                # A store that was set back brings other events under the same numbers.
                before = self._records.get(key)
                if before is None:
                    self._order.append(key)
                else:
                    self._bytes -= len(before.payload)
                self._records[key] = record
                self._bytes += len(record.payload)
                if len(self._order) > RECORDS or self._bytes > BYTES:
                    self._make_room()

    def find(self, log_id: str, seqs: Sequence[int]) -> list[Record] | None:
        """Return the events with these seqs, in their order, or None if not all of them are here."""
        found = [self._records.get((log_id, seq)) for seq in seqs]
        here = [record for record in found if record is not None]
        return here if len(here) == len(found) else None

    def _make_room(self) -> None:
        while len(self._order) > RECORDS or self._bytes > BYTES:
            record = self._records.pop(self._order.popleft())
            self._bytes -= len(record.payload)
