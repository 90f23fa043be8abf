"""The end of a member: retiring, destroying, respawning, and leaving the roster (runtime §4, core §5, §11.3).

A retirement has two phases. The runtime refuses inputs at once; what it has is run if it has an agent and the mob runs,
else it is given up. When nothing is left the member loses its agent, and leaves the roster if it was asked to. A member
that drains and loses its agent may be served by another one for a minute; then the rest is given up. A destruction and
a respawn give everything up at once. What was delivered stays known by its key after the member has gone.
"""

from typing import Final, Literal

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines import operation
from mobd_server.machines.admission import require_admitted
from mobd_server.machines.answers import Again, Destroyed, Respawned, Retired, SendRetire
from mobd_server.machines.cancel import check_fence, fenced_member, request
from mobd_server.machines.draft import Draft
from mobd_server.machines.inbox import DEDUPE_US, abandon_waiting
from mobd_server.machines.lanes import count_waiting
from mobd_server.machines.member import TABLE, insert_sorted, relist, set_timer
from mobd_server.machines.placement import place, release, reuse
from mobd_server.machines.records import Record, SessionRow
from mobd_server.machines.roster import deliver_initial
from mobd_server.machines.run import settle
from mobd_server.machines.sharing import serve_work
from mobd_server.machines.state import DRAIN_US, EMPTY_DIGEST, Former, Member, Mob, Report
from mobd_server.machines.undo import Undo
from mobd_server.machines.views import view_member

# Former members that one event forgets; what is left goes with the next.
FORGET_AT_ONCE: Final = 64

Reason = Literal["destroyed", "retired", "reset"]


def retire_member(d: Draft, command: c.RetireMember) -> Retired:
    """Retire a member's runtime and take the member off the roster once it has drained."""
    mob = d.mob
    require_admitted(mob, c.RetireMember)
    member = mob.members.get(command.member_id)
    if member is None:
        return Retired(already=True)
    check_fence(member, command.generation, command.fence_token)
    if command.interrupt_first and member.run_id is not None:
        request(d, mob.runs[member.run_id], reason="its member is retired")
    if member.lifecycle == "retiring":
        return Retired(0, count_pending(mob, member), True)
    return retire(d, member)


def retire(d: Draft, member: Member) -> Retired:
    """Let a member leave the roster."""
    d.emit(e.MemberRetiring(member.member_id), member.member_id)
    return _retire_runtime(d, member)


def retire_runtime(d: Draft, command: c.RetireRuntime) -> Retired:
    """Retire a member's runtime; the member stays on the roster."""
    require_admitted(d.mob, c.RetireRuntime)
    return _retire_runtime(d, fenced_member(d.mob, command.member_id, command.generation, command.fence_token))


def count_pending(mob: Mob, member: Member) -> int:
    """Return how many inputs of a retired member are still to be run."""
    if mob.phase != "running":
        # Nothing is started, and a run in flight is nobody's to wait for.
        return 0
    return _count_inputs(mob, member)


def _count_inputs(mob: Mob, member: Member) -> int:
    """Return how many inputs a member's run holds, and how many wait."""
    count = count_waiting(member)
    if member.run_id is not None:
        run = mob.runs[member.run_id]
        count += len(run.inputs) + len(run.steered or ())
    return count


def _retire_runtime(d: Draft, member: Member) -> Retired:
    if member.state == "destroyed":
        return Retired(already=True)
    if member.state == "retired":
        return Retired(0, count_pending(d.mob, member), True)
    executor = member.executor
    drains = executor is not None and d.mob.phase == "running"
    abandoned = 0 if drains else count_waiting(member)
    pending = count_pending(d.mob, member) if drains else 0
    d.emit(e.RuntimeRetired(member.member_id, abandoned, pending), member.member_id)
    if executor is not None:
        d.react(SendRetire(executor.attachment_id, member.member_id, executor.fence, pending > 0))
    if drains:
        # What only rode along with others makes it run from now on.
        serve_work(d, member)
    else:
        abandon_waiting(d, member, "retired")
    return Retired(abandoned, pending)


def destroy_runtime(d: Draft, command: c.DestroyRuntime) -> Destroyed:
    """Give everything up that a member has, fence its agent, and end its runtime for good."""
    require_admitted(d.mob, c.DestroyRuntime)
    member = fenced_member(d.mob, command.member_id, command.generation, command.fence_token)
    if member.state == "destroyed":
        return Destroyed(already=True)
    return Destroyed(destroy(d, member, "the member is destroyed"))


def destroy(d: Draft, member: Member, why: str) -> int:
    """End a member's runtime; return how many inputs that gave up."""
    count = strip(d, member, "destroyed", why)
    d.emit(e.MemberDestroyed(member.member_id, count), member.member_id)
    return count


