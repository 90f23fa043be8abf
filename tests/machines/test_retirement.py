"""Retiring: what drains, what is given up, and when a member leaves (runtime §1.6, §4; bridge §4.7; core §5.3)."""

from typing import Final

import pytest
from tests.machines.scene import SILENT, Scene
from tests.machines.stage import state_bytes

from mobd_server.errors import MemberNotFound, StaleFence
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import (
    Deduplicated,
    Rejected,
    Retired,
    SendCancel,
    SendRetire,
    SendUnassign,
)
from mobd_server.machines.decision import wake_at
from mobd_server.machines.state import DRAIN_US
from mobd_server.machines.views import is_final, view_member

GONE: Final = ["executor_released", "member_retired"]


def running(*more: str, timeout_s: int = 0) -> Scene:
    """Return a mob whose member `a` runs `m1`, with `m2` and `m3` behind it."""
    scene = Scene("a", *more, timeout_s=timeout_s)
    scene.serve()
    scene.put("a", "m1", "m2", "m3")
    return scene


def draining(*more: str) -> Scene:
    scene = running(*more)
    assert scene.retire("a") == Retired(0, 3)
    return scene


def orphaned() -> Scene:
    """Return a mob whose member drains, has two inputs left, and has just lost its agent."""
    scene = draining()
    scene.settle(scene.run_of("a"))
    scene.leave(scene.agent_of("a") or "", "detached")
    return scene


# With an agent.


def test_a_member_with_nothing_to_do_leaves_at_once() -> None:
    scene = Scene("a")
    agent = scene.serve()
    fence = scene.executor("a").fence
    assert scene.retire("a") == Retired(0, 0)
    assert scene.events[:2] == [e.MemberRetiring("a"), e.RuntimeRetired("a")]
    assert scene.kinds == ["member_retiring", "runtime_retired", *GONE]
    assert scene.event(e.MemberRetired) == e.MemberRetired("a", 0)
    assert scene.sent(SendRetire) == [SendRetire(agent, "a", fence, drain=False)]
    assert [(one.member_id, one.fence) for one in scene.sent(SendUnassign)] == [("a", fence)]
    assert "a" not in scene.mob.members
    assert (scene.mob.draining, scene.attachment(agent).members) == ({}, {})
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_a_member_drains_what_it_has_and_everyone_sees_it_retired() -> None:
    scene = draining()
    assert scene.kinds == ["member_retiring", "runtime_retired"]
    assert scene.event(e.RuntimeRetired) == e.RuntimeRetired("a", 0, 3)
    assert [one.drain for one in scene.sent(SendRetire)] == [True]
    seen: list[tuple[str, str, int, int]] = []
    while "a" in scene.mob.members and len(seen) < 3:
        view = view_member(scene.mob, scene.member("a"))
        seen.append((view.state, view.lifecycle, view.inputs_running, view.inputs_waiting))
        refused = scene.send("a", "late")
        assert isinstance(refused, Rejected)
        assert (refused.cause, refused.state) == ("not_ready", "retired")
        assert is_final(scene.member("a")) is False
        assert scene.settle(scene.run_of("a")).disposition == "committed"
    assert seen == [("retired", "retiring", 1, 2), ("retired", "retiring", 2, 0)]
    assert scene.kinds == ["run_settled", *GONE]
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_while_it_drains_it_runs_what_would_not_have_woken_it() -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "q1", wake=False)
    scene.put("a", "r1", kind="peer_request", intent=SILENT[0])
    scene.put("a", "g1", kind="peer_response_progress")
    assert scene.member("a").run_id is None
    assert scene.retire("a") == Retired(0, 3)
    assert scene.ran() == [["g1"], ["q1", "r1"]]
    assert "a" not in scene.mob.members


def test_an_agent_that_was_asked_and_has_not_answered_drains_too() -> None:
    scene = Scene("a")
    scene.put("a", "m1", "m2")
    scene.join()
    assert scene.retire("a") == Retired(0, 2)
    scene.confirm("a")
    assert scene.ran() == [["m1", "m2"]]
    assert "a" not in scene.mob.members


def test_a_suspended_agent_drains_when_it_is_back() -> None:
    scene = running()
    agent = scene.run_of("a").attachment_id
    scene.suspend(agent)
    assert scene.retire("a") == Retired(0, 3)
    run = scene.run_of("a")
    scene.join(held=[run.run_id])
    assert scene.ran() == [["m1"], ["m2", "m3"]]
    assert "a" not in scene.mob.members


def test_a_failure_while_it_drains_is_tried_again_after_its_pause() -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "m1")
    scene.retire("a")
    scene.report(scene.run_of("a"), "error")
    assert scene.kinds == ["run_settled"]
    scene.advance(1)
    assert scene.kinds == ["retry_due", "run_started"]
    assert scene.ran() == [["m1"]]
    assert scene.mob.members == {}


