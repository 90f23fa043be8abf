"""How many durable Delivers a second, next to a bare grpc.aio echo of the same message.

Servers are `mobd serve` as shipped, all up at once and loaded in turn with h2load, on each store, on asyncio and on
uvloop; ratios are to the echo on asyncio of the same round. Every round delivers to a mob of its own. At the end the
servers are killed with SIGKILL, and every input id that was acknowledged must be in the store.
"""

import sys

from ground import DELIVER_PATH, IN_FLIGHT, MEMBERS, Ground, deliver_body, prepared
from plan import Place, Plan, Section, main, say
from team import conditions


def one_cell(ground: Ground, cell: str, mob_id: str) -> tuple[dict[str, float], int]:
    """Deliver to a new mob; also return how many inputs."""
    running = ground.servers[cell]
    running.create(mob_id, MEMBERS)
    data = deliver_body(ground.place.folder / "deliver.bin", mob_id)
    count = ground.count(cell)
    return ground.load(running, DELIVER_PATH, data, count).numbers(), count


def check(ground: Ground, delivered: dict[tuple[str, str], int]) -> None:
    """Kill the servers, and fail loudly if an acknowledged id is not in the store."""
    for running in ground.servers.values():
        running.end()
    for (cell, mob_id), count in delivered.items():
        missing = {f"{number:012}" for number in range(count)} - ground.sites[cell].input_ids(mob_id)
        if missing:
            some = sorted(missing)[:3]
            raise SystemExit(f"{cell}: {len(missing)} of {count} acknowledged inputs are not in the store: {some}")


def measure(plan: Plan, place: Place) -> Section:
    """Measure every store and loop."""
    section = Section({"members": MEMBERS, "in_flight": IN_FLIGHT}, [])
    delivered: dict[tuple[str, str], int] = {}
    with prepared(plan, place, uvloop=True) as ground:
        for cell, running in ground.servers.items():
            running.create("warm", MEMBERS)
            ground.warm(cell, running, DELIVER_PATH, deliver_body(place.folder / "warm.bin", "warm"))
            section.settings[cell] = running.durability()
        for number in range(plan.rounds):
            found = ground.echo_round()
            for cell in ground.servers:
                found[cell], delivered[cell, f"round-{number}"] = one_cell(ground, cell, f"round-{number}")
            section.rounds.append(found)
            say(f"deliver, round {number + 1}: {conditions()}")
        check(ground, delivered)
    say(f"deliver: all of {sum(delivered.values()):,} acknowledged inputs were found after SIGKILL")
    return section


if __name__ == "__main__":
    sys.exit(main(__doc__, measure))
