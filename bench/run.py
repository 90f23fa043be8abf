"""Run all benchmarks, or those that are named; keep what they found in bench/history, and write docs/performance.md.

A quick run is kept under a name that git ignores, and the page does not change.
"""

import os
import shlex
import sys
import time
from pathlib import Path

import batch
import deliver
import fanout
import growth
import history
import memory
import msgspec
import recovery
import replay
import report
import round_trips
import state
from load import need_tools
from plan import Measure, Plan, end_in_order, parser_of, place_for, plan_of, rows_of, say, table

BENCHMARKS: dict[str, Measure] = {
    "deliver": deliver.measure,
    "batch": batch.measure,
    "round_trips": round_trips.measure,
    "fanout": fanout.measure,
    "replay": replay.measure,
    "recovery": recovery.measure,
    "memory": memory.measure,
    "growth": growth.measure,
    "state": state.measure,
}


def one(name: str, plan: Plan) -> history.Kept:
    """Run one benchmark, and print its table."""
    say(f"--- {name}")
    before, began = os.getloadavg()[0], time.monotonic()
    with place_for(plan) as place:
        section = BENCHMARKS[name](plan, place)
    took = time.monotonic() - began
    print(f"\n{name}, {took:.0f} s\n\n{table(*rows_of(section))}", flush=True)
    return history.Kept.of(section, took, (round(before, 1), round(os.getloadavg()[0], 1)))


def main() -> int:
    """Run, keep and report."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="one of them; all if none is named")
    parser.add_argument("--history", type=Path, default=history.FOLDER)
    options = parser.parse_args()
    end_in_order()
    missing = need_tools()
    if missing:
        say(f"bench: {missing}")
        return 2
    plan = plan_of(options)
    entry = history.begin(plan, shlex.join(["bench/run.py", *sys.argv[1:]]), quick=options.quick)
    path = options.history
    for name in options.only or BENCHMARKS:
        entry.benchmarks[name] = one(name, plan)
        # After each of them: what was measured stays if the next one fails.
        path = history.write(msgspec.structs.replace(entry), options.history)
    say(f"kept in {path}")
    if not options.quick and options.history == history.FOLDER:
        report.write(history.FOLDER, report.PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