def test_a_member_in_a_pause_drains_when_the_pause_is_over() -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "m1")
    scene.report(scene.run_of("a"), "error")
    assert scene.retire("a") == Retired(0, 1)
    scene.advance(1)
    assert scene.ran() == [["m1"]]
    assert scene.mob.members == {}
    assert scene.mob.timers == []


def test_a_pause_is_over_when_what_failed_is_given_up() -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "m1")
    scene.report(scene.run_of("a"), "error")
    scene.leave(scene.agent_of("a") or "", "detached")
    assert scene.retire_runtime("a") == Retired(1, 0)
    assert (scene.member("a").retry_at, scene.mob.timers) == (0, [])
    scene.advance(60)
    assert scene.append is None
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_a_steer_that_was_not_taken_in_is_drained() -> None:
    scene = running()
    scene.steer("a", "s1")
    assert scene.retire("a") == Retired(0, 4)
    assert scene.ran() == [["m1"], ["s1"], ["m2", "m3"]]
    assert "a" not in scene.mob.members


def test_what_was_steered_and_waits_counts_as_pending() -> None:
    scene = Scene("a")
    scene.serve(steers=False)
    scene.put("a", "m1")
    scene.steer("a", "s1")
    assert scene.retire("a") == Retired(0, 2)
    assert scene.ran() == [["m1"], ["s1"]]


# Without one.


def test_without_an_agent_what_waits_is_given_up_and_the_member_leaves() -> None:
    scene = Scene("a")
    scene.put("a", "m1")
    scene.steer("a", "s1")
    assert scene.retire("a") == Retired(2, 0)
    names = [scene.canonical("s1"), scene.canonical("m1")]
    assert scene.events == [
        e.MemberRetiring("a"),
        e.RuntimeRetired("a", 2, 0),
        e.InputAbandoned("a", names, "retired"),
        e.MemberRetired("a", 0),
    ]
    assert scene.sent(SendRetire) == []
    answer = scene.send("a", "m1")
    assert isinstance(answer, Deduplicated)
    assert answer.terminal is True
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_a_member_without_agent_and_work_leaves_without_a_word() -> None:
    scene = Scene("a")
    assert scene.retire("a") == Retired(0, 0)
    assert scene.kinds == ["member_retiring", "runtime_retired", "member_retired"]


# In a stopped mob.


def test_in_a_stopped_mob_what_waits_is_given_up_and_the_run_in_flight_is_in_neither_count() -> None:
    scene = running()
    scene.do(c.StopMob())
    assert scene.retire("a") == Retired(2, 0)
    assert scene.kinds == ["member_retiring", "runtime_retired", "input_abandoned"]
    assert [one.drain for one in scene.sent(SendRetire)] == [False]
    assert scene.retire("a") == Retired(0, 0, already=True)
    assert scene.append is None
    assert scene.settle(scene.run_of("a")).disposition == "committed"
    assert scene.kinds == ["run_settled", *GONE]


def test_a_failure_in_a_stopped_mob_waits_until_it_runs_again() -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "m1")
    scene.do(c.StopMob())
    scene.retire("a")
    scene.report(scene.run_of("a"), "released")
    assert "a" in scene.mob.members
    scene.do(c.ResumeMob())
    assert scene.ran() == [["m1"]]
    assert scene.mob.members == {}


def test_a_member_that_drains_goes_on_after_a_stop() -> None:
    scene = draining()
    scene.do(c.StopMob())
    scene.settle(scene.run_of("a"))
    assert scene.member("a").run_id is None
    assert scene.retire("a") == Retired(0, 0, already=True), "nothing is run while the mob is stopped"
    scene.do(c.ResumeMob())
    assert scene.ran() == [["m2", "m3"]]
    assert "a" not in scene.mob.members


def test_a_member_that_lost_its_agent_in_a_stopped_mob_has_its_minute_from_the_resumption() -> None:
    scene = draining()
    scene.do(c.StopMob())
    scene.leave(scene.agent_of("a") or "", "detached")
    assert scene.logged(e.DrainSuspended) == []
    scene.advance(3_600)
    scene.do(c.ResumeMob())
    assert scene.event(e.DrainSuspended) == e.DrainSuspended("a", scene.now + DRAIN_US)


