"""How long a server that starts on an existing database takes, from exec to the first correct answers.

Every run starts `mobd serve` as shipped on the same database, asks for a mob whose head and member must be right,
delivers an input that must be accepted, waits until its health is SERVING (all mobs that owe something are in memory),
and ends with SIGKILL. `listens` is the same for an empty database: interpreter, imports and the check of the schema.
Mobs at rest are loaded when they are touched: `touched` is how long it takes until each of them has answered, 16 at a
time, counted from when the server served; for 100,000 members in 100 mobs that is their recovery.
"""

import sys
import time
from collections.abc import Callable, Sequence

import team
from load import median
from msgspec import Struct
from plan import Numbers, Place, Plan, Section, main, say
from seed import Seed, forget_snapshots, log_of, teams_of

MANY = 10_000
TEAMS = 100
TEAM = 1_000
TAIL = 200
KEYS = 2
# Of mobs at rest with one member, so many are touched.
TOUCHED = 1_000
AT_ONCE = 16
EVENTS = 100_000
DAYS = 10.0


class Known(Struct):
    """What must be answered of a mob, and which mobs are touched afterwards."""

    mob_id: str
    member_id: str
    head: int
    touched: Sequence[str] = ()


def start(site: team.Site, known: Known) -> Numbers:
    """Start a server and time its first answers."""
    began = time.monotonic()
    with site.serving() as running:
        found = {"listens_s": time.monotonic() - began}
        if known.mob_id:
            head = running.head(known.mob_id)
            assert head >= known.head, (head, known.head)
            assert running.member(known.mob_id, known.member_id).member_id == known.member_id
            found["answers_s"] = time.monotonic() - began
            running.deliver(known.mob_id, known.member_id, f"after-{time.time_ns()}")
            found["delivers_s"] = time.monotonic() - began
        running.wait_until_serving()
        found["serves_s"] = time.monotonic() - began
        before = running.rss()
        if known.touched:
            found["touched_s"] = running.touch(known.touched, known.member_id, AT_ONCE)
            found["bytes_each"] = (running.rss() - before) / len(known.touched)
        return found | {"rss_mb": running.rss() / 1e6}


def empty(_: Seed, __: Plan) -> Known:
    return Known("", "", 0)


def teams(seed: Seed, plan: Plan) -> Known:
    """Make 100,000 members in 100 mobs, each with two ended inputs, and a snapshot before the newest events."""
    members = TEAM if plan.seconds else 20
    made = teams_of(seed, plan.size(TEAMS, least=2), members, inputs=KEYS, tail=min(TAIL, members))
    # The first answers are about another mob, so that all of these are touched when the server serves.
    seed.mob("one").spawn(members)
    return Known("one", team.names(members)[0], 2, made)


def large(seed: Seed, plan: Plan) -> Known:
    """Make one mob of many members."""
    one = seed.mob("large")
    one.spawn(plan.size(MANY, least=20))
    one.ended_inputs(KEYS)
    seed.keep("large", one.mob.log_id, one.snapshot())
    return Known("large", list(one.mob.members)[-1], one.mob.head)


def long_log(seed: Seed, plan: Plan) -> Known:
    """Make one mob with a long log, and the snapshots that a server has taken by then."""
    events = plan.size(EVENTS, least=500)
    log_of(seed, "long", events, days=DAYS, keep_snapshots=True)
    return Known("long", "m00", events - 99)


def at_rest(seed: Seed, plan: Plan) -> Known:
    """Make many mobs of one member."""
    return many(seed, plan, agents=False)


def with_agents(seed: Seed, plan: Plan) -> Known:
    """Make many mobs, each with an agent that was attached when the server died."""
    return many(seed, plan, agents=True)


def many(seed: Seed, plan: Plan, *, agents: bool) -> Known:
    made = [f"mob-{number:05}" for number in range(plan.size(MANY, least=20))]
    for mob_id in made:
        small = seed.mob(mob_id)
        small.spawn(1)
        if agents:
            small.attach()
    return Known(made[0], "m0", 3, [] if agents else made[1 : 1 + TOUCHED])


class Case(Struct, frozen=True):
    """A database, and how often a server is started on it at most."""

    name: str
    make: Callable[[Seed, Plan], Known]
    starts: int = 3
    # Start once more after all snapshots were taken away.
    bare: bool = False


CASES = (
    Case("an empty database", empty),
    Case("100 mobs of 1,000 members", teams, bare=True),
    Case("1 mob of 10,000 members", large, bare=True),
    Case("1 mob of 100,000 events", long_log, bare=True),
    Case("10,000 mobs at rest", at_rest),
    Case("10,000 mobs with agents", with_agents, starts=1),
)


def of_case(case: Case, site: team.Site, plan: Plan) -> dict[str, list[Numbers]]:
    """Make a database and start servers on it."""
    seed = Seed(site.folder, site.url)
    known = case.make(seed, plan)
    seed.close()
    starts = min(case.starts, plan.repeats)
    found = {case.name: [start(site, known) for _ in range(starts)]}
    if case.bare and plan.seconds:
        seed = Seed(site.folder, site.url)
        forget_snapshots(seed)
        seed.close()
        found[f"{case.name}, no snapshot"] = [start(site, known) for _ in range(starts)]
    return found


def measure(plan: Plan, place: Place) -> Section:
    """Measure every store."""
    section = Section({"scale": plan.scale, "inputs_remembered": KEYS, "tail": TAIL, "touched_at_once": AT_ONCE}, [])
    section.rounds = [{} for _ in range(plan.repeats)]
    for store in plan.stores:
        for case in CASES if plan.seconds else (CASES[1], CASES[-1]):
            for name, runs in of_case(case, team.Site(place.folder, store, place.cluster), plan).items():
                for number, numbers in enumerate(runs):
                    section.rounds[number][f"{store}, {name}"] = numbers
                serves = median([one["serves_s"] for one in runs])
                say(f"recovery, {store}, {name}: serves after {serves:.2f} s; {team.conditions()}")
    return section


if __name__ == "__main__":
    sys.exit(main(__doc__, measure))
