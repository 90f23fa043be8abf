"""What an agent is about to send, as few messages of many entries."""

import asyncio
from collections import deque
from typing import Final

from mobd.live import LiveBuffer
from mobd.v1 import agents_pb2

# What the protocol allows in one message, and how much goes together if there is more than one entry.
FRAMES: Final = 1024
TOGETHER_BYTES: Final = 1 << 20
# More than this means that the stream stands still. Nothing is lost by ending it: everything is sent again.
WAITING: Final = 8192


class Outbox:
    """The entries that wait for one stream. Live output leaves when nothing else waits, once the stream is attached."""

    def __init__(self, live: LiveBuffer | None = None) -> None:
        self._live = live if live is not None else LiveBuffer()
        self._attached = False
        self._frames: deque[agents_pb2.AgentFrame] = deque()
        self._filled = asyncio.Event()
        self._closed = False
        self.overflowed = asyncio.Event()

    def put(self, *frames: agents_pb2.AgentFrame) -> None:
        """Add entries; a full outbox says so and drops them."""
        if len(self._frames) + len(frames) > WAITING:
            self.overflowed.set()
            return
        if not self._closed:
            self._frames.extend(frames)
            self._filled.set()

    def attached(self) -> None:
        """Let live output leave from now on."""
        self._attached = True
        self._filled.set()

    def wake(self) -> None:
        """There is live output."""
        self._filled.set()

    def close(self) -> None:
        """Take nothing more; what is in it is still sent."""
        self._closed = True
        self._filled.set()

    async def take(self) -> agents_pb2.AttachRequest | None:
        """Return the next message as soon as there is one; None when there will be none."""
        while not self._frames:
            if self._attached and self._live:
                return agents_pb2.AttachRequest(frames=self._live.take())
            if self._closed:
                return None
            self._filled.clear()
            await self._filled.wait()
        request = agents_pb2.AttachRequest()
        size = 0
        while self._frames and len(request.frames) < FRAMES:
            size += self._frames[0].ByteSize()
            if request.frames and size > TOGETHER_BYTES:
                break
            request.frames.append(self._frames.popleft())
        return request
