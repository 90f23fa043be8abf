"""Cancelling runs: what is asked for, and that what was cancelled never runs again (runtime §3.8, bridge §4.6)."""

from collections.abc import Callable
from typing import Final

import msgspec
import pytest
from tests.machines.scene import Scene
from tests.machines.stage import state_bytes

from mobd_server.errors import InvalidTransition, MemberNotFound, StaleFence
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import (
    CancelAnswer,
    Deduplicated,
    Done,
    SendCancel,
    SendSettled,
    SendStartRun,
    SendUnassign,
)
from mobd_server.machines.run import UNASKED
from mobd_server.machines.state import Run


def running(*more: str) -> Scene:
    """Return a mob whose member `a` runs `m1`, with `m2` behind it."""
    scene = Scene("a", *more)
    scene.serve()
    scene.put("a", "m1", "m2")
    return scene


def interrupted() -> Scene:
    scene = running()
    assert scene.interrupt("a").outcome == "requested"
    return scene


def cancelled() -> Scene:
    scene = running()
    assert scene.cancel("a").outcome == "requested"
    return scene


def never_again(scene: Scene, input_id: str = "m1") -> None:
    """Check that an input is over, and runs no more."""
    answer = scene.send("a", input_id)
    assert isinstance(answer, Deduplicated)
    assert answer.terminal is True
    assert all(input_id not in batch for batch in scene.ran())


# Interrupting.


def test_an_interrupt_asks_the_agent_to_end_the_run_at_its_boundary() -> None:
    scene = running()
    run = scene.run_of("a")
    assert scene.interrupt("a", reason="enough") == CancelAnswer("requested", run.run_id)
    assert scene.kinds == ["run_cancel_requested"]
    asked = scene.event(e.RunCancelRequested)
    assert asked == e.RunCancelRequested("a", run.run_id, asked.control_id, reason="enough")
    assert asked.control_id
    assert scene.reactions == [
        SendCancel(run.attachment_id, run.run_id, run.fence, "a", asked.control_id, hard=False, reason="enough")
    ]
    assert scene.member("a").state == "running"
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_an_interrupt_is_asked_for_once_in_a_run() -> None:
    scene = interrupted()
    run_id = scene.run_of("a").run_id
    before = state_bytes(scene.mob)
    for options in ({}, {"run_id": run_id}, {"reason": "again"}):
        assert scene.interrupt("a", **options) == CancelAnswer("requested", run_id)
        assert (scene.append, scene.reactions) == (None, [])
    assert state_bytes(scene.mob) == before


def test_an_interrupt_never_becomes_a_hard_cancel_by_itself() -> None:
    scene = interrupted()
    run = scene.run_of("a")
    for _ in range(3):
        scene.advance(3_600)
    assert scene.append is None
    assert scene.fence_off(run) is False
    assert [one.hard for one in scene.logged(e.RunCancelRequested)] == [False]
    assert scene.run_of("a") is run


def test_an_interrupt_of_another_run_touches_nothing() -> None:
    scene = running()
    old = scene.run_of("a").run_id
    scene.settle(scene.run_of("a"))
    assert scene.batch("a") == ["m2"]
    assert scene.interrupt("a", run_id=old) == CancelAnswer("already_terminal", old)
    assert (scene.append, scene.reactions) == (None, [])
    assert scene.run_of("a").cancel == "none"


@pytest.mark.parametrize("served", [False, True], ids=["idle", "attached"])
def test_an_interrupt_of_a_resting_member_has_nothing_to_do(served: bool) -> None:
    scene = Scene("a")
    if served:
        scene.serve()
    assert scene.interrupt("a") == CancelAnswer("nothing_to_interrupt")
    assert scene.append is None


def test_an_interrupt_of_a_member_that_has_ended_says_so() -> None:
    scene = Scene("a", "b")
    scene.retire_runtime("a")
    scene.do(c.DestroyRuntime("b"))
    for member_id in ("a", "b"):
        assert scene.interrupt(member_id) == CancelAnswer("already_terminal")
        assert scene.append is None


