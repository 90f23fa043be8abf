"""How long a server that starts on an existing database takes, from exec to the first correct answer.

Every run starts `mobd serve` as shipped on the same database, asks for a mob whose head and member must be right,
delivers an input that must be accepted, waits until its health is SERVING, and ends with SIGKILL. `listens` is the same
for an empty database: it is the interpreter, the imports and the schema's check.
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import team
from load import median
from msgspec import Struct
from postgres import Cluster
from seed import Seed, forget_snapshots, log_of

MANY = 10_000
TOUCHED = 1_000
EACH = 2
DAYS = 10.0


class Run(Struct):
    """One start, in seconds from exec; memory in bytes."""

    listens: float
    answers: float
    delivers: float
    # When health says so: all mobs that owe something are in memory.
    serves: float
    rss: int


def start(site: team.Site, mob_id: str, member_id: str, head: int, number: int) -> Run:
    """Start a server and time its first answers about one mob."""
    began = time.monotonic()
    running = site.start()
    listens = time.monotonic() - began
    try:
        found = running.head(mob_id)
        assert found >= head, (found, head)
        assert running.member(mob_id, member_id).member_id == member_id
        answers = time.monotonic() - began
        running.deliver(mob_id, member_id, f"after-{number:06}-{time.time_ns()}")
        delivers = time.monotonic() - began
        running.wait_until_serving()
        return Run(listens, answers, delivers, time.monotonic() - began, running.rss())
    finally:
        running.end()


def rounds(site: team.Site, mob_id: str, member_id: str, head: int, count: int) -> list[Run]:
    """Start it a few times."""
    return [start(site, mob_id, member_id, head, number) for number in range(count)]


def one_large(site: team.Site, count: int) -> dict[str, list[Run]]:
    """One mob of many members, each with inputs that have ended: folded from its log, and read from a snapshot."""
    seed = Seed(site.folder, site.url)
    large = seed.mob("large")
    large.spawn(MANY)
    large.ended_inputs(EACH)
    seed.flush()
    head, last = large.mob.head, team.names(MANY)[-1]
    seed.close()
    found = {f"1 mob of {MANY:,} members, {head:,} events, no snapshot": rounds(site, "large", last, head, count)}
    seed = Seed(site.folder, site.url)
    seed.keep("large", large.mob.log_id, large.snapshot())
    seed.close()
    found[f"1 mob of {MANY:,} members, snapshot"] = rounds(site, "large", last, head, count)
    return found


def long_log(site: team.Site, events: int, count: int) -> dict[str, list[Run]]:
    """One mob with a long log: with the snapshots that a server has taken by then, and without any."""
    seed = Seed(site.folder, site.url)
    log_of(seed, "long", events, days=DAYS, keep_snapshots=True)
    seed.close()
    found = {f"1 mob of 100 members, {events:,} events, snapshots": rounds(site, "long", "m00", events - 99, count)}
    seed = Seed(site.folder, site.url)
    forget_snapshots(seed)
    seed.close()
    found["the same, no snapshot"] = rounds(site, "long", "m00", events - 99, count)
    return found


class Touched(Struct):
    """What it is to touch mobs that are not in memory."""

    mobs: int
    seconds: float
    bytes_each: float


def touch(running: team.Running) -> Touched:
    """Ask for some mobs, 64 at a time, as fast as a Python client can."""
    before = running.rss()
    began = time.monotonic()
    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(lambda number: running.member(f"mob-{number:05}", "m0"), range(1, TOUCHED + 1)))
    took = time.monotonic() - began
    assert len(found) == TOUCHED
    return Touched(TOUCHED, took, (running.rss() - before) / TOUCHED)


def many_small(site: team.Site, count: int, *, agents: bool) -> tuple[dict[str, list[Run]], list[Touched]]:
    """Many mobs of one member: at rest, or each with an agent that was attached when the server died."""
    seed = Seed(site.folder, site.url)
    for number in range(MANY):
        small = seed.mob(f"mob-{number:05}")
        small.spawn(1)
        if agents:
            small.attach()
    seed.close()
    name = f"{MANY:,} mobs of 1 member, " + ("each with an agent" if agents else "at rest")
    found = {name: rounds(site, "mob-00000", "m0", 3, count)}
    touched = []
    for _ in range(0 if agents else count):
        with site.serving() as running:
            running.member("mob-00000", "m0")
            touched.append(touch(running))
    return found, touched


def empty(site: team.Site, count: int) -> list[float]:
    """Return how long it takes until a server on an empty database listens."""
    found = []
    for _ in range(count):
        began = time.monotonic()
        with site.serving():
            found.append(time.monotonic() - began)
    return found


def of_store(
    options: argparse.Namespace, store: str, parent: Path, cluster: Cluster | None
) -> tuple[dict[str, list[Run]], list[Touched], list[float]]:
    """Measure one store."""

    def site() -> team.Site:
        team.say(f"{store}, {team.conditions()}")
        return team.Site(parent, store, cluster)

    nothing = empty(site(), options.rounds)
    runs = one_large(site(), options.rounds)
    found, touched = many_small(site(), options.rounds, agents=False)
    runs |= found | many_small(site(), options.rounds, agents=True)[0]
    if options.events:
        runs |= long_log(site(), options.events, options.rounds)
    return runs, touched, nothing


def row(name: str, runs: list[Run]) -> list[str]:
    """Return a line of the table: medians and ranges."""
    return [
        name,
        team.middle([run.listens for run in runs], "{:.2f}"),
        team.middle([run.answers for run in runs], "{:.2f}"),
        team.middle([run.delivers for run in runs], "{:.2f}"),
        team.middle([run.serves for run in runs], "{:.2f}"),
        f"{median([run.rss for run in runs]) / 1e6:,.0f}",
    ]


def main() -> int:
    """Run all of it and print the tables."""
    parser = team.options_of(__doc__, stores="both")
    parser.add_argument("--events", type=int, default=1_000_000, help="of the long log; 0: leave it out")
    options = parser.parse_args()
    stores = options.store or ["sqlite", "postgresql"]
    numbers: dict[str, object] = {}
    with team.workplace(stores) as (folder, cluster):
        for store in stores:
            runs, touched, nothing = of_store(options, store, folder, cluster)
            rows = [[f"{store}: nothing", team.middle(nothing, "{:.2f}"), "", "", "", ""]]
            rows += [row(name, found) for name, found in runs.items()]
            team.table([store, "listens, s", "answers, s", "delivers, s", "serves, s", "RSS, MB"], rows)
            each = [one.seconds / one.mobs * 1_000 for one in touched]
            size = [one.bytes_each / 1_024 for one in touched]
            print(f"\na touch of a mob that is at rest: {team.middle(each, '{:.2f}')} ms and", end=" ")
            print(f"{team.middle(size, '{:.1f}')} KiB, 64 at a time, {TOUCHED:,} mobs")
            numbers[store] = {"runs": msgspec.to_builtins(runs), "touched": msgspec.to_builtins(touched)}
    team.write_json(options.json, numbers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
