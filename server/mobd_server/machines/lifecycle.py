"""The life of a mob: which trigger is legal in which phase, and what it leaves (api §8, exactly that table).

`admission.py` says which commands a phase admits; this file says how the phase itself moves.
"""

from typing import Final, Literal, NamedTuple

from mobd_server.errors import InvalidTransition
from mobd_server.machines.state import PHASES, Phase

Trigger = Literal[
    "start",
    "stop",
    "resume",
    "mark_completed",
    "destroy",
    "start_run",
    "finish_run",
    "begin_cleanup",
    "finish_cleanup",
]

# (trigger, phase before) -> phase after. What is not here is refused.
TABLE: Final[dict[tuple[Trigger, Phase], Phase]] = {
    ("start", "creating"): "running",
    ("start", "stopped"): "running",
    ("stop", "running"): "stopped",
    ("resume", "stopped"): "running",
    ("mark_completed", "running"): "completed",
    ("mark_completed", "stopped"): "completed",
    ("destroy", "creating"): "destroyed",
    ("destroy", "running"): "destroyed",
    ("destroy", "stopped"): "destroyed",
    ("destroy", "completed"): "destroyed",
    ("start_run", "running"): "running",
    # A late finish keeps the phase: it must not revive a stopped mob.
    ("finish_run", "running"): "running",
    ("finish_run", "stopped"): "stopped",
    ("begin_cleanup", "stopped"): "stopped",
    ("begin_cleanup", "completed"): "stopped",
    ("finish_cleanup", "stopped"): "stopped",
    ("finish_cleanup", "completed"): "stopped",
}

# The phase that a refusal names.
NAMED: Final[dict[Trigger, Phase]] = {
    "start": "running",
    "stop": "stopped",
    "resume": "running",
    "mark_completed": "completed",
    "destroy": "destroyed",
    "start_run": "running",
    "finish_run": "stopped",
    "begin_cleanup": "stopped",
    "finish_cleanup": "stopped",
}

Effect = Literal["emit_lifecycle_notice", "request_cleanup"]
EFFECTS: Final[dict[Trigger, Effect]] = {
    "destroy": "emit_lifecycle_notice",
    "begin_cleanup": "request_cleanup",
}


class Fields(NamedTuple):
    """What the table reads and writes."""

    phase: Phase
    active_run_count: int = 0
    cleanup_pending: bool = False


def legal_phases(trigger: Trigger) -> tuple[Phase, ...]:
    """Return the phases in which `trigger` is legal, in the order of a mob's life."""
    return tuple(phase for phase in PHASES if (trigger, phase) in TABLE)


def can_accept(fields: Fields, trigger: Trigger) -> bool:
    """Whether `trigger` is legal now."""
    if (trigger, fields.phase) not in TABLE:
        return False
    if trigger == "mark_completed":
        return fields.active_run_count == 0
    if trigger == "finish_run":
        return fields.active_run_count > 0
    return True


def require_phase(fields: Fields, trigger: Trigger) -> None:
    """Raise InvalidTransition, naming where `trigger` would be legal, unless it is legal now."""
    if can_accept(fields, trigger):
        return
    named: Phase = NAMED[trigger]
    if trigger == "finish_run" and (trigger, fields.phase) in TABLE:
        named = "running"
    raise InvalidTransition(trigger, fields.phase, named, legal_phases(trigger))


def step(fields: Fields, trigger: Trigger) -> Fields:
    """Return the fields after `trigger`, or raise InvalidTransition."""
    require_phase(fields, trigger)
    phase = TABLE[trigger, fields.phase]
    runs, cleanup = fields.active_run_count, fields.cleanup_pending
    if trigger == "destroy":
        return Fields(phase, 0, False)
    if trigger == "start_run":
        return Fields(phase, runs + 1, cleanup)
    if trigger == "finish_run":
        return Fields(phase, runs - 1, cleanup)
    if trigger == "begin_cleanup":
        return Fields(phase, runs, True)
    if trigger == "finish_cleanup":
        return Fields(phase, runs, False)
    return Fields(phase, runs, cleanup)
