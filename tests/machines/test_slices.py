"""Commands that end many members, in slices that survive a crash: complete, reset, retire all, destroy (core §11)."""

from collections.abc import Callable, Sequence
from typing import Final

import pytest
from tests.machines.scene import Scene
from tests.machines.stage import replay, state_bytes

from mobd_server.errors import InvalidTransition
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import (
    Again,
    CancelAnswer,
    Deduplicated,
    DestroyAnswer,
    EndStream,
    MemberOutcome,
    MobReport,
    SendRetire,
)
from mobd_server.machines.decision import wake_at
from mobd_server.machines.state import DRAIN_US

MANY: Final = 1_200


def busy() -> Scene:
    """Return a mob with a member that runs and has work, one that rests, and one whose work has no agent."""
    scene = Scene("a", "b")
    scene.spawn("l", of="lead")
    scene.serve()
    scene.put("a", "m1", "m2")
    scene.put("l", "m1", "m2", "m3")
    return scene


def crowd(count: int = MANY, waiting: int = 1) -> Scene:
    """Return a mob with many members without an agent, each with work."""
    scene = Scene()
    names = [f"m{n:04}" for n in range(count)]
    for start in range(0, count, 1_000):
        scene.do(c.SpawnMembers([c.MemberSpec(name, "analyst") for name in names[start : start + 1_000]]))
    for name in names:
        scene.put(name, *(f"{name}-{n}" for n in range(waiting)))
    return scene


def go_on(scene: Scene, *, crash: bool = False) -> int:
    """Go on until nothing is asked for any more; return how many slices there were. Each fits one decision."""
    slices = 1
    while scene.sent(Again):
        if crash:
            scene.mob = scene.replayed()
        scene.do(c.Continue())
        # With whom it asks to retire it lets those leave that have nothing to do.
        assert len(scene.events) < 1_100
        assert scene.events or not scene.sent(Again), "a mob that asks to go on does something"
        slices += 1
    return slices


def outcomes(report: MobReport | DestroyAnswer) -> list[tuple[str, int, int]]:
    return [(one.member_id, one.inputs_abandoned, one.inputs_pending_drain) for one in report.outcomes]


# Completing.


def test_a_mob_completes_when_its_last_member_has_drained() -> None:
    scene = busy()
    report = scene.do(c.CompleteMob(), MobReport)
    assert (report.mob.phase, report.mob.pending) == ("running", "complete")
    assert outcomes(report) == [("a", 0, 2), ("b", 0, 0), ("l", 3, 0)]
    assert scene.events[0] == e.MobCompleting()
    assert sorted(scene.mob.members) == ["a"]
    assert [(one.member_id, one.drain) for one in scene.sent(SendRetire)] == [("a", True), ("b", False)]
    assert wake_at(scene.mob) == 0
    again = scene.do(c.CompleteMob(), MobReport)
    assert (scene.append, again) == (None, report)
    scene.settle(scene.run_of("a"))
    assert (scene.mob.phase, scene.batch("a")) == ("running", ["m2"])
    scene.settle(scene.run_of("a"))
    assert scene.kinds == ["run_settled", "executor_released", "member_retired", "mob_completed"]
    assert (scene.mob.phase, scene.mob.pending, scene.mob.members) == ("completed", "none", {})
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_an_empty_mob_completes_at_once() -> None:
    scene = Scene()
    report = scene.do(c.CompleteMob(), MobReport)
    assert scene.kinds == ["mob_completing", "mob_completed"]
    assert (report.mob.phase, report.mob.pending, report.outcomes) == ("completed", "none", [])


def test_a_mob_without_work_completes_at_once_and_reports_everybody() -> None:
    scene = Scene("a", "b")
    scene.serve()
    report = scene.do(c.CompleteMob(), MobReport)
    assert (report.mob.phase, report.mob.pending) == ("completed", "none")
    assert outcomes(report) == [("a", 0, 0), ("b", 0, 0)]
    assert scene.kinds[-1] == "mob_completed"
    assert scene.kinds.count("mob_completed") == 1


def test_a_completed_mob_takes_agents_and_nothing_else() -> None:
    scene = Scene()
    scene.do(c.CompleteMob())
    with pytest.raises(InvalidTransition):
        scene.do(c.CompleteMob())
    with pytest.raises(InvalidTransition):
        scene.spawn("a")
    scene.serve()
    assert scene.do(c.DestroyMob(), DestroyAnswer).done is True


