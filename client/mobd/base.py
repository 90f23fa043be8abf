"""What all parts of the client stand on: the connection, calls that repeat themselves, and pages."""

# ruff: noqa: ASYNC109  the timeout of a call is over all of its repeats, and is told to the server

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Final, Self, TypedDict, TypeVar

from mobd import calls
from mobd.stubs import Stubs
from mobd.v1 import common_pb2

PAGE: Final = 500
Answer = TypeVar("Answer")
Item = TypeVar("Item")


class How(TypedDict, total=False):
    """What every change takes beside its content."""

    #: Decide, answer with `would_append`, and store nothing.
    validate_only: bool
    #: As whose agent the caller acts: refused with StaleFence once that run is no longer in flight.
    acting: common_pb2.Acting | None


class Base:
    """A connection to a server, opened by the first call."""

    def __init__(self, target: str | None = None, *, token: str | None = None, timeout: float = 30.0) -> None:
        #: The server's address: as given, else MOBD_TARGET, else localhost:7780.
        self.target = calls.target_of(target)
        self._token = calls.token_of(token)
        self._timeout = timeout
        self._open: Stubs | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection and end what is under way on it; the next call opens another."""
        stubs, self._open = self._open, None
        if stubs is not None:
            await stubs.channel.close()

    @property
    def _stubs(self) -> Stubs:
        if self._open is None:
            self._open = Stubs(calls.authorized(calls.open_channel(self.target), self._token))
        return self._open

    async def _call(self, method: Callable[..., Awaitable[Answer]], request: Any, timeout: float | None) -> Answer:
        return await calls.unary(self.target, method, request, self._timeout if timeout is None else timeout)

    async def _pages(
        self,
        method: Callable[[], Any],
        request: Any,
        items: Callable[[Any], Iterable[Item]],
        timeout: float | None,
    ) -> AsyncIterator[Item]:
        while True:
            answer: Any = await self._call(method(), request, timeout)
            for item in items(answer):
                yield item
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token
