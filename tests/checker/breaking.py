"""Ways to break a good history, each with the check that must tell of it.

A way looks for the places where it can do its harm and returns the history with one of them broken. What it changes in
an event it changes in every copy of the event, in the log and on streams, unless the difference is the harm: so a
defect of the server is imitated, and not one of the recording.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeVar

from tests.checker.history import (
    AgentReceived,
    AgentSent,
    Invoked,
    Logged,
    Plain,
    Record,
    StreamEvent,
    StreamMark,
)
from tests.checker.history import (
    Final as FinalThing,
)
from tests.checker.knowledge import floors
from tests.checker.seen import Call, MobSeen, sort

R = TypeVar("R")
Records = list[Record]
NEUTRAL: Final = "something_else"


class NowhereToBreak(Exception):
    """The history has no place for this harm."""


class History(NamedTuple):
    """A good history, and what was seen in it."""

    records: Records
    seen: MobSeen
    floors: dict[str, int]

    @classmethod
    def of(cls, records: Records) -> "History":
        """Sort a history of one mob."""
        (seen,) = sort(records).values()
        return cls(records, seen, floors(seen))


Way = Callable[[History, int], Records]


def pick(them: Sequence[R], which: int) -> R:
    """Return one of the places, spread over all of them."""
    if not them:
        raise NowhereToBreak
    return them[(which * 7919) % len(them)]


def change(records: Records, old: Record, **fields: Any) -> Records:
    """Replace one record by one with other fields."""
    return [replace(one, **fields) if one is old else one for one in records]


def touch(old: Plain, do: Callable[[Plain], object]) -> Plain:
    """Return a copy of a payload after `do`."""
    new = deepcopy(old)
    do(new)
    return new


def everywhere(records: Records, seq: int, do: Callable[[Plain], object]) -> Records:
    """Change an event in the log and on every stream."""
    return [
        replace(one, event=touch(one.event, do))
        if isinstance(one, Logged | StreamEvent) and one.event["seq"] == seq
        else one
        for one in records
    ]


def events(history: History, kind: str, where: Callable[[Plain], object] = lambda event: True) -> list[Plain]:
    """Return the events of a kind."""
    return [one for one in history.seen.facts.log if one["kind"] == kind and where(one)]


def in_log(kind: str, do: Callable[[Plain], object], where: Callable[[Plain], object] = lambda event: True) -> Way:
    """Return a way that changes an event of a kind wherever it was seen."""

    def way(history: History, which: int) -> Records:
        return everywhere(history.records, pick(events(history, kind, where), which)["seq"], do)

    return way


def add(payload: str, name: str, by: int) -> Callable[[Plain], object]:
    """Return what adds to a number of an event."""
    return lambda event: event.setdefault(payload, {}).update({name: event[payload].get(name, 0) + by})


def neutral(event: Plain) -> None:
    """Let an event say nothing."""
    event["kind"] = NEUTRAL
    for name in ("executor", "member_spawned", "member_respawned", "run_settled", "run_started", "input_accepted"):
        event.pop(name, None)


def as_before(kind: str, payload: str, name: str, same: str = "") -> Way:
    """Return a way that gives an event a value that an earlier one has; `same` is a field that must agree."""

    def way(history: History, which: int) -> Records:
        found = events(history, kind)
        pairs = [
            (old, new)
            for at, new in enumerate(found)
            for old in found[:at]
            if not same or old.get(same) == new.get(same)
        ]
        old, new = pick(pairs, which)
        if not payload:
            return everywhere(history.records, new["seq"], lambda event: event.update({name: old[name]}))
        return everywhere(history.records, new["seq"], lambda event: event[payload].update({name: old[payload][name]}))

    return way


def drop_event(history: History, which: int) -> Records:
    """Lose an event of the log."""
    gone = pick(history.seen.facts.log[:-1], which)
    return [one for one in history.records if not (isinstance(one, Logged) and one.event is gone)]


def repeat_event(history: History, which: int) -> Records:
    """Have an event in the log twice."""
    twice = pick([one for one in history.records if isinstance(one, Logged)], which)
    return [copy for one in history.records for copy in ([one, one] if one is twice else [one])]


def key_again(history: History, which: int) -> Records:
    """Accept an input under an id of another one, with its content."""
    facts = history.seen.facts
    them = [one for one in facts.inputs.values() if one.canonical != one.input_id]
    pairs = [
        (old, new)
        for at, new in enumerate(them)
        for old in them[:at]
        if old.member == new.member and old.input_id != new.input_id
    ]
    old, new = pick(pairs, which)
    fields = {"input_id": old.input_id, "content": old.content}
    return everywhere(history.records, new.event["seq"], lambda event: event["input_accepted"].update(fields))


def ends_again(history: History, which: int) -> Records:
    """End an input in two runs."""
    settled = events(history, "run_settled", lambda one: one["run_settled"]["state"] == "RUN_STATE_COMMITTED")
    pairs = [(old, new) for at, new in enumerate(settled) for old in settled[:at]]
    old, new = pick(pairs, which)
    name = old["run_settled"]["outcomes"][0]["canonical_input_id"]
    return everywhere(
        history.records,
        new["seq"],
        lambda event: event["run_settled"]["outcomes"][0].update({"canonical_input_id": name}),
    )


def batch_reversed(history: History, which: int) -> Records:
    """Give a run its inputs in another order, everywhere."""
    run = pick([one for one in history.seen.facts.runs.values() if len(one.batch) > 1], which)

    def turn(event: Plain) -> None:
        for name in ("canonical_input_ids", "attempts"):
            event["run_started"][name].reverse()

    def turn_outcomes(event: Plain) -> None:
        count = len(run.batch)
        outcomes = event["run_settled"]["outcomes"]
        outcomes[:count] = outcomes[:count][::-1]

    records = everywhere(history.records, run.event["seq"], turn)
    return everywhere(records, (run.settled or {})["seq"], turn_outcomes)


def overtaken(history: History, which: int) -> Records:
    """Let a run take inputs that others of their lane are before: two runs of one member exchange their inputs."""
    runs = list(history.seen.facts.runs.values())
    pairs = [
        (one, two)
        for at, two in enumerate(runs)
        for one in runs[:at]
        if one.member == two.member and len(one.batch) == len(two.batch) == 1 and one.batch != two.batch
    ]
    one, two = pick(pairs, which)
    records = everywhere(history.records, one.event["seq"], taking(two.batch))
    return everywhere(records, two.event["seq"], taking(one.batch))


def taking(names: list[str]) -> Callable[[Plain], object]:
    """Return what lets a run take other inputs."""
    return lambda event: event["run_started"].update(canonical_input_ids=names)


def last_run_lost(how: Callable[[Plain], object]) -> Way:
    """Return a way that changes how a run settled behind which its member ran nothing more."""

    def way(history: History, which: int) -> Records:
        facts = history.seen.facts
        last = {run.member: run for run in facts.runs.values()}
        ended = [
            run.settled
            for run in last.values()
            if run.settled is not None
            and run.state == "RUN_STATE_COMMITTED"
            and run.member in facts.roster
            and facts.roster[run.member].event["seq"] < run.event["seq"]
            and facts.roster[run.member].phase == "active"
        ]
        return everywhere(history.records, pick(ended, which)["seq"], how)

    return way


def before_the_next(kind: str, next_kind: str, between: str = "") -> Way:
    """Return a way that neutralises an event behind which the same member has one of `next_kind`, none of `between`."""

    def way(history: History, which: int) -> Records:
        log, spots = history.seen.facts.log, []
        for event in events(history, kind):
            later = [one["kind"] for one in log[event["seq"] :] if one.get("member_id") == event["member_id"]]
            wanted = [one for one in later if one in (next_kind, between)]
            if wanted[:1] == [next_kind]:
                spots.append(event)
        return everywhere(history.records, pick(spots, which)["seq"], neutral)

    return way


def requeue(event: Plain) -> None:
    """Let all inputs of a run wait again."""
    event["run_settled"]["state"] = "RUN_STATE_LOST"
    for one in event["run_settled"]["outcomes"]:
        one["outcome"] = "requeued"
        one.pop("sequence", None)


def calls(history: History, where: Callable[[Call], object]) -> list[Call]:
    """Return answered calls."""
    return [one for one in history.seen.calls if one.answered is not None and where(one)]


def in_answer(where: Callable[[Plain], object], do: Callable[[Plain], object], rpcs: Sequence[str] = ()) -> Way:
    """Return a way that changes an answer."""

    def way(history: History, which: int) -> Records:
        found = calls(history, lambda call: (not rpcs or call.rpc in rpcs) and where(call.answers[0].answer))
        old = pick(found, which).answers[0]
        return change(history.records, old, answer=touch(old.answer, do))

    return way


def full(told: Plain) -> None:
    """Answer that the queue is full."""
    told.clear()
    told["rejected"] = {"cause": "REJECT_CAUSE_QUEUE_FULL"}


def call_lost(history: History, which: int) -> Records:
    """Forget the call that delivered an input."""
    delivered = [one.request.get("input_id") for one in history.seen.calls if one.rpc == "Deliver"]
    found = calls(
        history, lambda call: "accepted" in call.answers[0].answer and delivered.count(call.request["input_id"]) == 1
    )
    call = pick(found, which)
    gone = {id(call.invoked), id(call.answers[0])}
    return [one for one in history.records if id(one) not in gone]


def accepted_only_once(history: History, which: int) -> Records:
    """Say of an input that was delivered by one call alone that it was delivered before."""
    asked = [one.request.get("input_id") for one in history.seen.calls if one.rpc == "Deliver"]
    batched = {
        one["input_id"]
        for call in history.seen.calls
        if call.rpc == "DeliverBatch"
        for one in call.request["deliveries"]
    }
    found = calls(
        history,
        lambda call: (
            "accepted" in call.answers[0].answer
            and asked.count(call.request["input_id"]) == 1
            and call.request["input_id"] not in batched
        ),
    )
    old = pick(found, which).answers[0]
    known = {"canonical_input_id": old.answer["accepted"]["canonical_input_id"]}
    return change(history.records, old, answer={"deduplicated": known})


def repetition_accepted(history: History, which: int) -> Records:
    """Accept an input a second time, long after its first acceptance was answered."""
    first: dict[tuple[str, str], int] = {}
    spots = []
    for call in sorted(calls(history, lambda call: call.rpc == "Deliver"), key=lambda call: call.invoked.at):
        key, answer = (call.request["member_id"], call.request["input_id"]), call.answers[0]
        if "accepted" in answer.answer:
            first[key] = answer.at
        elif "deduplicated" in answer.answer and first.get(key, call.invoked.at) < call.invoked.at:
            spots.append(answer)
    old = pick(spots, which)
    return change(history.records, old, answer={"accepted": old.answer["deduplicated"]})


def cursor_back(history: History, which: int) -> Records:
    """Answer a call with the first cursor of all, though more had been seen."""
    found = calls(history, lambda call: "cursor" in call.answers[0].answer and history.floors[call.invoked.call] > 1)
    old = pick(found, which).answers[0]
    return change(history.records, old, answer={**old.answer, "cursor": 1})


def shown_alive(history: History, which: int) -> Records:
    """Show an input as waiting, though somebody had seen its end before the call was made."""
    facts, spots = history.seen.facts, []
    for call in history.seen.calls:
        if call.rpc in ("GetInput", "WatchInput") and call.answers:
            one = facts.inputs[call.answers[0].answer["input"]["canonical_input_id"]]
            if 0 < one.end_seq <= history.floors[call.invoked.call]:
                spots.append(call.answers[0])
    old = pick(spots, which)
    return change(
        history.records, old, answer=touch(old.answer, lambda told: told["input"].update(state="INPUT_STATE_QUEUED"))
    )


def known_as_live(history: History, which: int) -> Records:
    """Answer a repetition with an input that has not ended, though somebody had seen its end."""
    facts, spots = history.seen.facts, []
    for call in calls(history, lambda call: call.rpc == "Deliver"):
        known = call.answers[0].answer.get("deduplicated")
        if known is None or not known.get("terminal"):
            continue
        if facts.inputs[known["canonical_input_id"]].end_seq <= history.floors[call.invoked.call]:
            spots.append(call.answers[0])
    old = pick(spots, which)
    return change(history.records, old, answer=touch(old.answer, lambda told: told["deduplicated"].pop("terminal")))


def streamed(history: History) -> Iterator[tuple[StreamEvent, StreamEvent]]:
    """Return events that came one right after the other on a stream without a filter."""
    for stream in history.seen.streams:
        if not stream.opened.kinds and not stream.opened.members:
            for one, two in zip(stream.came, stream.came[1:], strict=False):
                if isinstance(one, StreamEvent) and isinstance(two, StreamEvent):
                    yield one, two


def stream_gap(history: History, which: int) -> Records:
    """Let a stream leave an event out."""
    firsts = {id(stream.came[0]) for stream in history.seen.streams if stream.came and stream.opened.after is None}
    gone, _ = pick([pair for pair in streamed(history) if id(pair[0]) not in firsts], which)
    return [one for one in history.records if one is not gone]


def stream_swap(history: History, which: int) -> Records:
    """Let two events of a stream change their places."""
    one, two = pick(list(streamed(history)), which)
    return change(change(history.records, one, event=two.event), two, event=one.event)


def stream_repeat(history: History, which: int) -> Records:
    """Let a stream bring an event twice."""
    twice, _ = pick(list(streamed(history)), which)
    return [copy for one in history.records for copy in ([one, one] if one is twice else [one])]


def stream_head(history: History, which: int) -> Records:
    """Let a bookmark go back."""
    old = pick([one for one in history.records if isinstance(one, StreamMark) and one.head > 1], which)
    return change(history.records, old, head=1, cursor=min(old.cursor, 1))


def seen_otherwise(history: History, which: int) -> Records:
    """Let one observer see an event that the log has otherwise."""
    old = pick([one for one in history.records if isinstance(one, StreamEvent)], which)
    return change(history.records, old, event=touch(old.event, lambda event: event.update(time=event["time"] + 1)))


def log_cut(history: History, which: int) -> Records:
    """Lose the end of the log, as a server that publishes before it commits does when it is killed."""
    seen = max(one.event["seq"] for one in history.records if isinstance(one, StreamEvent))
    return [one for one in history.records if not (isinstance(one, Logged) and one.event["seq"] >= seen - which)]


def told(frame: str, where: Callable[[Plain], object], do: Callable[[Plain], object]) -> Way:
    """Return a way that changes what an agent was told."""

    def way(history: History, which: int) -> Records:
        found = [
            one for one in history.records if isinstance(one, AgentReceived) and one.frame == frame and where(one.body)
        ]
        old = pick(found, which)
        return change(history.records, old, body=touch(old.body, do))

    return way


def _own_results(history: History) -> list[list[AgentSent]]:
    """Return, for each committed run, what was sent of it under its own fence."""
    found = []
    for run in history.seen.facts.runs.values():
        own = [
            one
            for one in history.records
            if isinstance(one, AgentSent)
            and one.frame == "run_result"
            and (one.body["run_id"], one.body["executor_fence"]) == (run.run_id, run.fence)
        ]
        if run.state == "RUN_STATE_COMMITTED" and own:
            found.append(own)
    return found


def sent_under_another_fence(history: History, which: int) -> Records:
    """Commit a run whose agent sent its result under a fence that was not in force."""
    records = history.records
    for old in pick(_own_results(history), which):
        body = touch(old.body, lambda sent: sent.update(executor_fence=sent["executor_fence"] + 1))
        records = change(records, old, body=body)
    return records


def never_sent(history: History, which: int) -> Records:
    """Commit a run of which nobody sent a result."""
    gone = {id(one) for one in pick(_own_results(history), which)}
    return [one for one in history.records if id(one) not in gone]


def final(what: str, where: Callable[[Plain], object], do: Callable[[Plain], object] | None) -> Way:
    """Return a way that changes what a list showed in the end, or leaves it out."""

    def way(history: History, which: int) -> Records:
        found = [
            one for one in history.records if isinstance(one, FinalThing) and one.what == what and where(one.value)
        ]
        old = pick(found, which)
        if do is None:
            return [one for one in history.records if one is not old]
        return change(history.records, old, value=touch(old.value, do))

    return way


def never_asked(history: History, which: int) -> Records:
    """Let a call about a member come before it was spawned: its answer can't have been that."""
    found = calls(history, lambda call: call.rpc in ("Observe", "RespawnMember"))
    call = pick(found, which)
    first = min(one.invoked.at for one in history.seen.calls)
    moved = change(history.records, call.invoked, at=first - 2)
    answer = call.answers[0]
    records = [one for one in moved if one is not answer]
    asked = next(at for at, one in enumerate(records) if isinstance(one, Invoked) and one.call == call.invoked.call)
    return [*records[:asked], records[asked], replace(answer, at=first - 1), *records[asked + 1 :]]
