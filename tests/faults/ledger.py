"""What must be true after any number of kills, judged from outside alone: the log as PollEvents gives it, the
acknowledgements that clients got, and the files of the agents.

Order, exactly: a member's inputs are taken from the head of its queue and a lost or released run puts its inputs back
at the head. So as long as no handler raises, the inputs of a member are consumed in the order in which they were
accepted, and every run takes a piece of that order without a hole.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from tests.support.peers import Call

from mobd.v1 import events_pb2, runs_pb2

# (member_id, input_id) -> the canonical id that a client was told.
Acknowledged = Mapping[tuple[str, str], str]


def of_kind(log: Iterable[events_pb2.Event], *kinds: str) -> list[events_pb2.Event]:
    return [event for event in log if event.kind in kinds]


def check_gap_free(log: list[events_pb2.Event]) -> None:
    """The log counts from 1 without a gap."""
    assert [event.seq for event in log] == list(range(1, len(log) + 1))


def check_consumed_once(log: list[events_pb2.Event], acknowledged: Acknowledged) -> None:
    """Every acknowledged input was accepted once, as what the client was told, and consumed by exactly one run."""
    accepted: dict[tuple[str, str], list[str]] = defaultdict(list)
    for event in of_kind(log, "input_accepted"):
        fact = event.input_accepted
        accepted[event.member_id, fact.input_id].append(fact.canonical_input_id)
    twice = {key: names for key, names in accepted.items() if len(names) != 1}
    assert not twice, f"accepted more than once: {sample(twice)}"
    told_wrong = {key: (name, accepted.get(key)) for key, name in acknowledged.items() if accepted.get(key) != [name]}
    assert not told_wrong, f"acknowledged and not in the log as that: {sample(told_wrong)}"

    ends = Counter(
        outcome.canonical_input_id
        for event in of_kind(log, "run_settled")
        for outcome in event.run_settled.outcomes
        if outcome.outcome == "consumed"
    )
    missing = [name for name in acknowledged.values() if ends[name] != 1]
    assert not missing, f"{len(missing)} acknowledged inputs were not consumed exactly once: {missing[:3]}"
    given_up = [
        outcome.canonical_input_id
        for event in of_kind(log, "run_settled")
        for outcome in event.run_settled.outcomes
        if outcome.outcome == "abandoned"
    ]
    assert not given_up, f"abandoned: {given_up[:3]}"
    assert not of_kind(log, "input_abandoned")


def check_runs(log: list[events_pb2.Event]) -> None:
    """Every run started once and settled once, one at a time for each member."""
    in_flight: dict[str, str] = {}
    known: set[str] = set()
    for event in of_kind(log, "run_started", "run_settled"):
        if event.kind == "run_started":
            assert event.run_id not in known, f"run {event.run_id} started twice"
            assert event.member_id not in in_flight, f"{event.member_id} has two runs in flight at {event.seq}"
            known.add(event.run_id)
            in_flight[event.member_id] = event.run_id
        else:
            assert in_flight.pop(event.member_id, None) == event.run_id, f"run {event.run_id} settled out of turn"
    assert not in_flight, f"never settled: {sample(in_flight)}"


def check_order(log: list[events_pb2.Event]) -> None:
    """Each member's inputs were consumed in the order in which they were accepted."""
    accepted: dict[str, list[str]] = defaultdict(list)
    consumed: dict[str, list[str]] = defaultdict(list)
    for event in log:
        if event.kind == "input_accepted":
            accepted[event.member_id].append(event.input_accepted.canonical_input_id)
        elif event.kind == "run_started":
            batch = list(event.run_started.canonical_input_ids)
            at = len(consumed[event.member_id])
            expected = accepted[event.member_id][at : at + len(batch)]
            assert batch == expected, f"run {event.run_id} of {event.member_id} took {batch}, next were {expected}"
        elif event.kind == "run_settled":
            consumed[event.member_id].extend(
                one.canonical_input_id for one in event.run_settled.outcomes if one.outcome == "consumed"
            )
    assert consumed == accepted


def check_sent_order(log: list[events_pb2.Event], sent: Mapping[str, list[str]]) -> None:
    """What one caller sent to a member one after another was accepted in that order."""
    accepted: dict[str, list[str]] = defaultdict(list)
    for event in of_kind(log, "input_accepted"):
        accepted[event.member_id].append(event.input_accepted.input_id)
    for member_id, names in sent.items():
        got = accepted[member_id]
        first = next((at for at, pair in enumerate(zip(got, names, strict=False)) if pair[0] != pair[1]), None)
        assert got == names, (
            f"{member_id} was sent {len(names)} inputs and accepted {len(got)}; from {first} on "
            f"{got[first:][:8]} instead of {names[first:][:8]}"
        )


def check_calls(log: list[events_pb2.Event], calls: Iterable[Call]) -> None:
    """The agents' files agree with the log: one call for each committed run, with what the run was started with."""
    by_run: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_run[call.run].append(call)
    started = {event.run_id: event for event in of_kind(log, "run_started")}
    accepted = {
        event.input_accepted.canonical_input_id: event.input_accepted.input_id
        for event in of_kind(log, "input_accepted")
    }
    unknown = set(by_run) - set(started)
    assert not unknown, f"handlers were called for runs that are not in the log: {sorted(unknown)[:3]}"
    twice = {run for run, them in by_run.items() if len(them) != 1}
    assert not twice, f"handlers were called twice for a run: {sorted(twice)[:3]}"
    for event in of_kind(log, "run_settled"):
        if event.run_settled.state != runs_pb2.RUN_STATE_COMMITTED:
            continue
        assert event.run_id in by_run, f"run {event.run_id} committed, and no handler was called for it"
        call, fact = by_run[event.run_id][0], started[event.run_id].run_started
        names = fact.canonical_input_ids
        expected = tuple((accepted[n], n, a) for n, a in zip(names, fact.attempts, strict=True))
        assert call.inputs == expected, f"run {event.run_id}: the handler got {call.inputs}, the log says {expected}"
        assert (call.member, call.fence) == (event.member_id, fact.executor_fence)


def check_seen(log: list[events_pb2.Event], seen: list[int]) -> None:
    """A watcher saw each event once, in order."""
    assert seen == [event.seq for event in log]


def sample(them: Mapping[Any, Any]) -> str:
    """Return the first few of many."""
    return f"{len(them)}, among them {dict(list(them.items())[:3])}"
