"""What an injection is: something that is done to a stage while callers deliver."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from tests.crash.stage import Stage

# Returns when it is over, in a few words what it found. That the server serves then, and that nothing is lost, is for
# the campaign to see.
Do = Callable[[Stage, random.Random], Awaitable[str]]
Store = Literal["sqlite", "postgresql"]


@dataclass(frozen=True)
class Injection:
    """One thing to do to a stage."""

    name: str
    do: Do
    # It does not wait until leases, graces or outages have passed.
    quick: bool = False
    # None: on both.
    store: Store | None = None
    needs_disk: bool = False
