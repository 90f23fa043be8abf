"""Cancels, in whole: what is logged, what agents are told, and what callers hear who mean somebody else."""

from collections.abc import Callable
from typing import Final

import pytest
from tests.machines.scene import Scene
from tests.machines.stage import SECOND

from mobd_server.errors import MemberNotFound, StaleFence
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import CancelAnswer, Done, SendCancel, SendSettled, SendUnassign
from mobd_server.machines.cancel import NO_PAUSE_US

LIMIT_S: Final = 60


def running(*more: str) -> Scene:
    """Return a mob whose member `a` runs `m1`, for at most a minute."""
    scene = Scene("a", *more, timeout_s=LIMIT_S)
    scene.serve()
    scene.put("a", "m1")
    return scene


def settled(scene: Scene) -> tuple[str, str]:
    event = scene.event(e.RunSettled)
    return event.state, event.error


# Whom a caller means.


@pytest.mark.parametrize("command", [c.Interrupt("nobody"), c.HardCancel("nobody", "run-0")])
def test_an_unknown_member_is_named_with_its_mob(command: c.Command) -> None:
    with pytest.raises(MemberNotFound) as missing:
        running().do(command)
    assert missing.value.message == "mob 'mob' has no member 'nobody'"
    assert missing.value.details == {"mob_id": "mob", "member_id": "nobody"}


def test_another_incarnation_is_told_the_numbers_of_this_one() -> None:
    with pytest.raises(StaleFence) as stale:
        running().interrupt("a", generation=7)
    assert stale.value.message == "member 'a' is at generation 0, fence token 1"
    assert stale.value.details == {"member_id": "a", "generation": "0", "fence_token": "1"}


# What is asked for.


@pytest.mark.parametrize("hard", [False, True], ids=["interrupt", "hard cancel"])
def test_a_request_has_a_name_of_its_own_and_keeps_the_deadline(hard: bool) -> None:
    scene = running()
    run = scene.run_of("a")
    deadline = run.deadline
    answer = scene.cancel("a", reason="enough") if hard else scene.interrupt("a", reason="enough")
    assert answer == CancelAnswer("requested", run.run_id)
    name = run.control_id
    assert name.startswith("ctl-")
    assert scene.events == [e.RunCancelRequested("a", run.run_id, name, hard, "caller", "enough", deadline)]
    assert scene.reactions == [SendCancel(run.attachment_id, run.run_id, run.fence, "a", name, hard, "enough")]
    assert scene.mob.timers == [(deadline, "deadline", run.run_id)]


def test_an_interrupt_that_joins_a_hard_cancel_of_the_deadline_leaves_it_hard() -> None:
    scene = running()
    run = scene.run_of("a")
    scene.advance(LIMIT_S)
    scene.advance(10)
    assert (run.cancel, run.cancelled_by) == ("hard", "deadline")
    name, deadline = run.control_id, run.deadline
    assert scene.interrupt("a", reason="enough") == CancelAnswer("requested", run.run_id)
    assert scene.events == [e.RunCancelRequested("a", run.run_id, name, hard=True, reason="enough", deadline=deadline)]
    assert scene.reactions == [], "the agent was asked as much before"


# What was never sent.


ASKED: Final[dict[str, tuple[Callable[[Scene], object], tuple[str, str]]]] = {
    "nobody": (lambda scene: None, ("released", "")),
    "a caller": (lambda scene: scene.interrupt("a", reason="enough"), ("cancelled", "enough")),
    "a caller without a reason": (lambda scene: scene.cancel("a"), ("cancelled", "")),
    "the deadline": (lambda scene: scene.advance(LIMIT_S), ("failed", "its deadline has passed")),
}


@pytest.mark.parametrize("who", ASKED)
def test_a_run_that_was_never_sent_ends_as_it_was_asked_to(who: str) -> None:
    ask, end = ASKED[who]
    scene = running()
    ask(scene)
    run = scene.run_of("a")
    stale = c.CancelUnsent(run.attachment_id, run.run_id, run.fence - 1)
    assert scene.do(stale, Done) == Done(changed=False)
    assert scene.append is None
    assert scene.do(c.CancelUnsent(run.attachment_id, run.run_id, run.fence), Done) == Done()
    assert settled(scene) == end


# Agents that do not obey.


@pytest.mark.parametrize(
    ("asked", "kept"), [("enough", "enough; it did not answer"), ("", "it did not answer")], ids=["reason", "none"]
)
def test_an_agent_that_is_fenced_off_is_told_that_it_lost_run_and_member(asked: str, kept: str) -> None:
    scene = running()
    scene.cancel("a", reason=asked)
    run = scene.run_of("a")
    assert scene.fence_off(run, "it did not answer") is True
    assert settled(scene) == ("cancelled", kept)
    assert scene.events[1:] == [e.ExecutorLost("a", run.attachment_id, run.fence, "it did not answer")]
    assert scene.reactions == [
        SendSettled(run.attachment_id, run.run_id, "cancelled"),
        SendUnassign(run.attachment_id, "a", run.fence, "it did not answer"),
    ]


@pytest.mark.parametrize("away", [False, True], ids=["there", "away"])
def test_the_place_of_who_was_fenced_off_goes_to_another_if_the_agent_is_there(away: bool) -> None:
    scene = Scene("a", "b")
    agent = scene.serve(max_members=1)
    scene.put("a", "m1")
    scene.put("b", "m1")
    assert scene.agent_of("b") is None
    scene.cancel("a")
    if away:
        scene.suspend(agent)
    scene.fence_off(scene.run_of("a"))
    assert scene.agent_of("b") == (None if away else agent)


# The clock.


def test_a_look_at_the_clock_says_whether_anything_was_due() -> None:
    scene = running()
    assert scene.do(c.Wake(), Done) == Done(changed=False)
    scene.now += LIMIT_S * SECOND
    assert scene.do(c.Wake(), Done) == Done()
    assert scene.do(c.Wake(), Done) == Done(changed=False)


@pytest.mark.parametrize(("ahead", "ends"), [(NO_PAUSE_US, False), (NO_PAUSE_US + 1, True)])
def test_a_pause_ends_at_once_that_no_clock_in_order_would_have_planned(ahead: int, ends: bool) -> None:
    scene = running()
    scene.report(scene.run_of("a"), "error")
    (due, _, _) = scene.mob.timers[0]
    scene.now = due - ahead
    scene.do(c.Wake())
    assert scene.kinds == ["retry_due", "run_started"] * ends
