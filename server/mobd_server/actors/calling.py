"""The call within which something is logged.

A call has a task of its own, and what it starts inherits its context. Timers that it armed fire long after it ended:
then the context still names it, and `calling` no longer does.
"""

from contextvars import ContextVar
from typing import Final

from msgspec import Struct


class Calling(Struct, gc=False):
    """A call that is being answered."""

    method: str
    principal: str = ""
    mob_id: str = ""
    request_id: str = ""
    ended: bool = False

    def facts(self) -> dict[str, str]:
        """Return what a log line says of the call."""
        named = {
            "method": self.method,
            "principal": self.principal,
            "mob_id": self.mob_id,
            "request_id": self.request_id,
        }
        return {name: value for name, value in named.items() if value}


_CALLING: Final[ContextVar[Calling | None]] = ContextVar("mobd_calling", default=None)


def begin(method: str) -> Calling:
    """Take note that this task answers a call of `method`; set `ended` when it has."""
    calling = Calling(method)
    _CALLING.set(calling)
    return calling


def calling() -> Calling | None:
    """Return the call that is being answered, or None outside of all calls."""
    found = _CALLING.get()
    return None if found is None or found.ended else found
