"""How agents share work: a member that would wait moves to an agent that has nothing to do.

A member stays where it is while its agent can run it: that one may hold something for it. It moves when it has work,
its agent is connected and has no free run, and another agent that serves it as specifically has one. It moves without
a run and with all that waits. At most one member moves for each run that ends, so that moves cost less than runs.
"""

from typing import Final

from mobd_server.machines.answers import Again
from mobd_server.machines.draft import Draft
from mobd_server.machines.lanes import choose
from mobd_server.machines.placement import (
    assign_to,
    dispatch,
    dispatches,
    fill,
    free_members,
    is_idle,
    make_room,
    next_waiting,
    place,
    release,
    reuse,
    serves,
)
from mobd_server.machines.state import Attachment, Member

# Members of another agent that are looked at; behind them others are as likely to be served only there.
LOOK_AT: Final = 16

REASON: Final = "another agent is free"


def serve_work(d: Draft, member: Member) -> None:
    """See to it that a member's new work runs as soon as it may."""
    if member.listed == "ready" and member.executor is not None:
        dispatch(d, d.mob.attachments[member.executor.attachment_id])
        if member.listed_at > d.base:
            lend(d, member)
    elif member.listed == "waiting" and member.listed_at > d.base:
        # Only when it begins to wait: later room finds it through the list.
        place(d, member)


def refill(d: Draft, attachment: Attachment, member: Member) -> None:
    """After `member` got free on an agent: run what is ready there, or give its place to a member that waits."""
    if not _give_place(d, attachment, member):
        borrow(d, attachment)


def arrive(d: Draft, attachment: Attachment, member: Member) -> None:
    """After an agent began to serve `member`: run it, or if it has no work give its place to a member that waits."""
    # It borrows nobody now: others that it was asked to serve are still to come.
    _give_place(d, attachment, member)


def _give_place(d: Draft, attachment: Attachment, member: Member) -> bool:
    dispatch(d, attachment)
    if not is_idle(member) or not d.is_connected(attachment.attachment_id):
        return False
    waiting = next_waiting(d.mob, attachment)
    if waiting is None:
        return False
    if len(attachment.members) >= attachment.max_members:
        release(d, member, "its place is needed for a member with work")
    assign_to(d, waiting, attachment)
    return True


def rebalance(d: Draft) -> None:
    """Fill every connected agent; what does not fit one decision follows in the next."""
    free = free_members(d.mob)
    came: list[Attachment] = []
    for attachment in sorted(d.mob.attachments.values(), key=lambda one: one.seq):
        if d.is_connected(attachment.attachment_id):
            fill(d, attachment, free)
            dispatch(d, attachment)
            came.append(attachment)
    for attachment in came:
        borrow_all(d, attachment)


def borrow_all(d: Draft, attachment: Attachment) -> None:
    """Let an agent that has come borrow as many members as it can run.

    What does not fit one decision follows in the next.
    """
    for _ in range(attachment.capacity - len(attachment.runs)):
        if d.room <= 0:
            d.react(Again())
            return
        if not borrow(d, attachment):
            return


def lend(d: Draft, member: Member) -> None:
    """Move a member that has just become ready and could not be started to an agent that is free."""
    executor = member.executor
    if member.listed != "ready" or executor is None or not d.is_connected(executor.attachment_id):
        return
    here = d.mob.attachments[executor.attachment_id]
    free = [
        there
        for there in d.mob.attachments.values()
        if there is not here and _is_free(d, there) and _may_move(member, here, there)
    ]
    if free:
        _move(d, member, here, min(free, key=lambda one: (len(one.runs), len(one.members), one.seq)))


def borrow(d: Draft, there: Attachment) -> bool:
    """Move the member that waits longest for a busy agent to one that is free; return whether there was one."""
    if not _is_free(d, there):
        return False
    best: tuple[tuple[int, str], Attachment] | None = None
    for here in d.mob.attachments.values():
        if not d.is_connected(here.attachment_id):
            continue
        for entry in here.ready[:LOOK_AT]:
            if _may_move(d.mob.members[entry[1]], here, there):
                if best is None or entry < best[0]:
                    best = (entry, here)
                break
    if best is None:
        return False
    _move(d, d.mob.members[best[0][1]], best[1], there)
    return True


def _is_free(d: Draft, attachment: Attachment) -> bool:
    return (
        dispatches(d.mob)
        and not attachment.ready
        and attachment.exclusive is None
        and len(attachment.runs) < attachment.capacity
        and d.is_connected(attachment.attachment_id)
    )


def _may_move(member: Member, here: Attachment, there: Attachment) -> bool:
    """Whether an agent serves a member as specifically as the one that it has: by name before by role."""
    if there.runs and choose(member).exclusive:
        # It must be alone; where it is it has its turn.
        return False
    if member.member_id in here.names:
        return member.member_id in there.names
    return serves(there, member)


def _move(d: Draft, member: Member, here: Attachment, there: Attachment) -> None:
    if len(there.members) >= there.max_members and make_room(d, [there]) is None:
        return
    release(d, member, REASON)
    assign_to(d, member, there)
    # Its place is free, and if it was to be alone those behind it may run.
    reuse(d, here)
