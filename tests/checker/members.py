"""The plain sequential model of one member, as callers know it, and the check that their answers agree with it.

A member is absent, active, retired, leaving (then it may have gone at any moment) or destroyed; it has a generation and
a fence token, and knows the inputs that were delivered to it. The log is not asked: only what callers asked and were
told, and when.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from json import dumps
from typing import Final, NamedTuple

from tests.checker.answers import deliveries, outcomes
from tests.checker.history import Plain
from tests.checker.linear import Op, Undecided, explain
from tests.checker.seen import Call, MobSeen
from tests.checker.verdicts import UNDECIDED, Verdict, cite

_NAME: Final = "linearizable"


class State(NamedTuple):
    """What is so between two operations. A generation of -1 and a token of 0 are not known to anybody."""

    life: str = "absent"
    generation: int = -1
    token: int = 0
    # One bit for each (input_id, content) that is known.
    known: int = 0


Apply = Callable[[State], Sequence[State]]

_THERE: Final = ("active", "retired", "leaving", "destroyed")
_OPEN: Final = "unknown"


def _fence_fits(state: State, fence: Plain) -> tuple[bool, bool]:
    """Return whether a fence may be current, and whether it may be stale."""
    told = [("generation", state.generation, -1), ("fence_token", state.token, 0)]
    given = [(fence[name], now, nobody) for name, now, nobody in told if name in fence]
    wrong = any(now not in (value, nobody) for value, now, nobody in given)
    unsure = any(now == nobody for _, now, nobody in given)
    return not wrong, wrong or unsure


@dataclass(frozen=True, slots=True)
class Part:
    """One delivery to the member: `bit` is its id with its content, `rivals` its id with other contents."""

    bit: int
    rivals: int
    fence: Plain
    outcome: str

    def apply(self, state: State) -> list[State]:
        """Return what the delivery leaves, if it could be answered like this."""
        life, after = state.life, state._replace(known=state.known | self.bit)
        if state.known & self.bit:
            possible = {"deduplicated": state}
        elif state.known & self.rivals:
            possible = {"conflict": state}
        elif life == "active":
            fits, stale = _fence_fits(state, self.fence)
            possible = {"full": state} if fits else {}
            if fits:
                possible["accepted"] = after
            if stale:
                possible["stale"] = state
        else:
            possible = {} if life == "absent" else {"not_ready": state}
            if life in ("absent", "leaving"):
                possible["not_found"] = state
        if self.outcome == _OPEN:
            # Without an answer it was accepted if it could be, unless nobody can tell whether its fence was stale.
            unsure = "accepted" in possible and "stale" in possible
            return [possible.get("accepted", state), *([state] if unsure else [])]
        return [possible[self.outcome]] if self.outcome in possible else []


def _outcome(outcome: Plain) -> str:
    if "accepted" in outcome or "deduplicated" in outcome:
        return "accepted" if "accepted" in outcome else "deduplicated"
    if "member_not_found" in outcome:
        return "not_found"
    causes = {
        "REJECT_CAUSE_NOT_READY": "not_ready",
        "REJECT_CAUSE_STALE_FENCE": "stale",
        "REJECT_CAUSE_CONTENT_CONFLICT": "conflict",
        "REJECT_CAUSE_QUEUE_FULL": "full",
    }
    return causes.get(outcome.get("rejected", {}).get("cause", ""), "")


def _delivering(parts: list[Part]) -> Apply:
    def apply(state: State) -> list[State]:
        states = [state]
        for part in parts:
            states = [after for one in states for after in part.apply(one)]
        return states

    return apply


def _moving(moves: dict[str, str], fence: Plain, *, sure: bool) -> Apply:
    """Return an operation that moves a member by a table; a fence must be current for that."""

    def apply(state: State) -> list[State]:
        fits, stale = _fence_fits(state, fence)
        if not fits or state.life not in moves:
            return [] if sure else [state]
        return [state._replace(life=moves[state.life]), *([state] if stale and not sure else [])]

    return apply


_RETIRES: Final = {"active": "retired"}
_LEAVES: Final = {"active": "leaving", "retired": "leaving", "destroyed": "leaving", "leaving": "leaving"}
_DIES: Final = {"active": "destroyed", "retired": "destroyed", "leaving": "leaving"}
_STAYS: Final = {one: one for one in _THERE}

# (rpc, whether the answer says `already`) -> the life before and after. Without an answer, both are possible.
_MOVES: Final[dict[tuple[str, bool], dict[str, str]]] = {
    ("Retire", False): _RETIRES,
    ("Retire", True): {one: one for one in ("retired", "leaving", "destroyed")},
    ("RetireMember", False): {"active": "leaving"},
    ("RetireMember", True): {
        "absent": "absent",
        "retired": "leaving",
        "leaving": "leaving",
        "destroyed": "leaving",
    },
    ("Destroy", False): _DIES,
    ("Destroy", True): {"destroyed": "destroyed", "leaving": "leaving"},
}
_UNSURE: Final = {"Retire": _RETIRES, "RetireMember": _LEAVES, "Destroy": _DIES}
# Calls about the whole mob: what they do to each member, at once or later.
_OF_ALL: Final[dict[str, dict[str, str]]] = {
    "RetireAllMembers": {"absent": "absent", **_LEAVES},
    "CompleteMob": {"absent": "absent", **_LEAVES},
    "ResetMob": {"absent": "absent", **_LEAVES},
    "DestroyMob": {"absent": "absent", "destroyed": "destroyed", **_DIES},
}


def _born(told: Plain | None, before: Plain | None, *, anew: bool, fence: Plain) -> Apply:
    """Return a spawn (`anew`), or a respawn, that was answered with a member, or not."""

    def apply(state: State) -> list[State]:
        there = state.life in _THERE if not anew else state.life in ("absent", "leaving")
        if not there or not _fence_fits(state, fence)[0]:
            return [] if told is not None else [state]
        if before is not None and not _fence_fits(state, {"generation": 0, "fence_token": 0, **before})[0]:
            return []
        if told is None:
            generation = state.generation + 1 if not anew and state.generation >= 0 else -1
            return [State("active", generation, 0, state.known)]
        generation, token = told.get("generation", 0), told.get("fence_token", 0)
        if not anew and state.generation not in (-1, generation - 1):
            return []
        return [State("active", generation, token, state.known)]

    return apply


def _seeing(life: tuple[str, ...], told: Plain) -> Apply:
    """Return a read that showed a member with these numbers in one of these lives."""

    def apply(state: State) -> list[State]:
        numbers = {"generation": told.get("generation", 0), "fence_token": told.get("fence_token", 0)}
        if state.life not in life or not _fence_fits(state, numbers)[0]:
            return []
        return [state._replace(generation=numbers["generation"], token=numbers["fence_token"])]

    return apply


def _lives(told: Plain) -> tuple[str, ...]:
    if told.get("lifecycle") == "MEMBER_LIFECYCLE_RETIRING":
        return ("leaving",)
    if told.get("state") == "MEMBER_STATE_RETIRED":
        return ("retired", "leaving")
    return ("destroyed", "leaving") if told.get("state") == "MEMBER_STATE_DESTROYED" else ("active",)


def _being(life: tuple[str, ...]) -> Apply:
    return lambda state: [state] if state.life in life else []


def _stale(fence: Plain) -> Apply:
    def apply(state: State) -> list[State]:
        return [state] if state.life in _THERE and _fence_fits(state, fence)[1] else []

    return apply


@dataclass(slots=True)
class _Keys:
    """The bits of one member's inputs."""

    bits: dict[tuple[str, str], int] = field(default_factory=dict)
    rivals: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, delivery: Plain) -> None:
        key = self._key(delivery)
        if key not in self.bits:
            self.bits[key] = 1 << len(self.bits)
            self.rivals[key[0]] |= self.bits[key]

    def part(self, delivery: Plain, outcome: str) -> Part:
        key = self._key(delivery)
        return Part(self.bits[key], self.rivals[key[0]] & ~self.bits[key], delivery.get("fence", {}), outcome)

    def _key(self, delivery: Plain) -> tuple[str, str]:
        return delivery.get("input_id", ""), dumps(delivery.get("content", {}), sort_keys=True)


