"""The mob itself: creating, starting, stopping, resuming and destroying it.

A destruction works in slices. It is admitted by a durable `mob_destroying`; from then on every decision ends some
members, until the last one closes the agents and ends the mob. A crash in between is taken up where it stopped.
"""

from typing import Final

import msgspec

from mobd_server.errors import MobExists
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.admission import refuse
from mobd_server.machines.answers import Again, DestroyAnswer, Done, EndStream, MemberOutcome, MobView, SendUnassign
from mobd_server.machines.attachment import close
from mobd_server.machines.draft import Draft
from mobd_server.machines.lifecycle import Fields, Trigger, legal_phases, require_phase, step
from mobd_server.machines.member import TABLE, relist
from mobd_server.machines.records import MobRow, Record
from mobd_server.machines.run import settle
from mobd_server.machines.sharing import rebalance
from mobd_server.machines.state import Member, Mob
from mobd_server.machines.undo import Undo
from mobd_server.machines.views import view_mob

# A slice ends when it has appended this much.
SLICE_EVENTS: Final = 500
SLICE_BYTES: Final = 1 << 20


def fields(mob: Mob) -> Fields:
    """Return what the table of the lifecycle reads."""
    return Fields(mob.phase, mob.active_run_count, mob.cleanup_pending)


def create(d: Draft, command: c.CreateMob) -> MobView:
    """Write the first events of a log."""
    mob = d.mob
    if mob.head:
        raise MobExists(f"mob '{mob.mob_id}' exists already", {"mob_id": mob.mob_id})
    labels = {**command.definition.labels, **command.labels}
    d.emit(e.MobCreated(command.definition, command.log_id, labels))
    d.create = MobRow(
        mob_id=mob.mob_id,
        log_id=command.log_id,
        labels=msgspec.json.encode(labels, order="deterministic").decode(),
        definition=msgspec.json.encode(command.definition, order="deterministic").decode(),
        created_at=d.context.now,
    )
    if command.start:
        d.emit(e.MobStarted())
    return view_mob(mob)


def start(d: Draft, command: c.StartMob) -> MobView:
    """Start a mob, and dispatch what waits."""
    return _move(d, "start", e.MobStarted())


def stop(d: Draft, command: c.StopMob) -> MobView:
    """Stop a mob: nothing new is dispatched."""
    return _move(d, "stop", e.MobStopped())


def resume(d: Draft, command: c.ResumeMob) -> MobView:
    """Resume a mob, and dispatch what waits."""
    return _move(d, "resume", e.MobResumed())


def _move(d: Draft, trigger: Trigger, event: e.Event) -> MobView:
    if d.mob.pending != "none":
        refuse(d.mob, trigger, "running" if trigger != "stop" else "stopped", legal_phases(trigger))
    require_phase(fields(d.mob), trigger)
    d.emit(event)
    rebalance(d)
    return view_mob(d.mob)


def destroy(d: Draft, command: c.DestroyMob) -> DestroyAnswer:
    """Begin, or join, the destruction; `done` says whether this decision ended it."""
    mob = d.mob
    if mob.phase == "destroyed":
        return destroyed_answer(mob, already=True)
    if mob.pending == "destroy":
        return DestroyAnswer(view_mob(mob), [])
    require_phase(fields(mob), "destroy")
    d.emit(e.MobDestroying())
    return destroyed_answer(mob) if _slice(d) else DestroyAnswer(view_mob(mob), [])


def destroyed_answer(mob: Mob, already: bool = False) -> DestroyAnswer:
    """Return the report of a destruction that has ended."""
    outcomes = [MemberOutcome(i, mob.members[i].inputs_abandoned) for i in sorted(mob.members)]
    return DestroyAnswer(view_mob(mob), outcomes, mob.inputs_abandoned, True, already)


def go_on(d: Draft, command: c.Continue) -> Done:
    """Go on with a destruction, or with what did not fit the decision before."""
    if d.mob.pending == "destroy":
        _slice(d)
    else:
        rebalance(d)
    return Done(bool(d.records))


