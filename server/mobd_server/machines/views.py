"""What callers see of the state: made in the tick in which it is asked for, and kept by nobody."""

from collections import Counter
from collections.abc import Container

import msgspec

from mobd_server.machines.admission import WHILE
from mobd_server.machines.answers import MemberView, MobView
from mobd_server.machines.keys import find, input_key
from mobd_server.machines.lanes import count_waiting, ready_lane, waiting
from mobd_server.machines.state import Member, Mob


def view_mob(mob: Mob) -> MobView:
    """Return a mob as its callers see it."""
    states: Counter[str] = Counter(member.state for member in mob.members.values())
    return MobView(
        mob_id=mob.mob_id,
        phase=mob.phase,
        pending=mob.pending,
        labels=mob.labels,
        members={"total": len(mob.members), **states},
        head=mob.head,
        log_id=mob.log_id,
        definition=msgspec.Raw(msgspec.json.encode(mob.definition)),
        created_at=mob.created_at,
        agents=len(mob.attachments),
        inputs_waiting=sum(count_waiting(member) for member in mob.members.values()),
        cleanup_pending=mob.cleanup_pending,
        active_run_count=mob.active_run_count,
    )


def view_member(mob: Mob, member: Member) -> MemberView:
    """Return a member as its callers see it."""
    executor = member.executor
    attachment = mob.attachments[executor.attachment_id] if executor is not None else None
    run = mob.runs[member.run_id] if member.run_id is not None else None
    waits = waiting(member)
    return MemberView(
        mob_id=mob.mob_id,
        member_id=member.member_id,
        generation=member.generation,
        fence_token=member.fence_token,
        role=member.role,
        state=member.state,
        session_id=member.session_id,
        message_count=member.message_count,
        digest=member.digest,
        created_at=member.created_at,
        labels=member.labels or {},
        context=member.context,
        attachment_id=attachment.attachment_id if attachment is not None else None,
        host_id=attachment.host_id if attachment is not None else "",
        run_id=member.run_id,
        inputs_waiting=len(waits),
        oldest_waiting_at=min((one.at for one in waits), default=0),
        inputs_running=len(run.inputs) + len(run.steered or ()) if run is not None else 0,
        retry_at=member.retry_at,
        last_output=member.last_output,
        last_error=member.last_error,
        lifecycle=member.lifecycle,
        inputs_steering=len(member.steer or ()),
        operation_id=member.operation_id,
        initial_input_id=member.initial_input_id,
        kickoff_complete=kickoff_complete(member),
        drain_until=member.drain_until,
    )


def kickoff_complete(member: Member) -> bool:
    """Whether the input that the member was spawned with has ended, or there was none."""
    name = member.initial_input_id
    known = find(member, input_key(name)) if name else None
    return known is None or known.end_seq != 0


def is_final(member: Member) -> bool:
    """Whether nothing more will come of a member: it is destroyed, or retired with nothing left to run."""
    if member.state == "destroyed":
        return True
    return member.state == "retired" and member.run_id is None and not count_waiting(member)


def waiting_reason(mob: Mob, member: Member, connected: Container[str]) -> str:
    """Say in a sentence what the member's waiting inputs wait for."""
    if mob.pending in ("destroy", "reset"):
        return WHILE[mob.pending]
    if mob.phase != "running":
        return f"the mob is {mob.phase}"
    if member.run_id is not None:
        return "an earlier run of the member is in flight"
    if ready_lane(member) is None and not member.retry_at:
        return "it does not wake its member: another input must"
    if member.retry_at:
        return "an attempt failed and is repeated after a pause"
    executor = member.executor
    if executor is None:
        served = any(member.role in a.roles or member.member_id in a.names for a in mob.attachments.values())
        if served:
            return f"every agent that serves role {member.role} is full or away"
        return f"no agent serves role {member.role}"
    if executor.attachment_id not in connected:
        return f"the agent on host {mob.attachments[executor.attachment_id].host_id} is away"
    if not executor.confirmed:
        return "an agent was asked to serve the member and has not answered yet"
    return "the member's agent is busy with other members"