def _applies(call: Call, member: str, keys: _Keys) -> Apply | None:
    """Return what a call does to a member, or None if it says nothing of it."""
    answer = call.answered.answer if call.answered is not None else None
    if call.rpc in ("Deliver", "DeliverBatch"):
        return _delivered(call, member, keys)
    if call.rpc in _OF_ALL:
        return _moving(_OF_ALL[call.rpc], {}, sure=answer is not None)
    if call.rpc == "SpawnMembers":
        return _spawned(call, member)
    fence = call.request.get("fence", {})
    if call.rpc in _UNSURE:
        if answer is None:
            return _moving(_UNSURE[call.rpc], fence, sure=False)
        already = bool(answer.get("already"))
        return _moving(_MOVES[call.rpc, already], fence if not already else {}, sure=True)
    if call.rpc in ("SpawnMember", "RespawnMember"):
        told = answer.get("member", {}) if answer is not None else None
        return _born(told, (answer or {}).get("previous"), anew=call.rpc == "SpawnMember", fence=fence)
    if call.rpc == "EnsureMember":
        told = answer.get("member", {}) if answer is not None else None
        if told is not None and not (answer or {}).get("spawned"):
            return _seeing(("active", "retired", "destroyed"), told)
        return _born(told, None, anew=True, fence={})
    if answer is not None and call.rpc in ("Observe", "GetMember"):
        shown = answer if call.rpc == "Observe" else answer.get("member", {})
        return _seeing(_lives(shown), shown)
    return None


