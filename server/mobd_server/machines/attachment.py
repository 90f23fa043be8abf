"""Agents: how one attaches, resumes, drains and goes (architecture §5).

Only the same (host_id, incarnation) resumes. Another incarnation of a host takes the place of the one before at once;
what that one had in flight is lost, and it does not come back. Whether an agent is connected is not a fact of the log:
it comes with the context.
"""

from typing import Final, Literal

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.admission import admits
from mobd_server.machines.answers import Again, Attached, AttachRefused, Done, EndStream, SendUnassign, ServeOutcome
from mobd_server.machines.cancel import cancel_again
from mobd_server.machines.draft import Draft
from mobd_server.machines.placement import assign, dispatch, fill, free_members, place, reuse
from mobd_server.machines.records import Record
from mobd_server.machines.run import Cause, resend, settle
from mobd_server.machines.sharing import arrive, borrow_all
from mobd_server.machines.state import SUPERSEDED_KEPT, Attachment, Member, Mob, Run, Serve
from mobd_server.machines.steering import steer_again, steer_waiting
from mobd_server.machines.undo import Undo

AGENTS: Final = 1_000
# Members of an agent that is gone which are given to others in the same decision.
MOVE_AT_ONCE: Final = 16

Gone = Literal["detached", "lost", "superseded"]

# Why an agent is gone -> what that means for its runs.
_CAUSES: Final[dict[Gone, Cause]] = {
    "detached": "released",
    "lost": "lost",
    "superseded": "lost",
}


def attach(d: Draft, command: c.Attach) -> Attached | AttachRefused:
    """Open an attachment for an agent, or take up the one that it had."""
    mob = d.mob
    refusal = _refusal(mob, command)
    if refusal is not None:
        return refusal
    before = next((a for a in mob.attachments.values() if a.host_id == command.host_id), None)
    if before is not None and _same(before, command):
        return _resume(d, before, command)
    left = list(before.members) if before is not None else []
    if before is not None:
        message = f"another incarnation of host {command.host_id} took its place"
        d.react(EndStream(before.attachment_id, "superseded", message))
        close(d, before, "superseded", message)
    attachment_id = d.context.ids.new("att")
    d.emit(
        e.AttachmentOpened(
            attachment_id,
            command.host_id,
            command.incarnation,
            command.capacity,
            command.max_members,
            command.serves,
            command.steers,
        )
    )
    d.attaching = attachment_id
    attachment = mob.attachments[attachment_id]
    fill(d, attachment, free_members(mob))
    borrow_all(d, attachment)
    if any(mob.members[member_id].executor is None for member_id in left):
        # The new incarnation serves less than the one before: others may take what it left.
        d.react(Again())
    return Attached(attachment_id, False, mob.log_id, _outcomes(mob, attachment))


def _refusal(mob: Mob, command: c.Attach) -> AttachRefused | None:
    if not admits(mob, c.Attach):
        return AttachRefused("mob_destroyed", f"mob '{mob.mob_id}' is destroyed")
    roles = mob.definition.profiles
    unknown = sorted(one.role for one in command.serves if one.role is not None and one.role not in roles)
    if unknown:
        return AttachRefused(
            "unknown_role",
            f"mob '{mob.mob_id}' has no role {', '.join(unknown)}: it has {', '.join(sorted(roles))}",
        )
    if (command.host_id, command.incarnation) in mob.superseded:
        return AttachRefused(
            "superseded", f"another incarnation of host {command.host_id} took its place: give each process its own"
        )
    if len(mob.attachments) >= AGENTS and all(a.host_id != command.host_id for a in mob.attachments.values()):
        return AttachRefused("too_many_agents", f"a mob has at most {AGENTS} agents")
    return None


def _same(attachment: Attachment, command: c.Attach) -> bool:
    return (
        attachment.incarnation == command.incarnation
        and attachment.serves == command.serves
        and attachment.capacity == command.capacity
        and attachment.max_members == command.max_members
        and attachment.steers == command.steers
    )


def _resume(d: Draft, attachment: Attachment, command: c.Attach) -> Attached:
    """Tell the agent all that it is to serve, send again what it did not get, and go on."""
    d.attaching = attachment.attachment_id
    mob = d.mob
    for member_id in sorted(attachment.members):
        d.react(assign(mob, mob.members[member_id], attachment.attachment_id))
    held = set(command.held)
    for run_id in list(attachment.runs):
        run = mob.runs[run_id]
        if run_id not in held:
            resend(d, run)
        if run_id in mob.runs:
            _remind(d, run)
    fill(d, attachment, free_members(mob))
    dispatch(d, attachment)
    borrow_all(d, attachment)
    return Attached(attachment.attachment_id, True, mob.log_id, _outcomes(mob, attachment))


def _remind(d: Draft, run: Run) -> None:
    """Tell an agent again what was asked of a run while it was away, and steer what has waited since."""
    steer_again(d, run)
    if run.cancel != "none":
        d.react(cancel_again(run))
    steer_waiting(d, run)


def _outcomes(mob: Mob, attachment: Attachment) -> list[ServeOutcome]:
    return [_outcome(mob, attachment, serve) for serve in attachment.serves]


