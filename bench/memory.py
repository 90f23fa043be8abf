"""What idle members cost: resident memory of each, and what the garbage collector makes of 100,000 of them.

Resident memory of the server is looked at between mobs of 10,000 members each; the first mob fills what the allocator
keeps anyway and does not count. For the collector 100 mobs of 1,000 members with two ended inputs each are loaded; then
a full collection is timed, and the longest pause while another mob is delivered to. `--parts` only counts, in this
process and object by object, what a member is made of.
"""

import argparse
import json
import os
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path

import parts
import plan as plans
import team
from ground import DELIVER_PATH, IN_FLIGHT, deliver_body
from load import HERE, h2load, median
from plan import Place, Plan, Round, Section, say
from seed import Seed, teams_of

MEMBERS = 10_000
MOBS = 3
KEYS = 2
TEAMS = 100
TEAM = 1_000
# Mobs are touched from this many calls at a time.
AT_ONCE = 16
RATE = 2_000.0


class Memory:
    """One round on one store."""

    def __init__(self, plan: Plan, place: Place, store: str) -> None:
        self.plan = plan
        self.place = place
        self.store = store
        self.members = plan.size(MEMBERS, least=20)

    def site(self) -> team.Site:
        """Return an empty site."""
        return team.Site(self.place.folder, self.store, self.place.cluster)

    def each(self, sizes: list[int]) -> float:
        """Return bytes for each member: the median of mobs, without the first."""
        return median([(after - before) / self.members for before, after in pairwise(sizes)][1:])

    def spawned(self) -> float:
        """Spawn members by RPC."""
        with self.site().serving(passivate_after_s=0) as running:
            sizes = [running.rss()]
            for number in range(MOBS + 1):
                running.create(f"mob-{number}", self.members)
                sizes.append(running.rss())
        return self.each(sizes)

    def loaded(self, site: team.Site) -> float:
        """Let a server load mobs that are there."""
        sizes = []
        with site.serving(passivate_after_s=0, snapshot_events=10_000_000) as running:
            sizes.append(running.rss())
            for number in range(MOBS + 1):
                running.member(f"mob-{number}", team.names(self.members)[-1])
                sizes.append(running.rss())
        return self.each(sizes)

    def seeded(self, keys: int) -> dict[str, float]:
        """Return bytes for each member folded from a log, and read from a snapshot."""
        site = self.site()
        seed = Seed(site.folder, site.url)
        made = []
        for number in range(MOBS + 1):
            one = seed.mob(f"mob-{number}")
            one.spawn(self.members)
            one.ended_inputs(keys)
            seed.flush()
            made.append(one)
        seed.close()
        folded = self.loaded(site)
        seed = Seed(site.folder, site.url)
        for one in made:
            seed.keep(one.mob.mob_id, one.mob.log_id, one.snapshot())
        seed.close()
        return {"folded_bytes": folded, "from_snapshot_bytes": self.loaded(site)}

    def collected(self) -> dict[str, float]:
        """Time the collector in a server that holds many members."""
        site = self.site()
        mobs, members = self.plan.size(TEAMS, least=2), TEAM if self.plan.seconds else 20
        seed = Seed(site.folder, site.url)
        names = teams_of(seed, mobs, members, inputs=KEYS, tail=0)
        seed.close()
        log = site.folder / "gc.log"
        os.environ["BENCH_GC"] = str(log)
        with site.serving([str(HERE / "gc_watch.py")], passivate_after_s=0) as running:
            running.wait_until_serving()
            # What was collected at the start is another matter.
            report(running, log, 1)
            before = running.rss()
            running.touch(names, team.names(members)[-1], AT_ONCE)
            held = running.rss() - before
            full = report(running, log, 2)
            running.create("busy", 100)
            data = deliver_body(self.place.folder / "busy.bin", "busy")
            h2load(running, DELIVER_PATH, data, self.place.stamp, self.plan.count(RATE), IN_FLIGHT)
            under_load = report(running, log, 3)
        return {
            "members": mobs * members,
            "full_gc_ms": full["full_ms"],
            "longest_pause_ms": under_load["longest_ms"],
            "loading_longest_pause_ms": full["longest_ms"],
            "held_bytes_each": held / mobs / members,
        }

    def round(self) -> Round:
        """Measure all of it."""
        without = {f"{self.store}, no key": {"spawned_bytes": self.spawned(), **self.seeded(0)}}
        return (without if self.plan.seconds else {}) | {
            f"{self.store}, {KEYS} keys": self.seeded(KEYS),
            f"{self.store}, garbage collector": self.collected(),
        }


def report(running: team.Running, log: Path, times: int) -> dict[str, float]:
    """Ask a server for its pauses; it collects everything first."""
    os.kill(running.pid, signal.SIGUSR1)
    deadline = time.monotonic() + 30.0
    while not log.exists() or len(log.read_text().splitlines()) < times:
        assert time.monotonic() < deadline, "the server says nothing of its collector"
        time.sleep(0.01)
    found: dict[str, float] = json.loads(log.read_text().splitlines()[-1])
    return found


def measure(plan: Plan, place: Place) -> Section:
    """Measure the first store: what members are made of in memory does not depend on it."""
    memory = Memory(plan, place, plan.stores[0])
    section = Section({"members_in_a_mob": memory.members, "inputs_remembered": KEYS}, [])
    for number in range(plan.repeats):
        section.rounds.append(memory.round())
        say(f"memory, round {number + 1}: {team.conditions()}")
    return section


def main() -> int:
    """Measure, or count."""
    parser = plans.parser_of(__doc__)
    parser.add_argument("--parts", action="store_true", help="only say what a member is made of")
    options: argparse.Namespace = parser.parse_args()
    if options.parts:
        return parts.main()
    return plans.main(__doc__, measure, options)


if __name__ == "__main__":
    sys.exit(main())
