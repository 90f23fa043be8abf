"""How messages travel between the parts of a world: in order along each direction of a call, else as they like.

A node is what would be a process of its own. Whatever it begins runs in its context, so that a simulation can tell to
whom a callback belongs, and can let a node die without a word.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from typing import Final, Generic, TypeVar

# What a sender may have on its way that the receiver has not read, as the flow control of HTTP/2 has it.
WINDOW_BYTES: Final = 64 << 10

T = TypeVar("T")


class Node:
    """What would be a process: what runs in its context is its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.context = copy_context()
        self.context.run(_NODE.set, self)

    def __repr__(self) -> str:
        return f"<{self.name}>"


_NODE: Final[ContextVar[Node | None]] = ContextVar("mobd_testing_node", default=None)


def here() -> Node | None:
    """Return the node that this code runs on; None: the test itself."""
    return _NODE.get()


def node_of(context: Context) -> Node | None:
    """Return the node to which a context belongs."""
    return context.get(_NODE)


class Network:
    """Everything arrives at once. A simulation has another one."""

    def delay(self, sender: Node | None, receiver: Node | None) -> float:
        """Return how many seconds the next message is under way."""
        del sender, receiver
        return 0.0


class Link:
    """One direction between two contexts: what is carried arrives in order."""

    __slots__ = ("_loop", "_network", "_receiver", "_sender", "_under_way")

    def __init__(self, network: Network, sender: Context, receiver: Context) -> None:
        self._loop = asyncio.get_running_loop()
        self._network = network
        self._sender = node_of(sender)
        self._receiver = receiver
        self._under_way: deque[Callable[[], None]] = deque()

    def carry(self, deliver: Callable[[], None]) -> None:
        """Call `deliver` at the receiver when the message has arrived."""
        self._under_way.append(deliver)
        delay = self._network.delay(self._sender, node_of(self._receiver))
        if delay > 0:
            self._loop.call_later(delay, self._arrive, context=self._receiver)
        else:
            self._loop.call_soon(self._arrive, context=self._receiver)

    def _arrive(self) -> None:
        # The first that was sent, whichever delay this was: nothing overtakes.
        self._under_way.popleft()()


class Pipe(Generic[T]):
    """The messages of one direction of a call, and at last its end, which is of the type `T`."""

    __slots__ = ("_closed", "_ended", "_items", "_link", "_loop", "_reader", "_room", "_unread")

    def __init__(self, link: Link) -> None:
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._items: deque[bytes | T] = deque()
        self._unread = 0
        self._ended = False
        self._closed = False
        self._reader: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    @property
    def link(self) -> Link:
        """What carries it."""
        return self._link

    async def put(self, message: bytes) -> None:
        """Send a message, when there is room for it. What is sent after the end is lost."""
        while self._unread >= WINDOW_BYTES and not self._closed:
            self._room = self._loop.create_future()
            await self._room
        self._unread += len(message)
        self._link.carry(lambda: self._add(message))

    def end(self, end: T) -> None:
        """Send the end, behind everything else."""
        self._link.carry(lambda: self.cut(end))

    def cut(self, end: T) -> None:
        """End here and now; what is under way is lost. Only the first end counts."""
        if not self._ended:
            self._ended = True
            self._items.append(end)
            self._wake()
        self.close()

    def close(self) -> None:
        """Let nobody wait for room any more."""
        self._closed = True
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def get(self) -> bytes | T:
        """Return the next message or, again and again, the end."""
        while not self._items:
            self._reader = self._loop.create_future()
            await self._reader
        item = self._items[0]
        if isinstance(item, bytes):
            self._items.popleft()
            self._unread -= len(item)
            if self._unread < WINDOW_BYTES and self._room is not None and not self._room.done():
                self._room.set_result(None)
        return item

    def _add(self, message: bytes) -> None:
        if not self._ended:
            self._items.append(message)
            self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
