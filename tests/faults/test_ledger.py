"""The judge is judged: a right log passes, and each kind of wrong is found."""

import copy
from collections.abc import Callable

import pytest
from tests.faults import ledger
from tests.support.peers import Call

from mobd.v1 import events_pb2, runs_pb2

ACKNOWLEDGED = {("ada", "in-1"): "c1", ("ada", "in-2"): "c2"}
CALLS = [Call("call", 1, "r1", "ada", 5, (("in-1", "c1", 1),)), Call("call", 1, "r2", "ada", 5, (("in-2", "c2", 1),))]


def right() -> list[events_pb2.Event]:
    """Two inputs of one member, each consumed by a run of its own."""
    log = []
    for number, (name, canonical) in enumerate((("in-1", "c1"), ("in-2", "c2"))):
        accepted = events_pb2.InputAccepted(input_id=name, canonical_input_id=canonical)
        log.append(events_pb2.Event(seq=number + 1, kind="input_accepted", input_accepted=accepted))
    for number, canonical in enumerate(("c1", "c2")):
        started = events_pb2.RunStarted(canonical_input_ids=[canonical], attempts=[1], executor_fence=5)
        outcome = events_pb2.InputOutcome(canonical_input_id=canonical, outcome="consumed")
        settled = events_pb2.RunEnded(state=runs_pb2.RUN_STATE_COMMITTED, outcomes=[outcome])
        run_id = f"r{number + 1}"
        log.append(events_pb2.Event(seq=3 + 2 * number, kind="run_started", run_id=run_id, run_started=started))
        log.append(events_pb2.Event(seq=4 + 2 * number, kind="run_settled", run_id=run_id, run_settled=settled))
    for event in log:
        event.member_id = "ada"
    return log


def judge(log: list[events_pb2.Event], calls: list[Call]) -> None:
    ledger.check_gap_free(log)
    ledger.check_consumed_once(log, ACKNOWLEDGED)
    ledger.check_sent_order(log, {"ada": ["in-1", "in-2"]})
    ledger.check_runs(log)
    ledger.check_order(log)
    ledger.check_calls(log, calls)
    ledger.check_seen(log, [event.seq for event in right()])


def accepted_twice(log: list[events_pb2.Event]) -> None:
    again = copy.deepcopy(log[0])
    again.seq = len(log) + 1
    log.append(again)


def another_name(log: list[events_pb2.Event]) -> None:
    log[0].input_accepted.canonical_input_id = "c9"


def never_settled(log: list[events_pb2.Event]) -> None:
    log.pop()


def abandoned(log: list[events_pb2.Event]) -> None:
    log[-1].run_settled.outcomes[0].outcome = "abandoned"


def consumed_twice(log: list[events_pb2.Event]) -> None:
    log[-1].run_settled.outcomes[0].canonical_input_id = "c1"


def overtaken(log: list[events_pb2.Event]) -> None:
    log[2].run_started.canonical_input_ids[0], log[4].run_started.canonical_input_ids[0] = "c2", "c1"


def two_at_once(log: list[events_pb2.Event]) -> None:
    log[3], log[4] = log[4], log[3]
    log[3].seq, log[4].seq = 4, 5


def a_gap(log: list[events_pb2.Event]) -> None:
    log[-1].seq += 1


WRONG = [accepted_twice, another_name, never_settled, abandoned, consumed_twice, overtaken, two_at_once, a_gap]


def test_a_right_log_passes() -> None:
    judge(right(), CALLS)


@pytest.mark.parametrize("spoil", WRONG, ids=lambda spoil: spoil.__name__)
def test_a_wrong_log_is_found(spoil: Callable[[list[events_pb2.Event]], None]) -> None:
    log = right()
    spoil(log)
    with pytest.raises(AssertionError):
        judge(log, CALLS)


@pytest.mark.parametrize(
    "calls",
    [CALLS[:1], [*CALLS, CALLS[0]], [*CALLS, Call("call", 1, "r9", "ada", 5, ())]],
    ids=["one too few", "one twice", "one of no run"],
)
def test_handler_calls_that_do_not_fit_the_log_are_found(calls: list[Call]) -> None:
    with pytest.raises(AssertionError):
        judge(right(), calls)


def test_a_watcher_that_missed_an_event_is_found() -> None:
    with pytest.raises(AssertionError):
        ledger.check_seen(right(), [1, 2, 4, 5, 6])
