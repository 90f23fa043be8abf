"""Logs that no server wrote: an event that says what can't be is not folded, so that no state is made up from it."""

from collections.abc import Callable
from typing import Final

import msgspec
import pytest
from tests.machines.scene import Scene

from mobd_server.machines import events as e
from mobd_server.machines.decision import fold
from mobd_server.machines.state import Definition


def append(scene: Scene, event: e.Event) -> None:
    """Fold one more event as it would come back from the store."""
    payload = msgspec.json.encode(event).decode()
    last = scene.log[-1]
    seq = scene.mob.head + 1
    record = msgspec.structs.replace(last, seq=seq, kind=event.kind, v=event.v, payload=payload, event=event)
    fold(scene.mob, record)


def with_agent() -> Scene:
    scene = Scene("a")
    scene.serve()
    return scene


def with_run() -> Scene:
    """Return a mob whose retired member has a run and, if the log is to be believed, no agent."""
    scene = with_agent()
    scene.put("a", "m1")
    scene.retire_runtime("a")
    run = scene.run_of("a")
    append(scene, e.ExecutorReleased("a", run.attachment_id, run.fence))
    return scene


def with_inputs() -> Scene:
    scene = Scene("a")
    scene.put("a", "m1")
    return scene


LEFT: Final[dict[str, Callable[[], Scene]]] = {"an agent": with_agent, "a run": with_run, "inputs": with_inputs}


@pytest.mark.parametrize("what", LEFT)
@pytest.mark.parametrize(
    "event", [e.MemberRetired("a", 0), e.MemberRespawned("a", 1, 9, "ses-0", "op-0")], ids=["leaves", "is respawned"]
)
def test_nobody_leaves_or_is_respawned_with(what: str, event: e.Event) -> None:
    scene = LEFT[what]()
    with pytest.raises(ValueError, match="with an agent, a run or inputs"):
        append(scene, event)


@pytest.mark.parametrize("forgets", [["b"], ["nobody"], ["a", "a"]])
def test_who_left_first_is_forgotten_first(forgets: list[str]) -> None:
    scene = Scene("a", "b", "c")
    scene.retire("a")
    scene.retire("b")
    with pytest.raises(ValueError, match="is not the one that left first"):
        append(scene, e.MemberRetired("c", 0, forgets))


@pytest.mark.parametrize("attempts", [[1], [1, 1, 1]])
def test_a_run_has_an_attempt_for_each_of_its_inputs(attempts: list[int]) -> None:
    scene = Scene("a")
    scene.put("a", "m1", "m2")
    agent = scene.join()
    fence = scene.executor("a").fence
    append(scene, e.ExecutorConfirmed("a", agent, fence))
    names = [scene.canonical("m1"), scene.canonical("m2")]
    with pytest.raises(ValueError, match="zip"):
        append(scene, e.RunStarted("a", "run-0", agent, fence, names, attempts))


def test_a_name_is_spawned_once() -> None:
    scene = Scene("a")
    with pytest.raises(ValueError, match="was spawned twice"):
        append(scene, e.MemberSpawned("a", "analyst", 0, 9, "ses-0", "op-0"))


def test_a_log_has_one_beginning() -> None:
    scene = Scene()
    with pytest.raises(ValueError, match="begins with mob_created"):
        append(scene, e.MobCreated(Definition(), "other"))


def test_what_is_not_listed_is_not_taken_from_a_list() -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "m1")
    scene.report(scene.run_of("a"), "error")
    scene.mob.timers.clear()
    with pytest.raises(ValueError, match="is not listed"):
        append(scene, e.RetryDue("a"))
