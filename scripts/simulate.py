"""Run many simulated worlds in parallel, and say which fail, with the fewest steps that still do.

python scripts/simulate.py --seeds 2000 --from 0 --jobs 2 --store sqlite
"""

import argparse
import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.checker.history import to_line  # noqa: E402 the path comes first
from tests.simulation.plan import Step  # noqa: E402 behind the path that leads to it
from tests.simulation.shrink import shrink  # noqa: E402 behind the path that leads to it
from tests.simulation.storage import Backend  # noqa: E402 behind the path that leads to it
from tests.simulation.world import Outcome, simulate  # noqa: E402 behind the path that leads to it

# How many failing worlds are shrunk; the others are named.
SHRUNK = 3
WORLDS_A_PROCESS = 500
# How many records of a shrunk world are printed, the last ones.
SHOWN = 60


def kind(failure: str) -> str:
    """Return what a failure is, without what differs from world to world."""
    name, _, rest = failure.partition(":")
    return f"{name}:{rest[:30]}" if name in ("logged", "uncaught") else name


def one(backend: Backend, seed: int) -> tuple[int, list[str], int, int]:
    """Run a world in a process of the pool."""
    outcome = simulate(seed, backend=backend)
    return seed, outcome.failures, outcome.ticks, len(outcome.records)


def begin() -> None:
    """Set a process of the pool up."""
    gc.collect()
    gc.freeze()


def outcomes(arguments: argparse.Namespace) -> Iterator[tuple[int, list[str], int, int]]:
    """Run worlds in parallel, and yield what came of them, in order.

    Processes grow with the worlds that they have run. They are replaced all at once: an executor that replaces each of
    them by itself (`max_tasks_per_child`) may wait for ever (CPython issue 115634).
    """
    last, some = arguments.first + arguments.seeds, arguments.jobs * WORLDS_A_PROCESS
    for first in range(arguments.first, last, some):
        with ProcessPoolExecutor(arguments.jobs, get_context("spawn"), initializer=begin) as pool:
            yield from pool.map(partial(one, arguments.store), range(first, min(last, first + some)), chunksize=4)


def show(seed: int, backend: Backend) -> None:
    """Shrink a failing world and print it."""
    found = simulate(seed, backend=backend)
    wanted = {kind(one) for one in found.failures}
    if not wanted:
        print(f"seed {seed} does not fail here")
        return

    def fails(steps: Sequence[Step]) -> bool:
        return bool(wanted & {kind(one) for one in simulate(seed, steps, backend).failures})

    steps = shrink(found.steps, fails)
    print(f"\nseed {seed}: {len(steps)} of {len(found.steps)} steps are enough")
    for step in steps:
        print(f"  {step}")
    tell(simulate(seed, steps, backend))


def tell(outcome: Outcome) -> None:
    """Print the end of a world's history, and what is wrong with it."""
    lines = [
        to_line(record) for record in outcome.records if type(record).__name__ not in ("Logged", "Final", "FinalEnd")
    ]
    for line in lines[-SHOWN:]:
        print(f"  {line[:300]}")
    for failure in outcome.failures:
        print(f"  FAILED {failure}")


def main() -> int:
    """Return how many worlds failed, at most 1."""
    parser = argparse.ArgumentParser(description="Run simulated worlds.")
    parser.add_argument("--seeds", type=int, default=200, help="how many worlds")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the number of the first one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many processes")
    parser.add_argument("--store", choices=get_args(Backend), default="memory", help="what keeps the mobs")
    parser.add_argument("--history", type=Path, help="write the history of the first world to this file, as JSON lines")
    arguments = parser.parse_args()
    if arguments.history is not None:
        outcome = simulate(arguments.first, backend=arguments.store)
        arguments.history.write_text("".join(to_line(one) + "\n" for one in outcome.records), encoding="utf-8")
    began, failed, kinds, ticks, records = time.monotonic(), [], Counter[str](), 0, 0
    for seed, failures, steps, seen in outcomes(arguments):
        ticks, records = ticks + steps, records + seen
        if failures:
            failed.append(seed)
            kinds.update({kind(one) for one in failures})
            print(f"seed {seed} failed: {failures[0][:200]}", flush=True)
    took = time.monotonic() - began
    print(
        f"{arguments.seeds} worlds in {took:.0f} s: {ticks} callbacks, {records} records, {len(failed)} failed {failed}"
    )
    for name, count in kinds.most_common():
        print(f"  {count:5} {name}")
    for seed in failed[:SHRUNK]:
        show(seed, arguments.store)
    return min(1, len(failed))


if __name__ == "__main__":
    sys.exit(main())