def _slice(d: Draft) -> bool:
    """End some members; return whether that ended the mob."""
    mob = d.mob
    for member_id in sorted(i for i, member in mob.members.items() if member.state != "destroyed"):
        if len(d.records) >= SLICE_EVENTS or d.bytes >= SLICE_BYTES:
            d.react(Again())
            return False
        _end_member(d, mob.members[member_id])
    for attachment in list(mob.attachments.values()):
        if len(d.records) >= SLICE_EVENTS:
            d.react(Again())
            return False
        close(d, attachment, "destroyed", "the mob is destroyed")
        d.react(EndStream(attachment.attachment_id, "revoked", f"mob '{mob.mob_id}' is destroyed"))
    members = len(mob.members)
    d.emit(e.MobDestroyed(members, sum(member.inputs_abandoned for member in mob.members.values())))
    return True


def _end_member(d: Draft, member: Member) -> None:
    """Abandon a member's inputs, fence its executor and end it."""
    count = 0
    if member.run_id is not None:
        run = d.mob.runs[member.run_id]
        count += len(run.inputs)
        settle(d, run, "destroyed")
    if member.queue:
        ids = [one.canonical_input_id for one in member.queue]
        count += len(ids)
        d.emit(e.InputAbandoned(member.member_id, ids, "destroyed"), member.member_id)
    executor = member.executor
    if executor is not None:
        reason = "the mob is destroyed"
        d.emit(
            e.ExecutorReleased(member.member_id, executor.attachment_id, executor.fence, reason),
            member.member_id,
        )
        d.react(SendUnassign(executor.attachment_id, member.member_id, executor.fence, reason))
    d.emit(e.MemberDestroyed(member.member_id, count), member.member_id)


def created(mob: Mob, undo: Undo, record: Record, event: e.MobCreated) -> None:
    """Evolve: the mob exists."""
    if record.seq != 1:
        raise ValueError("a log begins with mob_created and has no second one")
    undo.touch(mob)
    mob.definition = event.definition
    mob.labels = event.labels
    mob.log_id = event.log_id
    mob.created_at = record.at


def moved(trigger: Trigger, mob: Mob, undo: Undo) -> None:
    """Evolve: the phase moved by the table."""
    after = step(fields(mob), trigger)
    undo.touch(mob)
    mob.phase, mob.active_run_count, mob.cleanup_pending = after


def started(mob: Mob, undo: Undo, record: Record, event: e.MobStarted) -> None:
    """Evolve: the mob runs."""
    moved("start", mob, undo)


def stopped(mob: Mob, undo: Undo, record: Record, event: e.MobStopped) -> None:
    """Evolve: the mob is stopped."""
    moved("stop", mob, undo)


def resumed(mob: Mob, undo: Undo, record: Record, event: e.MobResumed) -> None:
    """Evolve: the mob runs again."""
    moved("resume", mob, undo)


def destroying(mob: Mob, undo: Undo, record: Record, event: e.MobDestroying) -> None:
    """Evolve: from here on only the destruction goes on."""
    undo.touch(mob)
    mob.pending = "destroy"


def destroyed(mob: Mob, undo: Undo, record: Record, event: e.MobDestroyed) -> None:
    """Evolve: the mob is gone for good."""
    moved("destroy", mob, undo)
    mob.pending = "none"
    mob.inputs_abandoned = event.inputs_abandoned


def member_destroyed(mob: Mob, undo: Undo, record: Record, event: e.MemberDestroyed) -> None:
    """Evolve: the member is gone for good; what it had ended stays known."""
    member = mob.members[event.member_id]
    undo.touch(member)
    if member.retry_at:
        entry = (member.retry_at, member.member_id)
        at = mob.retries.index(entry)
        undo.splice(mob.retries, at, at + 1, ())
        member.retry_at = 0
    member.state = TABLE[member.state, "destroy"]
    member.inputs_abandoned = event.inputs_abandoned
    relist(mob, undo, member, record.seq)
