"""What all benchmarks have in common: how long they take, what they yield, and how each is run by itself."""

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from load import build_stamp, median, need_tools
from postgres import Cluster

STORES = ("sqlite", "postgresql")
ECHO = "echo"
# How the columns of tables are headed, by metric.
LABELS = {
    "per_second": "per s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "longest_ms": "longest ms",
    "loop_us": "loop µs",
    "others_us": "other threads µs",
    "inputs_per_second": "inputs per s",
    "events_per_message": "events a message",
    "bytes_per_event": "bytes an event",
    "echo_per_second": "echo per s",
    "above_echo_us": "above echo µs",
    "listens_s": "listens s",
    "answers_s": "answers s",
    "delivers_s": "delivers s",
    "serves_s": "serves s",
    "touched_s": "touched s",
    "bytes_each": "bytes a mob touched",
    "rss_mb": "RSS MB",
    "spawned_bytes": "spawned, bytes each",
    "folded_bytes": "folded from the log",
    "from_snapshot_bytes": "read from a snapshot",
    "full_gc_ms": "full collection ms",
    "longest_pause_ms": "longest pause ms",
    "loading_longest_pause_ms": "longest while loading ms",
    "held_bytes_each": "RSS, bytes each",
    "state_s": "state s",
    "size_mb": "MB",
}
# The metrics of one cell in one round, by name. `per_second` of a cell over that of the echo is its ratio.
Numbers = dict[str, float]
Round = dict[str, Numbers]


class Plan(msgspec.Struct, frozen=True):
    """How much is measured."""

    rounds: int = 5
    # How often something is done that takes long and hardly differs from one time to the next.
    repeats: int = 2
    # How long h2load should load one server in one round, in seconds.
    seconds: float = 1.0
    stores: tuple[str, ...] = STORES
    uvloop: bool = True
    # How large mobs and logs are, as a part of what the benchmark is about.
    scale: float = 1.0

    def count(self, per_second: float, least: int = 64) -> int:
        """Return how many calls take as long as a round should, at such a rate."""
        return max(least, int(per_second * self.seconds))

    def size(self, full: int, least: int = 1) -> int:
        """Return how large something is that is `full` large in a full run."""
        return max(least, int(full * self.scale))


FULL = Plan()
QUICK = Plan(rounds=3, repeats=1, seconds=0.5, scale=0.1)
TINY = Plan(rounds=1, repeats=1, seconds=0.0, stores=("sqlite",), uvloop=False, scale=0.001)


class Section(msgspec.Struct):
    """What one benchmark found."""

    # What was measured, as far as it is not in the benchmark's name.
    settings: dict[str, Any]
    # In the order in which they were measured: in each, the numbers of every cell.
    rounds: list[Round]

    def cells(self) -> list[str]:
        """Return the names of the cells, in order."""
        return list(dict.fromkeys(cell for one in self.rounds for cell in one))

    def values(self, cell: str, metric: str) -> list[float]:
        """Return a metric of a cell, of all rounds that have it."""
        return [one[cell][metric] for one in self.rounds if metric in one.get(cell, {})]

    def lightness(self, cell: str) -> list[float]:
        """Return the loop's CPU for an echo over that for a call of a cell: a ratio that other processes move less."""
        return [
            one[ECHO]["loop_us"] / one[cell]["loop_us"]
            for one in self.rounds
            if one.get(cell, {}).get("loop_us") and "loop_us" in one.get(ECHO, {})
        ]

    def ratios(self, cell: str, metric: str = "per_second", base: str = ECHO) -> list[float]:
        """Return a metric of a cell over that of the echo of the same round, of all rounds that have both."""
        return [
            one[cell][metric] / one[base]["per_second"]
            for one in self.rounds
            if metric in one.get(cell, {}) and one.get(base, {}).get("per_second")
        ]


class Place(msgspec.Struct):
    """Where a benchmark works: a directory, the library that h2load needs, and PostgreSQL if it is asked for."""

    folder: Path
    stamp: Path
    cluster: Cluster | None


@contextmanager
def place_for(plan: Plan) -> Iterator[Place]:
    """Make a place, and take it away at the end."""
    folder = Path(tempfile.mkdtemp(prefix="mobd-bench-"))
    cluster = Cluster.start(folder) if "postgresql" in plan.stores else None
    try:
        yield Place(folder, build_stamp(folder), cluster)
    finally:
        if cluster is not None:
            cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


Measure = Callable[[Plan, Place], Section]


def end_in_order() -> None:
    """Let SIGTERM end this process as an exception does, so that the servers that it started end, too."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def say(text: str) -> None:
    """Print what goes on."""
    print(text, file=sys.stderr, flush=True)


def spread(values: Sequence[float], form: str = "{:,.0f}") -> str:
    """Return the median and the range, or the one value."""
    if not values:
        return ""
    shown = form.format(median(values))
    return shown if len(values) == 1 else f"{shown} [{form.format(min(values))}, {form.format(max(values))}]"


def form_of(metric: str) -> str:
    """Return how the values of a metric are written."""
    if metric.endswith(("_ms", "_mb", "_us")):
        return "{:,.1f}"
    return "{:.2f}" if metric.endswith("_s") or metric == "ratio" else "{:,.0f}"


def rows_of(section: Section) -> tuple[list[str], list[list[str]]]:
    """Return a table of all cells: medians, and in brackets least and greatest.

    If there is an echo, ratios to it come first, and only these have their range: absolute figures move with the
    machine.
    """
    metrics = list(dict.fromkeys(name for one in section.rounds for cell in one.values() for name in cell))
    echo = bool(section.values(ECHO, "per_second"))
    head = ["", *(["ratio", "by loop CPU"] if echo else []), *(LABELS.get(name, name) for name in metrics)]
    rows = []
    for cell in section.cells():
        row = [cell]
        if echo:
            row += [spread(section.ratios(cell), "{:.2f}"), spread(middle(section.lightness(cell)), "{:.2f}")]
        for name in metrics:
            values = section.values(cell, name)
            row.append(spread(middle(values) if echo else values, form_of(name)))
        rows.append(row)
    return head, rows


def middle(values: Sequence[float]) -> list[float]:
    """Return the median alone, if there is one."""
    return [median(values)] if values else []


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser of what every benchmark takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter rounds, smaller mobs and logs")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="how long one server is loaded in a round")
    parser.add_argument("--store", action="append", choices=STORES, help="default: both")
    parser.add_argument("--no-uvloop", action="store_true", help="leave out what runs on uvloop")
    return parser


def plan_of(options: argparse.Namespace) -> Plan:
    """Return what was asked for."""
    if options.tiny:
        return TINY
    plan = QUICK if options.quick else FULL
    return msgspec.structs.replace(
        plan,
        rounds=options.rounds or plan.rounds,
        repeats=min(options.rounds or plan.repeats, plan.repeats),
        seconds=options.seconds if options.seconds is not None else plan.seconds,
        stores=tuple(options.store or plan.stores),
        uvloop=not options.no_uvloop,
    )


def main(doc: str | None, measure: Measure, options: argparse.Namespace | None = None) -> int:
    """Run one benchmark by itself and print its table."""
    plan = plan_of(options or parser_of(doc).parse_args())
    end_in_order()
    missing = need_tools()
    if missing:
        say(f"bench: {missing}")
        return 2
    with place_for(plan) as place:
        section = measure(plan, place)
    print(table(*rows_of(section)))
    return 0
