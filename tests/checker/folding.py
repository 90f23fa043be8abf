"""Folds a log into facts by rules of its own, and notes each event that the rules don't allow.

The rules are those of the design and of docs/members.md, written down a second time: nothing here is the server's code.
After a broken rule the fold goes on with what the event says, so that one defect is told once.
"""

from collections.abc import Callable, Iterable
from typing import Final

from tests.checker.facts import QUEUE, STEER, AgentFact, Facts, InputFact, MemberFact, RunFact
from tests.checker.history import Plain

GAP_FREE: Final = "gap_free_log"
SINGLE_ENDS: Final = "single_ends"
LANE_ORDER: Final = "lane_order"
ATTEMPTS: Final = "attempts"
IN_FORCE: Final = "fences_in_force"
NEVER_REUSED: Final = "never_reused"
COUNTS: Final = "true_counts"
ADMISSION: Final = "admission"
SETTLEMENT: Final = "settlement"

MAX_ATTEMPTS: Final = 3
BATCH: Final = 64
DAY_US: Final = 24 * 3600 * 1_000_000
KEYS_KEPT: Final = 4_096

# How a run settled -> what may have become of its inputs.
OUTCOMES: Final[dict[str, frozenset[str]]] = {
    "RUN_STATE_COMMITTED": frozenset({"consumed", "returned"}),
    "RUN_STATE_FAILED": frozenset({"requeued", "requeued_behind", "returned", "abandoned"}),
    "RUN_STATE_CANCELLED": frozenset({"abandoned", "returned"}),
    "RUN_STATE_LOST": frozenset({"requeued", "abandoned"}),
    "RUN_STATE_RELEASED": frozenset({"requeued", "returned"}),
    "RUN_STATE_ABANDONED": frozenset({"abandoned"}),
}


def fold(mob: str, log: Iterable[Plain]) -> Facts:
    """Return what a log says, and what in it is against the rules."""
    facts = Facts(mob, list(log))
    for at, event in enumerate(facts.log, 1):
        seq = event.get("seq", 0)
        facts.places.setdefault((event.get("kind", ""), event.get("member_id", "")), []).append(seq)
        if seq != at:
            facts.breach(GAP_FREE, f"event {at} of the log has the number {seq}", event)
        kind = event.get("kind", "")
        if (kind == "mob_created") != (at == 1):
            facts.breach(GAP_FREE, f"event {at} is {kind}: a log begins with mob_created and has one", event)
        if facts.phase == "destroyed":
            facts.breach(SINGLE_ENDS, f"{kind} after the end of the mob", event)
        _step(facts, event, kind)
    return facts


def _step(facts: Facts, event: Plain, kind: str) -> None:
    step = _STEPS.get(kind)
    if step is not None:
        step(facts, event)
    # A decision that somebody asked for ends with the event that names the request.
    if kind not in ("run_settled", "input_abandoned", "executor_released", "executor_lost") or event.get("request_id"):
        member = facts.roster.get(event.get("member_id", ""))
        if member is not None:
            member.given_up.clear()


# The mob.


def _phase(phase: str, pending: str | None = None) -> Callable[[Facts, Plain], None]:
    def step(facts: Facts, event: Plain) -> None:
        facts.phase = phase or facts.phase
        if pending is not None:
            facts.pending = pending

    return step


def _mob_destroyed(facts: Facts, event: Plain) -> None:
    said = event.get("mob_destroyed", {})
    given_up = sum(one.inputs_abandoned for one in facts.roster.values())
    if (said.get("members", 0), said.get("inputs_abandoned", 0)) != (len(facts.roster), given_up):
        text = f"the end of the mob counts {said}, and it had {len(facts.roster)} members that gave up {given_up}"
        facts.breach(COUNTS, text, event)
    for one in facts.roster.values():
        if one.phase != "destroyed":
            facts.breach(SINGLE_ENDS, f"member {one.name} outlives its mob", one.event, event)
    facts.phase, facts.pending = "destroyed", ""