# Counts.


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
@pytest.mark.parametrize("waits", [0, 2])
@pytest.mark.parametrize("runs", [False, True])
@pytest.mark.parametrize("agent", ["none", "asked", "there", "away"])
def test_abandoned_and_pending_add_up_and_are_never_both_above_zero(
    agent: str, runs: bool, waits: int, stopped: bool
) -> None:
    if runs and agent in ("none", "asked"):
        return
    for make in (c.RetireMember, c.RetireRuntime):
        scene = Scene("a")
        if agent in ("there", "away"):
            scene.serve()
        if agent == "asked":
            scene.join()
        if runs:
            scene.put("a", "run")
        scene.put("a", *(f"w{n}" for n in range(waits)), wake=False)
        if agent == "away":
            scene.suspend(scene.agent_of("a") or "")
        if stopped:
            scene.do(c.StopMob())
        answer = scene.do(make("a"), Retired)
        drains = agent != "none" and not stopped
        assert answer == Retired(0 if drains else waits, waits + runs if drains else 0)
        abandoned = [name for event in scene.logged(e.InputAbandoned) for name in event.canonical_input_ids]
        assert len(abandoned) == answer.inputs_abandoned
        assert scene.event(e.RuntimeRetired) == e.RuntimeRetired(
            "a", answer.inputs_abandoned, answer.inputs_pending_drain
        )


# Again, and with an interrupt.


def test_a_repeated_retirement_tells_what_is_still_to_come() -> None:
    scene = draining()
    for left in (3, 2):
        before = state_bytes(scene.mob)
        assert scene.retire("a") == Retired(0, left, already=True)
        assert scene.append is None
        assert state_bytes(scene.mob) == before
        scene.settle(scene.run_of("a"))
    assert scene.retire("a") == Retired(already=True)
    assert scene.append is None


def test_a_member_that_was_never_there_is_retired() -> None:
    scene = Scene()
    assert scene.retire("nobody") == Retired(already=True)
    assert scene.append is None


def test_an_interrupt_comes_before_the_retirement() -> None:
    scene = running()
    assert scene.retire("a", interrupt_first=True) == Retired(0, 3)
    assert scene.kinds == ["run_cancel_requested", "member_retiring", "runtime_retired"]
    assert scene.event(e.RunCancelRequested).reason == "its member is retired"
    assert [one.hard for one in scene.sent(SendCancel)] == [False]
    scene.report(scene.run_of("a"), "cancelled")
    assert scene.ran() == [["m2", "m3"]]
    assert "a" not in scene.mob.members


def test_an_interrupt_can_be_asked_for_when_the_retirement_goes_on() -> None:
    scene = draining()
    assert scene.retire("a", interrupt_first=True) == Retired(0, 3, already=True)
    assert scene.kinds == ["run_cancel_requested"]
    assert scene.retire("a", interrupt_first=True) == Retired(0, 3, already=True)
    assert scene.append is None


def test_an_interrupt_of_a_resting_member_is_none() -> None:
    scene = Scene("a")
    scene.serve()
    scene.retire("a", interrupt_first=True)
    assert scene.kinds == ["member_retiring", "runtime_retired", *GONE]


@pytest.mark.parametrize("make", [c.RetireMember, c.RetireRuntime, c.DestroyRuntime])
def test_a_stale_fence_retires_and_destroys_nothing(make: type[c.RetireMember]) -> None:
    scene = running()
    before = state_bytes(scene.mob)
    token = scene.member("a").fence_token
    for generation, fence_token in ((1, None), (None, token + 1), (0, token - 1), (1, token)):
        with pytest.raises(StaleFence) as refused:
            scene.do(make("a", generation, fence_token))
        assert refused.value.details == {"member_id": "a", "generation": "0", "fence_token": str(token)}
    assert state_bytes(scene.mob) == before
    scene.do(make("a", 0, token))
    assert scene.append is not None


# The drain loses its agent.


def test_a_drain_goes_on_with_another_agent() -> None:
    scene = draining()
    other = scene.serve("other")
    run = scene.run_of("a")
    scene.leave(run.attachment_id, "lost")
    assert scene.kinds == ["run_settled", "executor_lost", "attachment_closed", "executor_assigned"]
    assert scene.agent_of("a") == other
    scene.confirm("a")
    assert scene.ran() == [["m1"], ["m2", "m3"]]
    assert "a" not in scene.mob.members


