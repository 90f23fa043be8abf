"""The mob itself: creating, starting, stopping and resuming it; its phases. `slices.py` has what ends members."""

import msgspec

from mobd_server.errors import MobExists
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines import operation
from mobd_server.machines.admission import refuse
from mobd_server.machines.answers import MobView
from mobd_server.machines.draft import Draft
from mobd_server.machines.lifecycle import NAMED, Fields, Trigger, require_phase, step
from mobd_server.machines.records import MobRow, Record
from mobd_server.machines.sharing import rebalance
from mobd_server.machines.state import Mob, Pending
from mobd_server.machines.undo import Undo
from mobd_server.machines.views import view_mob


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
        # What is pending forbids it, whatever the phase.
        refuse(d.mob, trigger, NAMED[trigger], ())
    require_phase(fields(d.mob), trigger)
    d.emit(event)
    rebalance(d)
    return view_mob(d.mob)


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


def _pending(mob: Mob, undo: Undo, pending: Pending) -> None:
    undo.touch(mob)
    mob.pending = pending
    if pending != "none":
        # What the command before did is told no longer.
        mob.reports = {}


def destroying(mob: Mob, undo: Undo, record: Record, event: e.MobDestroying) -> None:
    """Evolve: from here on only the destruction goes on."""
    _pending(mob, undo, "destroy")


def completing(mob: Mob, undo: Undo, record: Record, event: e.MobCompleting) -> None:
    """Evolve: members are retired until none is left."""
    _pending(mob, undo, "complete")


def completed(mob: Mob, undo: Undo, record: Record, event: e.MobCompleted) -> None:
    """Evolve: the mob is done."""
    moved("mark_completed", mob, undo)
    _pending(mob, undo, "none")


def resetting(mob: Mob, undo: Undo, record: Record, event: e.MobResetting) -> None:
    """Evolve: members are given up until none is left."""
    _pending(mob, undo, "reset")


def cleanup_begun(mob: Mob, undo: Undo, record: Record, event: e.MobCleanupBegun) -> None:
    """Evolve: what is left of the mob's members is cleared away."""
    moved("begin_cleanup", mob, undo)


def cleanup_finished(mob: Mob, undo: Undo, record: Record, event: e.MobCleanupFinished) -> None:
    """Evolve: nothing is left."""
    moved("finish_cleanup", mob, undo)
    _pending(mob, undo, "none")


def retire_all_begun(mob: Mob, undo: Undo, record: Record, event: e.RetireAllBegun) -> None:
    """Evolve: every member is asked to retire."""
    _pending(mob, undo, "retire_all")


def retire_all_finished(mob: Mob, undo: Undo, record: Record, event: e.RetireAllFinished) -> None:
    """Evolve: every member was asked to retire."""
    _pending(mob, undo, "none")


def destroyed(mob: Mob, undo: Undo, record: Record, event: e.MobDestroyed) -> None:
    """Evolve: the mob is gone for good."""
    moved("destroy", mob, undo)
    operation.mob_ended(mob, undo, record)
    mob.pending = "none"
    mob.inputs_abandoned = event.inputs_abandoned