def _delivered(call: Call, member: str, keys: _Keys) -> Apply | None:
    if call.answered is None:
        told = [(one, _OPEN) for one in deliveries(call)]
    else:
        told = [(one, _outcome(outcome)) for one, outcome in outcomes(call, call.answered)]
    parts = [keys.part(one, outcome) for one, outcome in told if one.get("member_id") == member and outcome]
    return _delivering(parts) if parts else None


def _spawned(call: Call, member: str) -> Apply | None:
    specs = [one.get("member_id", "") for one in call.request.get("specs", [])]
    if specs.count(member) != 1:
        return None
    if call.answered is None:
        return _born(None, None, anew=True, fence={})
    results = call.answered.answer.get("results", [])
    result = results[specs.index(member)] if len(results) == len(specs) else {}
    if "member" in result:
        return _born(result["member"], None, anew=True, fence={})
    return _being(_THERE) if result.get("refused", {}).get("reason") == "MEMBER_EXISTS" else None


def _refused(call: Call) -> Apply | None:
    """Return what a refusal says of the member."""
    reason = call.refused.reason if call.refused is not None else ""
    if reason == "MEMBER_NOT_FOUND" and call.rpc != "DeliverBatch":
        return _being(("absent", "leaving"))
    if reason == "MEMBER_EXISTS" and call.rpc in ("SpawnMember", "EnsureMember"):
        return _being(_THERE)
    if reason == "STALE_FENCE" and "acting" not in call.request and "fence" in call.request:
        return _stale(call.request["fence"])
    return None


def _about(call: Call) -> set[str]:
    """Return the members that a call names."""
    request = call.request
    them = {one.get("member_id", "") for one in [*deliveries(call), *request.get("specs", [])]}
    them |= {request.get("member_id", ""), request.get("spec", {}).get("member_id", "")}
    return them - {""}


def linearizable(seen: MobSeen) -> Iterator[Verdict]:
    """What callers were told of each member could have been answered one after another, in an order that keeps time."""
    by_member: dict[str, list[Call]] = defaultdict(list)
    everyone = {name for call in seen.calls for name in _about(call)}
    for call in seen.calls:
        if call.decided:
            for name in everyone if call.rpc in _OF_ALL else _about(call):
                by_member[name].append(call)
    forgotten = {member for (member, _), accepted in seen.facts.keys.items() if len(accepted) > 1}
    for name, calls in sorted(by_member.items()):
        # A key that was forgotten and came again is judged by the log.
        if name not in forgotten:
            yield from _judge(name, calls)


def _judge(name: str, calls: list[Call]) -> Iterator[Verdict]:
    keys = _Keys()
    for call in calls:
        for one in deliveries(call):
            if one.get("member_id") == name:
                keys.add(one)
    operations: list[Op[State]] = []
    by_name = {call.invoked.call: call for call in calls}
    for call in calls:
        apply = _refused(call) if call.refused is not None else _applies(call, name, keys)
        if apply is None:
            continue
        ended = call.answered or call.refused
        operations.append(Op(call.invoked.call, call.invoked.at, ended.at if ended is not None else None, apply))
    try:
        order = explain(operations, State())
    except Undecided:
        yield Verdict(UNDECIDED, f"whether the answers about member {name} agree could not be decided in time")
        return
    if order is None:
        return
    done = {one.name for one in order}
    left = [one for one in operations if one.name not in done and one.end is not None]
    # Of those that found no place, the one that returned first.
    stuck = [by_name[one.name] for one in sorted(left, key=lambda one: one.end or 0)[:1]]
    them = [*(by_name[one.name] for one in order[-3:]), *stuck]
    text = f"no order of the {len(operations)} calls about member {name} explains their answers"
    yield Verdict(_NAME, text, cite(*(one for call in them for one in (call.invoked, call.answered or call.refused))))