def test_a_drain_without_an_agent_has_a_minute() -> None:
    scene = orphaned()
    until = scene.now + DRAIN_US
    assert scene.event(e.DrainSuspended) == e.DrainSuspended("a", until)
    assert scene.mob.timers == [(until, "drain", "a")]
    assert wake_at(scene.mob) == until
    assert view_member(scene.mob, scene.member("a")).drain_until == until
    scene.advance(59.999999)
    assert scene.append is None
    scene.advance(0.000001)
    names = [scene.canonical("m2"), scene.canonical("m3")]
    assert scene.events == [e.InputAbandoned("a", names, "retired"), e.MemberRetired("a", 0)]
    assert (scene.mob.timers, scene.mob.waiting, scene.mob.draining) == ([], {}, {})
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_an_agent_that_comes_within_the_minute_drains_the_rest() -> None:
    scene = orphaned()
    scene.advance(59)
    other = scene.join("other")
    assert "executor_assigned" in scene.kinds
    assert (scene.mob.timers, scene.member("a").drain_until) == ([], 0)
    scene.advance(60)
    assert scene.append is None
    scene.confirm("a")
    assert scene.agent_of("a") == other
    assert scene.ran() == [["m2", "m3"]]
    assert "a" not in scene.mob.members


def test_an_agent_that_leaves_again_begins_a_new_minute() -> None:
    scene = orphaned()
    scene.advance(59)
    other = scene.join("other")
    scene.leave(other, "lost")
    assert scene.event(e.DrainSuspended).until == scene.now + DRAIN_US


def test_a_member_that_was_declined_while_it_drains_has_a_minute() -> None:
    scene = Scene("a")
    scene.put("a", "m1")
    agent = scene.join()
    scene.retire("a")
    scene.do(c.Decline(agent, "a", scene.executor("a").fence))
    assert scene.kinds == ["executor_released", "drain_suspended"]


def test_an_agent_that_was_fenced_off_a_draining_member_is_not_asked_to_go_on() -> None:
    scene = draining()
    scene.cancel("a")
    run = scene.run_of("a")
    scene.fence_off(run)
    assert scene.kinds == ["run_settled", "executor_lost", "drain_suspended"]
    other = scene.serve("other")
    assert scene.agent_of("a") == other
    assert scene.ran() == [["m2", "m3"]]


def test_a_repeated_retirement_during_the_minute_still_counts() -> None:
    scene = orphaned()
    assert scene.retire("a") == Retired(0, 2, already=True)


def test_a_runtime_that_was_only_retired_has_its_minute_too_and_stays() -> None:
    scene = running()
    scene.retire_runtime("a")
    scene.leave(scene.agent_of("a") or "", "detached")
    assert "drain_suspended" in scene.kinds
    scene.advance(60)
    assert scene.kinds == ["input_abandoned"]
    assert scene.member("a").state == "retired"
    assert is_final(scene.member("a"))


# The bridge's Retire.


def test_a_retired_runtime_stays_listed_after_it_has_drained() -> None:
    scene = running()
    assert scene.retire_runtime("a") == Retired(0, 3)
    assert scene.kinds == ["runtime_retired"]
    assert scene.member("a").lifecycle == "active"
    assert scene.ran() == [["m1"], ["m2", "m3"]]
    assert scene.kinds == ["run_settled", "executor_released"]
    view = view_member(scene.mob, scene.member("a"))
    assert (view.state, view.lifecycle, view.attachment_id, view.run_id) == ("retired", "active", None, None)
    assert is_final(scene.member("a"))
    assert scene.retire_runtime("a") == Retired(already=True)
    assert scene.append is None


def test_no_agent_is_given_a_member_that_has_drained() -> None:
    scene = Scene("a")
    scene.retire_runtime("a")
    agent = scene.serve()
    scene.do(c.Continue())
    assert scene.attachment(agent).members == {}


def test_a_retired_member_that_is_then_retired_leaves() -> None:
    scene = Scene("a")
    scene.serve()
    scene.retire_runtime("a")
    assert scene.retire("a") == Retired(0, 0, already=True)
    assert scene.kinds == ["member_retiring", "member_retired"]
    assert "a" not in scene.mob.members


def test_a_draining_member_that_is_then_retired_leaves_when_it_has_drained() -> None:
    scene = running()
    scene.retire_runtime("a")
    assert scene.retire("a") == Retired(0, 3, already=True)
    assert scene.kinds == ["member_retiring"]
    assert scene.ran() == [["m1"], ["m2", "m3"]]
    assert "a" not in scene.mob.members


def test_a_runtime_of_nobody_is_not_found() -> None:
    for command in (c.RetireRuntime("nobody"), c.DestroyRuntime("nobody")):
        with pytest.raises(MemberNotFound):
            Scene().do(command)


# Its place.


def test_the_place_of_a_member_that_left_goes_to_one_that_waits() -> None:
    scene = Scene("a", "b")
    scene.serve(max_members=1)
    scene.put("a", "m1")
    scene.put("b", "m1")
    assert scene.agent_of("b") is None
    scene.retire("a")
    scene.settle(scene.run_of("a"))
    assert scene.kinds == ["run_settled", "executor_released", "executor_assigned", "member_retired"]
    assert scene.agent_of("b") is not None
