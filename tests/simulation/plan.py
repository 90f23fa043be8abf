"""What happens in a world, drawn from a number before it begins: a list of steps that can be shortened."""

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

MEMBERS: Final = {"ada": "analyst", "bob": "analyst", "cyd": "analyst", "lea": "lead"}
CLIENTS: Final = ("client-1", "client-2", "client-3")
HOSTS: Final = ("host-1", "host-2", "host-3")
INPUTS: Final = 24
# Mobs that are made and deleted again and again.
PASSING: Final = ("p", "q")
# How long trouble lasts, in seconds of the world.
HORIZON_S: Final = 40.0

# What leaves little to be seen after it.
ENDS: Final = ("complete", "destroy", "reset", "retire_all")

# What a turn may do, and how often.
MOODS: Final = {
    "succeed": 40,
    "slow": 8,
    "emit": 8,
    "record": 6,
    "steered": 8,
    "fail": 10,
    "abandon": 3,
    "obey": 6,
    "hang": 4,
    "stubborn": 3,
    "operation": 4,
}


@dataclass(frozen=True)
class Step:
    """At a time, somebody does something."""

    at: float
    who: str
    what: str
    how: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.at:7.3f} {self.who:9} {self.what} {json.dumps(self.how)}"


Maker = Callable[[random.Random], dict[str, Any]]


def _member(chance: random.Random) -> str:
    return chance.choice([*MEMBERS, "ada", "ada", "bob"])


def _target(chance: random.Random) -> dict[str, Any]:
    # With a number of an incarnation that may be over.
    fence = {"generation": chance.randrange(3)} if chance.random() < 0.15 else {}
    return {"member": _member(chance), **fence}


def _request(chance: random.Random) -> dict[str, Any]:
    # Few ids, so that some are used again: for the same request, or for another one.
    return {"request": f"r{chance.randrange(12)}"} if chance.random() < 0.4 else {}


def _deliver(chance: random.Random) -> dict[str, Any]:
    how = _target(chance)
    if chance.random() < 0.9:
        how["input"] = f"i{chance.randrange(INPUTS)}"
    how["text"] = chance.choice(["one", "one", "one", "two"])
    for name, odds in (("steer", 0.25), ("quiet", 0.1), ("supersedes", 0.15), ("hurry", 0.1)):
        if chance.random() < odds:
            how[name] = True
    return how


def _drafts(chance: random.Random) -> dict[str, Any]:
    return {"drafts": [_deliver(chance) for _ in range(chance.randrange(1, 6))]}


def _aimed(chance: random.Random) -> dict[str, Any]:
    return {**_target(chance), **_request(chance)}


def _mob(chance: random.Random) -> dict[str, Any]:
    return _request(chance)


def _passing(chance: random.Random) -> dict[str, Any]:
    return {"mob": chance.choice(PASSING)}


def _asked(chance: random.Random) -> dict[str, Any]:
    return {"member": _member(chance), "input": f"i{chance.randrange(INPUTS)}"}


