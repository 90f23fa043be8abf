"""What a member is made of: counted in this process, object by object, of members that were read from a snapshot."""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import team
from msgspec import Raw, Struct
from plan import table
from seed import Seed

from mobd_server.machines import snapshot as states
from mobd_server.machines.state import Member, Mob, Operation

KEYS = 2
# Members whose objects are counted.
COUNTED = 1_000


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


def main() -> int:
    """Print what members are made of: new, with inputs, with inputs of a run."""
    with tempfile.TemporaryDirectory(prefix="mobd-bench-") as folder:
        seed = Seed(team.Site(Path(folder), "sqlite", None).folder, None)
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
    print(table(["bytes for each member", *found], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