def test_a_member_without_an_agent_holds_up_a_completion_for_a_minute() -> None:
    scene = busy()
    scene.do(c.CompleteMob())
    scene.leave(scene.agent_of("a") or "", "lost")
    assert scene.event(e.DrainSuspended).until == scene.now + DRAIN_US
    scene.advance(60)
    assert scene.kinds[-2:] == ["member_retired", "mob_completed"]
    assert scene.mob.phase == "completed"


def test_what_drains_can_be_cancelled_while_a_mob_completes() -> None:
    scene = busy()
    scene.do(c.CompleteMob())
    run = scene.run_of("a")
    assert scene.interrupt("a") == CancelAnswer("requested", run.run_id)
    scene.report(run, "cancelled")
    assert scene.batch("a") == ["m2"]
    scene.cancel("a")
    scene.fence_off(scene.run_of("a"))
    assert scene.mob.phase == "completed"


def test_members_that_were_retired_before_are_taken_along() -> None:
    scene = Scene("a", "b", "c", "d")
    scene.serve()
    scene.put("a", "m1")
    scene.put("b", "m1")
    scene.retire("a")
    scene.retire_runtime("b")
    scene.do(c.DestroyRuntime("c"))
    report = scene.do(c.CompleteMob(), MobReport)
    # Who was leaving before was asked before.
    assert outcomes(report) == [("b", 0, 1), ("c", 0, 0), ("d", 0, 0)]
    scene.settle(scene.run_of("a"))
    assert (scene.mob.phase, sorted(scene.mob.members)) == ("running", ["b"])
    scene.settle(scene.run_of("b"))
    assert (scene.mob.phase, sorted(scene.mob.members)) == ("completed", [])


@pytest.mark.parametrize("crash", [False, True], ids=["", "crash"])
def test_a_completion_of_many_goes_on_in_slices(crash: bool) -> None:
    scene = crowd()
    report = scene.do(c.CompleteMob(), MobReport)
    assert report.mob.pending == "complete"
    assert 0 < len(report.outcomes) < MANY
    assert scene.do(c.CompleteMob(), MobReport) == report
    assert scene.append is None
    scene.reactions = [Again()]
    assert go_on(scene, crash=crash) > 5
    assert (scene.mob.phase, scene.mob.pending, scene.mob.members) == ("completed", "none", {})
    assert len(scene.mob.reports) == MANY
    assert {(one.inputs_abandoned, one.inputs_pending_drain) for one in scene.mob.reports.values()} == {(1, 0)}
    assert len(scene.logged(e.MobCompleting)) == len(scene.logged(e.MobCompleted)) == 1
    assert len(scene.logged(e.MemberRetired)) == MANY
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


@pytest.mark.parametrize("crash", [False, True], ids=["", "crash"])
def test_a_completion_of_many_that_drain_ends_with_the_last_of_them(crash: bool) -> None:
    scene = crowd(300)
    agent = scene.join(capacity=256, max_members=1_000)
    go_on(scene)
    scene.confirm(*sorted(scene.attachment(agent).members))
    assert len(scene.mob.runs) == 256
    report = scene.do(c.CompleteMob(), MobReport)
    go_on(scene, crash=crash)
    assert {(one.inputs_abandoned, one.inputs_pending_drain) for one in report.outcomes} == {(0, 1)}
    while scene.mob.runs:
        assert scene.mob.phase == "running"
        scene.settle(next(iter(scene.mob.runs.values())))
    assert scene.mob.phase == "completed"
    assert scene.logged(e.InputAbandoned) == []


# Resetting.


def test_a_reset_gives_everything_up_and_the_mob_runs_with_an_empty_roster() -> None:
    scene = busy()
    fences, run = scene.mob.fences, scene.run_of("a")
    agent = run.attachment_id
    report = scene.do(c.ResetMob(), MobReport)
    assert scene.kinds == [
        "mob_stopped",
        "mob_resetting",
        "mob_cleanup_begun",
        "runtime_retired",
        "run_settled",
        "input_abandoned",
        "executor_released",
        "member_retired",
        "runtime_retired",
        "executor_released",
        "member_retired",
        "runtime_retired",
        "input_abandoned",
        "member_retired",
        "mob_cleanup_finished",
        "mob_started",
    ]
    assert outcomes(report) == [("a", 2, 0), ("b", 0, 0), ("l", 3, 0)]
    assert {one.reason for one in scene.all(e.InputAbandoned)} == {"reset"}
    assert {one.reason for one in scene.event(e.RunSettled).outcomes} == {"reset"}
    mob = scene.mob
    assert (mob.phase, mob.pending, mob.cleanup_pending, mob.members) == ("running", "none", False, {})
    assert (mob.runs, mob.waiting, mob.timers, mob.draining) == ({}, {}, [], {})
    assert list(mob.attachments) == [agent]
    assert scene.settle(run).disposition == "fenced"
    answer = scene.send("a", "m1")
    assert isinstance(answer, Deduplicated)
    assert answer.terminal is True
    # Fences and generations go on; the agent serves again.
    scene.spawn("a")
    assert scene.member("a").generation == 1
    assert scene.member("a").fence_token > fences
    assert scene.agent_of("a") == agent
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


