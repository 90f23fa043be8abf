"""Cancelling runs: what callers ask for, what deadlines ask for, and the end of agents that do not obey.

A request is an event of the run that was in flight when it was made, so it never reaches another one. An interrupt is
cooperative and never becomes a hard cancel by itself; only a caller's HardCancel or a deadline ends a run at once, and
then an agent that does not answer is fenced off: what it brings later changes nothing (runtime §3.8, §9.6).
"""

from typing import Final

from mobd_server.errors import MemberNotFound, StaleFence
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.admission import require_admitted
from mobd_server.machines.answers import CancelAnswer, Done, SendCancel, SendSettled, SendUnassign
from mobd_server.machines.draft import Draft
from mobd_server.machines.inbox import abandon_waiting
from mobd_server.machines.member import bridge_terminal, set_timer
from mobd_server.machines.placement import place, reuse
from mobd_server.machines.records import Record
from mobd_server.machines.run import current, disposition_of, settle
from mobd_server.machines.sharing import refill, serve_work
from mobd_server.machines.state import BACKOFF_US, DEADLINE_STEP_US, CancelledBy, Due, Member, Mob, Run
from mobd_server.machines.undo import Undo

TIMERS_AT_ONCE: Final = 200
# A pause that is due in more than this was planned by a clock that was ahead, and has been set right.
NO_PAUSE_US: Final = BACKOFF_US[-1] + 60_000_000
DEADLINE: Final = "its deadline has passed"


def fenced_member(mob: Mob, member_id: str, generation: int | None, fence_token: int | None) -> Member:
    """Return the member that the caller means. Raises MemberNotFound and StaleFence."""
    member = mob.members.get(member_id)
    if member is None:
        raise MemberNotFound(
            f"mob '{mob.mob_id}' has no member '{member_id}'", {"mob_id": mob.mob_id, "member_id": member_id}
        )
    check_fence(member, generation, fence_token)
    return member


def check_fence(member: Member, generation: int | None, fence_token: int | None) -> None:
    """Raise StaleFence unless every number that is given is the member's own."""
    if (generation is not None and generation != member.generation) or (
        fence_token is not None and fence_token != member.fence_token
    ):
        raise StaleFence(
            f"member '{member.member_id}' is at generation {member.generation}, fence token {member.fence_token}",
            {
                "member_id": member.member_id,
                "generation": str(member.generation),
                "fence_token": str(member.fence_token),
            },
        )


def interrupt(d: Draft, command: c.Interrupt) -> CancelAnswer:
    """Ask the run in flight to end at its next boundary."""
    require_admitted(d.mob, c.Interrupt)
    member = fenced_member(d.mob, command.member_id, command.generation, command.fence_token)
    if command.run_id is not None and command.run_id != member.run_id:
        return CancelAnswer("already_terminal", command.run_id)
    if member.run_id is None:
        return CancelAnswer("already_terminal" if bridge_terminal(member.state) else "nothing_to_interrupt")
    request(d, d.mob.runs[member.run_id], reason=command.reason)
    return CancelAnswer("requested", member.run_id)


def hard_cancel(d: Draft, command: c.HardCancel) -> CancelAnswer:
    """End a run at once, if it is the one in flight."""
    require_admitted(d.mob, c.HardCancel)
    member = fenced_member(d.mob, command.member_id, command.generation, command.fence_token)
    if command.run_id != member.run_id:
        return CancelAnswer("already_terminal", command.run_id)
    request(d, d.mob.runs[command.run_id], hard=True, reason=command.reason)
    return CancelAnswer("requested", command.run_id)


def request(
    d: Draft, run: Run, *, reason: str, hard: bool = False, by: CancelledBy = "caller", deadline: int = 0
) -> None:
    """Request that a run ends; nothing new if as much was requested by the same side already.

    `deadline` is when a deadline takes its next step. A caller's request stays the caller's when a deadline joins it.
    """
    asked = run.cancel == "hard" or (run.cancel == "boundary" and not hard)
    if by == "caller" and asked and run.cancelled_by == "caller":
        return
    if run.cancel != "none" and run.cancelled_by == "caller":
        by = "caller"
    control_id = run.control_id if asked else d.context.ids.new("ctl")
    d.emit(
        e.RunCancelRequested(
            run.member_id,
            run.run_id,
            control_id,
            hard or run.cancel == "hard",
            by,
            reason,
            deadline or run.deadline,
        ),
        run.member_id,
        run.run_id,
    )
    if not asked:
        d.react(cancel_again(run))


