"""Which agent serves which member, and which member runs next (architecture §5).

A member is given to an agent that serves it by name, else by role, with room. If there is none, an idle member of such
an agent is sent away for one with work, the one that was idle longest. A member stays with a suspended agent until that
one's grace ends. Nothing is dispatched to an agent that is not connected, nor while the mob does not run.
"""

from typing import Final

from mobd_server.machines import events as e
from mobd_server.machines import operation
from mobd_server.machines.answers import Again, RunInput, SendAssign, SendStartRun, SendUnassign
from mobd_server.machines.draft import Draft
from mobd_server.machines.lanes import Batch, choose, has_work, lane_of
from mobd_server.machines.member import TABLE, relist, set_timer, unlist
from mobd_server.machines.policy import shared
from mobd_server.machines.records import Record
from mobd_server.machines.state import NOTHING, Attachment, Executor, Input, Member, Mob, Profile, Run
from mobd_server.machines.undo import Undo

# Assignments in one decision; the rest follows in the next.
PLACE_AT_ONCE: Final = 500


def dispatch(d: Draft, attachment: Attachment) -> None:
    """Start as many runs on an agent as it takes now, in the order in which their members became ready."""
    mob = d.mob
    if not dispatches(mob) or not d.is_connected(attachment.attachment_id):
        return
    while attachment.ready and len(attachment.runs) < attachment.capacity and attachment.exclusive is None:
        member = mob.members[attachment.ready[0][1]]
        batch = choose(member)
        if batch.exclusive and attachment.runs:
            # Its turn has come; what runs beside it ends first.
            return
        if d.room <= 0:
            d.react(Again())
            return
        _start(d, member, attachment, batch)


def dispatches(mob: Mob) -> bool:
    """Whether the mob starts runs: it runs, and nothing pending ends what waits."""
    return mob.phase == "running" and mob.pending in ("none", "complete", "retire_all")


def _start(d: Draft, member: Member, attachment: Attachment, batch: Batch) -> None:
    executor = member.executor
    inputs = (lane_of(member, batch.lane) or [])[: batch.count]
    if executor is None or not inputs:
        raise ValueError(f"member {member.member_id} is listed as ready and is not")
    profile = d.mob.definition.profiles.get(member.role)
    timeout_s = profile.run_timeout_s if profile is not None else 0
    run_id = d.context.ids.new("run")
    d.emit(
        e.RunStarted(
            member.member_id,
            run_id,
            attachment.attachment_id,
            executor.fence,
            [one.canonical_input_id for one in inputs],
            [one.attempts + 1 for one in inputs],
            batch.exclusive,
            batch.lane,
            shared(inputs[0].stamp),
            d.context.now + timeout_s * 1_000_000 if timeout_s else 0,
        ),
        member.member_id,
        run_id,
    )
    d.react(start_run(d.mob.runs[run_id]))


def start_run(run: Run) -> SendStartRun:
    """Return what the run's agent is sent."""
    stamp = run.stamp
    return SendStartRun(
        attachment_id=run.attachment_id,
        run_id=run.run_id,
        fence=run.fence,
        member_id=run.member_id,
        inputs=run_inputs(run.inputs, run.attempts),
        traceparent=run.inputs[0].traceparent,
        boundary=stamp.boundary,
        execution=stamp.execution,
        intent=stamp.intent,
        deadline=run.deadline,
    )


def run_inputs(inputs: list[Input], attempts: list[int]) -> list[RunInput]:
    """Return inputs as the run's agent is sent them."""
    return [
        RunInput(
            one.canonical_input_id,
            one.input_id,
            one.content,
            one.sender,
            attempt,
            one.kind,
            one.correlation_id or "",
            one.about,
        )
        for one, attempt in zip(inputs, attempts, strict=True)
    ]


def serves(attachment: Attachment, member: Member) -> bool:
    """Whether the agent serves the member, by name or by role."""
    return member.role in attachment.roles or member.member_id in attachment.names


def place(d: Draft, member: Member, avoid: str | None = None) -> bool:
    """Give a member without an agent to one, and return whether that could be done. `avoid` is not asked.

    One that has drained needs none.
    """
    if member.executor is not None or (member.state == "retired" and not has_work(member)):
        return False
    best: tuple[bool, int, int] | None = None
    chosen: Attachment | None = None
    full: list[Attachment] = []
    for attachment in d.mob.attachments.values():
        if not serves(attachment, member) or attachment.attachment_id == avoid:
            continue
        if not d.is_connected(attachment.attachment_id):
            continue
        if len(attachment.members) >= attachment.max_members:
            full.append(attachment)
            continue
        rank = (member.member_id not in attachment.names, len(attachment.members), attachment.seq)
        if best is None or rank < best:
            best, chosen = rank, attachment
    if chosen is None and member.listed == "waiting" and full:
        chosen = make_room(d, full)
    if chosen is None:
        return False
    assign_to(d, member, chosen)
    return True


def make_room(d: Draft, full: list[Attachment]) -> Attachment | None:
    """Send the member away that has been idle longest; return its agent."""
    idle = _idle_members(d.mob, full)
    if not idle or idle[-1].executor is None:
        return None
    attachment = d.mob.attachments[idle[-1].executor.attachment_id]
    release(d, idle[-1], "its place is needed for a member with work")
    return attachment


def _idle_members(mob: Mob, agents: list[Attachment]) -> list[Member]:
    """Return the members of agents that have nothing to do, the one that was idle longest last."""
    idle = [member for one in agents for member_id in one.members if is_idle(member := mob.members[member_id])]
    idle.sort(key=lambda member: (member.active_seq, member.member_id), reverse=True)
    return idle