# Members.


def _fence(facts: Facts, number: int, event: Plain) -> None:
    if number in facts.fences:
        facts.breach(NEVER_REUSED, f"fence {number} was given out before", facts.fences[number], event)
    elif number < facts.last_fence:
        facts.breach(NEVER_REUSED, f"fence {number} comes after {facts.last_fence}", event)
    facts.fences[number] = event
    facts.last_fence = max(number, facts.last_fence)


def _incarnate(facts: Facts, event: Plain, fact: Plain) -> None:
    name = event["member_id"]
    generation, before = fact.get("generation", 0), facts.generations.get(name)
    _fence(facts, fact.get("fence_token", 0), event)
    forgotten = name in facts.left and _a_day_passed(facts, facts.left[name], event)
    if before is not None and generation <= before and not forgotten:
        facts.breach(NEVER_REUSED, f"member {name} is again at generation {generation}, after {before}", event)
    operation = fact.get("operation_id", "")
    if operation in facts.operations:
        facts.breach(NEVER_REUSED, f"operation {operation} is registered twice", facts.operations[operation], event)
    facts.operations[operation] = event
    facts.generations[name] = generation
    facts.roster[name] = MemberFact(name, generation, fact.get("fence_token", 0), event, operation)


def _member_spawned(facts: Facts, event: Plain) -> None:
    if event["member_id"] in facts.roster:
        facts.breach(SINGLE_ENDS, f"member {event['member_id']} was spawned while it is there", event)
    if facts.phase != "running" or facts.pending:
        facts.breach(ADMISSION, f"a member was spawned in a mob that is {facts.phase} {facts.pending}", event)
    _incarnate(facts, event, event.get("member_spawned", {}))


def _member(facts: Facts, event: Plain) -> MemberFact:
    name = event.get("member_id", "")
    if name not in facts.roster:
        facts.breach(ADMISSION, f"{event.get('kind')} of member '{name}', which is not on the roster", event)
        facts.roster[name] = MemberFact(name, 0, 0, event, "")
    return facts.roster[name]


def _stripped(facts: Facts, member: MemberFact, event: Plain) -> None:
    """Nobody leaves, and nobody is replaced, with anything left."""
    if member.run or member.waiting or member.fence:
        left = f"run '{member.run}', {len(member.waiting)} inputs, executor fence {member.fence}"
        facts.breach(SINGLE_ENDS, f"{event['kind']} of {member.name}, which still has {left}", event)


def _member_respawned(facts: Facts, event: Plain) -> None:
    member, fact = _member(facts, event), event.get("member_respawned", {})
    _stripped(facts, member, event)
    # What a retirement gave up before may stand right before this.
    said, given_up = fact.get("inputs_abandoned", 0), member.given_up.get("retired", 0)
    if said != given_up and not (member.phase != "active" and said == 0):
        facts.breach(COUNTS, f"the respawn of {member.name} says {said} abandoned, and it was {given_up}", event)
    if fact.get("generation", 0) != member.generation + 1:
        facts.breach(NEVER_REUSED, f"{member.name} was at generation {member.generation}", member.event, event)
    _incarnate(facts, event, fact)


def _runtime_retired(facts: Facts, event: Plain) -> None:
    member, fact = _member(facts, event), event.get("runtime_retired", {})
    if member.phase != "active":
        facts.breach(SINGLE_ENDS, f"{member.name} is retired, and was {member.phase} before", event)
    run = facts.runs.get(member.run)
    held = len(run.batch) + len(run.steered) if run is not None else 0
    said = (fact.get("inputs_abandoned", 0), fact.get("inputs_pending_drain", 0))
    if facts.pending == "reset":
        true = (len(member.waiting) + held, 0)
    elif member.fence and facts.phase == "running":
        true = (0, len(member.waiting) + held)
    else:
        true = (len(member.waiting), 0)
    if said != true:
        facts.breach(COUNTS, f"{member.name} retires with {said} (abandoned, pending), and that is {true}", event)
    member.phase = "retired"
    member.inputs_abandoned = said[0]


