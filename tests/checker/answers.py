"""Checks of what callers were told: that it is in the log, that it is fresh, and that it counts right."""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

from tests.checker.facts import Facts, InputFact
from tests.checker.history import Answered, Plain
from tests.checker.knowledge import floors
from tests.checker.seen import Call, MobSeen
from tests.checker.verdicts import Verdict, cite

# rpc -> the event that a call had decided if its answer does not say that it was so already.
_OF_MEMBER: Final[dict[str, tuple[str, ...]]] = {
    "SpawnMember": ("member_spawned",),
    "EnsureMember": ("member_spawned",),
    "RespawnMember": ("member_respawned",),
    "RetireMember": ("runtime_retired",),
    "Retire": ("runtime_retired",),
    "Destroy": ("member_destroyed",),
}
_OF_MOB: Final[dict[str, str]] = {
    "CreateMob": "mob_created",
    "StartMob": "mob_started",
    "StopMob": "mob_stopped",
    "ResumeMob": "mob_resumed",
    "CompleteMob": "mob_completing",
    "ResetMob": "mob_resetting",
    "DestroyMob": "mob_destroyed",
    "RetireAllMembers": "retire_all_begun",
}
ENDS: Final[dict[str, str]] = {
    "INPUT_STATE_CONSUMED": "consumed",
    "INPUT_STATE_ABANDONED": "abandoned",
    "INPUT_STATE_SUPERSEDED": "superseded",
    "INPUT_STATE_COALESCED": "coalesced",
}


def same_content(one: Plain, other: Plain) -> bool:
    """Whether two contents are one: texts by letter, JSON by value."""
    return _blocks(one) == _blocks(other)


def _blocks(content: Plain) -> list[Any]:
    return [
        json.loads(block["value_json"]) if "value_json" in block else (block.get("text", ""), block.get("image"))
        for block in content.get("blocks", [])
    ]


def deliveries(call: Call) -> list[Plain]:
    """Return what a call delivers, one or many."""
    if call.rpc == "Deliver":
        return [call.request]
    return list(call.request.get("deliveries", [])) if call.rpc == "DeliverBatch" else []


def outcomes(call: Call, answer: Answered) -> list[tuple[Plain, Plain]]:
    """Return each delivery of an answered call with its outcome."""
    told = [answer.answer] if call.rpc == "Deliver" else answer.answer.get("outcomes", [])
    return list(zip(deliveries(call), told, strict=False))


def acknowledged_is_logged(seen: MobSeen) -> Iterator[Verdict]:
    """Whatever a caller was told is in the log as it was told, under the same names, and for one caller only."""
    name = "acknowledged_is_logged"
    claimed: dict[str, Answered] = {}
    for call in seen.calls:
        answer = call.answered
        if answer is None or call.request.get("validate_only"):
            continue
        told = outcomes(call, answer)
        if len(told) != len(deliveries(call)):
            yield Verdict(name, f"{len(deliveries(call))} deliveries, another number of outcomes", cite(answer))
        for delivery, outcome in told:
            problem = _delivered(seen.facts, delivery, outcome)
            if problem:
                yield Verdict(name, problem, cite(call.invoked, answer))
            canonical = outcome.get("accepted", {}).get("canonical_input_id", "")
            if canonical and claimed.setdefault(canonical, answer) is not answer:
                yield Verdict(name, f"input {canonical} was accepted for two callers", cite(claimed[canonical], answer))
        problem = _mutated(seen.facts, call, answer)
        if problem:
            yield Verdict(name, problem, cite(call.invoked, answer))


def _delivered(facts: Facts, delivery: Plain, outcome: Plain) -> str:
    key = (delivery.get("member_id", ""), delivery.get("input_id", ""))
    if "accepted" in outcome:
        told = outcome["accepted"]
        event = facts.event(told.get("cursor", 0)) or {}
        fact = event.get("input_accepted", {})
        if (event.get("member_id"), fact.get("input_id")) != key:
            return f"input {key} was acknowledged, and at its cursor the log has {event.get('kind', 'nothing')}"
        if fact.get("canonical_input_id") != told.get("canonical_input_id"):
            return f"input {key} was acknowledged as {told.get('canonical_input_id')}, and the log says another name"
        if not same_content(fact.get("content", {}), delivery.get("content", {})):
            return f"input {key} is in the log with other content"
        return ""
    conflict = outcome.get("rejected", {}).get("cause") == "REJECT_CAUSE_CONTENT_CONFLICT"
    if "deduplicated" not in outcome and not conflict:
        return ""
    canonical = (outcome["rejected"] if conflict else outcome["deduplicated"]).get("canonical_input_id", "")
    known = [one for one in facts.keys.get(key, []) if one.canonical == canonical]
    if not known:
        return f"input {key} was said to be known as {canonical}, and the log does not know it as that"
    if same_content(known[0].content, delivery.get("content", {})) == conflict:
        return f"input {key} was said to be known with {'other' if conflict else 'the same'} content, and it is not so"
    if outcome.get("deduplicated", {}).get("terminal") and not known[0].end:
        return f"input {key} was said to have ended, and it has not"
    return ""