def cancel_again(run: Run) -> SendCancel:
    """Return what the agent of a run that is to end is sent; it tells one request from another by control_id."""
    return SendCancel(
        run.attachment_id, run.run_id, run.fence, run.member_id, run.control_id, run.cancel == "hard", run.cancel_reason
    )


def cancel_unsent(d: Draft, command: c.CancelUnsent) -> Done:
    """The run was taken back before its agent was sent it: it ends as it was asked to."""
    run = current(d.mob, command.attachment_id, command.run_id, command.fence)
    if run is None:
        return Done(False)
    member = d.mob.members[run.member_id]
    settle(d, run, "released" if run.cancel == "none" else "error", DEADLINE if run.cancelled_by == "deadline" else "")
    refill(d, d.mob.attachments[command.attachment_id], member)
    return Done()


def fence_off(d: Draft, command: c.FenceOff) -> Done:
    """Take a run that is to end at once, and its member, from an agent that does not obey."""
    run = current(d.mob, command.attachment_id, command.run_id, command.fence)
    if run is None or run.cancel != "hard" or run.control_id != command.control_id:
        return Done(False)
    _fence_off(d, run, command.reason)
    return Done()


def _fence_off(d: Draft, run: Run, reason: str) -> None:
    mob = d.mob
    member = mob.members[run.member_id]
    attachment = mob.attachments[run.attachment_id]
    outcomes = settle(d, run, "error", f"{run.cancel_reason}; {reason}" if run.cancel_reason else reason)
    d.react(SendSettled(attachment.attachment_id, run.run_id, disposition_of(outcomes, run, "error")))
    d.emit(
        e.ExecutorLost(member.member_id, attachment.attachment_id, run.fence, reason),
        member.member_id,
    )
    d.react(SendUnassign(attachment.attachment_id, member.member_id, run.fence, reason))
    place(d, member, avoid=attachment.attachment_id)
    reuse(d, attachment, avoid=member.member_id)


def wake(d: Draft, command: c.Wake) -> Done:
    """Do what is due by now: try again what failed, act on missed deadlines, give up what can't be drained."""
    mob = d.mob
    for _ in range(TIMERS_AT_ONCE):
        found = _due(mob, d.context.now)
        if found is None or d.room <= 0:
            break
        what, name = found
        if what == "retry":
            d.emit(e.RetryDue(name), name)
            serve_work(d, mob.members[name])
        elif what == "deadline":
            _deadline(d, mob.runs[name])
        else:
            _drained_too_long(d, mob.members[name])
    return Done(bool(d.records))


def _due(mob: Mob, now: int) -> tuple[Due, str] | None:
    """Return what is due first, and for which member or run."""
    if not mob.timers:
        return None
    at, what, name = mob.timers[0]
    if at <= now:
        return what, name
    at, what, name = mob.timers[-1]
    return (what, name) if what == "retry" and at > now + NO_PAUSE_US else None


def _deadline(d: Draft, run: Run) -> None:
    """Take the next step against a run that takes too long: at its boundary, at once, without its agent."""
    if run.cancel == "hard":
        _fence_off(d, run, "its agent did not end it")
        return
    deadline = d.context.now + DEADLINE_STEP_US
    request(d, run, hard=run.cancel == "boundary", reason=DEADLINE, by="deadline", deadline=deadline)


def _drained_too_long(d: Draft, member: Member) -> None:
    if not abandon_waiting(d, member, "retired"):
        raise ValueError(f"member {member.member_id} waits to drain and has nothing")


def requested(mob: Mob, undo: Undo, record: Record, event: e.RunCancelRequested) -> None:
    """Evolve: the run is to end."""
    run = mob.runs[event.run_id]
    undo.touch(run)
    run.cancel = "hard" if event.hard else "boundary"
    run.cancelled_by = event.by
    run.cancel_reason = event.reason
    run.control_id = event.control_id
    set_timer(mob, undo, "deadline", event.run_id, run.deadline, event.deadline)
    run.deadline = event.deadline