def _member_retiring(facts: Facts, event: Plain) -> None:
    _member(facts, event).leaving = True


def _member_retired(facts: Facts, event: Plain) -> None:
    member = _member(facts, event)
    _stripped(facts, member, event)
    if event.get("member_retired", {}).get("generation", 0) != member.generation:
        facts.breach(NEVER_REUSED, f"{member.name} leaves and is at generation {member.generation}", event)
    facts.left[member.name] = event.get("seq", 0)
    del facts.roster[member.name]


def _member_destroyed(facts: Facts, event: Plain) -> None:
    member = _member(facts, event)
    if member.phase == "destroyed":
        facts.breach(SINGLE_ENDS, f"{member.name} is destroyed a second time", event)
    _stripped(facts, member, event)
    said = event.get("member_destroyed", {}).get("inputs_abandoned", 0)
    given_up = member.given_up.get("destroyed", 0)
    if said != given_up:
        facts.breach(COUNTS, f"the end of {member.name} says {said} abandoned, and it was {given_up}", event)
    member.phase = "destroyed"
    member.inputs_abandoned = said


# Agents.


def _attachment_opened(facts: Facts, event: Plain) -> None:
    fact = event.get("attachment_opened", {})
    name = fact.get("attachment_id", "")
    if name in facts.agents:
        facts.breach(NEVER_REUSED, f"attachment {name} is opened twice", facts.agents[name].event, event)
    facts.agents[name] = AgentFact(name, event, fact.get("capacity", 0))


def _attachment_closed(facts: Facts, event: Plain) -> None:
    name = event.get("attachment_closed", {}).get("attachment_id", "")
    agent = facts.agents.get(name)
    if agent is None or agent.closed is not None:
        facts.breach(SINGLE_ENDS, f"attachment {name} is closed and is not open", event)
        return
    if agent.runs or agent.members:
        text = f"attachment {name} is closed with runs {sorted(agent.runs)}, members {sorted(agent.members)}"
        facts.breach(SINGLE_ENDS, text, event)
    agent.closed = event


def _executor(facts: Facts, event: Plain) -> None:
    member, fact, kind = _member(facts, event), event.get("executor", {}), event["kind"]
    name, fence = fact.get("attachment_id", ""), fact.get("executor_fence", 0)
    agent = facts.agents.get(name)
    if agent is None or agent.closed is not None:
        facts.breach(IN_FORCE, f"{kind} of {member.name} with attachment {name}, which is not open", event)
        agent = facts.agents.setdefault(name, AgentFact(name, event, 1 << 30))
    if kind == "executor_assigned":
        _fence(facts, fence, event)
        if member.fence:
            facts.breach(IN_FORCE, f"{member.name} gets an agent, and has one under fence {member.fence}", event)
        member.attachment, member.fence, member.confirmed = name, fence, False
        agent.members.add(member.name)
        return
    if (member.attachment, member.fence) != (name, fence):
        facts.breach(IN_FORCE, f"{kind} under fence {fence}; in force for {member.name} is {member.fence}", event)
    if kind == "executor_confirmed":
        member.confirmed = True
        return
    if member.run:
        facts.breach(IN_FORCE, f"{kind} of {member.name} with run {member.run} in flight", event)
    member.attachment, member.fence, member.confirmed = "", 0, False
    agent.members.discard(member.name)


# Inputs.


