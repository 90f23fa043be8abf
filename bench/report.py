"""Write docs/performance.md from the newest history; what people wrote between its marks stays.

For each benchmark the newest entry counts that has it. `--check` only says whether the page is what it would be.
"""

import argparse
import importlib
import inspect
import sys
import textwrap
from pathlib import Path

import history
from goals import GOALS
from history import Entry, Kept
from plan import rows_of, table

PAGE = history.ROOT / "docs" / "performance.md"
BEGIN = "<!-- what was learned: written by people -->"
END = "<!-- generated from here on: bench/report.py -->"
# In this order; those that are not measured yet are left out.
BENCHMARKS = {
    "deliver": "Deliver",
    "batch": "Batches",
    "round_trips": "Settled round trips",
    "fanout": "Watchers",
    "replay": "Replay",
    "recovery": "Starting",
    "memory": "Idle members",
    "growth": "Growing mobs",
    "state": "States of the past",
}
INTRODUCTION = """\
# Performance

This page is written by `make bench`: the tables come from the newest runs that are kept in `bench/history`, with all
their rounds; only the part on what was learned is written by people.

`make bench` runs everything, `make bench BENCH=deliver` one benchmark, `make bench QUICK=1` all of it in minutes and
without touching this page. It needs h2load and a C compiler (`apt-get install nghttp2-client gcc libc6-dev`), and
PostgreSQL for its part.

Servers are `mobd serve` as shipped, with `synchronous=FULL` and fsync on. The measure is a bare `grpc.aio` echo of a
Deliver, on asyncio, that is loaded in turn with what is measured, in every round: a ratio is that of one round, and the
tables have the median with the least and the greatest. The load generator, agents and PostgreSQL share the cores with
the server. Absolute figures are of that machine and hour; `by loop CPU` is the loop's CPU for an echo over that for a
call, which other work on the machine hardly moves. Loop and other threads are CPU µs of the server for each call,
input, round trip or event.
"""


def page(entries: dict[str, Entry], notes: str) -> str:
    """Return the page."""
    parts = [INTRODUCTION, "## Goals\n", goals(entries)]
    parts += [f"{BEGIN}\n\n{notes.strip()}\n\n{END}\n"]
    for name, title in BENCHMARKS.items():
        if name in entries:
            parts.append(benchmark(name, title, entries[name]))
    return "\n".join(parts).rstrip() + "\n"


def goals(entries: dict[str, Entry]) -> str:
    """Return the table of goals."""
    rows = []
    for goal in GOALS:
        if goal.benchmark in entries:
            rows.append(goal.row(entries[goal.benchmark].benchmarks[goal.benchmark].section()))
        else:
            rows.append([goal.what, "", "not measured", "", ""])
    return table(["", "goal", "measured", "reached", "by loop CPU"], rows)


def benchmark(name: str, title: str, entry: Entry) -> str:
    """Return the section of one benchmark: what it is, where and when it was measured, and its table."""
    kept = entry.benchmarks[name]
    about = inspect.getdoc(importlib.import_module(name)) or ""
    return f"## {title}\n\n{about}\n\n{conditions(name, entry, kept)}\n\n{table(*rows_of(kept.section()))}"


def conditions(name: str, entry: Entry, kept: Kept) -> str:
    """Say how and on what it was measured."""
    machine = entry.machine
    changed = ", with changes" if entry.changed else ""
    libraries = ", ".join(f"{library} {machine[library]}" for library in history.LIBRARIES if library in machine)
    settings = "; ".join(f"{key.replace('_', ' ')}: {setting(value)}" for key, value in kept.settings.items())
    said = (
        f"`make bench BENCH={name}`, {entry.utc}, commit {entry.commit}{changed}; load average {kept.load[0]} before"
        f" and {kept.load[1]} after, {kept.seconds:.0f} s in all. {machine['cores']} cores of {machine['cpu']},"
        f" {machine['memory']}, {machine['system']}, Python {machine['python']}, {libraries}. With {settings}."
    )
    return textwrap.fill(said, 120, break_long_words=False, break_on_hyphens=False)


def setting(value: object) -> str:
    """Return a setting as people read it."""
    if isinstance(value, dict):
        return ", ".join(f"{one} with {name}" for name, one in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def notes_of(text: str) -> str:
    """Return what people wrote."""
    return text.partition(BEGIN)[2].partition(END)[0]


def generated(folder: Path, file: Path) -> str:
    """Return the page as it should be."""
    return page(history.newest(history.read(folder)), notes_of(file.read_text()))


def write(folder: Path, file: Path) -> None:
    """Write the page."""
    file.write_text(generated(folder, file))


def main() -> int:
    """Write it, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--history", type=Path, default=history.FOLDER)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    if not options.check:
        write(options.history, options.page)
        return 0
    if generated(options.history, options.page) == options.page.read_text():
        return 0
    print(f"{options.page} is not what the newest history makes of it: bench/report.py writes it", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
