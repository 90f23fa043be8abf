"""What turns put out while they run, on its way to the stream: never in the way of anything else, and bounded."""

import threading
from collections import deque
from typing import Final

from mobd.v1 import agents_pb2

Frame = agents_pb2.AgentFrame
Event = agents_pb2.RunEvent | agents_pb2.RunProgress

# What waits for the stream. Beyond it the oldest is dropped: those who watch see a gap in the sequence.
WAITING: Final = 1024
WAITING_BYTES: Final = 1 << 20
# What leaves together.
TOGETHER: Final = 256
TOGETHER_BYTES: Final = 1 << 18


class LiveBuffer:
    """The live output of all runs of an agent, in order. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: deque[tuple[str, int, Event, int]] = deque()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._events)

    def put(self, run_id: str, fence: int, event: Event) -> bool:
        """Add an event of a run; return whether there was none, so that somebody must be told."""
        size = event.ByteSize()
        with self._lock:
            first = not self._events
            self._events.append((run_id, fence, event, size))
            self._bytes += size
            while len(self._events) > WAITING or self._bytes > WAITING_BYTES:
                self._bytes -= self._events.popleft()[3]
        return first

    def take(self) -> list[Frame]:
        """Return the next events as few entries, no more than may leave together."""
        frames: list[Frame] = []
        with self._lock:
            count = size = 0
            while self._events and count < TOGETHER and size < TOGETHER_BYTES:
                run_id, fence, event, one = self._events.popleft()
                self._bytes -= one
                size += one
                count += 1
                _add(frames, run_id, fence, event)
        return frames

    def take_run(self, run_id: str) -> list[Frame]:
        """Return everything of one run, which ends."""
        frames: list[Frame] = []
        with self._lock:
            others = deque[tuple[str, int, Event, int]]()
            for entry in self._events:
                if entry[0] == run_id:
                    self._bytes -= entry[3]
                    _add(frames, *entry[:3])
                else:
                    others.append(entry)
            self._events = others
        return frames


def _add(frames: list[Frame], run_id: str, fence: int, event: Event) -> None:
    if isinstance(event, agents_pb2.RunProgress):
        frames.append(Frame(run_progress=event))
        return
    last = frames[-1] if frames else Frame()
    if last.run_events.run_id != run_id or len(last.run_events.events) >= TOGETHER:
        last = Frame(run_events=agents_pb2.RunEvents(run_id=run_id, executor_fence=fence))
        frames.append(last)
    last.run_events.events.append(event)