def _mutated(facts: Facts, call: Call, answer: Answered) -> str:
    told, cursor = answer.answer, answer.answer.get("cursor", 0)
    member = call.request.get("member_id", "") or call.request.get("spec", {}).get("member_id", "")
    if told.get("already") or (call.rpc == "EnsureMember" and not told.get("spawned")):
        return ""
    if call.rpc in _OF_MEMBER:
        (kind,) = _OF_MEMBER[call.rpc]
        event = facts.last(kind, member, cursor)
        if event is None:
            return f"{call.rpc} of {member} was answered at cursor {cursor}, and up to there the log has no {kind}"
        if "member" in told:
            fact = event.get(kind, {})
            numbers = [(one.get("generation", 0), one.get("fence_token", 0)) for one in (told["member"], fact)]
            if numbers[0] != numbers[1]:
                return f"{call.rpc} of {member} was answered as {numbers[0]}, and the log says {numbers[1]}"
        return ""
    if call.rpc == "SpawnMembers":
        return _spawned(facts, told)
    if call.rpc in _OF_MOB and not (call.rpc == "DestroyMob" and not cursor):
        if facts.last(_OF_MOB[call.rpc], "", cursor) is None:
            return f"{call.rpc} was answered at cursor {cursor}, and up to there the log has no {_OF_MOB[call.rpc]}"
        return ""
    if call.rpc in ("Interrupt", "HardCancel") and "requested" in told:
        run = facts.runs.get(told["requested"].get("run_id", ""))
        if run is None or not any(one.get("seq", 0) <= cursor for one in run.cancels):
            return f"{call.rpc} of {member} was answered, and the log has no request to end that run"
    return ""


def _spawned(facts: Facts, told: Plain) -> str:
    for result in told.get("results", []):
        member = result.get("member")
        if member is not None:
            event = facts.fences.get(member.get("fence_token", 0), {})
            if event.get("kind") != "member_spawned" or event.get("member_id") != member.get("member_id"):
                return f"member {member.get('member_id')} was said to be spawned, and the log does not say so"
    return ""


def nothing_invented(seen: MobSeen) -> Iterator[Verdict]:
    """Every input in the log was delivered by a call that was not refused: accepted, or of unknown outcome."""
    name = "nothing_invented"
    unknown: dict[tuple[str, str], list[Call]] = defaultdict(list)
    accepted: dict[str, Answered] = {}
    refused: dict[tuple[str, str], Call] = {}
    for call in seen.calls:
        if call.request.get("validate_only"):
            continue
        for one in deliveries(call):
            key = (one.get("member_id", ""), one.get("input_id", ""))
            if call.answered is None and call.refused is None:
                unknown[key].append(call)
            else:
                refused.setdefault(key, call)
        if call.answered is not None:
            for _, outcome in outcomes(call, call.answered):
                accepted[outcome.get("accepted", {}).get("canonical_input_id", "")] = call.answered
    for fact in seen.facts.inputs.values():
        # What a member was spawned with has the server's name for both.
        if fact.canonical in accepted or fact.canonical == fact.input_id:
            continue
        causes = unknown.get((fact.member, fact.input_id), [])
        if not any(_carries(one, fact) for one in causes):
            cause = refused.get((fact.member, fact.input_id))
            why = "every call that delivered it was answered otherwise" if cause else "nobody delivered it"
            evidence = cite(cause.invoked if cause else None, cause.answered if cause else None, fact.event)
            yield Verdict(name, f"input {fact.canonical} is in the log, and {why}", evidence)


def _carries(call: Call, fact: InputFact) -> bool:
    return any(
        one.get("member_id", "") == fact.member
        and one.get("input_id", "") == fact.input_id
        and same_content(one.get("content", {}), fact.content)
        for one in deliveries(call)
    )


