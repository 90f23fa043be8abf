"""Following the log of a mob, and what its agents put out, over breaks and restarts."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

from mobd import calls
from mobd.v1 import events_pb2


class EventWatch(AsyncIterator[events_pb2.Event]):
    """The events of a mob, each once and in order, over any number of breaks of the connection.

    It ends after the last event of a destroyed mob. `cursor` says where it stands: what was yielded is behind it. Keep
    cursor and log_id to go on in another process. Leave early with `aclose()`, or use it in `async with`.
    """

    def __init__(self, method: Callable[..., Any], request: events_pb2.WatchEventsRequest) -> None:
        self._method = method
        self._request = request
        self._events = self._follow()

    @property
    def cursor(self) -> int | None:
        """Where to go on; None until the server has said where the watch began."""
        start = self._request.start
        return start.after_cursor if start.WhichOneof("start") == "after_cursor" else None

    @property
    def log_id(self) -> str:
        """The log that the cursor belongs to; empty until the server has named it."""
        return self._request.log_id

    async def __anext__(self) -> events_pb2.Event:
        return await anext(self._events)

    async def aclose(self) -> None:
        """End the watch."""
        await self._events.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _follow(self) -> AsyncGenerator[events_pb2.Event, None]:
        answers = calls.stream(lambda: self._method(self._request), calls.SILENCE_S)
        try:
            async for answer in answers:
                if answer.WhichOneof("part") == "bookmark":
                    self._request.log_id = answer.bookmark.log_id
                    self._pass(answer.bookmark.cursor)
                for event in answer.page.events:
                    if event.seq > (self.cursor or 0):
                        # Before it is yielded: a consumer that fails on it does not get it again.
                        self._pass(event.seq)
                        yield event
        finally:
            await answers.aclose()

    def _pass(self, cursor: int) -> None:
        if cursor >= (self.cursor or 0):
            self._request.start.after_cursor = cursor


class AgentEventWatch(AsyncIterator[events_pb2.AgentEvent]):
    """What the agents of a mob put out from now on, over any number of breaks of the connection.

    Nothing of it is stored: what comes during a break is missed, and the `sequence` of each run shows a gap; what this
    reader is too slow for is counted by an event of payload `lagged`. It ends when the mob is destroyed. In
    `async with` the block begins as soon as the server listens, so that what is delivered in it is not missed. Leave
    early with `aclose()`.
    """

    def __init__(self, method: Callable[..., Any], request: events_pb2.WatchAgentEventsRequest) -> None:
        self._answers = calls.stream(lambda: method(request))
        self._events: deque[events_pb2.AgentEvent] = deque()

    async def __anext__(self) -> events_pb2.AgentEvent:
        while not self._events:
            self._events.extend((await anext(self._answers)).events)
        return self._events.popleft()

    async def aclose(self) -> None:
        """End the watch."""
        await self._answers.aclose()

    async def __aenter__(self) -> Self:
        # The first answer says that the server listens.
        first = await anext(self._answers, None)
        self._events.extend(first.events if first is not None else ())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
