"""Checks of what agents were told and what became of what they said."""

import json
from collections import defaultdict
from collections.abc import Iterator

from tests.checker.answers import same_content
from tests.checker.facts import Facts, RunFact
from tests.checker.history import AgentReceived, AgentSent, Plain
from tests.checker.seen import Attached, MobSeen
from tests.checker.verdicts import Verdict, cite

_TOLD = "told_is_logged"
_STALE = "stale_fences"

# What an agent is told of a run -> the states in which it may have settled.
_DISPOSITIONS = {
    "RUN_DISPOSITION_COMMITTED": ("RUN_STATE_COMMITTED",),
    "RUN_DISPOSITION_DUPLICATE": ("RUN_STATE_COMMITTED",),
    "RUN_DISPOSITION_REQUEUED": ("RUN_STATE_FAILED", "RUN_STATE_LOST", "RUN_STATE_RELEASED"),
    "RUN_DISPOSITION_ABANDONED": ("RUN_STATE_FAILED", "RUN_STATE_LOST", "RUN_STATE_ABANDONED"),
    "RUN_DISPOSITION_CANCELLED": ("RUN_STATE_CANCELLED",),
}


def told_is_logged(seen: MobSeen) -> Iterator[Verdict]:
    """Whatever an agent was told of is in the final log as it was told: nothing reaches it before it is durable."""
    for attached in seen.attached.values():
        attachment = ""
        for frame in attached.frames:
            if not isinstance(frame, AgentReceived):
                continue
            if frame.frame == "welcome":
                attachment = frame.body.get("attachment_id", "")
            problem = _told(seen, frame, attachment)
            if problem:
                yield Verdict(_TOLD, problem, cite(frame))


def _told(seen: MobSeen, frame: AgentReceived, attachment: str) -> str:
    facts, body = seen.facts, frame.body
    run = facts.runs.get(body.get("run_id", ""))
    match frame.frame:
        case "welcome":
            if attachment and attachment not in facts.agents:
                return f"attachment {attachment} was welcomed and is not in the log"
        case "assign":
            return _assigned(facts, body, attachment)
        case "start_run" | "steer_run":
            return _given(facts, run, body, steered=frame.frame == "steer_run")
        case "cancel_at_boundary" | "hard_cancel":
            asked = [one.get("run_cancel_requested", {}).get("cancel") for one in run.cancels] if run else []
            if ("RUN_CANCEL_HARD" if frame.frame == "hard_cancel" else "RUN_CANCEL_BOUNDARY") not in asked:
                return f"run {body.get('run_id')} was to end, and the log has no such request"
        case "retire":
            if not facts.places.get(("runtime_retired", body.get("member_id", ""))):
                return f"member {body.get('member_id')} was said to be retired, and is not in the log"
        case "run_settled":
            return _settled(run, frame)
    return ""


def _assigned(facts: Facts, body: Plain, attachment: str) -> str:
    event = facts.fences.get(body.get("executor_fence", 0), {})
    if event.get("kind") != "executor_assigned" or event.get("member_id") != body.get("member_id"):
        return f"fence {body.get('executor_fence')} was told to an agent and is not in the log as that"
    if attachment and event["executor"].get("attachment_id") != attachment:
        return f"fence {body.get('executor_fence')} was told to attachment {attachment}, and is another's"
    return ""


def _given(facts: Facts, run: RunFact | None, body: Plain, *, steered: bool) -> str:
    if run is None:
        return f"run {body.get('run_id')} was given to an agent and is not in the log"
    if (run.member, run.fence) != (body.get("member_id"), body.get("executor_fence")):
        return f"run {run.run_id} was given to an agent as another member's, or under another fence"
    return _inputs(facts, run, body, steered=steered)


def _inputs(facts: Facts, run: RunFact, body: Plain, *, steered: bool) -> str:
    told = [(one.get("canonical_input_id", ""), one.get("attempt", 0)) for one in body.get("inputs", [])]
    if steered:
        logged = list(zip(run.steered, run.steered_attempts, strict=False))
        if not set(told) <= set(logged) or not told:
            return f"run {run.run_id} was given {told} to steer, and the log says {logged}"
    else:
        logged = list(zip(run.batch, run.attempts, strict=False))
        if told != logged:
            return f"run {run.run_id} was given {told}, and the log says {logged}"
    for one in body.get("inputs", []):
        fact = facts.inputs.get(one.get("canonical_input_id", ""))
        if fact is None or not same_content(one.get("content", {}), fact.content):
            return f"run {run.run_id} was given input {one.get('canonical_input_id')} with other content"
    return ""