CALLS: Final[dict[str, tuple[int, Maker]]] = {
    "deliver": (70, _deliver),
    "batch": (10, _drafts),
    "ask": (8, _deliver),
    "interrupt": (5, _aimed),
    "hard_cancel": (5, _aimed),
    "spawn": (10, _aimed),
    "retire_member": (3, _aimed),
    "respawn_member": (3, _aimed),
    "retire_runtime": (1, _aimed),
    "destroy_runtime": (1, _aimed),
    "retire_all": (1, _mob),
    "stop": (2, _mob),
    "resume": (6, _mob),
    "reset": (1, _mob),
    "complete": (1, _mob),
    "destroy": (1, _mob),
    "watch_input": (4, _asked),
    "get_input": (2, _asked),
    "observe": (3, _target),
    "list": (2, _mob),
    "operation": (3, _mob),
    "watch": (3, lambda chance: {"seconds": chance.random() * 20}),
    "state": (1, _mob),
    "found": (6, _passing),
    "remove": (5, _passing),
}
FAULTS: Final = ("aborted", "lost", "unknown", "crash_before", "crash_after", "crash_late")
TROUBLES: Final[dict[str, tuple[int, Maker]]] = {
    "crash": (4, lambda chance: {"down_s": chance.random() * 4}),
    "restart": (2, lambda _: {}),
    "zombie": (2, lambda chance: {"seconds": chance.random() * 6}),
    "freeze": (3, lambda chance: {"seconds": chance.random() * 8}),
    "disconnect": (2, lambda _: {}),
    # Never by a day in all: what is delivered is forgotten then.
    "clock": (2, lambda chance: {"seconds": chance.choice([-6_000, -600, -2, 2, 600, 6_000])}),
    "store_away": (2, lambda chance: {"seconds": chance.random() * 8}),
    "store_fault": (7, lambda chance: {"faults": chance.choices(FAULTS, k=chance.randrange(1, 4))}),
    "break": (4, lambda chance: {"host": chance.choice(HOSTS)}),
    "cut": (4, lambda chance: {"host": chance.choice(HOSTS), "seconds": chance.random() * 12}),
    "freeze_agent": (2, lambda chance: {"host": chance.choice(HOSTS), "seconds": chance.random() * 12}),
    "kill_agent": (5, lambda chance: {"host": chance.choice(HOSTS), "silently": chance.random() < 0.4}),
    "drain_agent": (2, lambda chance: {"host": chance.choice(HOSTS)}),
    "cut_client": (2, lambda chance: {"client": chance.choice(CLIENTS), "seconds": chance.random() * 6}),
}


def _agent(chance: random.Random) -> dict[str, Any]:
    roles = chance.choice([["analyst"], ["analyst"], ["lead"], ["analyst", "lead"]])
    how: dict[str, Any] = {"host": chance.choice(HOSTS), "roles": roles, "capacity": chance.randrange(1, 4)}
    if chance.random() < 0.2:
        how["members"] = [_member(chance)]
    if chance.random() < 0.5:
        how["steer"] = True
    if chance.random() < 0.1:
        how.update(_passing(chance))
    return how


def _drawn(chance: random.Random, table: dict[str, tuple[int, Maker]]) -> tuple[str, dict[str, Any]]:
    names = list(table)
    name = chance.choices(names, [table[one][0] for one in names])[0]
    return name, table[name][1](chance)


def draw(seed: int) -> list[Step]:
    """Return the plan of a world, in the order of time."""
    chance = random.Random(f"{seed}/plan")
    steps = [Step(0.05, CLIENTS[0], "spawn", {"member": member}) for member in MEMBERS if chance.random() < 0.85]
    steps += [Step(chance.random() * 3, "agents", "start", _agent(chance)) for _ in range(chance.randrange(1, 4))]
    # Some worlds are busy, some are calm.
    calls, troubles, agents = (
        chance.randrange(20, 110),
        chance.randrange(chance.choice([2, 14, 40])),
        chance.randrange(1, 7),
    )
    # The other mob has one agent and a steady flow of inputs.
    if chance.random() < 0.6:
        steps.append(Step(0.5, "agents", "start", {"host": "host-n", "mob": "n", "roles": ["lead"], "capacity": 1}))
        for count in range(chance.randrange(5, 20)):
            how = {"mob": "n", "member": "solo", "input": f"n{count}", "text": "one"}
            steps.append(Step(chance.random() * HORIZON_S, CLIENTS[0], "deliver", how))
    for _ in range(calls):
        what, how = _drawn(chance, CALLS)
        late = what in ENDS and chance.random() < 0.8
        at = HORIZON_S * (0.7 + 0.3 * chance.random() if late else chance.random())
        steps.append(Step(at, chance.choice(CLIENTS), what, how))
    for _ in range(troubles):
        what, how = _drawn(chance, TROUBLES)
        steps.append(Step(chance.random() * HORIZON_S, "fate", what, how))
    steps += [Step(chance.random() * HORIZON_S, "agents", "start", _agent(chance)) for _ in range(agents)]
    return in_order(steps)


def in_order(steps: Iterable[Step]) -> list[Step]:
    """Return steps in the order of time."""
    return sorted((Step(round(one.at, 3), one.who, one.what, one.how) for one in steps), key=lambda one: one.at)
