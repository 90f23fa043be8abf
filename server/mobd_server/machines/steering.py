"""Steering: inputs that go into a run in flight (runtime §2.12, with the run's own commit in place of one of theirs).

A steered input is bound to the run by an event and sent to its agent. The run's result names those that the handler
took in: they are consumed with it. The others go back to their lane and are run afterwards, never both.
"""

from mobd_server.machines import events as e
from mobd_server.machines.answers import SendSteer
from mobd_server.machines.draft import Draft
from mobd_server.machines.lanes import steerable, take
from mobd_server.machines.placement import run_inputs
from mobd_server.machines.records import Record
from mobd_server.machines.state import Mob, Run
from mobd_server.machines.undo import Undo


def steer_waiting(d: Draft, run: Run) -> None:
    """Give the run in flight what waits in its member's steer lane, if its agent is there and can take it."""
    mob = d.mob
    attachment = mob.attachments[run.attachment_id]
    if not attachment.steers or run.cancel != "none" or mob.phase != "running":
        return
    if not d.is_connected(attachment.attachment_id):
        return
    member = mob.members[run.member_id]
    held = [*run.inputs, *(run.steered or ())]
    count = steerable(member, len(held), sum(one.size for one in held))
    if not count:
        return
    taken = (member.steer or [])[:count]
    d.emit(
        e.RunSteered(
            member.member_id,
            run.run_id,
            [one.canonical_input_id for one in taken],
            [one.attempts + 1 for one in taken],
        ),
        member.member_id,
        run.run_id,
    )
    d.react(_steer(run, count))


def _steer(run: Run, count: int) -> SendSteer:
    return SendSteer(
        attachment_id=run.attachment_id,
        run_id=run.run_id,
        fence=run.fence,
        member_id=run.member_id,
        inputs=run_inputs(run.steered or [], run.steered_attempts or [])[-count:],
    )


def steer_again(d: Draft, run: Run) -> None:
    """Send everything that was steered into a run again, for its agent came back."""
    if run.steered:
        d.react(_steer(run, len(run.steered)))


def steered(mob: Mob, undo: Undo, record: Record, event: e.RunSteered) -> None:
    """Evolve: the head of the steer lane is held by the run."""
    run = mob.runs[event.run_id]
    member = mob.members[event.member_id]
    undo.touch(member)
    undo.touch(run)
    taken = take(undo, member, "steer", len(event.canonical_input_ids))
    if [one.canonical_input_id for one in taken] != event.canonical_input_ids:
        raise ValueError(f"run {event.run_id} was given inputs that are not the head of the steer lane")
    for one, attempt in zip(taken, event.attempts, strict=True):
        undo.touch(one)
        one.attempts = attempt
    # New lists: what the run held before may still be read by what was released for it.
    run.steered = [*(run.steered or ()), *taken]
    run.steered_attempts = [*(run.steered_attempts or ()), *event.attempts]