def strip(d: Draft, member: Member, reason: Reason, why: str) -> int:
    """Take run, waiting inputs and agent from a member; return how many inputs that gave up."""
    mob = d.mob
    count = _count_inputs(mob, member)
    if member.run_id is not None:
        settle(d, mob.runs[member.run_id], reason)
    abandon_waiting(d, member, reason)
    executor = member.executor
    if executor is not None:
        release(d, member, why)
        if mob.phase == "running" and mob.pending != "destroy":
            reuse(d, mob.attachments[executor.attachment_id])
    return count


def respawn_member(d: Draft, command: c.RespawnMember) -> Respawned:
    """Replace a member's incarnation by a new one with the same name, role, labels and context."""
    mob = d.mob
    require_admitted(mob, c.RespawnMember)
    member = fenced_member(mob, command.member_id, command.generation, command.fence_token)
    generation, fence_token = member.generation, member.fence_token
    count = strip(d, member, "retired", "the member is respawned")
    ids = d.context.ids
    session_id, operation_id = ids.new("ses"), ids.new("op")
    initial = ids.new("in") if command.initial_message is not None else ""
    owner = mob.operations[member.operation_id].owner if member.operation_id in mob.operations else ""
    d.emit(
        e.MemberRespawned(
            member.member_id, generation + 1, mob.fences + 1, session_id, operation_id, owner, initial, count
        ),
        member.member_id,
    )
    d.sessions.append(SessionRow(session_id, member.member_id, 0, EMPTY_DIGEST))
    member = mob.members[command.member_id]
    place(d, member)
    deliver_initial(d, member, command.initial_message)
    return Respawned(view_member(mob, member), generation, fence_token, count)


def remove(d: Draft, member: Member, reason: Reason, why: str) -> None:
    """Give everything up that a member has and take it off the roster at once."""
    if member.state not in ("retired", "destroyed"):
        d.emit(e.RuntimeRetired(member.member_id, _count_inputs(d.mob, member)), member.member_id)
    strip(d, member, reason, why)
    _leave(d, member)


def _leave(d: Draft, member: Member) -> None:
    d.emit(
        e.MemberRetired(member.member_id, member.generation, _forgets(d.mob, d.context.now)),
        member.member_id,
    )


def _forgets(mob: Mob, now: int) -> list[str] | None:
    """Choose the former members that are remembered no longer: nothing that was delivered to them counts any more."""
    horizon = now - DEDUPE_US
    old: list[str] = []
    for member_id in mob.left[:FORGET_AT_ONCE]:
        if mob.former[member_id].left_at >= horizon:
            break
        old.append(member_id)
    return old or None


def finish(d: Draft, *, everything: bool = False) -> None:
    """Go on with the retirements that this decision touched, or with all of them; called at its end.

    What does not fit follows in a decision of its own.
    """
    mob = d.mob
    # Whoever is destroyed with the mob stays in its report.
    if not mob.draining or mob.pending == "destroy" or mob.phase == "destroyed":
        return
    for member_id in sorted(mob.draining) if everything else _touched(d):
        member = mob.members.get(member_id)
        if member is None or member.run_id is not None:
            continue
        if d.room <= 0:
            d.react(Again())
            return
        if not count_waiting(member):
            _drained(d, member)
        elif member.executor is None and not member.drain_until and mob.phase == "running":
            _go_on_elsewhere(d, member)


def _go_on_elsewhere(d: Draft, member: Member) -> None:
    # The agent that has just lost it, or did not want it, is not asked in the same breath.
    if not place(d, member, avoid=_lost_by(d, member.member_id)):
        d.emit(e.DrainSuspended(member.member_id, d.context.now + DRAIN_US), member.member_id)


def _lost_by(d: Draft, member_id: str) -> str | None:
    """Return the agent that the member lost last in this decision."""
    for record in reversed(d.records):
        event = record.event
        if isinstance(event, e.ExecutorReleased | e.ExecutorLost) and event.member_id == member_id:
            return event.attachment_id
    return None


def _touched(d: Draft) -> list[str]:
    draining = d.mob.draining
    touched: set[str] = set()
    for record in d.records:
        if isinstance(record.event, e.MobStarted | e.MobResumed):
            return sorted(draining)
        if record.member_id in draining:
            touched.add(record.member_id)
    return sorted(touched)


def _drained(d: Draft, member: Member) -> None:
    executor = member.executor
    release(d, member, f"the member is {member.state}")
    if member.lifecycle == "retiring":
        _leave(d, member)
    if executor is not None:
        reuse(d, d.mob.attachments[executor.attachment_id])