def test_a_member_that_drains_can_be_interrupted() -> None:
    scene = running()
    scene.retire("a")
    assert scene.interrupt("a") == CancelAnswer("requested", scene.run_of("a").run_id)
    scene.report(scene.run_of("a"), "cancelled")
    assert scene.outcomes() == [("m1", "abandoned")]
    assert scene.ran() == [["m2"]]
    assert "a" not in scene.mob.members


def test_a_run_in_a_stopped_mob_can_be_interrupted_and_not_cancelled_hard() -> None:
    scene = running()
    scene.do(c.StopMob())
    with pytest.raises(InvalidTransition):
        scene.cancel("a")
    assert scene.interrupt("a").outcome == "requested"
    assert scene.report(scene.run_of("a"), "cancelled").disposition == "cancelled"
    assert scene.waits("a") == ["m2"]


@pytest.mark.parametrize("command", [c.Interrupt("a"), c.HardCancel("a", "run-0")], ids=["interrupt", "hard cancel"])
def test_a_cancel_names_a_member_and_its_incarnation(command: c.Interrupt | c.HardCancel) -> None:
    scene = running()
    before = state_bytes(scene.mob)
    with pytest.raises(MemberNotFound):
        scene.do(msgspec.structs.replace(command, member_id="nobody"))
    token = scene.member("a").fence_token
    for generation, fence_token in ((1, None), (None, token + 1), (0, token + 1), (1, token)):
        with pytest.raises(StaleFence) as refused:
            scene.do(msgspec.structs.replace(command, generation=generation, fence_token=fence_token))
        assert refused.value.details == {"member_id": "a", "generation": "0", "fence_token": str(token)}
    assert state_bytes(scene.mob) == before


# Cancelling hard.


def test_a_hard_cancel_is_asked_for_once_in_a_run() -> None:
    scene = running()
    run = scene.run_of("a")
    assert scene.cancel("a", reason="stop") == CancelAnswer("requested", run.run_id)
    asked = scene.event(e.RunCancelRequested)
    assert (asked.hard, asked.by, asked.reason) == (True, "caller", "stop")
    (sent,) = scene.sent(SendCancel)
    assert (sent.hard, sent.control_id) == (True, asked.control_id)
    for _ in range(2):
        assert scene.cancel("a") == CancelAnswer("requested", run.run_id)
        assert (scene.append, scene.reactions) == (None, [])
    # What is asked for already includes the weaker.
    assert scene.interrupt("a").outcome == "requested"
    assert scene.append is None


def test_a_hard_cancel_goes_beyond_an_interrupt_with_a_request_of_its_own() -> None:
    scene = interrupted()
    first = scene.run_of("a").control_id
    scene.cancel("a")
    assert scene.kinds == ["run_cancel_requested"]
    (sent,) = scene.sent(SendCancel)
    assert sent.hard is True
    assert sent.control_id != first


def test_a_hard_cancel_of_another_run_touches_nothing() -> None:
    scene = running()
    old = scene.run_of("a").run_id
    scene.settle(scene.run_of("a"))
    before = state_bytes(scene.mob)
    assert scene.cancel("a", old) == CancelAnswer("already_terminal", old)
    assert (scene.append, scene.reactions) == (None, [])
    assert state_bytes(scene.mob) == before


# What becomes of a run that is to end.


@pytest.mark.parametrize("ask", [interrupted, cancelled])
def test_a_result_that_was_faster_than_the_cancel_is_committed(ask: Callable[[], Scene]) -> None:
    scene = ask()
    assert scene.settle(scene.run_of("a")).disposition == "committed"
    assert scene.outcomes() == [("m1", "consumed")]
    # The request was that run's; the next one knows nothing of it.
    assert (scene.batch("a"), scene.run_of("a").cancel, scene.sent(SendCancel)) == (["m2"], "none", [])


