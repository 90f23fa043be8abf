"""Checks of what is there in the end: nothing is left that should have ended, and lists say what the log says."""

from collections.abc import Iterator

from tests.checker.answers import ENDS
from tests.checker.facts import Facts, MemberFact
from tests.checker.history import Plain
from tests.checker.seen import MobSeen
from tests.checker.verdicts import Verdict, cite

_STATE = "state_is_the_log"


def everything_ends(seen: MobSeen) -> Iterator[Verdict]:
    """When all is quiet no run is in flight, and nothing waits that makes its member run: no input is ever lost."""
    facts = seen.facts
    if not seen.quiet or facts.phase != "running":
        return
    for member in facts.roster.values():
        run = facts.runs.get(member.run)
        if run is not None:
            yield Verdict("everything_ends", f"run {run.run_id} of {member.name} never settled", cite(run.event))
            continue
        waiting = [facts.inputs[name] for name in member.waiting]
        if waiting and (member.phase == "retired" or any(not one.silent for one in waiting)):
            text = f"{len(waiting)} inputs of {member.name} were never run, the first is {waiting[0].canonical}"
            settled = facts.runs[waiting[0].runs[-1]].settled if waiting[0].runs else None
            yield Verdict("everything_ends", text, cite(waiting[0].event, settled))


def state_is_the_log(seen: MobSeen) -> Iterator[Verdict]:
    """The lists of members, inputs and operations are what the log adds up to."""
    if not seen.quiet:
        return
    if "member" in seen.listed:
        yield from _members(seen)
    if "input" in seen.listed:
        yield from _inputs(seen)
    if "operation" in seen.listed:
        for one in seen.final["operation"]:
            yield from _operation(seen.facts, one)


def _members(seen: MobSeen) -> Iterator[Verdict]:
    facts = seen.facts
    listed = {one.get("member_id", ""): one for one in seen.final["member"]}
    if facts.phase != "destroyed" and set(listed) != set(facts.roster):
        text = f"listed are {sorted(listed)}, and the log has {sorted(facts.roster)}"
        yield Verdict(_STATE, text)
    for name, one in listed.items():
        member = facts.roster.get(name)
        if member is None:
            continue
        shown, true = _shown(one), _true(facts, member)
        if shown != true:
            yield Verdict(_STATE, f"member {name} is listed as {shown}, and the log says {true}", (str(one)[:400],))


def _shown(one: Plain) -> Plain:
    names = ("generation", "fence_token", "inputs_waiting", "inputs_running")
    return {name: one.get(name, 0) for name in names} | {"run": one.get("current_run_id", "")}


def _true(facts: Facts, member: MemberFact) -> Plain:
    run = facts.runs.get(member.run)
    return {
        "generation": member.generation,
        "fence_token": member.token,
        "inputs_waiting": len(member.waiting),
        "inputs_running": len(run.batch) + len(run.steered) if run is not None else 0,
        "run": member.run,
    }


def _inputs(seen: MobSeen) -> Iterator[Verdict]:
    facts = seen.facts
    listed = {one.get("canonical_input_id", ""): one for one in seen.final["input"]}
    for name, one in listed.items():
        fact, state = facts.inputs.get(name), one.get("state", "")
        if fact is None:
            yield Verdict(_STATE, f"input {name} is listed and is not in the log", (str(one)[:400],))
        elif ENDS.get(state, "") != fact.end or (state == "INPUT_STATE_RUNNING") != bool(fact.run):
            text = f"input {name} is listed as {state}, and in the log it is '{fact.end or fact.run or 'waiting'}'"
            yield Verdict(_STATE, text, cite(fact.event, facts.event(fact.end_seq)))
        elif not fact.end and one.get("attempt", 0) != fact.attempts:
            text = f"input {name} is listed with attempt {one.get('attempt', 0)}, and it has had {fact.attempts}"
            yield Verdict(_STATE, text, cite(fact.event))
    for fact in facts.inputs.values():
        if not fact.end and fact.canonical not in listed:
            yield Verdict(_STATE, f"input {fact.canonical} has not ended and is not listed", cite(fact.event))


def _operation(facts: Facts, one: Plain) -> Iterator[Verdict]:
    name, status = one.get("operation_id", ""), one.get("status", "").removeprefix("OPERATION_STATUS_")
    ended = facts.ended_operations.get(name)
    if name not in facts.operations:
        yield Verdict(_STATE, f"operation {name} is listed and is not in the log", (str(one)[:400],))
    elif ended is not None and ended["operation"].get("status", "").upper() != status:
        yield Verdict(_STATE, f"operation {name} is listed as {status}", cite(ended))
