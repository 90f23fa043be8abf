"""What a Deliver costs as a mob grows, in members and in the length of its log, against a bare grpc.aio echo.

Every size is measured in every round, each next to an echo of its own; ratios are to that echo. CPU is what all threads
of the server were on a core for, for each Deliver that was accepted.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import msgspec
import team
from load import Measured, Served, build_stamp, h2load, median, need_tools, serve_echo
from postgres import Cluster
from seed import Seed, log_of

ECHO = "/bench.Echo/Echo"
DELIVER = "/mobd.v1.BridgeService/Deliver"
MEMBERS = (10, 100, 1_000, 10_000)
LOGS = (1_000, 10_000, 100_000, 1_000_000)
# A member's queue holds 1,000 inputs, and nobody takes them: ten members take this many at most.
COUNT = 6_000
WARM_UP = 2_000
FLIGHT = 64
DAYS = 10.0

Pair = tuple[Measured, Measured]


class Bench:
    """The echo, and what h2load needs."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.count = count
        self.stamp = build_stamp(folder)
        self.echo: Served = serve_echo()
        self.load(self.echo, ECHO, "echo", 100, "warm", WARM_UP)

    def load(self, served: Served, path: str, mob_id: str, members: int, prefix: str, count: int = 0) -> Measured:
        """Load one server."""
        data = team.body(self.folder, mob_id, members, f"{prefix}-")
        return h2load(served, path, data, self.stamp, count or self.count, FLIGHT)

    def pair(self, running: team.Running, mob_id: str, members: int, prefix: str) -> Pair:
        """Measure the echo and then a Deliver of the same message."""
        echo = self.load(self.echo, ECHO, mob_id, members, prefix)
        before = running.head(mob_id)
        deliver = self.load(running, DELIVER, mob_id, members, prefix)
        accepted = running.head(mob_id) - before
        assert accepted == self.count, f"{accepted} of {self.count} were accepted"
        return echo, deliver


def by_members(bench: Bench, site: team.Site, rounds: int) -> dict[str, list[Pair]]:
    """New mobs of each size in every round, on one server."""
    found: dict[str, list[Pair]] = defaultdict(list)
    with site.serving() as running:
        running.create("warm", 100)
        bench.load(running, DELIVER, "warm", 100, "warm", WARM_UP)
        for number in range(rounds):
            for members in MEMBERS:
                mob_id = f"team-{members}-{number}"
                running.create(mob_id, members)
                found[f"{members:,} members"].append(bench.pair(running, mob_id, members, "r"))
            team.say(f"members, round {number + 1}: {team.conditions()}")
    return found


def by_log(bench: Bench, sites: dict[int, team.Site], rounds: int) -> dict[str, list[Pair]]:
    """A database and a server for each length of the log, 100 members in each."""
    for events, site in sites.items():
        seed = Seed(site.folder, site.url)
        log_of(seed, "long", events, days=DAYS, keep_snapshots=True)
        seed.close()
        team.say(f"a log of {events:,} events is there")
    found: dict[str, list[Pair]] = defaultdict(list)
    servers = {events: site.start(passivate_after_s=0) for events, site in sites.items()}
    try:
        for running in servers.values():
            bench.load(running, DELIVER, "long", 100, "warm", WARM_UP)
        for number in range(rounds):
            for events, running in servers.items():
                found[f"{events:,} events"].append(bench.pair(running, "long", 100, f"r{number}"))
            team.say(f"logs, round {number + 1}: {team.conditions()}")
    finally:
        for running in servers.values():
            running.end()
    return found


def row(name: str, pairs: list[Pair]) -> list[str]:
    """Return a line of the table: medians."""
    echo, deliver = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    ratios = [b.per_second / a.per_second for a, b in pairs]
    return [
        name,
        f"{median([one.per_second for one in deliver]):,.0f}",
        team.middle(ratios, "{:.2f}"),
        f"{median([one.p50_ms for one in deliver]):.1f} / {median([one.p99_ms for one in deliver]):.1f}",
        f"{median([one.p50_ms for one in echo]):.1f} / {median([one.p99_ms for one in echo]):.1f}",
        team.middle([one.loop_us + one.others_us for one in deliver]),
        team.middle([b.loop_us + b.others_us - a.loop_us - a.others_us for a, b in pairs]),
    ]


def of_store(
    options: argparse.Namespace, store: str, folder: Path, cluster: Cluster | None
) -> dict[str, dict[str, list[Pair]]]:
    """Measure one store."""
    bench = Bench(folder, options.count)
    try:
        found = {}
        if "members" in options.what:
            found["members"] = by_members(bench, team.Site(folder, store, cluster), options.rounds)
        if "log" in options.what:
            lengths = [events for events in LOGS if events <= options.events]
            sites = {events: team.Site(folder, store, cluster) for events in lengths}
            found["log"] = by_log(bench, sites, options.rounds)
        return found
    finally:
        bench.echo.kill()


def main() -> int:
    """Run all of it and print the tables."""
    parser = team.options_of(__doc__, stores="sqlite", rounds=5)
    parser.add_argument("--what", nargs="+", choices=["members", "log"], default=["members", "log"])
    parser.add_argument("--events", type=int, default=LOGS[-1], help="the longest log")
    parser.add_argument("--count", type=int, default=COUNT, help="requests in each measurement")
    options = parser.parse_args()
    missing = need_tools()
    if missing:
        team.say(f"bench: {missing}")
        return 2
    stores = options.store or ["sqlite"]
    numbers = {}
    head = ["per s", "ratio to echo", "p50 / p99 ms", "echo p50 / p99 ms", "CPU µs", "above echo µs"]
    with team.workplace(stores) as (folder, cluster):
        for store in stores:
            found = of_store(options, store, folder, cluster)
            for what in found.values():
                team.table([store, *head], [row(name, pairs) for name, pairs in what.items()])
            numbers[store] = msgspec.to_builtins(found)
    team.write_json(options.json, numbers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