ENDS: Final[dict[str, Callable[[Scene, Run], object]]] = {
    "cancelled": lambda scene, run: scene.report(run, "cancelled", "as asked"),
    "error": lambda scene, run: scene.report(run, "error", "boom"),
    "error for good": lambda scene, run: scene.report(run, "error", "boom", retryable=False),
    "released": lambda scene, run: scene.report(run, "released"),
    "not held": lambda scene, run: scene.lose(run),
    "agent lost": lambda scene, run: scene.leave(run.attachment_id, "lost"),
    "agent left": lambda scene, run: scene.leave(run.attachment_id, "detached"),
    "declined": lambda scene, run: scene.do(c.Decline(run.attachment_id, "a", run.fence)),
    "another incarnation": lambda scene, run: scene.attach("h", incarnation="2"),
    "came back without it": lambda scene, run: scene.join("h"),
    "never sent": lambda scene, run: scene.do(c.CancelUnsent(run.attachment_id, run.run_id, run.fence)),
}


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("ask", [interrupted, cancelled])
def test_a_run_that_is_to_end_and_brings_no_result_is_cancelled_however_it_ends(
    ask: Callable[[], Scene], how: str
) -> None:
    scene = ask()
    run = scene.run_of("a")
    ENDS[how](scene, run)
    settled = scene.event(e.RunSettled)
    assert settled.state == "cancelled"
    assert [(one.outcome, one.reason.split(":")[0]) for one in settled.outcomes] == [("abandoned", "cancelled")]
    assert settled.retry_at == 0
    assert scene.append is not None
    assert [(row.state, row.run_id) for row in scene.append.runs] == [("cancelled", run.run_id)]
    told = [one.disposition for one in scene.sent(SendSettled)]
    assert told in ([], ["cancelled"])
    assert (told == ["cancelled"]) == (how in ("cancelled", "error", "error for good", "released", "not held"))
    assert not any(one.run_id == run.run_id for one in scene.sent(SendStartRun))
    if scene.member("a").executor is None:
        scene.serve("after")
    if not scene.executor("a").confirmed:
        scene.confirm("a")
    assert scene.batch("a") == ["m2"]
    never_again(scene)
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_the_reason_of_a_cancel_is_kept_with_what_it_ended() -> None:
    scene = running()
    scene.cancel("a", reason="too expensive")
    scene.report(scene.run_of("a"), "cancelled")
    settled = scene.event(e.RunSettled)
    assert settled.error == "too expensive"
    assert scene.member("a").last_error == "too expensive"


def test_an_agent_that_says_unasked_that_it_was_cancelled_has_failed() -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "m1")
    for attempt in (1, 2, 3):
        answer = scene.report(scene.run_of("a"), "cancelled", "a lie", retryable=False)
        settled = scene.event(e.RunSettled)
        assert (settled.state, settled.error) == ("failed", f"{UNASKED}: a lie")
        assert settled.outcomes[0].attempt == attempt
        assert answer.disposition == ("requeued" if attempt < 3 else "abandoned")
        scene.advance(10)
    assert scene.logged(e.RunSettled)[-1].outcomes[0].reason.startswith("max_attempts_exhausted")


def test_a_cancel_of_a_batch_ends_all_of_it() -> None:
    scene = Scene("a")
    scene.put("a", "m1", "m2", "m3")
    scene.serve()
    scene.put("a", "m4")
    scene.interrupt("a")
    scene.report(scene.run_of("a"), "cancelled")
    assert scene.outcomes() == [("m1", "abandoned"), ("m2", "abandoned"), ("m3", "abandoned")]
    assert scene.ran() == [["m4"]]


# The hub takes back what was never sent.


def test_a_run_that_was_never_sent_and_is_not_to_end_is_given_back() -> None:
    scene = running()
    run = scene.run_of("a")
    assert scene.do(c.CancelUnsent(run.attachment_id, run.run_id, run.fence), Done).changed
    assert scene.outcomes() == [("m1", "requeued")]
    assert scene.event(e.RunSettled).state == "released"
    assert scene.batch("a") == ["m1", "m2"]
    assert scene.run_of("a").attempts == [1, 1]


# Fencing off.


