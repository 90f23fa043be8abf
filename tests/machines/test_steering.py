"""Steering: inputs that go into a run in flight, each consumed once, by that run or by a later one (runtime §2.12)."""

import msgspec
import pytest
from msgspec import Raw
from tests.machines.scene import Scene, running, steered
from tests.machines.stage import state_bytes

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import Attached, Deduplicated, SendStartRun, SendSteer
from mobd_server.machines.views import view_member


def test_a_steer_is_bound_to_the_run_in_flight_and_sent_to_its_agent() -> None:
    scene = running()
    run = scene.run_of("a")
    scene.steer("a", "s1")
    assert scene.kinds == ["input_accepted", "run_steered"]
    name = scene.canonical("s1")
    assert scene.event(e.RunSteered) == e.RunSteered("a", run.run_id, [name], [1])
    (sent,) = scene.sent(SendSteer)
    assert (sent.attachment_id, sent.run_id, sent.fence, sent.member_id) == (
        run.attachment_id,
        run.run_id,
        run.fence,
        "a",
    )
    assert [(one.canonical_input_id, one.input_id, one.attempt) for one in sent.inputs] == [(name, "s1", 1)]
    assert (scene.steered("a"), scene.steering("a")) == (["s1"], [])
    view = view_member(scene.mob, scene.member("a"))
    assert (view.inputs_running, view.inputs_waiting, view.inputs_steering) == (2, 0, 0)
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_each_steer_is_sent_alone_and_they_are_kept_in_order() -> None:
    scene = steered("s1", "s2")
    (sent,) = scene.sent(SendSteer)
    assert [one.input_id for one in sent.inputs] == ["s2"]
    assert scene.steered("a") == ["s1", "s2"]


def test_steers_that_come_together_go_together() -> None:
    scene = running()
    wanted = [c.Deliver("a", f"s{n}", Raw(b"1"), handling_mode="steer") for n in range(3)]
    scene.do(c.DeliverBatch(wanted))
    assert scene.kinds == ["input_accepted"] * 3 + ["run_steered"]
    (sent,) = scene.sent(SendSteer)
    assert [one.input_id for one in sent.inputs] == ["s0", "s1", "s2"]


def test_what_does_not_steer_waits_beside_a_run() -> None:
    scene = running()
    scene.put("a", "m2")
    assert scene.kinds == ["input_accepted"]


def test_progress_rides_into_the_run_with_a_steer() -> None:
    scene = running()
    scene.put("a", "g1", kind="peer_response_progress")
    assert scene.kinds == ["input_accepted"]
    scene.steer("a", "s1")
    assert scene.steered("a") == ["g1", "s1"]


@pytest.mark.parametrize("kind", ["continuation", "peer_response_terminal"])
def test_what_asks_for_a_run_of_its_own_is_not_steered_into_another(kind: str) -> None:
    scene = running()
    scene.steer("a", "own", kind=kind)
    scene.steer("a", "s1")
    assert scene.kinds == ["input_accepted"]
    assert scene.steering("a") == ["own", "s1"]
    scene.settle(scene.run_of("a"))
    assert scene.ran() == [["own"], ["s1"]]


# Where it can't be.


def test_an_agent_that_takes_no_steers_gets_them_as_the_next_run() -> None:
    scene = running(steers=False)
    scene.put("a", "m2")
    scene.steer("a", "s1")
    assert scene.kinds == ["input_accepted"]
    scene.settle(scene.run_of("a"))
    assert scene.ran() == [["s1"], ["m2"]]


def test_a_steer_to_a_resting_member_is_a_run() -> None:
    scene = Scene("a")
    scene.serve()
    scene.steer("a", "s1")
    assert scene.kinds == ["input_accepted", "run_started"]
    assert scene.batch("a") == ["s1"]


def test_a_run_that_is_to_be_cancelled_takes_no_steer() -> None:
    scene = running()
    scene.interrupt("a")
    scene.steer("a", "s1")
    assert scene.kinds == ["input_accepted"]
    scene.report(scene.run_of("a"), "cancelled")
    assert scene.ran() == [["s1"]]


def test_a_run_takes_at_most_64_inputs_with_its_steers() -> None:
    scene = steered(*(f"s{n}" for n in range(63)))
    assert len(scene.steered("a")) == 63
    scene.steer("a", "s63")
    assert (len(scene.steered("a")), scene.steering("a")) == (63, ["s63"])
    assert scene.settle(scene.run_of("a"), scene.taken("a")).disposition == "committed"
    assert scene.batch("a") == ["s63"]


