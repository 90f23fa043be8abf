"""Which commands a mob's phase admits (api §7, core §4). Admission comes before look-ups, except dedupe and ledger.

Commands that move the phase itself are decided by `lifecycle.py`. What agents and timers bring is admitted always: it
tells of something that happened.
"""

from typing import Final

from mobd_server.errors import InvalidTransition
from mobd_server.machines import commands as c
from mobd_server.machines.state import PHASES, Mob, Phase

# (command, phase) pairs that are admitted.
ADMITTED: Final[frozenset[tuple[type[c.Command], Phase]]] = frozenset(
    {
        (c.SpawnMember, "running"),
        (c.SpawnMembers, "running"),
        (c.EnsureMember, "running"),
        (c.Deliver, "running"),
        (c.DeliverBatch, "running"),
        (c.Attach, "creating"),
        (c.Attach, "running"),
        (c.Attach, "stopped"),
        (c.Attach, "completed"),
    }
)

_TARGET: Final[Phase] = "running"


def admitted_phases(command: type[c.Command]) -> tuple[Phase, ...]:
    """Return the phases that admit `command`, in the order of a mob's life."""
    return tuple(phase for phase in PHASES if (command, phase) in ADMITTED)


def require_admitted(mob: Mob, command: type[c.Command]) -> None:
    """Raise InvalidTransition unless the mob's phase admits `command` and nothing pending forbids it."""
    if (command, mob.phase) in ADMITTED and mob.pending == "none":
        return
    refuse(mob, command.__name__, _TARGET, admitted_phases(command))


def refuse(mob: Mob, command: str, target: Phase, allowed: tuple[Phase, ...]) -> None:
    """Raise InvalidTransition; while a destruction is pending nothing else is allowed."""
    if mob.pending == "none":
        raise InvalidTransition(command, mob.phase, target, allowed)
    refusal = InvalidTransition(command, mob.phase, target, ())
    refusal.message = f"{command} is not legal: the mob is being destroyed"
    refusal.details["pending"] = mob.pending
    raise refusal
