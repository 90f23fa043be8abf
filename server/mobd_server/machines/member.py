"""The phases of one member's runtime (runtime §1.2), and the lists in which members with work wait.

A member with work is in exactly one place: in its run, in a pause after a failure, among those without an agent
(`mob.waiting`), among those whose agent is busy (`attachment.ready`), or with an agent that has not answered yet.
`relist` keeps that true after every change.
"""

from bisect import bisect_left
from typing import Final, Literal, TypeVar

from mobd_server.machines.lanes import ready_lane
from mobd_server.machines.state import Due, Listed, Member, MemberState, Mob
from mobd_server.machines.undo import Undo

E = TypeVar("E", tuple[int, str], tuple[int, Due, str])

Trigger = Literal["spawn", "accept", "confirm", "release", "start", "settle", "retire", "destroy", "respawn"]

# (phase before, trigger) -> phase after. What is not here is refused, or is a broken log when it is replayed.
TABLE: Final[dict[tuple[MemberState, Trigger], MemberState]] = {
    ("initializing", "spawn"): "idle",
    ("idle", "accept"): "idle",
    ("attached", "accept"): "attached",
    ("running", "accept"): "running",
    ("idle", "confirm"): "attached",
    ("idle", "release"): "idle",
    ("attached", "release"): "idle",
    ("attached", "start"): "running",
    ("running", "settle"): "attached",
    # Everyone sees `retired` from the instant of the retirement, also while what is left is run (runtime §1.5, §1.6).
    ("idle", "retire"): "retired",
    ("attached", "retire"): "retired",
    ("running", "retire"): "retired",
    ("retired", "confirm"): "retired",
    ("retired", "release"): "retired",
    ("retired", "start"): "retired",
    ("retired", "settle"): "retired",
    ("idle", "destroy"): "destroyed",
    ("attached", "destroy"): "destroyed",
    ("retired", "destroy"): "destroyed",
    ("idle", "respawn"): "idle",
    ("retired", "respawn"): "idle",
    ("destroyed", "respawn"): "idle",
}


def accepts_inputs(state: MemberState) -> bool:
    """Whether a member in this phase accepts inputs."""
    return (state, "accept") in TABLE


def bridge_terminal(state: MemberState) -> bool:
    """Whether the bridge counts this phase as ended (bridge §6)."""
    return state in ("retired", "stopped", "destroyed")


def _place(member: Member) -> Listed:
    if member.run_id is not None or ready_lane(member) is None:
        return "none"
    if member.executor is None:
        return "waiting"
    return "ready" if member.executor.confirmed else "none"


def unlist(mob: Mob, undo: Undo, member: Member) -> None:
    """Take a touched member out of the list that it is in; call before its executor changes."""
    if member.listed == "none":
        return
    entry = (member.listed_at, member.member_id)
    if member.listed == "waiting":
        waiting = mob.waiting[member.role]
        remove_sorted(undo, waiting, entry)
        if not waiting:
            undo.drop(mob.waiting, member.role)
    elif member.executor is not None:
        remove_sorted(undo, mob.attachments[member.executor.attachment_id].ready, entry)
    member.listed = "none"


def relist(mob: Mob, undo: Undo, member: Member, seq: int) -> None:
    """Put a touched member into the list in which it belongs now; `seq` orders it there."""
    place = _place(member)
    if place == member.listed:
        return
    unlist(mob, undo, member)
    if place == "none":
        return
    member.listed = place
    member.listed_at = seq
    entry = (seq, member.member_id)
    if place == "waiting":
        if member.role not in mob.waiting:
            undo.put(mob.waiting, member.role, [])
        insert_sorted(undo, mob.waiting[member.role], entry)
    elif member.executor is not None:
        insert_sorted(undo, mob.attachments[member.executor.attachment_id].ready, entry)


def set_timer(mob: Mob, undo: Undo, what: Due, name: str, before: int, after: int = 0) -> None:
    """Move what the clock is looked at for from one time to another (µs); 0 is never."""
    if before == after:
        return
    if before:
        remove_sorted(undo, mob.timers, (before, what, name))
    if after:
        insert_sorted(undo, mob.timers, (after, what, name))


def insert_sorted(undo: Undo, items: list[E], entry: E) -> None:
    """Insert `entry` where it belongs in a sorted list."""
    at = bisect_left(items, entry)
    undo.splice(items, at, at, (entry,))


def remove_sorted(undo: Undo, items: list[E], entry: E) -> None:
    """Remove `entry` from a sorted list that holds it. Raises ValueError if it does not."""
    at = bisect_left(items, entry)
    if items[at : at + 1] != [entry]:
        raise ValueError(f"{entry} is not listed")
    undo.splice(items, at, at + 1, ())
