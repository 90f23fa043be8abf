"""Whether concurrent calls could have happened one after another (Wing and Gong's search, with Lowe's memory).

Each operation has the moment of its call and of its return; one that did not return, or whose outcome is unknown, may
take effect at any later moment, or never. The search looks for an order that keeps the order of real time and that a
sequential model accepts. It tries operations of unknown outcome last: mostly none of them is needed.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)

# Steps of one search. Histories that are right take about as many as they have operations.
BUDGET = 10_000


@dataclass(frozen=True, slots=True)
class Op(Generic[S]):
    """One operation: `apply` returns the states that it may leave, none if it can't have happened in that state.

    `end` is None if its outcome is unknown.
    """

    name: str
    begin: int
    end: int | None
    apply: Callable[[S], Sequence[S]]


class Undecided(Exception):
    """The search gave up."""


def explain(ops: Sequence[Op[S]], initial: S, budget: int = BUDGET) -> list[Op[S]] | None:
    """Return None if there is an order, else the longest order that was found before every way on was closed.

    Raises Undecided when the budget is spent.
    """
    ops = sorted(ops, key=lambda one: (one.end is None, one.begin))
    count = sum(1 for one in ops if one.end is not None)
    known = (1 << count) - 1
    seen: set[tuple[int, S]] = set()
    best: list[int] = []
    # A way: what is done (a bit for each operation), the state, the order so far as a chain.
    ways: list[tuple[int, S, tuple[int, object] | None, int]] = [(0, initial, None, 0)]
    while ways:
        done, state, chain, length = ways.pop()
        if done & known == known:
            return None
        if length > len(best):
            best = _unrolled(chain)
        budget -= 1
        if budget < 0:
            raise Undecided
        for at, after in reversed(_next(ops, done, count, state)):
            key = (done | 1 << at, after)
            if key not in seen:
                seen.add(key)
                ways.append((*key, (at, chain), length + 1))
    return [ops[at] for at in best]


def _next(ops: Sequence[Op[S]], done: int, count: int, state: S) -> list[tuple[int, S]]:
    """Return what may happen next, as (operation, state after it), the likeliest first.

    An operation may be next if it began before any that is not done returned. Those of unknown outcome come last, and
    among them first those without which something else can't happen.
    """
    earliest: int | None = None
    stuck: list[Op[S]] = []
    found: list[tuple[int, S]] = []
    waiting: list[int] = []
    for at in range((~done & (done + 1)).bit_length() - 1, count):
        one = ops[at]
        if earliest is not None and one.begin > earliest:
            break
        if not done >> at & 1:
            waiting.append(at)
            end = one.end
            earliest = end if earliest is None or (end is not None and end < earliest) else earliest
    for at in waiting:
        if earliest is None or ops[at].begin <= earliest:
            possible = ops[at].apply(state)
            found.extend((at, after) for after in possible)
            if not possible:
                stuck.append(ops[at])
    helping: list[tuple[int, S]] = []
    others: list[tuple[int, S]] = []
    for at in range(count, len(ops)):
        if done >> at & 1 or (earliest is not None and ops[at].begin > earliest):
            continue
        for after in ops[at].apply(state):
            if after != state:
                helps = any(one.apply(after) for one in stuck)
                (helping if helps else others).append((at, after))
    return [*found, *helping, *others]


def _unrolled(chain: object) -> list[int]:
    order: list[int] = []
    while isinstance(chain, tuple):
        order.append(chain[0])
        chain = chain[1]
    return order[::-1]
