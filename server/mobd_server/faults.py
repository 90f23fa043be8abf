"""Places in the server where a test can make it die, stand still or fail: fault points, armed by MOBD_FAULT alone.

A testing aid and nothing else: tests/crash kills real servers at each of these places. Not armed, a point costs one
comparison with a constant, and nothing is counted. `MOBD_FAULT=before_commit:crash@3,before_answer:stall=2s` names
what is to happen at which point, and how often:

    point:crash       the process ends at once, as by SIGKILL
    point:stop        the process stands still until it gets SIGCONT, as by SIGSTOP
    point:stall=2s    the thread that came there waits: 2s, 250ms
    point:fail        Unavailable is raised, where the point allows that
    …@3               at the third time that the point is reached, not the first
    …*2               from there on that many times, not once; `*` alone is for ever

Each process counts for itself, also the one that folds states, and says in its log what it does (`fault_happens`).
"""

import logging
import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Final

from msgspec import Struct

from mobd_server.errors import Unavailable

log: Final = logging.getLogger(__name__)

VARIABLE: Final = "MOBD_FAULT"
# Whether there is anything to do at any point. Code asks `if ARMED: reach(...)`.
ARMED: Final = bool(os.environ.get(VARIABLE))

ACTIONS: Final = ("crash", "stop", "stall", "fail")
_ALWAYS_LEGAL: Final = ("crash", "stop", "stall")

# Each point: where it is, and whether what is done there can fail.
POINTS: Final[Mapping[str, tuple[str, bool]]] = {
    "before_commit": ("on the journal's thread, when a group is written and not committed", True),
    "after_commit": ("on the journal's thread, when a group is committed and nobody knows", True),
    "before_publish": ("on the loop, before the events of a committed append are published", True),
    "before_answer": ("on the loop, when a group is published and no answer has left", False),
    "before_dispatch": ("on the loop, before agents are told what a commit released: StartRun, RunSettled", False),
    "after_settle": ("on the loop, when a result is durable and its agent does not know", False),
    "before_slice": ("on the loop, before the next piece of a long work is decided", False),
    "before_attach_answer": ("on the loop, when an attachment is durable and its agent has no Welcome", False),
    "before_acquire": ("on the loop, before a mob is taken over from its former incarnation", True),
    "after_acquire": ("on the loop, when the mob has the new epoch and nothing of it is read", True),
    "during_recovery": ("on the loop, when some of a mob's log is folded", True),
    "during_snapshot": ("in the process that folds states, before it answers", True),
    "before_snapshot_written": ("on the journal's thread, when a snapshot is written and not committed", True),
    "during_purge": ("on a reading thread, when some rows of a deleted mob are deleted and not committed", True),
    "during_migration": ("when a revision is applied and not committed", False),
    "during_backup": ("when a database is copied and its copy has no name yet", False),
    "during_drain": ("on the loop, when a server that ends has told its agents, and calls go on", False),
}

_ENTRY: Final = re.compile(
    r"(?P<point>[^:,]+):(?P<action>[a-z]+)(=(?P<time>\d+)(?P<unit>ms|s))?(@(?P<first>[1-9]\d*))?(?P<often>\*\d*)?"
).fullmatch


class FaultsInvalid(Exception):
    """MOBD_FAULT can't be read; the message is a line that says what is legal."""


class Fault(Struct):
    """What is to happen at a point: `times` times (None: for ever) from the `first` time on that it is reached."""

    point: str
    action: str
    pause_s: float = 0.0
    first: int = 1
    times: int | None = 1
    reached: int = 0

    def due(self) -> bool:
        """Take note that the point is reached; return whether it happens now."""
        self.reached += 1
        return self.reached >= self.first and (self.times is None or self.reached < self.first + self.times)


def parse(text: str) -> list[Fault]:
    """Return what MOBD_FAULT asks for. Raises FaultsInvalid."""
    return [_fault(entry.strip()) for entry in text.split(",") if entry.strip()]


def _fault(entry: str) -> Fault:
    found = _ENTRY(entry)
    if found is None:
        raise FaultsInvalid(f"{VARIABLE}: {entry} must look like point:action, such as before_commit:crash@3")
    point, action = found["point"], found["action"]
    if point not in POINTS:
        raise FaultsInvalid(f"{VARIABLE}: there is no point {point}; there are {', '.join(POINTS)}")
    legal = ACTIONS if POINTS[point][1] else _ALWAYS_LEGAL
    if action not in legal:
        raise FaultsInvalid(f"{VARIABLE}: {point} can't {action}; it can {', '.join(legal)}")
    if (found["time"] is not None) != (action == "stall"):
        raise FaultsInvalid(f"{VARIABLE}: {entry}: stall needs a time, such as stall=2s, and nothing else has one")
    pause_s = float(found["time"] or 0) / (1000 if found["unit"] == "ms" else 1)
    often = found["often"]
    times = None if often == "*" else int((often or "*1")[1:])
    return Fault(point, action, pause_s, int(found["first"] or 1), times)


def check() -> str:
    """Return what is armed; "" if nothing is. Raises FaultsInvalid."""
    text = os.environ.get(VARIABLE, "")
    parse(text)
    return text


def make_reach(faults: list[Fault], do: Mapping[str, Callable[[Fault], None]]) -> Callable[[str], None]:
    """Return what is called at a point, from any thread."""
    lock = Lock()

    def reach(point: str) -> None:
        with lock:
            due = [fault for fault in faults if fault.point == point and fault.due()]
        for fault in due:
            log.warning("fault_happens", extra={"fault": f"{point}:{fault.action}"})
            do[fault.action](fault)

    return reach


def _die(_: Fault) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stand_still(_: Fault) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _wait(fault: Fault) -> None:
    time.sleep(fault.pause_s)  # noqa: TID251 a thread that is held up is the fault


def _fail(fault: Fault) -> None:
    raise Unavailable(f"{VARIABLE} makes this fail at {fault.point}")


DO: Final[Mapping[str, Callable[[Fault], None]]] = {
    "crash": _die,
    "stop": _stand_still,
    "stall": _wait,
    "fail": _fail,
}


def _armed() -> list[Fault]:
    try:
        return parse(os.environ.get(VARIABLE, ""))
    except FaultsInvalid:
        # `check` says so at start, and nothing is served.
        return []


reach: Final = make_reach(_armed(), DO)
