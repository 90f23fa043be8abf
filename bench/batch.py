"""DeliverBatch: durable inputs a second with 32 and with 256 in a call, next to a bare echo of one Deliver.

Ratios are inputs to echoes. Every input must have been accepted: the mob's log must have grown by as many events.
"""

import sys

from ground import Ground, batch_body, prepared
from plan import Place, Plan, Section, main, say
from team import conditions

PATH = "/mobd.v1.BridgeService/DeliverBatch"
# How many inputs are in a call, and how many calls in flight.
SHAPES = {32: 16, 256: 8}
# Nobody takes the inputs, and a member's queue holds 1,000.
MEMBERS = 1_000
RATE = 30_000.0


def one_cell(ground: Ground, store: str, each: int, number: int) -> dict[str, float]:
    """Deliver to a new mob, in batches of `each`."""
    running, in_flight = ground.servers[store], SHAPES[each]
    mob_id = f"batch-{each}-{number}"
    running.create(mob_id, MEMBERS)
    data = batch_body(ground.place.folder / "batch.bin", mob_id, each, MEMBERS)
    before = running.head(mob_id)
    count = ground.plan.count(RATE / each, least=in_flight)
    found = ground.load(running, PATH, data, count, in_flight, calls=each)
    accepted = running.head(mob_id) - before
    assert accepted == count * each, f"{accepted} of {count * each} were accepted"
    return found.numbers()


def measure(plan: Plan, place: Place) -> Section:
    """Measure both sizes on each store."""
    section = Section({"members": MEMBERS, "in_flight": {str(k): n for k, n in SHAPES.items()}}, [])
    with prepared(plan, place, uvloop=False) as ground:
        for number in range(plan.rounds + 1):
            found = ground.echo_round()
            for store in plan.stores:
                for each in SHAPES:
                    found[f"{store}, {each} a call"] = one_cell(ground, store, each, number)
            # The first round warms up.
            if number or not plan.seconds:
                section.rounds.append(found)
                say(f"batch, round {len(section.rounds)}: {conditions()}")
            if not plan.seconds:
                break
    return section


if __name__ == "__main__":
    sys.exit(main(__doc__, measure))
