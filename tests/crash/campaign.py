"""A number of injections, one after the other, on stages of both stores; what was done, and what it took to recover."""

import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.crash import doubles, outages, points
from tests.crash.injection import Injection
from tests.crash.stage import RECOVERY_S, Stage
from tests.support.processes import say

INJECTIONS: Final[tuple[Injection, ...]] = (*points.injections(), *outages.injections(), *doubles.injections())
# Callers go on for so many acknowledgements after the server serves again.
AFTERWARDS: Final = 20


@dataclass
class Row:
    """What became of one injection on one store."""

    done: int = 0
    survived: int = 0
    # How long the injection and the recovery took, in seconds.
    seconds: list[float] = field(default_factory=list)


class Table:
    """What was injected, and what survived it."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], Row] = defaultdict(Row)
        self.skipped: dict[str, str] = {}

    def row(self, injection: Injection, store: str) -> Row:
        """Return the row of an injection on a store."""
        return self._rows[injection.name, store]

    @property
    def survived(self) -> int:
        """How many injections were survived."""
        return sum(row.survived for row in self._rows.values())

    def text(self) -> str:
        """Return it for people."""
        names = list(dict.fromkeys(one.name for one in INJECTIONS if any(one.name == key[0] for key in self._rows)))
        lines = [f"{'injected':32} {'sqlite':>10} {'postgresql':>10} {'slowest':>9}"]
        for name in names:
            cells, slowest = [], 0.0
            for store in ("sqlite", "postgresql"):
                row = self._rows.get((name, store))
                cells.append(f"{row.survived}/{row.done}" if row is not None else "-")
                slowest = max([slowest, *(row.seconds if row is not None else ())])
            lines.append(f"{name:32} {cells[0]:>10} {cells[1]:>10} {slowest:>7.1f} s")
        done = sum(row.done for row in self._rows.values())
        lines.append(f"{self.survived} of {done} survived: nothing acknowledged was lost, nothing was consumed twice")
        lines.extend(f"NOT DONE: {name}: {why}" for name, why in self.skipped.items())
        return "\n".join(lines)


def fitting(store: str, *, disk: bool, quick: bool = False) -> list[Injection]:
    """Return what can be done to a stage."""
    return [
        one
        for one in INJECTIONS
        if one.store in (None, store) and (disk or not one.needs_disk) and (one.quick or not quick)
    ]


def rotating(injections: Sequence[Injection], draw: random.Random) -> Iterator[Injection]:
    """Return all of them in a random order, again and again."""
    while True:
        order = list(injections)
        draw.shuffle(order)
        yield from order


async def inject(stage: Stage, injection: Injection, draw: random.Random, table: Table, number: int) -> None:
    """Do one thing to a stage under load, and check that nothing is lost."""
    row = table.row(injection, stage.store)
    row.done += 1
    before = stage.done
    async with stage.calling(draw):
        await stage.more(draw.randrange(5, 40))
        began = time.monotonic()
        found = await injection.do(stage, draw)
        await stage.served.serving(RECOVERY_S)
        await stage.more(AFTERWARDS)
        seconds = time.monotonic() - began
    await stage.check()
    row.survived += 1
    row.seconds.append(seconds)
    done = stage.done - before
    say(f"{number:4} {stage.store:10} {injection.name:32} {seconds:5.1f} s  {done:4} {stage.unit}  {found}")