def true_reports(seen: MobSeen) -> Iterator[Verdict]:
    """The numbers in answers are those of the log: what was abandoned, what is left to be run, and never both."""
    name = "true_counts"
    for call in seen.calls:
        answer = call.answered
        if answer is None or call.request.get("validate_only") or answer.answer.get("already"):
            continue
        told, cursor = answer.answer, answer.answer.get("cursor", 0)
        if call.rpc in ("Retire", "RetireMember", "Destroy", "RespawnMember"):
            (kind,) = _OF_MEMBER[call.rpc]
            event = seen.facts.last(kind, call.request.get("member_id", ""), cursor) or {}
            said = (told.get("inputs_abandoned", 0), told.get("inputs_pending_drain", 0))
            fact = event.get(kind, {})
            true = (fact.get("inputs_abandoned", 0), fact.get("inputs_pending_drain", 0))
            if said != true or (said[0] and said[1]):
                text = f"{call.rpc} answers {said} (abandoned, pending), and the log says {true}"
                yield Verdict(name, text, cite(answer, event))
        elif call.rpc == "DestroyMob" and "report" in told:
            event = seen.facts.last("mob_destroyed", "", seen.facts.head) or {}
            fact, report = event.get("mob_destroyed", {}), told["report"]
            if (report.get("members", 0), report.get("inputs_abandoned", 0)) != (
                fact.get("members", 0),
                fact.get("inputs_abandoned", 0),
            ):
                yield Verdict(name, "DestroyMob answers other numbers than the log", cite(answer, event))
            for one in report.get("outcomes", []):
                said = one.get("inputs_abandoned", 0)
                ended = seen.facts.last("member_destroyed", one.get("member_id", ""), seen.facts.head) or {}
                if said != ended.get("member_destroyed", {}).get("inputs_abandoned", 0):
                    text = f"DestroyMob answers that {one.get('member_id')} gave up {said}, and the log says otherwise"
                    yield Verdict(name, text, cite(answer, ended))


def fresh_answers(seen: MobSeen) -> Iterator[Verdict]:
    """An answer is computed from a state that is not older than what anybody had seen when the call was made.

    So cursors are monotone and cover what they tell of, an input that had ended is never shown as live, and one that
    was there is never unknown.
    """
    known = floors(seen)
    for call in seen.calls:
        floor = known[call.invoked.call]
        if call.refused is not None:
            yield from _not_found(seen.facts, call, floor)
        for answer in call.answers:
            for problem in _stale(seen.facts, call, answer.answer, floor):
                text = f"{problem}, though event {floor} had been seen before the call"
                yield Verdict("fresh_answers", text, cite(call.invoked, answer, seen.facts.event(floor)))


def _not_found(facts: Facts, call: Call, floor: int) -> Iterator[Verdict]:
    if call.rpc != "GetInput" or call.refused is None or call.refused.reason != "INPUT_NOT_FOUND":
        return
    member, asked = call.request.get("member_id", ""), call.request.get("input_id", "")
    there = [*facts.keys.get((member, asked), []), *([facts.inputs[asked]] if asked in facts.inputs else [])]
    for one in there:
        # What has ended may be forgotten after a while.
        if one.member == member and one.event.get("seq", 0) <= floor and not one.end:
            text = f"input {asked} of {member} was said to be unknown, though it was accepted before the call"
            yield Verdict("fresh_answers", text, cite(call.invoked, call.refused, one.event))


def _stale(facts: Facts, call: Call, told: Plain, floor: int) -> Iterator[str]:
    if told.get("replayed") or call.request.get("validate_only"):
        return
    for _, outcome in outcomes(call, Answered(0, "", "", told)):
        cursor = outcome.get("accepted", {}).get("cursor", 0)
        if cursor and cursor <= floor:
            yield f"an input was accepted at cursor {cursor}"
        known = outcome.get("deduplicated")
        if known is not None:
            one = facts.inputs.get(known.get("canonical_input_id", ""))
            if one is not None and not known.get("terminal") and 0 < one.end_seq <= floor:
                yield f"input {one.canonical} was said not to have ended, and did at {one.end_seq}"
    cursor = told.get("cursor")
    if cursor is not None and call.rpc not in ("Deliver", "DeliverBatch", "DeleteMob") and cursor < floor:
        yield f"{call.rpc} was answered at cursor {cursor}"
    if call.rpc in ("PollEvents", "WatchEvents") and told.get("head", floor) < floor:
        yield f"the head was said to be {told['head']}"
    if call.rpc in ("GetInput", "WatchInput"):
        yield from _shown(facts, told.get("input", {}), floor)
    for one in told.get("inputs", []) if call.rpc == "ListInputs" else []:
        yield from _shown(facts, one, floor)


def _shown(facts: Facts, shown: Plain, floor: int) -> Iterator[str]:
    one = facts.inputs.get(shown.get("canonical_input_id", ""))
    if one is None:
        yield f"input {shown.get('canonical_input_id')} was shown, and the log does not have it"
        return
    end = ENDS.get(shown.get("state", ""), "")
    if end and end != one.end:
        yield f"input {one.canonical} was shown as {end}, and in the log it is {one.end or 'live'}"
    if end == "consumed" and one.runs and shown.get("run_id") != one.runs[-1]:
        yield f"input {one.canonical} was shown as consumed by {shown.get('run_id')}, and it was {one.runs[-1]}"
    if not end and 0 < one.end_seq <= floor:
        yield f"input {one.canonical} was shown as live, and had ended at {one.end_seq}"
