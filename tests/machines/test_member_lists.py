"""The lists in which members with work wait, and the timers, by themselves: on a mob that was made by hand."""

from typing import Any

import pytest
from msgspec import Raw
from tests.machines.stage import state_bytes

from mobd_server.machines.decision import new_mob
from mobd_server.machines.member import insert_sorted, relist, remove_sorted, set_timer, unlist
from mobd_server.machines.state import Attachment, Due, Executor, Input, Member, Mob
from mobd_server.machines.undo import Undo

SERVED = Executor("att", 1, confirmed=True)
ASKED = Executor("att", 1)


def member(member_id: str, role: str = "analyst", *, work: bool = True, **options: Any) -> Member:
    queue = [Input("in", "in", "in", Raw(b"1"), 1, "", 1, 0)] if work else None
    return Member(member_id, role, 0, 1, "ses", 0, "idle", queue=queue, **options)


def mob(*members: Member) -> Mob:
    """Return a mob with these members and an agent, in none of whose lists anybody is."""
    found = new_mob("mob")
    found.members.update({one.member_id: one for one in members})
    found.attachments["att"] = Attachment("att", "h", "1", 1, 1, [], ["analyst"], [], 1, 0, {}, [], [])
    return found


def listed(where: Mob, what: Member, seq: int) -> None:
    undo = Undo()
    undo.touch(what)
    relist(where, undo, what, seq)


def unlisted(where: Mob, what: Member) -> None:
    undo = Undo()
    undo.touch(what)
    unlist(where, undo, what)


def lists(where: Mob) -> tuple[dict[str, list[tuple[int, str]]], list[tuple[int, str]]]:
    """Return who waits for an agent, by role, and who waits for a free run."""
    return where.waiting, where.attachments["att"].ready


def test_who_has_work_and_no_agent_waits_for_one_in_the_order_of_the_events() -> None:
    a, b, lead = member("a"), member("b"), member("l", "lead")
    where = mob(a, b, lead)
    listed(where, a, 5)
    listed(where, b, 3)
    listed(where, lead, 4)
    assert lists(where) == ({"analyst": [(3, "b"), (5, "a")], "lead": [(4, "l")]}, [])
    assert [(one.listed, one.listed_at) for one in (a, b, lead)] == [("waiting", 5), ("waiting", 3), ("waiting", 4)]
    # Who waits already keeps its place.
    listed(where, b, 9)
    assert (lists(where)[0]["analyst"], b.listed_at) == ([(3, "b"), (5, "a")], 3)
    unlisted(where, b)
    unlisted(where, lead)
    assert (lists(where), b.listed) == (({"analyst": [(5, "a")]}, []), "none")
    unlisted(where, a)
    assert lists(where) == ({}, [])


def test_who_has_work_and_an_agent_waits_for_a_run_of_it() -> None:
    a, b = member("a", executor=SERVED), member("b", executor=SERVED)
    where = mob(a, b)
    listed(where, a, 5)
    listed(where, b, 3)
    assert lists(where) == ({}, [(3, "b"), (5, "a")])
    assert [(one.listed, one.listed_at) for one in (a, b)] == [("ready", 5), ("ready", 3)]
    unlisted(where, a)
    assert (lists(where), a.listed) == (({}, [(3, "b")]), "none")
    # Who is in no list is taken from none.
    unlisted(where, a)
    assert lists(where) == ({}, [(3, "b")])


@pytest.mark.parametrize(
    "options",
    [{"executor": ASKED}, {"executor": SERVED, "run_id": "run"}, {"work": False}, {"executor": SERVED, "work": False}],
    ids=["its agent has not answered", "it runs", "it has no work", "it has an agent and no work"],
)
def test_nobody_else_is_in_a_list(options: dict[str, Any]) -> None:
    one = member("a", **options)
    where = mob(one)
    listed(where, one, 5)
    assert (lists(where), one.listed, one.listed_at) == (({}, []), "none", 0)


def test_who_has_nothing_left_to_wait_for_leaves_its_list() -> None:
    for executor in (None, SERVED):
        one = member("a", executor=executor)
        where = mob(one)
        listed(where, one, 5)
        one.queue = None
        listed(where, one, 6)
        assert (lists(where), one.listed) == (({}, []), "none")


@pytest.mark.parametrize("executor", [None, SERVED], ids=["waiting", "ready"])
def test_a_list_is_as_it_was_when_a_decision_is_undone(executor: Executor | None) -> None:
    a, b = member("a", executor=executor), member("b", executor=executor)
    where = mob(a, b)
    before = state_bytes(where)
    undo = Undo()
    undo.touch(a)
    relist(where, undo, a, 5)
    undo.rollback()
    assert state_bytes(where) == before
    listed(where, a, 5)
    listed(where, b, 6)
    before = state_bytes(where)
    undo = Undo()
    for one in (a, b):
        undo.touch(one)
        unlist(where, undo, one)
    assert lists(where) == ({}, [])
    undo.rollback()
    assert state_bytes(where) == before


@pytest.mark.parametrize(
    ("before", "after", "timers"),
    [(0, 0, [(5, "b")]), (0, 3, [(3, "a"), (5, "b")]), (0, 9, [(5, "b"), (9, "a")])],
)
def test_a_timer_goes_from_one_time_to_another(before: int, after: int, timers: list[tuple[int, str]]) -> None:
    what: Due = "retry"
    where = mob()
    where.timers = [(5, what, "b")]
    set_timer(where, Undo(), what, "a", before, after)
    assert where.timers == [(at, what, name) for at, name in timers]
    set_timer(where, Undo(), what, "a", after, 7)
    assert where.timers == [(5, what, "b"), (7, what, "a")]
    set_timer(where, Undo(), what, "a", 7, 7)
    assert where.timers == [(5, what, "b"), (7, what, "a")]
    set_timer(where, Undo(), what, "a", 7)
    assert where.timers == [(5, what, "b")]


def test_a_sorted_list_stays_sorted_and_gives_up_only_what_it_holds() -> None:
    undo = Undo()
    items = [(2, "b"), (4, "d")]
    for entry in ((3, "c"), (1, "a"), (5, "e")):
        insert_sorted(undo, items, entry)
    assert items == [(1, "a"), (2, "b"), (3, "c"), (4, "d"), (5, "e")]
    for entry in ((0, "a"), (3, "d"), (6, "a")):
        with pytest.raises(ValueError, match="is not listed"):
            remove_sorted(undo, items, entry)
    for entry in ((3, "c"), (1, "a"), (5, "e")):
        remove_sorted(undo, items, entry)
    assert items == [(2, "b"), (4, "d")]
    undo.rollback()
    assert items == [(2, "b"), (4, "d")]