def _input_accepted(facts: Facts, event: Plain) -> None:
    member, fact = _member(facts, event), event.get("input_accepted", {})
    canonical, input_id = fact.get("canonical_input_id", ""), fact.get("input_id", "")
    if member.phase != "active" or facts.phase != "running" or facts.pending:
        text = f"an input was accepted by {member.name}, {member.phase}, of a mob that is {facts.phase} {facts.pending}"
        facts.breach(ADMISSION, text, event)
    if canonical in facts.inputs:
        facts.breach(NEVER_REUSED, f"canonical id {canonical} is given twice", facts.inputs[canonical].event, event)
    known = facts.keys.setdefault((member.name, input_id), [])
    if known and not _forgotten(facts, known[-1], event):
        text = f"input '{input_id}' of {member.name} is accepted twice, as {known[-1].canonical} and {canonical}"
        facts.breach(SINGLE_ENDS, text, known[-1].event, event)
    one = InputFact(
        canonical,
        input_id,
        member.name,
        event,
        fact.get("handling_mode", QUEUE),
        fact.get("input_kind", ""),
        fact.get("silent", False),
        fact.get("content", {}),
    )
    known.append(one)
    facts.inputs[canonical] = one
    if fact.get("consumed", False):
        _end(facts, one, "consumed", event)
    else:
        member.lanes[one.lane].append(canonical)


def _forgotten(facts: Facts, before: InputFact, event: Plain) -> bool:
    """Whether a key may be accepted anew: its input ended a day ago, or 4,096 have ended since."""
    if not before.end_seq:
        return False
    since = sum(1 for one in facts.inputs.values() if one.member == before.member and one.end_seq > before.end_seq)
    return _a_day_passed(facts, before.end_seq, event) or since >= KEYS_KEPT


def _a_day_passed(facts: Facts, since: int, event: Plain) -> bool:
    """Whether the server's clock, which may be set, ever showed a day more than at event `since`."""
    began, now = (one.get("seq", 0) for one in (facts.event(since) or {}, event))
    times = [one.get("time", 0) for one in facts.log[max(0, began - 1) : now]]
    return bool(times) and max(times) - times[0] >= DAY_US


def _input(facts: Facts, canonical: str, event: Plain) -> InputFact:
    if canonical not in facts.inputs:
        facts.breach(SINGLE_ENDS, f"{event.get('kind')} of input {canonical}, which was never accepted", event)
        member = event.get("member_id", "")
        facts.inputs[canonical] = InputFact(canonical, canonical, member, event, QUEUE, "", silent=False, content={})
    return facts.inputs[canonical]


def _end(facts: Facts, one: InputFact, end: str, event: Plain, reason: str = "") -> None:
    if one.end:
        text = f"input {one.canonical} ends as {end}, and had ended as {one.end}"
        facts.breach(SINGLE_ENDS, text, facts.event(one.end_seq), event)
    one.end, one.end_seq, one.reason, one.run = end, event.get("seq", 0), reason, ""


def _input_replaced(facts: Facts, event: Plain) -> None:
    member, fact = _member(facts, event), event.get("input_replaced", {})
    one = _input(facts, fact.get("canonical_input_id", ""), event)
    if one.canonical not in member.lanes[one.lane]:
        facts.breach(LANE_ORDER, f"input {one.canonical} is replaced, and does not wait", event)
    else:
        member.lanes[one.lane].remove(one.canonical)
    newer = facts.event(event.get("seq", 0) + 1) or {}
    accepted = newer.get("input_accepted", {})
    if accepted.get("canonical_input_id") != fact.get("replaced_by"):
        facts.breach(SETTLEMENT, f"input {one.canonical} gives its place to one that does not follow", event, newer)
    elif accepted.get("supersession_key") != one.event.get("input_accepted", {}).get("supersession_key"):
        facts.breach(SETTLEMENT, f"input {one.canonical} gives its place to one of another key", event, newer)
    _still(facts, one, fact.get("attempt", 0), event)
    _end(facts, one, event["kind"].removeprefix("input_"), event)


def _still(facts: Facts, one: InputFact, attempt: int, event: Plain) -> None:
    """Check what is said of an input that ends while it waits: it has the attempts that it had."""
    if attempt != one.attempts:
        facts.breach(ATTEMPTS, f"input {one.canonical} ends with {attempt} attempts, and had {one.attempts}", event)