def _outcome(mob: Mob, attachment: Attachment, serve: Serve) -> ServeOutcome:
    if serve.member_id is not None:
        member = mob.members.get(serve.member_id)
        if member is None:
            return ServeOutcome(serve, waiting=f"member '{serve.member_id}' does not exist yet")
        if member.member_id in attachment.members:
            return ServeOutcome(serve, assigned=1)
        return ServeOutcome(serve, waiting=f"member '{serve.member_id}' is served by another agent")
    count = sum(mob.members[member_id].role == serve.role for member_id in attachment.members)
    if count:
        return ServeOutcome(serve, assigned=count)
    if any(member.role == serve.role for member in mob.members.values()):
        return ServeOutcome(serve, waiting=f"every member of role '{serve.role}' is served by another agent")
    return ServeOutcome(serve, waiting=f"no member of role '{serve.role}' exists yet")


def _held_by(d: Draft, attachment_id: str, member_id: str, fence: int) -> Member | None:
    """Return the member if this agent serves it under this fence."""
    member = d.mob.members.get(member_id)
    if member is None or member.executor is None:
        return None
    executor = member.executor
    return member if executor.attachment_id == attachment_id and executor.fence == fence else None


def confirm(d: Draft, command: c.Confirm) -> Done:
    """The agent serves the member: run what waits."""
    member = _held_by(d, command.attachment_id, command.member_id, command.fence)
    if member is None or member.executor is None or member.executor.confirmed:
        return Done(False)
    d.emit(
        e.ExecutorConfirmed(member.member_id, command.attachment_id, command.fence),
        member.member_id,
    )
    arrive(d, d.mob.attachments[command.attachment_id], member)
    return Done()


def decline(d: Draft, command: c.Decline) -> Done:
    """The agent does not serve the member: ask another one."""
    member = _held_by(d, command.attachment_id, command.member_id, command.fence)
    if member is None:
        return Done(False)
    if member.run_id is not None:
        settle(d, d.mob.runs[member.run_id], "released", command.reason)
    reason = f"declined: {command.reason}" if command.reason else "declined"
    d.emit(
        e.ExecutorReleased(member.member_id, command.attachment_id, command.fence, reason),
        member.member_id,
    )
    place(d, member, avoid=command.attachment_id)
    reuse(d, d.mob.attachments[command.attachment_id], avoid=member.member_id)
    return Done()


def drain(d: Draft, command: c.DrainAttachment) -> Done:
    """The agent wants no more work: give its members that have no run to others."""
    attachment = d.mob.attachments.get(command.attachment_id)
    if attachment is None:
        return Done(False)
    idle = [d.mob.members[i] for i in sorted(attachment.members) if d.mob.members[i].run_id is None]
    for member in idle:
        executor = member.executor
        if executor is not None:
            reason = "its agent drains"
            d.emit(
                e.ExecutorReleased(member.member_id, attachment.attachment_id, executor.fence, reason),
                member.member_id,
            )
            d.react(SendUnassign(attachment.attachment_id, member.member_id, executor.fence, reason))
    _move(d, idle, attachment.attachment_id)
    return Done(bool(idle))


def close_attachment(d: Draft, command: c.CloseAttachment) -> Done:
    """The agent is gone: end or give back its runs and give its members to others."""
    attachment = d.mob.attachments.get(command.attachment_id)
    if attachment is None:
        return Done(False)
    members = [d.mob.members[member_id] for member_id in sorted(attachment.members)]
    close(d, attachment, command.reason, "its agent left" if command.reason == "detached" else "its agent was lost")
    _move(d, members)
    return Done()


def close(d: Draft, attachment: Attachment, gone: Gone, why: str) -> None:
    """Settle the runs of an agent that is gone, take its members from it, and close it."""
    for run_id in list(attachment.runs):
        settle(d, d.mob.runs[run_id], _CAUSES[gone], why)
    kind = e.ExecutorReleased if gone == "detached" else e.ExecutorLost
    for member_id in sorted(attachment.members):
        fence = attachment.members[member_id]
        d.emit(kind(member_id, attachment.attachment_id, fence, why), member_id)
    d.emit(e.AttachmentClosed(attachment.attachment_id, gone))


def _move(d: Draft, members: list[Member], avoid: str | None = None) -> None:
    """Give members that lost their agent to others than `avoid`: those with work now, the rest in the next decision."""
    left = MOVE_AT_ONCE
    for member in members:
        if member.listed == "waiting" and left > 0:
            left -= 1
            place(d, member, avoid)
    if any(member.executor is None for member in members):
        d.react(Again())


def opened(mob: Mob, undo: Undo, record: Record, event: e.AttachmentOpened) -> None:
    """Evolve: the agent is attached."""
    undo.put(
        mob.attachments,
        event.attachment_id,
        Attachment(
            attachment_id=event.attachment_id,
            host_id=event.host_id,
            incarnation=event.incarnation,
            capacity=event.capacity,
            max_members=event.max_members,
            serves=event.serves,
            roles=[one.role for one in event.serves if one.role is not None],
            names=[one.member_id for one in event.serves if one.member_id is not None],
            seq=record.seq,
            at=record.at,
            members={},
            runs=[],
            ready=[],
            steers=event.steers,
        ),
    )


def closed(mob: Mob, undo: Undo, record: Record, event: e.AttachmentClosed) -> None:
    """Evolve: the agent is gone."""
    attachment = undo.drop(mob.attachments, event.attachment_id)
    if event.reason == "superseded":
        undo.append(mob.superseded, (attachment.host_id, attachment.incarnation))
        if len(mob.superseded) > SUPERSEDED_KEPT:
            undo.splice(mob.superseded, 0, 1, ())
    if attachment.members or attachment.runs:
        raise ValueError(f"attachment {event.attachment_id} was closed with members or runs")