def _settled(run: RunFact | None, frame: AgentReceived) -> str:
    disposition = frame.body.get("disposition", "")
    states = _DISPOSITIONS.get(disposition)
    if states is None:
        return ""
    if run is None or run.state not in states:
        state = run.state if run is not None else "unknown"
        return (
            f"run {frame.body.get('run_id')} was said to be {disposition}, and in the log it is {state or 'in flight'}"
        )
    given_up = run.outcomes and all(one.get("outcome") == "abandoned" for one in run.outcomes)
    if disposition == "RUN_DISPOSITION_REQUEUED" and given_up:
        return f"run {run.run_id} was said to be requeued, and its inputs were given up"
    return ""


def stale_fences(seen: MobSeen) -> Iterator[Verdict]:
    """A run settles by what its own agent said under the fence in force, and by nothing else.

    A result that carries another fence is answered FENCED and changes nothing; what was committed is what was sent.
    Judged are runs of attachments of which the history has the streams.
    """
    said: dict[str, list[tuple[Attached, AgentSent]]] = defaultdict(list)
    recorded: dict[str, set[str]] = defaultdict(set)
    for attached in seen.attached.values():
        for frame in attached.frames:
            if isinstance(frame, AgentReceived) and frame.frame == "welcome":
                recorded[frame.body.get("attachment_id", "")].add(attached.who)
            if isinstance(frame, AgentSent) and frame.frame in ("run_result", "run_failed"):
                said[frame.body.get("run_id", "")].append((attached, frame))
    for run in seen.facts.runs.values():
        if run.attachment in recorded:
            yield from _by_its_own_agent(run, said.get(run.run_id, []), recorded[run.attachment])
    for attached in seen.attached.values():
        yield from _answers_to_stale(seen, attached, said)


def _by_its_own_agent(run: RunFact, said: list[tuple[Attached, AgentSent]], who: set[str]) -> Iterator[Verdict]:
    own = [
        frame for attached, frame in said if attached.who in who and frame.body.get("executor_fence", 0) == run.fence
    ]
    results = [frame for frame in own if frame.frame == "run_result"]
    failures = [frame for frame in own if frame.frame == "run_failed"]
    others = [frame for _, frame in said if frame not in own]
    fact = (run.settled or {}).get("run_settled", {})
    if run.state == "RUN_STATE_COMMITTED":
        if not results:
            text = f"run {run.run_id} under fence {run.fence} is committed, and its agent never sent a result with it"
            yield Verdict(_STALE, text, cite(run.event, run.settled, *others[:3]))
        elif not any(_is_result(run, fact, frame.body) for frame in results):
            text = f"run {run.run_id} is committed with an output, or with steered inputs, that its agent did not send"
            yield Verdict(_STALE, text, cite(run.settled, *results[:3]))
    if run.state == "RUN_STATE_FAILED" and not failures and not run.cancels:
        text = f"run {run.run_id} under fence {run.fence} failed, and its agent never said so"
        yield Verdict(_STALE, text, cite(run.event, run.settled, *others[:3]))


def _is_result(run: RunFact, fact: Plain, sent: Plain) -> bool:
    """Whether a result that was sent is the one that is stored."""
    if json.loads(fact.get("output_json", "null")) != json.loads(sent.get("output_json", "null")):
        return False
    named = sent.get("steered_input_ids", [])
    consumed = [one["canonical_input_id"] for one in run.outcomes if one.get("outcome") == "consumed"]
    return set(consumed) == {*run.batch, *(name for name in run.steered if name in named)}


def _answers_to_stale(
    seen: MobSeen, attached: Attached, said: dict[str, list[tuple[Attached, AgentSent]]]
) -> Iterator[Verdict]:
    for frame in attached.frames:
        if not isinstance(frame, AgentReceived) or frame.frame != "run_settled":
            continue
        run_id, disposition = frame.body.get("run_id", ""), frame.body.get("disposition", "")
        mine = [sent for other, sent in said.get(run_id, []) if other.who == attached.who and sent.at <= frame.at]
        run = seen.facts.runs.get(run_id)
        right = [one for one in mine if run is not None and one.body.get("executor_fence", 0) == run.fence]
        if disposition in ("RUN_DISPOSITION_COMMITTED", "RUN_DISPOSITION_DUPLICATE") and not right:
            text = f"run {run_id} was answered {disposition} to an agent that sent no result under its fence"
            yield Verdict(_STALE, text, cite(*mine[:3], frame))
