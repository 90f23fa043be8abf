"""Deadlines of runs: cancelled at the boundary, then hard, fenced off, and tried again as failed (runtime §9.5)."""

import pytest
from tests.machines.scene import Scene
from tests.machines.stage import SECOND, state_bytes

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import CancelAnswer, SendCancel, SendSettled, SendStartRun, SendUnassign

LIMIT_S = 60


def running(*more: str, timeout_s: int = LIMIT_S) -> Scene:
    """Return a mob whose member `a` runs `m1`, for at most a minute."""
    scene = Scene("a", *more, timeout_s=timeout_s)
    scene.serve()
    scene.put("a", "m1")
    return scene


def test_a_run_knows_and_tells_when_it_must_have_ended() -> None:
    scene = running()
    deadline = scene.now + LIMIT_S * SECOND
    assert scene.event(e.RunStarted).deadline == deadline
    assert [one.deadline for one in scene.sent(SendStartRun)] == [deadline]
    assert scene.mob.timers == [(deadline, "deadline", scene.run_of("a").run_id)]
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_a_role_without_a_limit_has_no_deadline() -> None:
    scene = running(timeout_s=0)
    assert scene.event(e.RunStarted).deadline == 0
    assert scene.mob.timers == []
    scene.advance(1_000_000)
    assert scene.append is None


def test_a_result_in_time_takes_the_deadline_with_it() -> None:
    scene = running()
    scene.settle(scene.run_of("a"))
    assert scene.mob.timers == []
    scene.advance(3 * LIMIT_S)
    assert scene.append is None


def test_a_missed_deadline_cancels_at_the_boundary_then_hard_then_fences_the_agent_off() -> None:
    scene = running()
    run = scene.run_of("a")
    scene.advance(LIMIT_S - 0.000001)
    assert scene.append is None
    scene.advance(0.000001)
    asked = scene.event(e.RunCancelRequested)
    assert (asked.hard, asked.by, asked.reason) == (False, "deadline", "its deadline has passed")
    assert asked.deadline == scene.now + 10 * SECOND
    (soft,) = scene.sent(SendCancel)
    assert soft.hard is False

    scene.advance(9.999999)
    assert scene.append is None
    scene.advance(0.000001)
    asked = scene.event(e.RunCancelRequested)
    assert (asked.hard, asked.by, asked.deadline) == (True, "deadline", scene.now + 10 * SECOND)
    (hard,) = scene.sent(SendCancel)
    assert hard.hard is True
    assert hard.control_id != soft.control_id

    scene.advance(9.999999)
    assert scene.append is None
    scene.advance(0.000001)
    assert scene.kinds == ["run_settled", "executor_lost"]
    settled = scene.event(e.RunSettled)
    assert settled.state == "failed"
    assert settled.error == "its deadline has passed; its agent did not end it"
    assert scene.outcomes() == [("m1", "requeued")]
    assert settled.retry_at == scene.now + SECOND
    assert [one.disposition for one in scene.sent(SendSettled)] == ["requeued"]
    assert [(one.member_id, one.fence) for one in scene.sent(SendUnassign)] == [("a", run.fence)]
    assert scene.settle(run).disposition == "fenced"
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_result_after_the_deadline_and_before_the_end_is_committed(steps: int) -> None:
    scene = running()
    scene.advance(LIMIT_S)
    for _ in range(steps):
        scene.advance(10)
    assert scene.settle(scene.run_of("a")).disposition == "committed"
    assert scene.mob.timers == []


@pytest.mark.parametrize("kind", ["cancelled", "error"])
@pytest.mark.parametrize("steps", [0, 1])
def test_what_only_a_deadline_cancelled_is_a_failed_attempt_and_runs_again(steps: int, kind: str) -> None:
    scene = running()
    scene.advance(LIMIT_S)
    for _ in range(steps):
        scene.advance(10)
    assert scene.report(scene.run_of("a"), kind, "too slow").disposition == "requeued"
    settled = scene.event(e.RunSettled)
    assert (settled.state, settled.error) == ("failed", "too slow")
    scene.advance(1)
    assert (scene.batch("a"), scene.run_of("a").attempts) == (["m1"], [2])
    assert scene.run_of("a").cancel == "none"
    assert scene.run_of("a").deadline == scene.now + LIMIT_S * SECOND


def test_three_timeouts_abandon() -> None:
    scene = running()
    for pause in (1, 10, None):
        scene.advance(LIMIT_S)
        scene.report(scene.run_of("a"), "cancelled")
        if pause is not None:
            assert scene.outcomes() == [("m1", "requeued")]
            scene.advance(pause)
    assert scene.outcomes() == [("m1", "abandoned")]
    assert scene.event(e.RunSettled).outcomes[0].reason.startswith("max_attempts_exhausted")
    assert (scene.inputs("a"), scene.mob.timers) == ([], [])