def _input_abandoned(facts: Facts, event: Plain) -> None:
    member, fact = _member(facts, event), event.get("input_abandoned", {})
    names = fact.get("canonical_input_ids", [])
    if names != member.waiting:
        facts.breach(LANE_ORDER, f"given up are {names[:5]}…, and {member.waiting[:5]}… waited", event)
    attempts = fact.get("attempts") or [0] * len(names)
    for name, attempt in zip(names, attempts, strict=True):
        _still(facts, _input(facts, name, event), attempt, event)
        _end(facts, _input(facts, name, event), "abandoned", event, fact.get("reason", ""))
    member.lanes = {QUEUE: [], STEER: []}
    _give_up(member, fact.get("reason", ""), len(names))


def _give_up(member: MemberFact, reason: str, count: int) -> None:
    member.given_up[reason] = member.given_up.get(reason, 0) + count


# Runs.


def _run_started(facts: Facts, event: Plain) -> None:
    member, fact, run_id = _member(facts, event), event.get("run_started", {}), event.get("run_id", "")
    lane, batch = fact.get("handling_mode", QUEUE), fact.get("canonical_input_ids", [])
    run = RunFact(
        run_id,
        member.name,
        event,
        fact.get("executor_fence", 0),
        fact.get("attachment_id", ""),
        batch,
        fact.get("attempts", []),
    )
    if run_id in facts.runs:
        facts.breach(NEVER_REUSED, f"run {run_id} is started twice", facts.runs[run_id].event, event)
    if member.run:
        facts.breach(LANE_ORDER, f"{member.name} has run {member.run} in flight and starts another", event)
    if facts.phase != "running" or facts.pending in ("reset", "destroy"):
        facts.breach(ADMISSION, f"a run is started in a mob that is {facts.phase} {facts.pending}", event)
    if (run.attachment, run.fence) != (member.attachment, member.fence) or not member.confirmed:
        facts.breach(IN_FORCE, f"run {run_id} has fence {run.fence}; confirmed is {member.fence}", event)
    agent = facts.agents.get(run.attachment)
    if agent is not None:
        agent.runs.add(run_id)
        if len(agent.runs) > agent.capacity:
            facts.breach(IN_FORCE, f"attachment {agent.name} has more runs than it takes", event)
    _check_batch(facts, member, run, lane)
    _take(facts, member, run, lane, event, batch, run.attempts)
    facts.runs[run_id] = run
    member.run = run_id


def _check_batch(facts: Facts, member: MemberFact, run: RunFact, lane: str) -> None:
    if not run.batch or len(run.batch) > BATCH:
        facts.breach(LANE_ORDER, f"run {run.run_id} takes {len(run.batch)} inputs", run.event)
    prompts = [name for name in run.batch if name in facts.inputs and facts.inputs[name].kind == "prompt"]
    if lane == QUEUE and prompts and prompts != run.batch[-1:]:
        facts.breach(LANE_ORDER, f"run {run.run_id} has a prompt that is not its last input", run.event)
    if len(run.batch) > 1 and any(attempt > 1 for attempt in run.attempts):
        facts.breach(ATTEMPTS, f"run {run.run_id} takes an input that failed before along with others", run.event)
    steering = member.lanes[STEER]
    if lane == QUEUE and steering and facts.inputs[steering[0]].attempts == 0:
        facts.breach(
            LANE_ORDER, f"run {run.run_id} takes from the queue while {steering[0]} is to be steered", run.event
        )


