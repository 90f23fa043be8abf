"""The search itself: it agrees with trying every order, and the order of real time binds it."""

from collections.abc import Callable, Sequence
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.checker.linear import Op, Undecided, explain

# A register that holds one small number.
Do = tuple[str, int]


def apply(do: Do) -> Callable[[int], list[int]]:
    what, value = do
    if what == "write":
        return lambda state: [value]
    return lambda state: [state] if state == value else []


def op(name: str, begin: int, end: int | None, do: Do) -> Op[int]:
    return Op(name, begin, end, apply(do))


def by_trying_all(ops: Sequence[Op[int]], initial: int) -> bool:
    """Whether an order of all known operations, and of any of the others, explains them."""
    known = [one for one in ops if one.end is not None]
    unknown = [one for one in ops if one.end is None]
    for chosen in range(1 << len(unknown)):
        them = known + [one for at, one in enumerate(unknown) if chosen >> at & 1]
        if any(_fits(order, initial) for order in permutations(them)):
            return True
    return False


def _fits(order: Sequence[Op[int]], state: int) -> bool:
    for at, one in enumerate(order):
        # Nothing comes before what had returned when it began.
        if any(later.end is not None and later.end < one.begin for later in order[at + 1 :]):
            return False
        after = one.apply(state)
        if not after:
            return False
        (state,) = after
    return True


@st.composite
def histories(draw: st.DrawFn) -> list[Op[int]]:
    ops = []
    for at in range(draw(st.integers(1, 5))):
        begin = draw(st.integers(0, 8))
        end = draw(st.one_of(st.none(), st.integers(begin, 10)))
        do = (draw(st.sampled_from(("write", "read"))), draw(st.integers(0, 2)))
        # A read of unknown outcome says nothing; it is a write or it is known.
        ops.append(op(f"o{at}", begin, begin if do[0] == "read" and end is None else end, do))
    return ops


@settings(max_examples=300, deadline=None)
@given(histories())
def test_the_search_agrees_with_trying_every_order(ops: list[Op[int]]) -> None:
    assert (explain(ops, 0) is None) == by_trying_all(ops, 0)


def test_what_had_returned_before_comes_before() -> None:
    write = op("write", 1, 2, ("write", 1))
    assert explain([write, op("read", 3, 4, ("read", 0))], 0) is not None
    assert explain([write, op("read", 1, 4, ("read", 0))], 0) is None


def test_an_unknown_outcome_may_take_effect_late_or_never() -> None:
    lost = op("lost", 1, None, ("write", 1))
    assert explain([lost, op("before", 2, 3, ("read", 0)), op("after", 4, 5, ("read", 1))], 0) is None
    assert explain([lost, op("before", 2, 3, ("read", 0)), op("after", 4, 5, ("read", 0))], 0) is None
    assert explain([lost, op("before", 2, 3, ("read", 1)), op("after", 4, 5, ("read", 0))], 0) is not None


def test_what_was_explained_is_told_with_what_was_not() -> None:
    order = explain([op("a", 1, 2, ("write", 1)), op("b", 3, 4, ("read", 2))], 0)
    assert order is not None
    assert [one.name for one in order] == ["a"]


def test_a_long_history_that_is_right_takes_about_as_many_steps_as_it_has_operations() -> None:
    ops = []
    for at in range(500):
        ops.append(op(f"w{at}", 10 * at, 10 * at + 15, ("write", at)))
        ops.append(op(f"r{at}", 10 * at + 5, 10 * at + 9, ("read", at)))
    ops += [op(f"lost{at}", 100 * at, None, ("write", -at)) for at in range(1, 30)]
    assert explain(ops, 0, budget=3 * len(ops)) is None


def test_a_search_that_takes_too_long_says_so() -> None:
    ops = [op(f"o{at}", 0, 100, ("write", at)) for at in range(30)] + [op("no", 0, 100, ("read", -1))]
    with pytest.raises(Undecided):
        explain(ops, 0, budget=1_000)