def is_idle(member: Member) -> bool:
    """Whether a member that has an agent has nothing to do: what only rides along with other inputs is no work."""
    executor = member.executor
    return executor is not None and executor.confirmed and member.run_id is None and not has_work(member)


def assign_to(d: Draft, member: Member, attachment: Attachment) -> None:
    """Ask an agent to serve a member that has none."""
    d.emit(
        e.ExecutorAssigned(member.member_id, attachment.attachment_id, d.mob.fences + 1),
        member.member_id,
    )
    d.react(assign(d.mob, member, attachment.attachment_id))


def assign(mob: Mob, member: Member, attachment_id: str) -> SendAssign:
    """Return what an agent is sent for a member that it serves."""
    executor = member.executor
    if executor is None:
        raise ValueError(f"member {member.member_id} has no executor")
    return SendAssign(
        attachment_id=attachment_id,
        member_id=member.member_id,
        fence=executor.fence,
        confirmed=executor.confirmed,
        profile=mob.definition.profiles.get(member.role) or Profile(member.role),
        context=None if member.context is NOTHING else member.context,
        generation=member.generation,
        fence_token=member.fence_token,
        session_id=member.session_id,
        message_count=member.message_count,
        digest=member.digest,
    )


def release(d: Draft, member: Member, reason: str) -> None:
    """Take a member without a run from its agent and tell the agent."""
    executor = member.executor
    if executor is None:
        return
    d.emit(
        e.ExecutorReleased(member.member_id, executor.attachment_id, executor.fence, reason),
        member.member_id,
    )
    d.react(SendUnassign(executor.attachment_id, member.member_id, executor.fence, reason))


def reuse(d: Draft, attachment: Attachment, avoid: str | None = None) -> None:
    """After a member left an agent: run what is ready there, and ask it to serve another that waits, not `avoid`."""
    dispatch(d, attachment)
    if not d.is_connected(attachment.attachment_id):
        return
    waiting = next_waiting(d.mob, attachment, avoid=avoid)
    if waiting is not None:
        assign_to(d, waiting, attachment)


def next_waiting(mob: Mob, attachment: Attachment, avoid: str | None = None) -> Member | None:
    """Return the member with work and without an agent that waits longest for this agent; it is not `avoid`."""
    heads = [
        next((entry for entry in mob.waiting[role] if entry[1] != avoid), None)
        for role in attachment.roles
        if role in mob.waiting
    ]
    for name in attachment.names:
        member = mob.members.get(name)
        if member is not None and member.listed == "waiting" and name != avoid:
            heads.append((member.listed_at, name))
    first = min((entry for entry in heads if entry is not None), default=None)
    return mob.members[first[1]] if first is not None else None


def free_members(mob: Mob) -> list[Member]:
    """Return the members that may have an agent and have none, in the order in which they were spawned."""
    free = [member for member in mob.members.values() if member.executor is None and member.state == "idle"]
    free.sort(key=lambda member: member.fence_token)
    return free


def fill(d: Draft, attachment: Attachment, free: list[Member]) -> None:
    """Give a connected agent the members that it serves: those with work first, in place of idle ones if it is full.

    `free` are the members among which those without work are looked for.
    """
    limit = min(PLACE_AT_ONCE, d.room // 2)
    idle: list[Member] | None = None
    while (member := next_waiting(d.mob, attachment)) is not None:
        if limit <= 0:
            d.react(Again())
            return
        if len(attachment.members) >= attachment.max_members:
            if idle is None:
                idle = _idle_members(d.mob, [attachment])
            if not idle:
                return
            release(d, idle.pop(), "its place is needed for a member with work")
        assign_to(d, member, attachment)
        limit -= 1
    for member in free:
        if len(attachment.members) >= attachment.max_members:
            return
        if member.executor is None and serves(attachment, member):
            if limit <= 0:
                d.react(Again())
                return
            assign_to(d, member, attachment)
            limit -= 1


def assigned(mob: Mob, undo: Undo, record: Record, event: e.ExecutorAssigned) -> None:
    """Evolve: the agent was asked to serve the member."""
    member = mob.members[event.member_id]
    undo.touch(member)
    undo.touch(mob)
    mob.fences = event.executor_fence
    # Until its agent has confirmed it waits for nothing else.
    unlist(mob, undo, member)
    set_timer(mob, undo, "drain", member.member_id, member.drain_until)
    member.drain_until = 0
    member.executor = Executor(event.attachment_id, event.executor_fence)
    undo.put(mob.attachments[event.attachment_id].members, member.member_id, event.executor_fence)


def confirmed(mob: Mob, undo: Undo, record: Record, event: e.ExecutorConfirmed) -> None:
    """Evolve: the agent serves the member."""
    member = mob.members[event.member_id]
    undo.touch(member)
    member.executor = Executor(event.attachment_id, event.executor_fence, True)
    member.state = TABLE[member.state, "confirm"]
    operation.confirmed(mob, undo, record, member)
    relist(mob, undo, member, record.seq)


def unassigned(mob: Mob, undo: Undo, record: Record, event: e.ExecutorReleased | e.ExecutorLost) -> None:
    """Evolve: the member has no agent."""
    member = mob.members[event.member_id]
    undo.touch(member)
    unlist(mob, undo, member)
    member.executor = None
    member.state = TABLE[member.state, "release"]
    undo.drop(mob.attachments[event.attachment_id].members, member.member_id)
    relist(mob, undo, member, record.seq)
