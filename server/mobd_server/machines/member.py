"""The phases of one member's runtime (runtime §1.2), and the lists in which members with work wait.

A member with work is in exactly one place: in its run, in a pause after a failure, among those without an agent
(`mob.waiting`), among those whose agent is busy (`attachment.ready`), or with an agent that has not answered yet.
`relist` keeps that true after every change.
"""

from bisect import bisect_left
from typing import Final, Literal

from mobd_server.machines.state import Listed, Member, MemberState, Mob
from mobd_server.machines.undo import Undo

Trigger = Literal["spawn", "accept", "confirm", "release", "start", "settle", "destroy"]

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
    ("idle", "destroy"): "destroyed",
    ("attached", "destroy"): "destroyed",
}


def accepts_inputs(state: MemberState) -> bool:
    """Whether a member in this phase accepts inputs."""
    return (state, "accept") in TABLE


def bridge_terminal(state: MemberState) -> bool:
    """Whether the bridge counts this phase as ended (bridge §6)."""
    return state in ("retired", "stopped", "destroyed")


def _place(member: Member) -> Listed:
    if not member.queue or member.run_id is not None or member.retry_at:
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


def insert_sorted(undo: Undo, items: list[tuple[int, str]], entry: tuple[int, str]) -> None:
    """Insert `entry` where it belongs in a sorted list."""
    at = bisect_left(items, entry)
    undo.splice(items, at, at, (entry,))


def remove_sorted(undo: Undo, items: list[tuple[int, str]], entry: tuple[int, str]) -> None:
    """Remove `entry` from a sorted list that holds it."""
    at = bisect_left(items, entry)
    undo.splice(items, at, at + 1, ())
