"""Streams that are open, and their end when the token with which they were opened is no longer good.

A call that is answered once ends by itself; a stream goes on for as long as its reader likes. When tokens were read
again each stream is asked who it is of, as at its beginning. One that waits for something to tell is interrupted where
it waits, and one that is being sent to ends behind that message; both are told why.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from mobd_server.errors import MobdError, TokenUnknown

# How long a stream whose reader takes nothing may go on: it can't be told.
UNREAD_S: Final = 5.0


class Guest:
    """One stream, in the task that serves it."""

    __slots__ = ("_loop", "_task", "authorization", "principal", "refusal", "waits")

    def __init__(self, authorization: str | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._loop = task.get_loop()
        self.authorization = authorization
        # Known when the call was let in.
        self.principal: str | None = None
        # Why it ends.
        self.refusal: MobdError | None = None
        # Whether it waits for something to tell, and can be interrupted there.
        self.waits = False

    def end(self, refusal: MobdError) -> None:
        """Let it end with `refusal`, soon."""
        if self.refusal is not None:
            return
        self.refusal = refusal
        if self.waits:
            self._task.cancel()
        else:
            self._loop.call_later(UNREAD_S, self._task.cancel)

    def interrupted(self) -> MobdError | None:
        """Return why it was interrupted, once, and let its task go on; None if somebody else cancelled it."""
        if self.refusal is not None:
            self._task.uncancel()
        return self.refusal


class Guests:
    """The streams of a server that are open."""

    def __init__(self) -> None:
        self._open: set[Guest] = set()

    @contextmanager
    def enter(self, authorization: str | None) -> Iterator[Guest]:
        """Take note of a stream, in its task, for as long as it is open."""
        guest = Guest(authorization)
        self._open.add(guest)
        try:
            yield guest
        finally:
            self._open.discard(guest)

    def ask_again(self, identify: Callable[[str | None], str]) -> int:
        """End the streams of those who are not known any more, or are somebody else now; return how many."""
        ended = 0
        for guest in list(self._open):
            refusal: MobdError | None = None
            try:
                if identify(guest.authorization) != guest.principal:
                    refusal = TokenUnknown("the token of this stream stands for another caller now: open it again")
            except MobdError as error:
                refusal = error
            if refusal is not None:
                ended += 1
                guest.end(refusal)
        return ended