def runtime_retired(mob: Mob, undo: Undo, record: Record, event: e.RuntimeRetired) -> None:
    """Evolve: the member's runtime accepts nothing more."""
    member = mob.members[event.member_id]
    undo.touch(member)
    member.state = TABLE[member.state, "retire"]
    member.inputs_abandoned = event.inputs_abandoned
    undo.put(mob.draining, event.member_id, None)
    if mob.pending != "none":
        report = Report(event.member_id, event.inputs_abandoned, event.inputs_pending_drain)
        undo.put(mob.reports, event.member_id, report)
    operation.retiring(mob, undo, record, member)
    # While it drains everything that waits makes it run.
    relist(mob, undo, member, record.seq)


def retiring(mob: Mob, undo: Undo, record: Record, event: e.MemberRetiring) -> None:
    """Evolve: the member leaves the roster when it has drained."""
    member = mob.members[event.member_id]
    undo.touch(member)
    member.lifecycle = "retiring"
    undo.put(mob.draining, event.member_id, None)
    if mob.pending != "none":
        # Right for one that was retired before and may still drain; of any other `runtime_retired` follows.
        undo.put(mob.reports, event.member_id, Report(event.member_id, 0, count_pending(mob, member)))


def suspended(mob: Mob, undo: Undo, record: Record, event: e.DrainSuspended) -> None:
    """Evolve: the draining member waits for another agent, for a time."""
    member = mob.members[event.member_id]
    undo.touch(member)
    insert_sorted(undo, mob.timers, (event.until, "drain", event.member_id))
    member.drain_until = event.until


def _end_pause(mob: Mob, undo: Undo, member: Member) -> None:
    # What failed may have been replaced by a newer input since, and then nothing was left that ends its pause.
    set_timer(mob, undo, "retry", member.member_id, member.retry_at)
    member.retry_at = 0


def left(mob: Mob, undo: Undo, record: Record, event: e.MemberRetired) -> None:
    """Evolve: the member is off the roster; what was delivered to it stays known."""
    for old in event.forgets or ():
        if mob.left[:1] != [old]:
            raise ValueError(f"former member {old} is not the one that left first")
        undo.drop(mob.former, old)
        undo.splice(mob.left, 0, 1, ())
    member = mob.members[event.member_id]
    if member.executor is not None or member.run_id is not None or count_waiting(member):
        raise ValueError(f"member {event.member_id} left the roster with an agent, a run or inputs")
    undo.touch(member)
    _end_pause(mob, undo, member)
    operation.ended(mob, undo, record, member, "retired", "")
    undo.drop(mob.members, event.member_id)
    if event.member_id in mob.draining:
        undo.drop(mob.draining, event.member_id)
    for run_id in member.receipts:
        undo.drop(mob.receipts, run_id)
    former = Former(
        member.member_id,
        member.role,
        member.generation,
        record.at,
        member.ended,
        member.forgotten_at,
    )
    undo.put(mob.former, event.member_id, former)
    undo.append(mob.left, event.member_id)


def destroyed(mob: Mob, undo: Undo, record: Record, event: e.MemberDestroyed) -> None:
    """Evolve: the member's runtime is gone for good; what it had ended stays known."""
    member = mob.members[event.member_id]
    undo.touch(member)
    _end_pause(mob, undo, member)
    member.state = TABLE[member.state, "destroy"]
    member.inputs_abandoned = event.inputs_abandoned
    operation.ended(mob, undo, record, member, "destroyed", "the member was destroyed")


def respawned(mob: Mob, undo: Undo, record: Record, event: e.MemberRespawned) -> None:
    """Evolve: the member has a new incarnation."""
    old = mob.members[event.member_id]
    if old.executor is not None or old.run_id is not None or count_waiting(old):
        raise ValueError(f"member {event.member_id} was respawned with an agent, a run or inputs")
    undo.touch(old)
    undo.touch(mob)
    _end_pause(mob, undo, old)
    operation.ended(mob, undo, record, old, "retired", "the member was respawned")
    mob.fences = event.fence_token
    if event.member_id in mob.draining:
        undo.drop(mob.draining, event.member_id)
    new = Member(
        member_id=old.member_id,
        role=old.role,
        generation=event.generation,
        fence_token=event.fence_token,
        session_id=event.session_id,
        created_at=record.at,
        state=TABLE[old.state, "respawn"],
        labels=old.labels,
        context=old.context,
        ended=old.ended,
        forgotten_at=old.forgotten_at,
        receipts=old.receipts,
        active_seq=record.seq,
        operation_id=event.operation_id,
        initial_input_id=event.initial_input_id,
    )
    undo.put(mob.members, event.member_id, new)
    operation.begin(mob, undo, record, event.operation_id, event.owner, new)
