"""The tables of a member's phases and of a run's end, written out once more (runtime §1.2, §2.9, §9.5)."""

from typing import Final, get_args

import pytest
from tests.machines.stage import Stage, role

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.member import TABLE, Trigger, accepts_inputs, bridge_terminal
from mobd_server.machines.run import LEGAL, OUTCOMES, SETTLED, Cause
from mobd_server.machines.state import BACKOFF_US, MAX_ATTEMPTS, MAX_RESENDS, RECEIPTS_KEPT, MemberState

STATES: Final = ("initializing", "idle", "attached", "running", "retired", "stopped", "destroyed")

# A row for each state, a column for each trigger; a dot is a refusal. A run's member is settled before anything else
# happens to it: `running` is left by `settle` alone.
MEMBER: Final = """
                spawn  accept    confirm   release  start    settle    destroy
initializing    idle   .         .         .        .        .         .
idle            .      idle      attached  idle     .        .         destroyed
attached        .      attached  .         idle     running  .         destroyed
running         .      running   .         .        .        attached  .
retired         .      .         .         .        .        .         .
stopped         .      .         .         .        .        .         .
destroyed       .      .         .         .        .        .         .
"""

# For each cause: what becomes of an input (alone, others wait) when it was not its last attempt, and when it was.
ENDED: Final = """
result     consumed   consumed         consumed   consumed
final      abandoned  abandoned        abandoned  abandoned
error      requeued   requeued_behind  abandoned  abandoned
lost       requeued   requeued         abandoned  abandoned
released   requeued   requeued         requeued   requeued
destroyed  abandoned  abandoned        abandoned  abandoned
"""

STATE_OF: Final = {
    "result": "committed",
    "final": "failed",
    "error": "failed",
    "lost": "lost",
    "released": "released",
    "destroyed": "abandoned",
}


def member_rows() -> dict[tuple[str, str], str]:
    head, *lines = MEMBER.strip().splitlines()
    triggers = head.split()
    rows: dict[tuple[str, str], str] = {}
    for line in lines:
        state, *cells = line.split()
        rows |= {(state, trigger): cell for trigger, cell in zip(triggers, cells, strict=True)}
    return rows


def outcome_rows() -> dict[tuple[str, bool, bool], str]:
    cases = [(False, False), (False, True), (True, False), (True, True)]
    rows: dict[tuple[str, bool, bool], str] = {}
    for line in ENDED.strip().splitlines():
        cause, *cells = line.split()
        rows |= {(cause, *case): cell for case, cell in zip(cases, cells, strict=True)}
    return rows


@pytest.mark.parametrize(("state", "trigger"), member_rows())
def test_every_phase_of_a_member_answers_every_trigger(state: MemberState, trigger: Trigger) -> None:
    cell = member_rows()[state, trigger]
    assert TABLE.get((state, trigger), ".") == cell


def test_the_member_table_has_every_phase_and_every_trigger() -> None:
    assert {state for state, _ in member_rows()} == set(STATES) == set(get_args(MemberState))
    assert {trigger for _, trigger in member_rows()} == set(get_args(Trigger))
    assert len(TABLE) == sum(cell != "." for cell in member_rows().values())


@pytest.mark.parametrize("state", STATES)
def test_inputs_are_accepted_while_idle_attached_and_running(state: MemberState) -> None:
    assert accepts_inputs(state) == (state in ("idle", "attached", "running"))


@pytest.mark.parametrize("state", STATES)
def test_the_bridge_counts_retired_stopped_and_destroyed_as_ended(state: MemberState) -> None:
    assert bridge_terminal(state) == (state in ("retired", "stopped", "destroyed"))


@pytest.mark.parametrize(("cause", "last", "backlog"), outcome_rows())
def test_every_cause_leaves_an_input_as_the_table_says(cause: Cause, last: bool, backlog: bool) -> None:
    assert OUTCOMES[cause, last, backlog] == outcome_rows()[cause, last, backlog]


def test_the_outcomes_have_every_cause_and_no_other() -> None:
    assert set(get_args(Cause)) == set(STATE_OF) == {cause for cause, _, _ in outcome_rows()}
    assert len(OUTCOMES) == len(outcome_rows()) == 4 * len(STATE_OF)


def test_every_cause_settles_in_its_state() -> None:
    assert STATE_OF == SETTLED


@pytest.mark.parametrize("state", get_args(e.Settled))
@pytest.mark.parametrize("outcome", get_args(e.Ended))
def test_only_what_a_cause_can_leave_is_legal_in_a_log(state: e.Settled, outcome: e.Ended) -> None:
    possible = {(STATE_OF[cause], cell) for (cause, _, _), cell in outcome_rows().items()}
    assert ((state, outcome) in LEGAL) == ((state, outcome) in possible)


def test_the_numbers_are_those_of_the_reference() -> None:
    assert (MAX_ATTEMPTS, MAX_RESENDS, RECEIPTS_KEPT) == (3, 3, 16)
    assert BACKOFF_US == (1_000_000, 10_000_000)


def test_a_member_walks_through_its_phases() -> None:
    stage = Stage()
    seen = []

    def look() -> None:
        seen.append(stage.member("a").state)

    stage.spawn("a")
    look()
    stage.attach(serves=[role("analyst")])
    look()
    stage.confirm("a")
    look()
    stage.accepted("a", "i1")
    look()
    stage.accepted("a", "i2")
    look()
    stage.finish(stage.run_of("a"))
    stage.finish(stage.run_of("a"))
    look()
    stage.leave("att-2")
    look()
    stage.do(c.DestroyMob())
    look()
    assert seen == ["idle", "idle", "attached", "running", "running", "attached", "idle", "destroyed"]