def test_an_agent_that_does_not_obey_is_fenced_off_and_the_member_goes_elsewhere() -> None:
    scene = running("b")
    other = scene.serve("other")
    scene.cancel("a", reason="stop")
    run = scene.run_of("a")
    assert scene.fence_off(run, "it did not answer") is True
    assert scene.kinds[:3] == ["run_settled", "executor_lost", "executor_assigned"]
    settled = scene.event(e.RunSettled)
    assert (settled.state, settled.error) == ("cancelled", "stop; it did not answer")
    assert scene.outcomes() == [("m1", "abandoned")]
    lost = scene.event(e.ExecutorLost)
    assert (lost.attachment_id, lost.executor_fence, lost.reason) == (run.attachment_id, run.fence, "it did not answer")
    assert [(one.attachment_id, one.disposition) for one in scene.sent(SendSettled)] == [
        (run.attachment_id, "cancelled")
    ]
    assert [(one.attachment_id, one.member_id, one.fence) for one in scene.sent(SendUnassign)] == [
        (run.attachment_id, "a", run.fence)
    ]
    assert scene.agent_of("a") == other
    # The agent keeps what else it serves.
    assert scene.agent_of("b") == run.attachment_id
    scene.confirm("a")
    assert scene.run_of("a").fence > run.fence
    never_again(scene)


def test_what_a_fenced_agent_brings_later_changes_nothing() -> None:
    scene = cancelled()
    run = scene.run_of("a")
    scene.fence_off(run)
    before = state_bytes(scene.mob)
    assert scene.settle(run).disposition == "fenced"
    assert scene.append is None
    for kind in ("error", "cancelled", "released"):
        assert scene.report(run, kind).disposition == "fenced"
        assert scene.append is None
    assert scene.fence_off(run) is False
    assert scene.do(c.Confirm(run.attachment_id, "a", run.fence), Done).changed is False
    assert scene.do(c.ReportRunProgress(run.attachment_id, run.run_id, run.fence, "half"), Done).changed is False
    assert state_bytes(scene.mob) == before


def test_a_member_without_another_agent_waits_after_its_agent_was_fenced_off() -> None:
    scene = cancelled()
    scene.fence_off(scene.run_of("a"))
    assert scene.kinds == ["run_settled", "executor_lost"]
    assert scene.member("a").state == "idle"
    assert scene.waits("a") == ["m2"]
    scene.serve("other")
    assert scene.batch("a") == ["m2"]


@pytest.mark.parametrize("what", ["control_id", "attachment_id", "run_id", "fence", "interrupt", "unasked", "settled"])
def test_only_the_run_whose_hard_cancel_was_not_answered_is_fenced_off(what: str) -> None:
    makes: dict[str, Callable[[], Scene]] = {"interrupt": interrupted, "unasked": running}
    scene = makes.get(what, cancelled)()
    run: Run = scene.run_of("a")
    control_id, attachment_id, run_id, fence = run.control_id, run.attachment_id, run.run_id, run.fence
    if what == "control_id":
        control_id = "ctl-0"
    elif what == "attachment_id":
        attachment_id = "att-0"
    elif what == "run_id":
        run_id = "run-0"
    elif what == "fence":
        fence -= 1
    elif what == "settled":
        scene.settle(run)
    before = state_bytes(scene.mob)
    assert scene.do(c.FenceOff(attachment_id, run_id, fence, control_id, "silent"), Done).changed is False
    assert state_bytes(scene.mob) == before


# The agent comes back.


@pytest.mark.parametrize("ask", [interrupted, cancelled])
def test_an_agent_that_comes_back_with_the_run_is_asked_again_by_the_same_name(ask: Callable[[], Scene]) -> None:
    scene = ask()
    run = scene.run_of("a")
    first = scene.logged(e.RunCancelRequested)[0]
    for _ in range(2):
        scene.join(held=[run.run_id])
        assert scene.append is None
        (sent,) = scene.sent(SendCancel)
        assert (sent.control_id, sent.hard, sent.run_id) == (first.control_id, first.hard, run.run_id)


def test_a_cancel_while_the_agent_is_away_reaches_it_when_it_is_back() -> None:
    scene = running()
    run = scene.run_of("a")
    scene.suspend(run.attachment_id)
    scene.interrupt("a")
    (first,) = scene.sent(SendCancel)
    scene.join(held=[run.run_id])
    assert scene.sent(SendCancel) == [first]
