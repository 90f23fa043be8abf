"""Two injections at once: the server dies somewhere while something else fails."""

import asyncio
import random
from collections.abc import Iterator
from functools import partial

from tests.crash import outages
from tests.crash.injection import Injection
from tests.crash.points import crash_at
from tests.crash.stage import Stage

# Where the server dies, and what else is done that does not touch it.
POINTS = ("before_commit", "after_commit", "before_dispatch", "after_settle", "after_acquire", "before_attach_answer")
BESIDE = (
    "agent: killed",
    "agents: all killed",
    "agent: frozen",
    "wire to callers: held",
    "wire to agents: cut",
    "wire to agents: held",
    "wire to store: cut",
    "wire to store: held",
    "store: crashed",
    "store: frozen",
)


async def both(beside: Injection, stage: Stage, draw: random.Random) -> str:
    """Let the server die at a point, and something else happen meanwhile."""
    point, seed = draw.choice(POINTS), draw.randrange(1 << 32)
    found = await asyncio.gather(crash_at(point, stage, draw), beside.do(stage, random.Random(seed)))
    return "; ".join(found)


def injections() -> Iterator[Injection]:
    """Return all of them."""
    for one in outages.injections():
        if one.name in BESIDE:
            yield Injection(f"crash + {one.name}", partial(both, one), store=one.store)