def test_an_agent_that_is_fenced_off_three_times_abandons_too() -> None:
    scene = running()
    for _ in range(3):
        for seconds in (LIMIT_S, 10, 10):
            scene.advance(seconds)
        assert scene.kinds[:2] == ["run_settled", "executor_lost"]
        if scene.outcomes() == [("m1", "abandoned")]:
            break
        scene.advance(10)
        scene.confirm("a")
    assert scene.outcomes() == [("m1", "abandoned")]
    assert [one.outcomes[0].attempt for one in scene.logged(e.RunSettled)] == [1, 2, 3]


# A caller and the deadline ask together.


def test_a_deadline_that_joins_a_callers_interrupt_cancels_hard_and_the_run_stays_the_callers() -> None:
    scene = running()
    scene.interrupt("a", reason="enough")
    scene.advance(LIMIT_S)
    asked = scene.event(e.RunCancelRequested)
    assert (asked.hard, asked.by) == (True, "caller")
    scene.advance(10)
    assert scene.kinds[:2] == ["run_settled", "executor_lost"]
    assert scene.event(e.RunSettled).state == "cancelled"
    assert scene.outcomes() == [("m1", "abandoned")]


@pytest.mark.parametrize("hard", [False, True], ids=["interrupt", "hard cancel"])
def test_a_caller_that_joins_a_deadline_makes_the_end_final(hard: bool) -> None:
    scene = running()
    scene.advance(LIMIT_S)
    run = scene.run_of("a")
    deadline, control_id = run.deadline, run.control_id
    answer = scene.cancel("a") if hard else scene.interrupt("a")
    assert answer == CancelAnswer("requested", run.run_id)
    asked = scene.event(e.RunCancelRequested)
    assert (asked.hard, asked.by, asked.deadline) == (hard, "caller", deadline)
    # The agent was asked as much before: only what is more is sent.
    assert [one.hard for one in scene.sent(SendCancel)] == [True] * hard
    assert (asked.control_id == control_id) is not hard
    assert (scene.cancel("a") if hard else scene.interrupt("a")) == answer
    assert scene.append is None
    scene.report(run, "cancelled")
    assert scene.event(e.RunSettled).state == "cancelled"
    assert scene.outcomes() == [("m1", "abandoned")]
    assert scene.mob.timers == []


def test_the_deadline_of_a_run_in_a_stopped_mob_counts_too() -> None:
    scene = running()
    scene.do(c.StopMob())
    scene.advance(LIMIT_S)
    assert scene.kinds == ["run_cancel_requested"]
    scene.report(scene.run_of("a"), "cancelled")
    assert scene.waits("a") == ["m1"]
    assert scene.member("a").run_id is None


def test_a_run_that_is_sent_again_keeps_its_deadline() -> None:
    scene = running()
    deadline = scene.run_of("a").deadline
    scene.now += 5 * SECOND
    scene.join()
    assert scene.kinds == ["run_resent"]
    assert [one.deadline for one in scene.sent(SendStartRun)] == [deadline]


def test_the_deadline_of_an_agent_that_is_away_is_kept() -> None:
    scene = running()
    run = scene.run_of("a")
    scene.suspend(run.attachment_id)
    for seconds in (LIMIT_S, 10, 10):
        scene.advance(seconds)
    assert scene.kinds == ["run_settled", "executor_lost"]
    assert scene.attachment(run.attachment_id).members == {}
    scene.join()
    assert scene.sent(SendCancel) == []


def test_a_cancelled_run_that_was_never_sent_is_a_failed_attempt_if_only_its_deadline_asked() -> None:
    scene = running()
    scene.advance(LIMIT_S)
    run = scene.run_of("a")
    scene.do(c.CancelUnsent(run.attachment_id, run.run_id, run.fence))
    settled = scene.event(e.RunSettled)
    assert (settled.state, settled.error) == ("failed", "its deadline has passed")
    assert scene.outcomes() == [("m1", "requeued")]


def test_many_deadlines_are_met_in_parts() -> None:
    scene = Scene(*(f"m{n:03}" for n in range(201)), timeout_s=LIMIT_S)
    scene.serve(capacity=256, max_members=256)
    for member_id in list(scene.mob.members):
        scene.put(member_id, f"{member_id}-1")
    scene.advance(LIMIT_S)
    assert len(scene.all(e.RunCancelRequested)) == 200
    scene.do(c.Wake())
    assert len(scene.all(e.RunCancelRequested)) == 1
    scene.do(c.Wake())
    assert scene.append is None
