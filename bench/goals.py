"""What mobd is to reach. Nothing fails if it is not: the page on performance says so."""

import msgspec
from load import median
from plan import Section, form_of, middle, spread

RATIO = "ratio"


class Goal(msgspec.Struct, frozen=True):
    """One number that a benchmark finds, and what it should be at least or at most."""

    benchmark: str
    what: str
    cell: str
    metric: str
    wanted: float
    at_most: bool = False
    unit: str = ""

    def found(self, section: Section) -> list[float]:
        """Return what each round found."""
        if self.metric == RATIO:
            return section.ratios(self.cell)
        return section.values(self.cell, self.metric)

    def row(self, section: Section) -> list[str]:
        """Return what is wanted, what was found, whether that is enough, and what the loop's CPU says of a ratio."""
        form = "{:.2f}" if self.metric == RATIO else form_of(self.metric)
        wanted = f"{'≤' if self.at_most else '≥'} {form.format(self.wanted)}{self.unit}"
        values = self.found(section)
        light = section.lightness(self.cell) if self.metric == RATIO else []
        found = spread(values, form) or "not measured"
        return [self.what, wanted, found, self.verdict(values), spread(middle(light), "{:.2f}")]

    def verdict(self, values: list[float]) -> str:
        """Return whether the median is enough."""
        if not values:
            return ""
        found = median(values)
        return "yes" if (found <= self.wanted if self.at_most else found >= self.wanted) else "no"


GOALS = (
    Goal("deliver", "Deliver, SQLite, to the echo", "sqlite", RATIO, 0.80),
    Goal("deliver", "Deliver, SQLite, on uvloop, to the echo on asyncio", "sqlite uvloop", RATIO, 0.90),
    Goal("deliver", "Deliver, PostgreSQL, to the echo", "postgresql", RATIO, 0.70),
    Goal("batch", "inputs in batches of 32, to the echo", "sqlite, 32 a call", RATIO, 5.0),
    Goal("batch", "inputs in batches of 256, to the echo", "sqlite, 256 a call", RATIO, 7.0),
    Goal("round_trips", "settled round trips, SQLite, to the echo", "sqlite, one watcher", RATIO, 0.55),
    Goal("round_trips", "settled round trips, PostgreSQL, to the echo", "postgresql, one watcher", RATIO, 0.42),
    Goal("fanout", "events to 16 live watchers, to the echo", "16 watchers, Deliver", RATIO, 5.0),
    Goal("replay", "events replayed to one reader, to the echo", "sqlite, WatchEvents, 1 reader", RATIO, 15.0),
    Goal(
        "memory",
        "an idle member with two ended inputs, read from a snapshot",
        "sqlite, 2 keys",
        "from_snapshot_bytes",
        1_024,
        at_most=True,
        unit=" B",
    ),
    Goal(
        "memory",
        "a full garbage collection among 100,000 members",
        "sqlite, garbage collector",
        "full_gc_ms",
        10,
        at_most=True,
        unit=" ms",
    ),
    Goal(
        "recovery",
        "100,000 members, SQLite, until all are in memory",
        "sqlite, 100 mobs of 1,000 members",
        "touched_s",
        1.0,
        at_most=True,
        unit=" s",
    ),
)
