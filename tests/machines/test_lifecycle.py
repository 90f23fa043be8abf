"""The table of api §8, written out once more: every trigger in every phase, with every guard and update."""

from typing import Final, NamedTuple, get_args

import msgspec
import pytest

from mobd_server.errors import InvalidTransition
from mobd_server.machines.lifecycle import EFFECTS, NAMED, TABLE, Fields, Trigger, can_accept, require_phase, step
from mobd_server.machines.state import PHASES, Phase

ALL_PHASES: Final = ("creating", "running", "stopped", "completed", "destroyed")


class Row(NamedTuple):
    """One line of the table: where it is legal, and what it leaves."""

    to: dict[str, str]
    named: str
    runs: str = "kept"
    cleanup: str = "kept"
    guard: str = ""
    effect: str = ""


ROWS: Final[dict[Trigger, Row]] = {
    "start": Row({"creating": "running", "stopped": "running"}, "running"),
    "stop": Row({"running": "stopped"}, "stopped"),
    "resume": Row({"stopped": "running"}, "running"),
    "mark_completed": Row({"running": "completed", "stopped": "completed"}, "completed", guard="no runs"),
    "destroy": Row(
        {"creating": "destroyed", "running": "destroyed", "stopped": "destroyed", "completed": "destroyed"},
        "destroyed",
        runs="none",
        cleanup="off",
        effect="emit_lifecycle_notice",
    ),
    "start_run": Row({"running": "running"}, "running", runs="one more"),
    "finish_run": Row({"running": "running", "stopped": "stopped"}, "stopped", runs="one less", guard="runs"),
    "begin_cleanup": Row(
        {"stopped": "stopped", "completed": "stopped"}, "stopped", cleanup="on", effect="request_cleanup"
    ),
    "finish_cleanup": Row({"stopped": "stopped", "completed": "stopped"}, "stopped", cleanup="off"),
}

RUNS_AFTER: Final = {"kept": 0, "one more": 1, "one less": -1}


def expected(trigger: Trigger, fields: Fields) -> tuple[str, int, bool] | None:
    """Return what the table says is left, or None where it refuses."""
    row = ROWS[trigger]
    runs, cleanup = fields.active_run_count, fields.cleanup_pending
    if fields.phase not in row.to or (row.guard == "no runs" and runs) or (row.guard == "runs" and not runs):
        return None
    after = 0 if row.runs == "none" else runs + RUNS_AFTER[row.runs]
    return row.to[fields.phase], after, {"kept": cleanup, "on": True, "off": False}[row.cleanup]


@pytest.mark.parametrize("cleanup", [False, True], ids=["clean", "cleanup"])
@pytest.mark.parametrize("runs", [0, 1, 2])
@pytest.mark.parametrize("phase", ALL_PHASES)
@pytest.mark.parametrize("trigger", ROWS)
def test_every_trigger_in_every_phase_leaves_what_the_table_says(
    trigger: Trigger, phase: Phase, runs: int, cleanup: bool
) -> None:
    fields = Fields(phase, runs, cleanup)
    after = expected(trigger, fields)
    if after is not None:
        assert can_accept(fields, trigger)
        require_phase(fields, trigger)
        assert tuple(step(fields, trigger)) == after
        assert msgspec.json.encode(step(fields, trigger)) == msgspec.json.encode(after), "a count is stored as a number"
        return
    row = ROWS[trigger]
    named = "running" if trigger == "finish_run" and phase in row.to else row.named
    allowed = ",".join(one for one in ALL_PHASES if one in row.to)
    assert not can_accept(fields, trigger)
    for refuse in (require_phase, step):
        with pytest.raises(InvalidTransition) as refused:
            refuse(fields, trigger)
        assert refused.value.details == {"from": phase, "to": named, "allowed": allowed}
        assert refused.value.reason == "INVALID_TRANSITION"
        assert trigger in str(refused.value)


def test_the_table_knows_every_trigger_and_every_phase_and_no_other() -> None:
    assert set(get_args(Trigger)) == set(ROWS) == set(NAMED)
    assert PHASES == ALL_PHASES == get_args(Phase)
    assert {(trigger, phase): to for trigger, row in ROWS.items() for phase, to in row.to.items()} == TABLE


def test_effects_are_those_of_the_table() -> None:
    assert {trigger: row.effect for trigger, row in ROWS.items() if row.effect} == EFFECTS


@pytest.mark.parametrize("trigger", ROWS)
@pytest.mark.parametrize("phase", ["destroyed", "completed"])
def test_no_trigger_leads_to_an_ended_phase_with_active_runs(trigger: Trigger, phase: Phase) -> None:
    for before in ALL_PHASES:
        for runs in range(3):
            fields = Fields(before, runs if before in ("running", "stopped") else 0)
            if can_accept(fields, trigger) and step(fields, trigger).phase == phase:
                assert step(fields, trigger).active_run_count == 0


def test_a_late_finish_does_not_revive_a_stopped_mob() -> None:
    assert step(Fields("stopped", 1), "finish_run") == Fields("stopped", 0)
