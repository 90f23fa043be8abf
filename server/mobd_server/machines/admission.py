"""Which commands a mob's phase admits, and which of them while something is pending (api §7, core §4).

Admission comes before look-ups, except dedupe and ledger. Commands that move the phase itself are decided by
`lifecycle.py` too. What agents and timers bring is admitted always: it tells of something that happened.
"""

from typing import Final

from mobd_server.errors import InvalidTransition
from mobd_server.machines import commands as c
from mobd_server.machines.state import PHASES, Mob, Pending, Phase

# Command -> the phases that admit it.
ADMITTED: Final[dict[type[c.Command], tuple[Phase, ...]]] = {
    c.CompleteMob: ("running",),
    c.ResetMob: ("running", "stopped", "completed"),
    c.SpawnMember: ("running",),
    c.SpawnMembers: ("running",),
    c.EnsureMember: ("running",),
    c.RetireMember: ("running", "stopped"),
    c.RetireAllMembers: ("running", "stopped"),
    c.RespawnMember: ("running",),
    c.Deliver: ("running",),
    c.DeliverBatch: ("running",),
    c.Interrupt: ("running", "stopped"),
    c.HardCancel: ("running",),
    c.RetireRuntime: ("running", "stopped"),
    c.DestroyRuntime: ("running", "stopped"),
    c.RegisterOperation: ("running",),
    c.MoveOperation: ("running", "stopped", "completed"),
    c.TerminateOwner: ("running", "stopped", "completed"),
    c.Attach: ("creating", "running", "stopped", "completed"),
}

_ENDING: Final[frozenset[type[c.Command]]] = frozenset(
    {c.Interrupt, c.HardCancel, c.RetireMember, c.RetireRuntime, c.DestroyRuntime, c.MoveOperation, c.Attach}
)

# What is pending -> the commands that are admitted beside it, where the phase admits them.
BESIDE: Final[dict[Pending, frozenset[type[c.Command]]]] = {
    "none": frozenset(ADMITTED),
    "complete": _ENDING,
    "retire_all": _ENDING,
    # Agents stay: the mob runs again when it is empty.
    "reset": frozenset({c.Attach}),
    "destroy": frozenset(),
}

# What is pending -> how people are told.
WHILE: Final[dict[Pending, str]] = {
    "none": "",
    "complete": "the mob is being completed",
    "reset": "the mob is being reset",
    "retire_all": "all members are being retired",
    "destroy": "the mob is being destroyed",
}


def admits(mob: Mob, command: type[c.Command]) -> bool:
    """Whether the mob's phase admits `command` and nothing pending forbids it."""
    return mob.phase in ADMITTED[command] and command in BESIDE[mob.pending]


def require_admitted(mob: Mob, command: type[c.Command]) -> None:
    """Raise InvalidTransition, naming the phases that admit `command`, unless it is admitted now."""
    if not admits(mob, command):
        allowed = ADMITTED[command]
        refuse(mob, command.__name__, allowed[0], allowed)


def refuse(mob: Mob, command: str, target: Phase, allowed: tuple[Phase, ...]) -> None:
    """Raise InvalidTransition: for what is pending, if anything is, else for the phase."""
    refusal = InvalidTransition(command, mob.phase, target, tuple(phase for phase in PHASES if phase in allowed))
    if mob.pending != "none":
        refusal.message = f"{command} is not legal: {WHILE[mob.pending]}"
        refusal.details["pending"] = mob.pending
        refusal.details["allowed"] = ""
    raise refusal
