"""What becomes of an input of each kind: which lane, whether it makes its member run, when it is over (runtime §2.7).

The table is that of the reference, version 1. What differs is named: an input is passive only if its kind never wakes,
its sender said so, or its intent is silent, and not because a run was in flight when it came (runtime §2.10, mended).
Two columns are there so that the table is whole, and nothing reads them: `lanes.py` drains both lanes, and transcripts
are written by agents.
"""

from typing import Final, Literal

from msgspec import Struct

from mobd_server.machines.state import CONTENT_TURN, Kind, Lane, Stamp

Apply = Literal["run_start", "run_boundary", "ignore"]
Wake = Literal["wake_if_idle", "interrupt_yielding", "none"]
QueueMode = Literal["fifo", "coalesce", "supersede", "priority"]
Consume = Literal["on_accept", "on_run_complete"]
Drain = Literal["queue_next_turn", "steer_batch", "ignore"]
Routing = Literal["queue", "steer", "drop"]


class Policy(Struct, frozen=True, gc=False):
    """One row of the table."""

    apply: Apply
    wake: Wake
    queue: QueueMode
    consume: Consume
    drain: Drain
    routing: Routing
    transcript: bool


def _queued(wake: Wake) -> Policy:
    return Policy("run_start", wake, "fifo", "on_run_complete", "queue_next_turn", "queue", transcript=True)


def _steered(wake: Wake, apply: Apply = "run_boundary", *, transcript: bool = True) -> Policy:
    return Policy(apply, wake, "fifo", "on_run_complete", "steer_batch", "steer", transcript)


_WAKES: Final = _queued("wake_if_idle")
_PASSIVE: Final = _queued("none")
_PROGRESS: Final = Policy(
    "run_boundary", "none", "coalesce", "on_run_complete", "steer_batch", "steer", transcript=True
)
_IGNORED: Final = Policy("ignore", "none", "priority", "on_accept", "ignore", "drop", transcript=False)

# (kind, a run is in flight) -> what holds for an input without a handling mode of its own.
BY_KIND: Final[dict[tuple[Kind, bool], Policy]] = {
    ("prompt", False): _WAKES,
    ("prompt", True): _PASSIVE,
    ("peer_message", False): _WAKES,
    ("peer_message", True): _WAKES,
    ("peer_request", False): _WAKES,
    ("peer_request", True): _WAKES,
    ("peer_response_progress", False): _PROGRESS,
    ("peer_response_progress", True): _PROGRESS,
    ("peer_response_terminal", False): _WAKES,
    ("peer_response_terminal", True): _WAKES,
    ("flow_step", False): _WAKES,
    ("flow_step", True): _PASSIVE,
    ("external_event", False): _WAKES,
    ("external_event", True): _PASSIVE,
    ("continuation", False): _steered("wake_if_idle", transcript=False),
    ("continuation", True): _steered("interrupt_yielding", transcript=False),
    ("operation", False): _IGNORED,
    ("operation", True): _IGNORED,
}

# (handling mode, the kind is peer_response_terminal, a run is in flight) -> what holds for an input with that mode.
BY_MODE: Final[dict[tuple[Lane, bool, bool], Policy]] = {
    ("queue", False, False): _WAKES,
    ("queue", False, True): _PASSIVE,
    ("queue", True, False): _WAKES,
    ("queue", True, True): _WAKES,
    ("steer", False, False): _steered("wake_if_idle"),
    ("steer", False, True): _steered("interrupt_yielding"),
    ("steer", True, False): _steered("wake_if_idle", "run_start"),
    ("steer", True, True): _steered("interrupt_yielding", "run_start"),
}

# Kinds whose own row holds whatever mode is asked for: a mode is refused, or means nothing.
_FIXED: Final[frozenset[Kind]] = frozenset({"peer_response_progress", "operation"})

_STAMPS: Final[dict[tuple[str, str, str], Stamp]] = {
    (one.boundary, one.execution, one.intent): one
    for one in (
        CONTENT_TURN,
        Stamp("run_checkpoint"),
        Stamp("run_checkpoint", "resume_pending"),
        Stamp("run_start", "resume_pending"),
        Stamp("run_start", "content_turn", "append_context_and_run"),
    )
}


def policy_of(kind: Kind, mode: Lane | None, *, running: bool) -> Policy:
    """Return the row for an input; `mode` is what its sender asked for."""
    if mode is None or kind in _FIXED:
        return BY_KIND[kind, running]
    return BY_MODE[mode, kind == "peer_response_terminal", running]


def mode_invalid(kind: Kind, mode: Lane | None) -> bool:
    """Whether a handling mode is given where none may be (runtime §2.4)."""
    return mode is not None and kind == "peer_response_progress"


def drives(kind: Kind, mode: Lane | None, *, wake: bool, silent: bool) -> bool:
    """Whether an input makes its member run, now or after the run in flight."""
    return wake and not silent and policy_of(kind, mode, running=False).wake != "none"


def stamp_of(kind: Kind, policy: Policy) -> Stamp:
    """Return the stamp of an input: made once, when it is accepted, and never derived again."""
    boundary = "run_checkpoint" if policy.apply == "run_boundary" else "run_start"
    execution = "resume_pending" if kind == "continuation" else "content_turn"
    intent = "append_context_and_run" if kind == "peer_response_terminal" else "none"
    return _STAMPS[boundary, execution, intent]


def shared(stamp: Stamp) -> Stamp:
    """Return the one object for a stamp that was read from a log."""
    return stamp if stamp is CONTENT_TURN else _STAMPS[stamp.boundary, stamp.execution, stamp.intent]
