"""Commands that end many members: destroying, completing and resetting a mob, and retiring all of its members.

Each is admitted by a durable event that sets `pending`; from then on every decision ends some members, until the last
one ends the command. A crash in between is taken up where it stopped. A destruction and a reset give everything up; a
completion and a retirement let members drain, and a completion ends when the last one has left the roster.
"""

from typing import Final

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.admission import require_admitted
from mobd_server.machines.answers import Again, DestroyAnswer, Done, EndStream, MemberOutcome, MobReport
from mobd_server.machines.draft import Draft
from mobd_server.machines.lifecycle import require_phase
from mobd_server.machines.mob import fields
from mobd_server.machines.retirement import destroy as destroy_member
from mobd_server.machines.retirement import finish as finish_retirements
from mobd_server.machines.retirement import remove, retire
from mobd_server.machines.sharing import rebalance
from mobd_server.machines.state import Mob
from mobd_server.machines.views import view_mob

# A slice ends when it has appended this much.
SLICE_EVENTS: Final = 500
SLICE_BYTES: Final = 1 << 20

WHY: Final = "the mob is destroyed"


def destroy(d: Draft, command: c.DestroyMob) -> DestroyAnswer:
    """Begin, or join, the destruction; `done` says whether this decision ended it."""
    mob = d.mob
    if mob.phase == "destroyed":
        return destroyed_answer(mob, already=True)
    if mob.pending == "destroy":
        return DestroyAnswer(view_mob(mob), [])
    require_phase(fields(mob), "destroy")
    d.emit(e.MobDestroying())
    return destroyed_answer(mob) if _destroy_some(d) else DestroyAnswer(view_mob(mob), [])


def destroyed_answer(mob: Mob, already: bool = False) -> DestroyAnswer:
    """Return the report of a destruction that has ended."""
    outcomes = [MemberOutcome(i, mob.members[i].inputs_abandoned) for i in sorted(mob.members)]
    return DestroyAnswer(view_mob(mob), outcomes, mob.inputs_abandoned, True, already)


def complete(d: Draft, command: c.CompleteMob) -> MobReport:
    """Begin, or join, the completion: every member is retired, and the mob completes when all have drained."""
    mob = d.mob
    if mob.pending != "complete":
        require_admitted(mob, c.CompleteMob)
        require_phase(fields(mob), "mark_completed")
        d.emit(e.MobCompleting())
        _retire_some(d)
        # Before the report, which would else tell of members that leave with this very decision.
        finish_retirements(d)
        finish(d)
    return report(mob)


def reset(d: Draft, command: c.ResetMob) -> MobReport:
    """Begin, or join, the reset: everything is given up, and the mob runs again with an empty roster."""
    mob = d.mob
    if mob.pending != "reset":
        require_admitted(mob, c.ResetMob)
        if mob.phase == "running":
            d.emit(e.MobStopped())
        d.emit(e.MobResetting())
        d.emit(e.MobCleanupBegun())
        _remove_some(d)
    return report(mob)


def retire_all(d: Draft, command: c.RetireAllMembers) -> MobReport:
    """Begin, or join, the retirement of every member."""
    mob = d.mob
    if mob.pending != "retire_all":
        require_admitted(mob, c.RetireAllMembers)
        d.emit(e.RetireAllBegun())
        _retire_some(d)
        finish_retirements(d)
    return report(mob)


def report(mob: Mob) -> MobReport:
    """Return what the pending or last command that works in slices has done so far, by member."""
    outcomes = [
        MemberOutcome(one.member_id, one.inputs_abandoned, one.inputs_pending_drain)
        for _, one in sorted(mob.reports.items())
    ]
    return MobReport(view_mob(mob), outcomes)


def go_on(d: Draft, command: c.Continue) -> Done:
    """Go on with what is pending, or with what did not fit the decision before."""
    pending = d.mob.pending
    if pending == "destroy":
        _destroy_some(d)
    elif pending == "reset":
        _remove_some(d)
    elif pending in ("complete", "retire_all"):
        _retire_some(d)
    if d.mob.pending in ("none", "complete", "retire_all"):
        rebalance(d)
    return Done(bool(d.records))


def finish(d: Draft) -> None:
    """End a completion whose last member has left; called at the end of every decision."""
    mob = d.mob
    if mob.pending == "complete" and not mob.members:
        d.emit(e.MobCompleted())


def _full(d: Draft) -> bool:
    """Whether the slice ends here; the rest is another decision's."""
    if len(d.records) < SLICE_EVENTS and d.bytes < SLICE_BYTES:
        return False
    d.react(Again())
    return True


def _destroy_some(d: Draft) -> bool:
    """End some members; return whether that ended the mob."""
    mob = d.mob
    for member_id in sorted(i for i, member in mob.members.items() if member.state != "destroyed"):
        if _full(d):
            return False
        destroy_member(d, mob.members[member_id], WHY)
    for attachment in list(mob.attachments.values()):
        if _full(d):
            return False
        d.emit(e.AttachmentClosed(attachment.attachment_id, "destroyed"))
        d.react(EndStream(attachment.attachment_id, "revoked", f"mob '{mob.mob_id}' is destroyed"))
    members = len(mob.members)
    d.emit(e.MobDestroyed(members, sum(member.inputs_abandoned for member in mob.members.values())))
    return True


def _remove_some(d: Draft) -> None:
    """Take some members off the roster; with the last one the reset ends."""
    mob = d.mob
    for member_id in sorted(mob.members):
        if _full(d):
            return
        remove(d, mob.members[member_id], "reset", "the mob is reset")
    d.emit(e.MobCleanupFinished())
    d.emit(e.MobStarted())


def _retire_some(d: Draft) -> None:
    """Ask some members to retire; a retirement of all ends when every one was asked."""
    mob = d.mob
    for member_id in sorted(i for i, member in mob.members.items() if member.lifecycle == "active"):
        if _full(d):
            return
        retire(d, mob.members[member_id])
    if mob.pending == "retire_all":
        d.emit(e.RetireAllFinished())
