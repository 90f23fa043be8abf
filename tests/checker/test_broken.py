"""The checker sees: a good history, recorded from real servers and agents that were killed, is accepted, and each way
to break it is told by the check that is there for it.

recorded.jsonl.gz is a run of workload.py on SQLite: 3 s, one kill of the server and one of an agent.
"""

from pathlib import Path

import pytest
from tests.checker import breaking as b
from tests.checker.checker import check, told
from tests.checker.history import read

RECORDED = Path(__file__).parent / "recorded.jsonl.gz"
COMMITTED = "RUN_STATE_COMMITTED"

# check -> the ways to break what it holds.
WAYS: dict[str, dict[str, b.Way]] = {
    "gap_free_log": {"an event is lost": b.drop_event, "an event is there twice": b.repeat_event},
    "single_ends": {
        "a run settles twice": b.as_before("run_settled", "", "run_id"),
        "an input ends in two runs": b.ends_again,
        "an input_id is accepted twice": b.key_again,
    },
    "lane_order": {
        "a batch is turned round": b.batch_reversed,
        "an input overtakes another": b.overtaken,
        "a member has two runs": b.before_the_next("run_settled", "run_started", "member_respawned"),
    },
    "attempts": {
        "an attempt is not counted": b.in_log("run_started", lambda one: one["run_started"].update(attempts=[0])),
        "an attempt too many": b.in_log("run_settled", lambda one: one["run_settled"]["outcomes"][0].update(attempt=4)),
    },
    "fences_in_force": {
        "a run starts under an older fence": b.in_log("run_started", b.add("run_started", "executor_fence", -1)),
        "an assignment is confirmed under another fence": b.in_log(
            "executor_confirmed", b.add("executor", "executor_fence", 1)
        ),
        "a member has two agents": b.before_the_next("executor_released", "executor_assigned", "member_respawned"),
    },
    "never_reused": {
        "an executor fence again": b.as_before("executor_assigned", "executor", "executor_fence"),
        "a fence token again": b.as_before("member_respawned", "member_respawned", "fence_token"),
        "a generation again": b.in_log("member_respawned", b.add("member_respawned", "generation", -1)),
        "a run_id again": b.as_before("run_started", "", "run_id"),
        "a canonical id again": b.as_before("input_accepted", "input_accepted", "canonical_input_id"),
    },
    "true_counts": {
        "a retirement counts wrong": b.in_log("runtime_retired", b.add("runtime_retired", "inputs_abandoned", 1)),
        "a drain counts wrong": b.in_log("runtime_retired", b.add("runtime_retired", "inputs_pending_drain", 1)),
        "a respawn counts wrong": b.in_log("member_respawned", b.add("member_respawned", "inputs_abandoned", 1)),
        "a destruction counts wrong": b.in_log("member_destroyed", b.add("member_destroyed", "inputs_abandoned", 1)),
        "an answer counts wrong": b.in_answer(
            lambda told: not told.get("already"),
            lambda told: told.update(inputs_abandoned=told.get("inputs_abandoned", 0) + 1),
            ("Retire", "RetireMember", "Destroy", "RespawnMember"),
        ),
    },
    "admission": {
        "a stopped mob accepts": b.in_log("mob_resumed", b.neutral),
        "somebody who is not there accepts": b.in_log("member_spawned", b.neutral),
    },
    "settlement": {
        "a committed run loses an input": b.in_log(
            "run_settled", lambda one: one["run_settled"]["outcomes"].pop(), lambda one: one["run_settled"]["outcomes"]
        ),
        "a committed run gives an input back": b.in_log(
            "run_settled",
            lambda one: one["run_settled"]["outcomes"][0].update(outcome="requeued"),
            lambda one: one["run_settled"]["state"] == COMMITTED,
        ),
        "a receipt is another run's": b.in_log(
            "run_settled",
            lambda one: one["run_settled"]["receipt"].update(contributing_input_ids=["in-0"]),
            lambda one: one["run_settled"]["state"] == COMMITTED,
        ),
    },
    "everything_ends": {
        "a run is forgotten": b.last_run_lost(b.neutral),
        "a requeue is lost": b.last_run_lost(b.requeue),
    },
    "state_is_the_log": {
        "an input is listed as waiting": b.final(
            "input",
            lambda one: one["state"] == "INPUT_STATE_CONSUMED",
            lambda one: one.update(state="INPUT_STATE_QUEUED"),
        ),
        "a member is listed with another fence": b.final("member", bool, lambda one: one.update(fence_token=1)),
        "a member is not listed": b.final("member", bool, None),
        "an operation is listed that nobody knows": b.final(
            "operation", bool, lambda one: one.update(operation_id="op")
        ),
    },
    "acknowledged_is_logged": {
        "an acknowledgement names another input": b.in_answer(
            lambda told: "accepted" in told,
            lambda told: told["accepted"].update(canonical_input_id="in-0"),
            ("Deliver",),
        ),
        "an acknowledgement is at another cursor": b.in_answer(
            lambda told: "accepted" in told,
            lambda told: told["accepted"].update(cursor=told["accepted"]["cursor"] + 1),
            ("Deliver",),
        ),
        "a duplicate gets another name": b.in_answer(
            lambda told: "deduplicated" in told,
            lambda told: told["deduplicated"].update(canonical_input_id="in-0"),
            ("Deliver",),
        ),
        "a spawn is told with another fence": b.in_answer(
            lambda told: "member" in told,
            lambda told: told["member"].update(fence_token=1_000),
            ("SpawnMember", "RespawnMember"),
        ),
        "a request to cancel is not there": b.in_answer(
            lambda told: "requested" in told, lambda told: told["requested"].update(run_id="run-0"), ("Interrupt",)
        ),
    },
    "nothing_invented": {
        "nobody delivered it": b.call_lost,
        "its caller was refused": b.in_answer(
            lambda told: "accepted" in told,
            b.full,
            ("Deliver",),
        ),
    },
    "fresh_answers": {
        "a cursor goes back": b.cursor_back,
        "what has ended is shown as waiting": b.shown_alive,
        "what has ended is said to be alive": b.known_as_live,
    },
    "streams_equal_log": {
        "an event is left out": b.stream_gap,
        "two events change places": b.stream_swap,
        "an event comes twice": b.stream_repeat,
        "a bookmark goes back": b.stream_head,
    },
    "visible_is_durable": {"an event was seen otherwise": b.seen_otherwise, "the end of the log is lost": b.log_cut},
    "told_is_logged": {
        "a run has another input": b.told(
            "start_run", bool, lambda body: body["inputs"][0].update(canonical_input_id="in-0")
        ),
        "an attempt is told wrong": b.told("start_run", bool, lambda body: body["inputs"][0].update(attempt=3)),
        "a fence is told wrong": b.told("assign", bool, lambda body: body.update(executor_fence=10_000)),
        "what was given back is told as stored": b.told(
            "run_settled",
            lambda body: body["disposition"] in ("RUN_DISPOSITION_REQUEUED", "RUN_DISPOSITION_CANCELLED"),
            lambda body: body.update(disposition="RUN_DISPOSITION_COMMITTED"),
        ),
    },
    "stale_fences": {
        "a result under another fence is stored": b.sent_under_another_fence,
        "an output that nobody sent is stored": b.in_log(
            "run_settled",
            lambda one: one["run_settled"].update(output_json='"other"'),
            lambda one: one["run_settled"]["state"] == COMMITTED,
        ),
        "a result that nobody sent is stored": b.never_sent,
    },
    "linearizable": {
        "a repetition is accepted": b.repetition_accepted,
        "a first delivery is a duplicate": b.accepted_only_once,
        "a respawn skips a generation": b.in_answer(
            lambda told: "member" in told,
            lambda told: told["member"].update(generation=told["member"].get("generation", 0) + 1),
            ("RespawnMember",),
        ),
        "a member is shown before it was spawned": b.never_asked,
    },
}
CASES = [(check, name) for check, ways in WAYS.items() for name in ways]


@pytest.fixture(scope="module")
def good() -> b.History:
    return b.History.of(read(RECORDED))


def test_a_good_history_is_accepted(good: b.History) -> None:
    verdicts = check(good.records)
    assert not verdicts, told(verdicts)


def test_every_check_is_broken_in_at_least_two_ways() -> None:
    assert {name: len(ways) for name, ways in WAYS.items() if len(ways) < 2} == {}


@pytest.mark.parametrize(("name", "way"), CASES, ids=[f"{name}: {way}" for name, way in CASES])
def test_a_broken_history_is_told_by_the_check_that_is_there_for_it(good: b.History, name: str, way: str) -> None:
    for which in range(2):
        verdicts = check(WAYS[name][way](good, which))
        found = [one for one in verdicts if one.check == name]
        assert found, f"place {which}: {told(verdicts)}"
        assert found[0].evidence or name == "state_is_the_log", "a verdict cites the records that prove it"