@pytest.mark.parametrize("phase", ["stopped", "completed"])
def test_a_stopped_or_completed_mob_is_reset_and_runs(phase: str) -> None:
    scene = Scene("a")
    scene.put("a", "m1")
    scene.do(c.StopMob() if phase == "stopped" else c.CompleteMob())
    report = scene.do(c.ResetMob(), MobReport)
    assert "mob_stopped" not in scene.kinds
    assert scene.kinds[:2] == ["mob_resetting", "mob_cleanup_begun"]
    assert scene.kinds[-2:] == ["mob_cleanup_finished", "mob_started"]
    assert outcomes(report) == ([("a", 1, 0)] if phase == "stopped" else [])
    assert (report.mob.phase, report.mob.pending) == ("running", "none")
    scene.spawn("b")


def test_members_that_have_ended_are_reset_too() -> None:
    scene = Scene("a", "b", "c")
    scene.serve()
    scene.put("a", "m1")
    scene.retire("a")
    scene.retire_runtime("b")
    scene.do(c.DestroyRuntime("c"))
    scene.do(c.ResetMob())
    assert (scene.mob.members, scene.mob.draining) == ({}, {})
    assert scene.outcomes() == [("m1", "abandoned")]


@pytest.mark.parametrize("crash", [False, True], ids=["", "crash"])
def test_a_reset_of_many_goes_on_in_slices_and_agents_may_come(crash: bool) -> None:
    scene = crowd()
    report = scene.do(c.ResetMob(), MobReport)
    assert (report.mob.phase, report.mob.pending, report.mob.cleanup_pending) == ("stopped", "reset", True)
    with pytest.raises(InvalidTransition):
        scene.do(c.ResumeMob())
    assert scene.do(c.ResetMob(), MobReport) == report
    assert scene.append is None
    agent = scene.join(max_members=1_000)
    assert scene.attachment(agent).runs == []
    scene.reactions = [Again()]
    assert go_on(scene, crash=crash) > 5
    assert (scene.mob.phase, scene.mob.pending, scene.mob.members) == ("running", "none", {})
    assert len(scene.mob.reports) == MANY
    assert {one.inputs_abandoned for one in scene.mob.reports.values()} == {1}
    assert scene.logged(e.RunStarted) == []
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


# Retiring all.


def test_all_members_are_asked_to_retire_and_those_with_work_drain() -> None:
    scene = busy()
    report = scene.do(c.RetireAllMembers(), MobReport)
    assert (scene.events[0], scene.mob.pending) == (e.RetireAllBegun(), "none")
    assert "retire_all_finished" in scene.kinds
    assert outcomes(report) == [("a", 0, 2), ("b", 0, 0), ("l", 3, 0)]
    assert sorted(scene.mob.members) == ["a"]
    # New members may come while the old ones drain.
    scene.spawn("new")
    assert scene.ran("a") == [["m1"], ["m2"]]
    assert sorted(scene.mob.members) == ["new"]
    assert scene.mob.phase == "running"


def test_all_members_of_a_stopped_mob_are_given_up() -> None:
    scene = busy()
    scene.do(c.StopMob())
    report = scene.do(c.RetireAllMembers(), MobReport)
    assert outcomes(report) == [("a", 1, 0), ("b", 0, 0), ("l", 3, 0)]
    scene.settle(scene.run_of("a"))
    assert scene.mob.members == {}
    assert scene.mob.phase == "stopped"


def test_a_second_retirement_of_all_asks_those_that_came_since() -> None:
    scene = busy()
    scene.do(c.RetireAllMembers())
    scene.spawn("new")
    report = scene.do(c.RetireAllMembers(), MobReport)
    assert outcomes(report) == [("new", 0, 0)]


@pytest.mark.parametrize("crash", [False, True], ids=["", "crash"])
def test_a_retirement_of_many_goes_on_in_slices(crash: bool) -> None:
    scene = crowd()
    report = scene.do(c.RetireAllMembers(), MobReport)
    assert report.mob.pending == "retire_all"
    assert scene.do(c.RetireAllMembers(), MobReport) == report
    assert scene.append is None
    scene.reactions = [Again()]
    go_on(scene, crash=crash)
    assert (scene.mob.phase, scene.mob.pending, scene.mob.members) == ("running", "none", {})
    assert len(scene.logged(e.RetireAllFinished)) == 1
    assert len(scene.mob.reports) == MANY
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


