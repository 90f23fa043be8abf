"""The tables of a member's phases and of a run's end, written out once more (runtime §1.2, §2.9, §9.5)."""

from typing import Final, get_args

import pytest
from tests.machines.stage import Stage, role

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.member import TABLE, Trigger, accepts_inputs, bridge_terminal
from mobd_server.machines.run import FIXED, LEGAL, OUTCOMES, RETURNED, SETTLED, Cause
from mobd_server.machines.state import BACKOFF_US, MAX_ATTEMPTS, MAX_RESENDS, RECEIPTS_KEPT, MemberState

STATES: Final = ("initializing", "idle", "attached", "running", "retired", "stopped", "destroyed")

# A row for each state, a column for each trigger; a dot is a refusal. A run is settled before its member is destroyed
# or respawned, and a member has lost its agent before it is respawned.
MEMBER: Final = """
              spawn  accept    confirm   release  start    settle    retire   destroy    respawn
initializing  idle   .         .         .        .        .         .        .          .
idle          .      idle      attached  idle     .        .         retired  destroyed  idle
attached      .      attached  .         idle     running  .         retired  destroyed  .
running       .      running   .         .        .        attached  retired  .          .
retired       .      .         retired   retired  retired  retired   .        destroyed  idle
stopped       .      .         .         .        .        .         .        .          .
destroyed     .      .         .         .        .        .         .        .          idle
"""

# For each cause: what becomes of an input (alone, others wait) when it was not its last attempt, and when it was; and
# of one that was steered into the run and not taken in.
ENDED: Final = """
result     consumed   consumed         consumed   consumed   returned
final      abandoned  abandoned        abandoned  abandoned  returned
error      requeued   requeued_behind  abandoned  abandoned  returned
lost       requeued   requeued         abandoned  abandoned  requeued
released   requeued   requeued         requeued   requeued   returned
cancelled  abandoned  abandoned        abandoned  abandoned  returned
destroyed  abandoned  abandoned        abandoned  abandoned  abandoned
retired    abandoned  abandoned        abandoned  abandoned  abandoned
reset      abandoned  abandoned        abandoned  abandoned  abandoned
"""

STATE_OF: Final = {
    "result": "committed",
    "final": "failed",
    "error": "failed",
    "lost": "lost",
    "released": "released",
    "cancelled": "cancelled",
    "destroyed": "abandoned",
    "retired": "abandoned",
    "reset": "abandoned",
}


def member_rows() -> dict[tuple[str, str], str]:
    head, *lines = MEMBER.strip().splitlines()
    triggers = head.split()
    rows: dict[tuple[str, str], str] = {}
    for line in lines:
        state, *cells = line.split()
        rows |= {(state, trigger): cell for trigger, cell in zip(triggers, cells, strict=True)}
    return rows


CASES: Final = ((False, False), (False, True), (True, False), (True, True))


def outcome_rows() -> dict[str, tuple[dict[tuple[bool, bool], str], str]]:
    """Return by cause what becomes of the batch, by (last attempt, others wait), and of what was not taken in."""
    rows = {}
    for line in ENDED.strip().splitlines():
        cause, *cells, returned = line.split()
        rows[cause] = (dict(zip(CASES, cells, strict=True)), returned)
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


@pytest.mark.parametrize("cause", outcome_rows())
def test_every_cause_leaves_an_input_as_the_table_says(cause: Cause) -> None:
    cells, returned = outcome_rows()[cause]
    assert (cause in FIXED) == (len(set(cells.values())) == 1)
    for (last, backlog), cell in cells.items():
        found = FIXED[cause] if cause in FIXED else OUTCOMES[cause, last, backlog]
        assert found == cell, (last, backlog)
    assert RETURNED[cause] == returned


def test_the_outcomes_have_every_cause_and_no_other() -> None:
    causes = set(get_args(Cause))
    assert causes == set(STATE_OF) == set(outcome_rows()) == set(RETURNED)
    moving = {cause for cause, _, _ in OUTCOMES}
    assert set(FIXED) | moving == causes
    assert not set(FIXED) & moving
    assert len(OUTCOMES) == 4 * len(moving)


def test_every_cause_settles_in_its_state() -> None:
    assert STATE_OF == SETTLED


@pytest.mark.parametrize("state", get_args(e.Settled))
@pytest.mark.parametrize("outcome", get_args(e.Ended))
def test_only_what_a_cause_can_leave_is_legal_in_a_log(state: e.Settled, outcome: e.Ended) -> None:
    possible = {
        (STATE_OF[cause], cell)
        for cause, (cells, returned) in outcome_rows().items()
        for cell in (*cells.values(), returned)
    }
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
    agent = stage.attach(serves=[role("analyst")])
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
    stage.leave(agent)
    look()
    stage.agent("other")
    stage.accepted("a", "i3", "i4")
    look()
    stage.do(c.RetireRuntime("a"))
    look()
    stage.finish(stage.run_of("a"))
    assert stage.member("a").run_id is not None
    look()
    stage.finish(stage.run_of("a"))
    assert stage.member("a").executor is None
    look()
    stage.do(c.RespawnMember("a"))
    look()
    stage.do(c.DestroyMob())
    look()
    assert " ".join(seen) == (
        "idle idle attached running running attached idle running retired retired retired idle destroyed"
    )
