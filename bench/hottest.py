"""Record a server under load with py-spy, and print what its event loop spends its time in.

Writes the stacks to bench/profiles, as speedscope wants them (https://www.speedscope.app) and folded for a flame graph;
prints the functions of the loop's thread by the share of samples in which they run themselves, and in which they are
anywhere on the stack. gRPC's own part of the loop has no frames of Python: it is seen as `Handle._run`, and with
`--native` by the functions of C. Most of what a thread waits is left out; `select` is the rest. Rates are those of a
server that is being watched.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import batch
import fanout
import msgspec
import replay
import round_trips
import team
from ground import DELIVER_PATH, MEMBERS, Ground, deliver_body, prepared
from load import HERE, Measured, median, need_tools
from plan import Place, end_in_order, parser_of, place_for, plan_of, say, table

PROFILES = HERE / "profiles"
HOTTEST = 30
PER_SECOND = 200
RATE = 2_000.0
REPLAYED = 50_000

Stack = tuple[str, ...]


def record(running: team.Running, seconds: float, raw: Path, *, native: bool) -> "subprocess.Popen[bytes]":
    """Start to record a server's stacks."""
    command = [str(Path(sys.executable).parent / "py-spy"), "record", "--pid", str(running.pid), "--output", str(raw)]
    command += ["--format", "raw", "--rate", str(PER_SECOND), "--duration", str(round(seconds))]
    command += ["--threads", *(["--native"] if native else [])]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def stacks(raw: Path) -> Iterator[tuple[Stack, int]]:
    """Yield every stack, outermost first, and how often it was seen. The first of its frames is the thread."""
    for line in raw.read_text().splitlines():
        frames, _, count = line.rpartition(" ")
        yield tuple(frames.split(";")), int(count)


def speedscope(found: list[tuple[Stack, int]]) -> dict[str, object]:
    """Return a profile for each thread in the file format of speedscope."""
    frames: dict[str, int] = {}
    threads: dict[str, tuple[list[list[int]], list[int]]] = {}
    for (thread, *stack), count in found:
        samples, weights = threads.setdefault(thread, ([], []))
        samples.append([frames.setdefault(frame, len(frames)) for frame in stack])
        weights.append(count)
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "shared": {"frames": [{"name": name} for name in frames]},
        "profiles": [
            {"type": "sampled", "name": name, "unit": "none", "startValue": 0, "endValue": sum(weights)}
            | {"samples": samples, "weights": weights}
            for name, (samples, weights) in threads.items()
        ],
    }


def function(frame: str) -> str:
    """Return a frame without its line, so that a function is one."""
    name, _, place = frame.partition(" (")
    file = place.rpartition(":")[0] or place.rstrip(")")
    return f"{name} ({'/'.join(Path(file).parts[-2:])})" if file else name


def hottest(found: list[tuple[Stack, int]]) -> tuple[list[list[str]], float]:
    """Return the rows of the loop thread's functions, and its part of all samples."""
    own: Counter[str] = Counter()
    inclusive: Counter[str] = Counter()
    total = 0
    for (thread, *stack), count in found:
        if "MainThread" not in thread:
            continue
        total += count
        names = [function(frame) for frame in stack]
        own[names[-1]] += count
        for name in set(names):
            inclusive[name] += count
    first = [name for name, _ in own.most_common(HOTTEST)]
    rows = [[name, f"{own[name] / total:.1%}", f"{inclusive[name] / total:.1%}"] for name in first]
    return rows, total / max(1, sum(count for _, count in found))


def deliver(ground: Ground, store: str, number: int) -> Measured:
    """Deliver to a new mob."""
    running, mob_id = ground.servers[store], f"deliver-{number}"
    running.create(mob_id, MEMBERS)
    data = deliver_body(ground.place.folder / "deliver.bin", mob_id)
    return ground.load(running, DELIVER_PATH, data, ground.plan.count(RATE))


def numbers_of(found: dict[str, float]) -> Measured:
    """Return what another benchmark measured."""
    return Measured(found["per_second"], 0.0, 0.0, found["loop_us"], found["others_us"])


# What the server does while it is recorded, again and again.
WORK: dict[str, Callable[[Ground, str, int], Measured]] = {
    "deliver": deliver,
    "batch": lambda ground, store, number: numbers_of(batch.one_cell(ground, store, 32, number)),
    "round_trips": lambda ground, store, number: numbers_of(
        round_trips.settled(ground, store, "thin", f"{number}-", 20 * round_trips.CALLERS)
    ),
    "watches": lambda ground, store, number: numbers_of(
        round_trips.asked(ground, store, "thin", f"{number}-", 8 * round_trips.CALLERS)
    ),
    "fanout": lambda ground, store, number: numbers_of(
        fanout.one_cell(ground, ground.servers[store], f"fanout-{number}", fanout.WAYS["16 watchers, Deliver"])
    ),
    "replay": lambda ground, store, _: numbers_of(replay.watched(ground, ground.servers[store], REPLAYED, 1)),
}


def profile(place: Place, options: argparse.Namespace) -> None:
    """Load a server, record it, write and print."""
    plan = msgspec.structs.replace(plan_of(options), uvloop=False)
    store = plan.stores[0]
    PROFILES.mkdir(exist_ok=True)
    stem = PROFILES / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{store}-{options.work}"
    make = partial(replay.fill, events=REPLAYED) if options.work == "replay" else (lambda _: None)
    with ExitStack() as stack:
        ground = stack.enter_context(prepared(plan, place, uvloop=False, stores=[store], make=make))
        if options.work in ("round_trips", "watches"):
            stack.enter_context(round_trips.agents(ground))
        work = WORK[options.work]
        work(ground, store, 0)
        recorder = record(ground.servers[store], options.duration, stem.with_suffix(".folded"), native=options.native)
        stack.callback(recorder.kill)
        found: list[Measured] = []
        while recorder.poll() is None:
            found.append(work(ground, store, len(found) + 1))
    if recorder.returncode:
        raise SystemExit(f"py-spy ended with {recorder.returncode}: may it trace processes here?")
    seen = list(stacks(stem.with_suffix(".folded")))
    stem.with_suffix(".speedscope.json").write_text(json.dumps(speedscope(seen)))
    rows, part = hottest(seen)
    rate, loop_us = median([one.per_second for one in found]), median([one.loop_us for one in found])
    print(f"{store}, {options.work}: {rate:,.0f} a second, {loop_us:.0f} µs of the loop each, while it was recorded;")
    print(f"the loop's thread has {part:.0%} of the samples. {stem}.*\n")
    print(table(["function", "self", "inclusive"], rows))


def main() -> int:
    """Profile what was asked for."""
    parser = parser_of(__doc__)
    parser.add_argument("--work", choices=WORK, default="deliver")
    parser.add_argument("--duration", type=int, default=10, help="for how long it is recorded, in seconds")
    parser.add_argument("--native", action="store_true", help="with the frames of C; it slows the server down more")
    options = parser.parse_args()
    end_in_order()
    missing = need_tools()
    if missing:
        say(f"bench: {missing}")
        return 2
    plan = msgspec.structs.replace(plan_of(options), stores=tuple(options.store or ["sqlite"]))
    with place_for(plan) as place:
        options.store = list(plan.stores)
        profile(place, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
