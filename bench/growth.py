"""What a Deliver costs as a mob grows, in members and in the length of its log, against a bare grpc.aio echo.

Every size is measured in every round, each next to an echo of its own; ratios are to that echo, and so is `above echo`:
the CPU of all threads of the server for each Deliver, less that of the echo.
"""

import sys
from contextlib import ExitStack

import team
from ground import DELIVER_PATH, ECHO_PATH, IN_FLIGHT, WARM_UP, deliver_body
from load import Measured, Served, h2load, serve_echo
from plan import Numbers, Place, Plan, Section, main, say
from seed import Seed, log_of

MEMBERS = (10, 100, 1_000, 10_000)
LOGS = (1_000, 10_000, 100_000)
# A member's queue holds 1,000 inputs, and nobody takes them: ten members take this many at most.
COUNT = 6_000
RATE = 3_000.0
DAYS = 10.0


class Bench:
    """The echo, and how it is loaded."""

    def __init__(self, plan: Plan, place: Place) -> None:
        self.place = place
        self.count = min(COUNT, plan.count(RATE))
        self.warm_up = WARM_UP if plan.seconds else IN_FLIGHT
        self.echo: Served = serve_echo()
        self.load(self.echo, ECHO_PATH, "echo", 100, "warm", self.warm_up)

    def load(self, served: Served, path: str, mob_id: str, members: int, prefix: str, count: int) -> Measured:
        """Load one server."""
        data = deliver_body(self.place.folder / "growth.bin", mob_id, members, f"{prefix}-")
        return h2load(served, path, data, self.place.stamp, count, IN_FLIGHT)

    def warm(self, running: team.Running, mob_id: str) -> None:
        """Warm a server up, with a mob that it has."""
        self.load(running, DELIVER_PATH, mob_id, 100, "warm", self.warm_up)

    def pair(self, running: team.Running, mob_id: str, members: int, prefix: str) -> Numbers:
        """Measure the echo and then a Deliver of the same message."""
        echo = self.load(self.echo, ECHO_PATH, mob_id, members, prefix, self.count)
        before = running.head(mob_id)
        deliver = self.load(running, DELIVER_PATH, mob_id, members, prefix, self.count)
        accepted = running.head(mob_id) - before
        assert accepted == self.count, f"{accepted} of {self.count} were accepted"
        return {
            **deliver.numbers(),
            "ratio": deliver.per_second / echo.per_second,
            "echo_per_second": echo.per_second,
            "above_echo_us": deliver.loop_us + deliver.others_us - echo.loop_us - echo.others_us,
        }


def by_log(site: team.Site, events: int) -> None:
    """Fill a database with one mob with a log of that length."""
    seed = Seed(site.folder, site.url)
    log_of(seed, "long", events, days=DAYS, keep_snapshots=True)
    seed.close()


def measure(plan: Plan, place: Place) -> Section:
    """Measure the first store: new mobs of each size on one server, and a server for each length of the log."""
    store = plan.stores[0]
    section = Section({"store": store}, [])
    with ExitStack() as stack:
        bench = Bench(plan, place)
        stack.callback(bench.echo.kill)
        one = stack.enter_context(team.Site(place.folder, store, place.cluster).serving(passivate_after_s=0))
        one.create("warm", 100)
        bench.warm(one, "warm")
        logs: dict[int, team.Running] = {}
        for events in dict.fromkeys(plan.size(events, least=500) for events in LOGS):
            site = team.Site(place.folder, store, place.cluster)
            by_log(site, events)
            logs[events] = stack.enter_context(site.serving(passivate_after_s=0))
            bench.warm(logs[events], "long")
        for number in range(plan.rounds):
            found = {}
            for members in dict.fromkeys(plan.size(members, least=10) for members in MEMBERS):
                one.create(f"team-{members}-{number}", members)
                found[f"{members:,} members"] = bench.pair(one, f"team-{members}-{number}", members, "r")
            for events, running in logs.items():
                found[f"a log of {events:,} events"] = bench.pair(running, "long", 100, f"r{number}")
            section.rounds.append(found)
            say(f"growth, round {number + 1}: {team.conditions()}")
    return section


if __name__ == "__main__":
    sys.exit(main(__doc__, measure))