def _take(
    facts: Facts, member: MemberFact, run: RunFact, lane: str, event: Plain, names: list[str], attempts: list[int]
) -> None:
    waiting = member.lanes.setdefault(lane, [])
    if waiting[: len(names)] != names:
        text = f"run {run.run_id} of {member.name} takes {names[:5]}, and the head of its lane is {waiting[:5]}"
        facts.breach(LANE_ORDER, text, event)
    for at, name in enumerate(names):
        one = _input(facts, name, event)
        if one.end:
            text = f"run {run.run_id} takes {name}, which has ended as {one.end}"
            facts.breach(SINGLE_ENDS, text, facts.event(one.end_seq), event)
        if one.run:
            facts.breach(LANE_ORDER, f"run {run.run_id} takes {name}, which run {one.run} holds", event)
        attempt = attempts[at] if at < len(attempts) else 0
        if attempt != one.attempts + 1 or attempt > MAX_ATTEMPTS:
            text = f"run {run.run_id} is attempt {attempt} of {name}, which had {one.attempts}"
            facts.breach(ATTEMPTS, text, event)
        one.attempts, one.run = attempt, run.run_id
        one.runs.append(run.run_id)
    member.lanes[lane] = [name for name in waiting if name not in set(names)]


def _run(facts: Facts, event: Plain) -> RunFact | None:
    run = facts.runs.get(event.get("run_id", ""))
    if run is None or run.state:
        settled = run.settled if run is not None else None
        facts.breach(
            SINGLE_ENDS, f"{event['kind']} of run {event.get('run_id')}, which is not in flight", settled, event
        )
        return None
    return run


def _run_steered(facts: Facts, event: Plain) -> None:
    run, fact = _run(facts, event), event.get("run_steered", {})
    if run is None:
        return
    names, attempts = fact.get("canonical_input_ids", []), fact.get("attempts", [])
    _take(facts, _member(facts, event), run, STEER, event, names, attempts)
    run.steered += names
    run.steered_attempts += attempts


def _run_cancel_requested(facts: Facts, event: Plain) -> None:
    run = _run(facts, event)
    if run is not None:
        run.cancels.append(event)


def _run_settled(facts: Facts, event: Plain) -> None:
    run = _run(facts, event)
    if run is None:
        return
    member, fact = _member(facts, event), event.get("run_settled", {})
    run.state, run.settled = fact.get("state", ""), event
    if run.member != member.name or member.run != run.run_id:
        facts.breach(SETTLEMENT, f"run {run.run_id} settles for {member.name}, whose run is '{member.run}'", event)
    member.run = ""
    if run.attachment in facts.agents:
        facts.agents[run.attachment].runs.discard(run.run_id)
    _check_settlement(facts, run, event)
    front: list[InputFact] = []
    behind: list[InputFact] = []
    for outcome in fact.get("outcomes", []):
        one, what = _input(facts, outcome.get("canonical_input_id", ""), event), outcome.get("outcome", "")
        one.run = ""
        if what in ("consumed", "abandoned"):
            _end(facts, one, what, event, outcome.get("reason", ""))
            if what == "abandoned":
                _give_up(member, outcome.get("reason", ""), 1)
            continue
        uncounted = run.state == "RUN_STATE_RELEASED" or what == "returned" or one.attempts == MAX_ATTEMPTS
        one.attempts -= uncounted
        (behind if what == "requeued_behind" else front).append(one)
    for lane in (QUEUE, STEER):
        back = [one.canonical for one in front if one.lane == lane]
        last = [one.canonical for one in behind if one.lane == lane]
        member.lanes[lane] = [*back, *member.lanes[lane], *last]


