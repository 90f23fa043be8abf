"""What an idle member costs in memory.

Resident memory of the server is looked at between mobs of 10,000 members each; the first mob fills what the allocator
keeps anyway and does not count. What a member is made of is counted in this process, object by object.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import team
from msgspec import Raw, Struct
from postgres import Cluster
from seed import Seed

from mobd_server.machines import snapshot as states
from mobd_server.machines.state import Member, Mob, Operation

MEMBERS = 10_000
MOBS = 3
KEYS = 2
# Members whose objects are counted.
COUNTED = 1_000


class Costs(Struct):
    """Bytes for each member in one variant."""

    spawned: list[float] = []
    left: list[float] = []
    folded: list[float] = []
    read: list[float] = []


def each(before: int, after: int) -> float:
    return (after - before) / MEMBERS


def spawned(site: team.Site) -> tuple[list[float], list[float]]:
    """Spawn members by RPC; then let the mobs leave memory. Return bytes for each member that is there, and that left.

    What was freed and is not given back to the system counts as there.
    """
    with site.serving(passivate_after_s=8, snapshot_tail=1) as running:
        sizes = []
        for number in range(MOBS + 1):
            running.create(f"mob-{number}", MEMBERS)
            # Without the first.
            sizes.append(running.rss())
        grown = [each(before, after) for before, after in pairwise(sizes)]
        running.wait_for("snapshot_written", MOBS + 1)
        return grown, [(running.rss() - sizes[0]) / MEMBERS / MOBS]


def loaded(site: team.Site, *, snapshots: bool) -> list[float]:
    """Fill mobs that a server then loads, each from its log or from a snapshot."""
    sizes = []
    with site.serving(passivate_after_s=0, snapshot_events=10_000_000) as running:
        for number in range(MOBS + 1):
            running.member(f"mob-{number}", team.names(MEMBERS)[-1])
            sizes.append(running.rss())
    team.say(f"{'snapshot' if snapshots else 'log'}: {[f'{size / 1e6:.0f}' for size in sizes]} MB")
    return [each(before, after) for before, after in pairwise(sizes)][1:]


def seeded(site: team.Site, keys: int) -> tuple[list[float], list[float]]:
    """Return bytes for each member folded from a log, and read from a snapshot."""
    seed = Seed(site.folder, site.url)
    made = []
    for number in range(MOBS + 1):
        one = seed.mob(f"mob-{number}")
        one.spawn(MEMBERS)
        one.ended_inputs(keys)
        seed.flush()
        made.append(one)
    seed.close()
    folded = loaded(site, snapshots=False)
    seed = Seed(site.folder, site.url)
    for one in made:
        seed.keep(one.mob.mob_id, one.mob.log_id, one.snapshot())
    seed.close()
    return folded, loaded(site, snapshots=True)


# What it is made of.


def size_of(value: object) -> int:
    """Return what an object takes of the allocator, which gives out multiples of 16 bytes."""
    if isinstance(value, Raw):
        return rounded(Raw.__basicsize__) + rounded(sys.getsizeof(b"") + memoryview(value).nbytes)
    return rounded(sys.getsizeof(value))


def rounded(size: int) -> int:
    return -(-size // 16) * 16


def pieces(value: object, name: str, seen: dict[int, object]) -> Iterator[tuple[str, int]]:
    """Yield the name and size of everything that only `value` holds; `seen` is what others hold, and grows."""
    if id(value) in seen:
        return
    seen[id(value)] = value
    if isinstance(value, Struct):
        yield type(value).__name__, size_of(value)
        for field in value.__struct_fields__:
            yield from pieces(getattr(value, field), f"{type(value).__name__}.{field}", seen)
    elif isinstance(value, dict):
        yield f"{name}, the dict", size_of(value)
        for key, one in value.items():
            yield from pieces(key, f"{name}, keys", seen)
            yield from pieces(one, name, seen)
    elif isinstance(value, list):
        yield f"{name}, the list", size_of(value)
        for one in value:
            yield from pieces(one, name, seen)
    else:
        yield name, size_of(value)


def shared_by_all() -> dict[int, object]:
    """Return what is there once, however many members there are: small numbers, texts and defaults."""
    common: list[object] = [*range(-5, 257), None, True, False, ""]
    for kind in (Member, Operation):
        common += kind.__struct_defaults__
    common += vars(sys.modules[Mob.__module__]).values()
    return {id(value): value for value in common}


def made_of(mob: Mob) -> Counter[str]:
    """Return what a mob's members, their operations and receipts take, by what it is, in bytes."""
    seen = shared_by_all()
    found: Counter[str] = Counter()
    containers = {"Mob.members": mob.members, "Mob.operations": mob.operations, "Mob.receipts": mob.receipts}
    for name, container in containers.items():
        for what, size in pieces(container, name, seen):
            found[what] += size
    return found


def print_parts(folder: Path) -> dict[str, dict[str, float]]:
    """Print what members are made of that were read from a snapshot: new, with inputs, with inputs of a run."""
    seed = Seed(team.Site(folder, "sqlite", None).folder, None)
    mobs = {name: seed.mob(name) for name in ("spawned", f"{KEYS} inputs", f"{KEYS} inputs, 1 run")}
    for one in mobs.values():
        one.spawn(COUNTED)
    mobs[f"{KEYS} inputs"].ended_inputs(KEYS)
    mobs[f"{KEYS} inputs, 1 run"].runs(KEYS)
    found = {name: made_of(states.decode(states.encode(one.mob))) for name, one in mobs.items()}
    seed.close()
    largest = Counter[str]()
    for sizes in found.values():
        largest |= sizes
    rows = [
        [what, *(f"{sizes[what] / COUNTED:,.0f}" for sizes in found.values())]
        for what, size in largest.most_common()
        if size >= COUNTED
    ]
    rows.append(["together", *(f"{sizes.total() / COUNTED:,.0f}" for sizes in found.values())])
    team.table(["bytes for each member", *found], rows)
    return {name: {what: size / COUNTED for what, size in sizes.items()} for name, sizes in found.items()}


def shown(values: list[float]) -> str:
    return team.middle(values) if values else ""


def of_store(store: str, folder: Path, cluster: Cluster | None) -> dict[str, Costs]:
    """Measure one store."""

    def site() -> team.Site:
        return team.Site(folder, store, cluster)

    grown, left = spawned(site())
    without = Costs(grown, left, *seeded(site(), 0))
    return {"no input remembered": without, f"{KEYS} inputs remembered": Costs([], [], *seeded(site(), KEYS))}


def main() -> int:
    """Run all of it and print the tables."""
    parser = team.options_of(__doc__, stores="sqlite", rounds=1)
    parser.add_argument("--parts", action="store_true", help="only say what a member is made of")
    options: argparse.Namespace = parser.parse_args()
    stores = options.store or ["sqlite"]
    numbers: dict[str, object] = {}
    with team.workplace([] if options.parts else stores) as (folder, cluster):
        numbers["parts"] = print_parts(folder)
        for store in [] if options.parts else stores:
            found = of_store(store, folder, cluster)
            rows = [
                [name, shown(one.spawned), shown(one.folded), shown(one.read), shown(one.left)]
                for name, one in found.items()
            ]
            head = ["spawned by RPC", "folded from the log", "read from a snapshot", "after it left memory"]
            team.table([f"{store}: bytes for each member", *head], rows)
            numbers[store] = msgspec.to_builtins(found)
    team.write_json(options.json, numbers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