def test_a_run_takes_at_most_a_mebibyte_with_its_steers() -> None:
    scene = running()
    size = (1 << 20) - sum(one.size for one in scene.run_of("a").inputs)
    scene.do(c.Deliver("a", "s1", Raw(b"1" * (size + 1)), handling_mode="steer"))
    assert scene.steering("a") == ["s1"]
    scene = running()
    scene.do(c.Deliver("a", "s1", Raw(b"1" * size), handling_mode="steer"))
    assert scene.steered("a") == ["s1"]


def test_a_steer_that_failed_before_waits_for_a_run_of_its_own() -> None:
    scene = Scene("a")
    scene.serve()
    scene.steer("a", "s1")
    scene.report(scene.run_of("a"), "error")
    scene.put("a", "m1")
    assert scene.batch("a") == ["m1"]
    scene.steer("a", "s2")
    assert scene.steered("a") == []
    assert scene.steering("a") == ["s1", "s2"]


# What becomes of it.


def test_what_the_handler_took_in_is_consumed_with_the_run_in_order() -> None:
    scene = steered("s1", "s2", "s3")
    run = scene.run_of("a")
    took = [scene.canonical("s3"), scene.canonical("s1")]
    assert scene.settle(run, took).disposition == "committed"
    own, first, second, third = scene.event(e.RunSettled).outcomes
    assert (own.outcome, own.sequence, own.attempt) == ("consumed", 0, 1)
    assert (first.outcome, first.sequence, first.attempt) == ("consumed", 1, 1)
    assert (second.outcome, second.sequence, second.attempt) == ("returned", 0, 1)
    assert (third.outcome, third.sequence, third.attempt) == ("consumed", 2, 1)
    # The other one runs, as its first attempt.
    assert scene.batch("a") == ["s2"]
    assert scene.run_of("a").attempts == [1]
    assert scene.ran() == [["s2"]]
    for name in ("m1", "s1", "s2", "s3"):
        answer = scene.send("a", name)
        assert isinstance(answer, Deduplicated)
        assert answer.terminal is True
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_what_was_not_taken_in_goes_before_what_waits_in_its_lane() -> None:
    scene = steered("s1", "s2")
    scene.put("a", "c1", kind="continuation")
    scene.settle(scene.run_of("a"))
    assert scene.outcomes() == [("m1", "consumed"), ("s1", "returned"), ("s2", "returned")]
    assert scene.ran() == [["s1", "s2"], ["c1"]]


def test_a_name_that_was_not_steered_into_the_run_consumes_nothing() -> None:
    scene = running()
    scene.put("a", "m2")
    scene.steer("a", "s1")
    scene.settle(scene.run_of("a"), [scene.canonical("m2"), "in-0"])
    assert scene.outcomes() == [("m1", "consumed"), ("s1", "returned")]
    assert scene.ran() == [["s1"], ["m2"]]


def test_a_failure_returns_what_was_not_taken_in_and_counts_what_was() -> None:
    scene = steered("s1", "s2")
    assert scene.report(scene.run_of("a"), "error", took=[scene.canonical("s1")]).disposition == "requeued"
    assert scene.outcomes() == [("m1", "requeued"), ("s1", "requeued"), ("s2", "returned")]
    assert [(one.input_id, one.attempts) for one in scene.inputs("a")] == [("m1", 1), ("s1", 1), ("s2", 0)]
    scene.advance(1)
    assert scene.ran() == [["s1"], ["s2"], ["m1"]]


def test_a_failure_for_good_abandons_what_was_taken_in_and_returns_the_rest() -> None:
    scene = steered("s1", "s2")
    scene.report(scene.run_of("a"), "error", "no", took=[scene.canonical("s2")], retryable=False)
    assert scene.outcomes() == [("m1", "abandoned"), ("s1", "returned"), ("s2", "abandoned")]
    assert scene.ran() == [["s1"]]


def test_a_steer_that_fails_three_times_is_abandoned() -> None:
    scene = steered("s1")
    scene.report(scene.run_of("a"), "error", took=scene.taken("a"))
    for pause, attempt in ((1, 2), (10, 3)):
        scene.advance(pause)
        assert (scene.batch("a"), scene.run_of("a").attempts) == (["s1"], [attempt])
        scene.report(scene.run_of("a"), "error")
    assert scene.outcomes() == [("s1", "abandoned")]
    assert scene.steering("a") == []
    assert scene.ran() == [["m1"]]


def test_a_lost_run_counts_for_all_that_it_held() -> None:
    scene = steered("s1", "s2")
    run = scene.run_of("a")
    scene.do(c.LoseRun(run.attachment_id, run.run_id, run.fence, "silent"))
    assert scene.outcomes() == [("m1", "requeued"), ("s1", "requeued"), ("s2", "requeued")]
    assert scene.batch("a") == ["s1"]
    assert scene.run_of("a").attempts == [2]
    assert scene.ran() == [["s1"], ["s2"], ["m1"]]