# Destroying, also over what is pending.

BEGINS: Final[dict[str, c.Command]] = {
    "complete": c.CompleteMob(),
    "reset": c.ResetMob(),
    "retire_all": c.RetireAllMembers(),
}


# The events with which those would have ended.
ENDS: Final = (e.MobCompleted, e.MobCleanupFinished, e.RetireAllFinished)


@pytest.mark.parametrize("crash", [False, True], ids=["", "crash"])
@pytest.mark.parametrize("pending", BEGINS)
def test_a_destruction_takes_the_place_of_what_is_pending(pending: str, crash: bool) -> None:
    scene = crowd(800)
    scene.do(BEGINS[pending])
    assert scene.mob.pending == pending
    gone = len(scene.logged(e.MemberRetired))
    assert 0 < gone < 800
    answer = scene.do(c.DestroyMob(), DestroyAnswer)
    assert scene.mob.pending == "destroy"
    assert answer.done is False
    go_on(scene, crash=crash)
    assert (scene.mob.phase, scene.mob.pending) == ("destroyed", "none")
    report = scene.do(c.DestroyMob(), DestroyAnswer)
    assert (report.done, report.already) == (True, True)
    assert len(report.outcomes) == 800 - len(scene.logged(e.MemberRetired))
    assert not [one for one in scene.log if isinstance(one.event, ENDS)]
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_a_destruction_gives_up_what_drains_for_a_completion() -> None:
    scene = busy()
    scene.do(c.CompleteMob())
    run = scene.run_of("a")
    answer = scene.do(c.DestroyMob(), DestroyAnswer)
    assert (answer.done, answer.inputs_abandoned) == (True, 2)
    assert answer.outcomes == [MemberOutcome("a", 2)]
    assert [one.reason for one in scene.sent(EndStream)] == ["revoked"]
    assert scene.settle(run).disposition == "fenced"
    assert scene.mob.timers == []


def test_a_member_that_drains_is_destroyed_and_does_not_leave_after_the_end() -> None:
    scene = busy()
    scene.do(c.RetireMember("a"))
    answer = scene.do(c.DestroyMob(), DestroyAnswer)
    assert isinstance(scene.events[-1], e.MobDestroyed)
    assert [one.member_id for one in answer.outcomes] == ["a", "b", "l"]
    again = scene.do(c.DestroyMob(), DestroyAnswer)
    assert outcomes(again) == outcomes(answer)
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_members_that_were_destroyed_before_are_in_the_report_once() -> None:
    scene = Scene("a", "b")
    scene.put("a", "m1")
    scene.put("b", "m1", "m2")
    scene.do(c.DestroyRuntime("a"))
    answer = scene.do(c.DestroyMob(), DestroyAnswer)
    assert answer.outcomes == [MemberOutcome("a", 1), MemberOutcome("b", 2)]
    assert scene.logged(e.MemberDestroyed) == [e.MemberDestroyed("a", 1), e.MemberDestroyed("b", 2)]
    assert answer.inputs_abandoned == 3


# A report is that of the last such command.


@pytest.mark.parametrize("last", [c.ResetMob, c.CompleteMob, c.RetireAllMembers], ids=lambda make: make.__name__)
def test_a_report_tells_of_its_own_command_only(last: Callable[[], c.Command]) -> None:
    scene = busy()
    scene.do(c.RetireAllMembers())
    scene.ran("a")
    scene.spawn("x")
    assert outcomes(scene.do(last(), MobReport)) == [("x", 0, 0)]


def test_what_retires_between_two_commands_is_in_no_report() -> None:
    scene = Scene("a", "b")
    scene.do(c.RetireAllMembers())
    scene.spawn("x")
    scene.retire("x")
    assert sorted(scene.mob.reports) == ["a", "b"]


# Every prefix of such a log can be gone on with.


@pytest.mark.parametrize("command", [*BEGINS.values(), c.DestroyMob()], ids=[*BEGINS, "destroy"])
def test_a_crash_between_any_two_decisions_changes_nothing(command: c.Command) -> None:
    def play(crashes: Sequence[int]) -> bytes:
        scene = crowd(400, waiting=2)
        scene.do(command)
        for step in range(20):
            if step in crashes:
                scene.mob = replay("mob", scene.log)
                # A server that comes up asks every mob that owes something to go on.
                assert scene.mob.pending == "none" or wake_at(scene.mob) == 0
            scene.do(c.Continue())
        return state_bytes(scene.mob)

    whole = play([])
    assert play([0]) == play([1, 2]) == play(range(20)) == whole