def _check_settlement(facts: Facts, run: RunFact, event: Plain) -> None:
    names = [one.get("canonical_input_id", "") for one in run.outcomes]
    if names != run.batch + run.steered:
        facts.breach(
            SETTLEMENT, f"run {run.run_id} held {run.batch + run.steered} and settles {names}", run.event, event
        )
    allowed = OUTCOMES.get(run.state, frozenset())
    attempts = [*run.attempts, *run.steered_attempts]
    for at, one in enumerate(run.outcomes):
        what, name = one.get("outcome", ""), one.get("canonical_input_id", "")
        if what not in allowed or (what == "returned" and at < len(run.batch)):
            facts.breach(SETTLEMENT, f"input {name} is {what} by run {run.run_id}, {run.state}", event)
        if at < len(attempts) and one.get("attempt", 0) != attempts[at]:
            facts.breach(ATTEMPTS, f"input {name} ends attempt {one.get('attempt')}, which was {attempts[at]}", event)
        early = what == "abandoned" and "max_attempts" in one.get("reason", "") and one.get("attempt", 0) < MAX_ATTEMPTS
        if early or (run.state == "RUN_STATE_LOST" and what == "abandoned" and one.get("attempt", 0) < MAX_ATTEMPTS):
            facts.breach(ATTEMPTS, f"input {name} is given up at attempt {one.get('attempt')}", event)
    asked = any(one.get("run_cancel_requested", {}).get("by") == "caller" for one in run.cancels)
    if run.state == "RUN_STATE_CANCELLED" and not asked:
        facts.breach(SETTLEMENT, f"run {run.run_id} is cancelled, and nobody asked for that", run.event, event)
    if asked and run.state in ("RUN_STATE_FAILED", "RUN_STATE_LOST", "RUN_STATE_RELEASED"):
        facts.breach(SETTLEMENT, f"run {run.run_id} was to be cancelled and is {run.state}", *run.cancels, event)
    if run.state == "RUN_STATE_COMMITTED":
        taken = [one for one in run.outcomes if one.get("outcome") == "consumed"]
        fact = event.get("run_settled", {})
        proof = fact.get("receipt", {}).get("contributing_input_ids", [])
        if proof != [one["canonical_input_id"] for one in taken if not one.get("sequence")]:
            facts.breach(SETTLEMENT, f"the receipt of run {run.run_id} names {proof}", event)


# Operations.


def _operation_registered(facts: Facts, event: Plain) -> None:
    name = event.get("operation_registered", {}).get("operation_id", "")
    if name in facts.operations:
        facts.breach(NEVER_REUSED, f"operation {name} is registered twice", facts.operations[name], event)
    facts.operations[name] = event


def _operation(facts: Facts, event: Plain) -> None:
    name = event.get("operation", {}).get("operation_id", "")
    if name not in facts.operations:
        facts.breach(SINGLE_ENDS, f"{event['kind']} of operation {name}, which was never registered", event)
    if name in facts.ended_operations:
        facts.breach(SINGLE_ENDS, f"{event['kind']} of operation {name}", facts.ended_operations[name], event)
    if event["kind"] == "operation_ended":
        facts.ended_operations[name] = event


_STEPS: Final[dict[str, Callable[[Facts, Plain], None]]] = {
    "mob_started": _phase("running"),
    "mob_resumed": _phase("running"),
    "mob_stopped": _phase("stopped"),
    "mob_completing": _phase("", "complete"),
    "mob_completed": _phase("completed", ""),
    "mob_resetting": _phase("", "reset"),
    "mob_cleanup_begun": _phase("stopped"),
    "mob_cleanup_finished": _phase("", ""),
    "mob_destroying": _phase("", "destroy"),
    "mob_destroyed": _mob_destroyed,
    "retire_all_begun": _phase("", "retire_all"),
    "retire_all_finished": _phase("", ""),
    "member_spawned": _member_spawned,
    "member_respawned": _member_respawned,
    "runtime_retired": _runtime_retired,
    "member_retiring": _member_retiring,
    "member_retired": _member_retired,
    "member_destroyed": _member_destroyed,
    "attachment_opened": _attachment_opened,
    "attachment_closed": _attachment_closed,
    "executor_assigned": _executor,
    "executor_confirmed": _executor,
    "executor_released": _executor,
    "executor_lost": _executor,
    "input_accepted": _input_accepted,
    "input_superseded": _input_replaced,
    "input_coalesced": _input_replaced,
    "input_abandoned": _input_abandoned,
    "run_started": _run_started,
    "run_steered": _run_steered,
    "run_cancel_requested": _run_cancel_requested,
    "run_settled": _run_settled,
    "operation_registered": _operation_registered,
    "operation_started": _operation,
    "operation_peer_ready": _operation,
    "operation_progressed": _operation,
    "operation_retiring": _operation,
    "operation_ended": _operation,
}