@pytest.mark.parametrize("reason", ["lost", "detached"])
def test_what_an_agent_that_is_gone_held_runs_elsewhere(reason: str) -> None:
    scene = steered("s1")
    scene.leave(scene.run_of("a").attachment_id, reason)
    scene.serve("other")
    attempts = 2 if reason == "lost" else 1
    assert (scene.batch("a"), scene.run_of("a").attempts) == (["s1"], [attempts])
    scene.settle(scene.run_of("a"))
    assert (scene.batch("a"), scene.run_of("a").attempts) == (["m1"], [attempts])


def test_a_run_that_is_given_back_returns_everything() -> None:
    scene = steered("s1")
    scene.report(scene.run_of("a"), "released", took=scene.taken("a"))
    assert [one for _, one in scene.outcomes()] == ["requeued", "requeued"]
    scene = steered("s1")
    scene.report(scene.run_of("a"), "released")
    assert scene.outcomes() == [("m1", "requeued"), ("s1", "returned")]
    assert scene.batch("a") == ["s1"]
    assert scene.run_of("a").attempts == [1]


def test_a_cancelled_run_abandons_what_was_taken_in_and_returns_the_rest() -> None:
    scene = steered("s1", "s2")
    scene.interrupt("a")
    assert scene.report(scene.run_of("a"), "cancelled", took=[scene.canonical("s1")]).disposition == "cancelled"
    assert scene.outcomes() == [("m1", "abandoned"), ("s1", "abandoned"), ("s2", "returned")]
    assert scene.ran() == [["s2"]]


def test_a_steer_is_not_superseded_once_it_is_in_the_run() -> None:
    scene = running()
    scene.steer("a", "k1", supersession_key="k")
    scene.steer("a", "k2", supersession_key="k")
    assert scene.kinds == ["input_accepted", "run_steered"]
    assert scene.steered("a") == ["k1", "k2"]


# The agent comes back.


def test_an_agent_that_comes_back_with_the_run_is_sent_all_its_steers_again() -> None:
    scene = steered("s1", "s2")
    scene.join(held=[scene.run_of("a").run_id])
    assert scene.append is None
    assert scene.sent(SendStartRun) == []
    (sent,) = scene.sent(SendSteer)
    assert [(one.input_id, one.attempt) for one in sent.inputs] == [("s1", 1), ("s2", 1)]


def test_an_agent_that_comes_back_without_the_run_is_sent_run_and_steers_again() -> None:
    scene = steered("s1")
    scene.join()
    assert scene.kinds == ["run_resent"]
    assert [type(one) for one in scene.reactions if isinstance(one, SendStartRun | SendSteer)] == [
        SendStartRun,
        SendSteer,
    ]
    assert [one.input_id for one in scene.sent(SendStartRun)[0].inputs] == ["m1"]


def test_what_was_steered_while_the_agent_was_away_goes_in_when_it_is_back() -> None:
    scene = running()
    agent = scene.run_of("a").attachment_id
    scene.suspend(agent)
    scene.steer("a", "s1")
    assert scene.kinds == ["input_accepted"]
    assert scene.do(
        c.Attach("h", "1", 8, 100, scene.attachment(agent).serves, held=[scene.run_of("a").run_id], steers=True),
        Attached,
    ).resumed
    assert scene.kinds == ["run_steered"]
    assert [[one.input_id for one in sent.inputs] for sent in scene.sent(SendSteer)] == [["s1"]]


def test_nothing_is_steered_while_the_mob_is_stopped() -> None:
    scene = running()
    scene.suspend(scene.run_of("a").attachment_id)
    scene.steer("a", "s1")
    scene.do(c.StopMob())
    scene.join(held=[scene.run_of("a").run_id])
    assert scene.append is None
    assert scene.steering("a") == ["s1"]


def test_an_agent_that_changes_its_mind_about_steers_is_another() -> None:
    scene = running()
    first = scene.run_of("a").attachment_id
    second = scene.join(steers=False)
    assert second != first
    assert "attachment_closed" in scene.kinds


# A log that lies is not folded.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"canonical_input_ids": ["in-0"]}, "not the head of the steer lane"),
        ({"attempts": []}, "shorter"),
        ({"attempts": [1, 1]}, "longer"),
    ],
    ids=["another input", "too few attempts", "too many attempts"],
)
def test_a_log_that_steers_what_is_not_there_is_not_folded(changes: dict[str, list[str]], message: str) -> None:
    scene = steered("s1")
    at = next(at for at, record in enumerate(scene.log) if isinstance(record.event, e.RunSteered))
    event = msgspec.structs.replace(scene.log[at].event, **changes)
    scene.log[at] = msgspec.structs.replace(scene.log[at], payload=msgspec.json.encode(event).decode())
    with pytest.raises(ValueError, match=message):
        scene.replayed()
