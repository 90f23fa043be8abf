"""The end of members: destroyed runtimes, members that left and come again, and their operations (bridge §4.7)."""

import pytest
from tests.machines.scene import Scene
from tests.machines.stage import DAY, SECOND, Stage, state_bytes

from mobd_server.errors import MemberExists, MemberNotFound
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import (
    Deduplicated,
    Destroyed,
    EnsuredMember,
    MemberView,
    Rejected,
    Retired,
    SendSettled,
    SendUnassign,
)


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


# The bridge's Destroy.


def test_a_destruction_gives_everything_up_and_fences_the_agent() -> None:
    scene = running("b")
    scene.steer("a", "s1")
    run = scene.run_of("a")
    assert scene.do(c.DestroyRuntime("a"), Destroyed) == Destroyed(4)
    assert scene.kinds == ["run_settled", "input_abandoned", "executor_released", "member_destroyed"]
    assert scene.outcomes() == [("m1", "abandoned"), ("s1", "abandoned")]
    assert {one.reason for one in scene.event(e.RunSettled).outcomes} == {"destroyed"}
    assert scene.event(e.InputAbandoned).reason == "destroyed"
    assert scene.event(e.MemberDestroyed) == e.MemberDestroyed("a", 4)
    assert [(one.member_id, one.fence) for one in scene.sent(SendUnassign)] == [("a", run.fence)]
    assert scene.settle(run).disposition == "fenced"
    assert [one.disposition for one in scene.sent(SendSettled)] == ["fenced"]
    assert (scene.member("a").state, scene.agent_of("b")) == ("destroyed", run.attachment_id)
    refused = scene.send("a", "late")
    assert isinstance(refused, Rejected)
    assert (refused.cause, refused.state) == ("not_ready", "destroyed")
    assert isinstance(scene.send("a", "m2"), Deduplicated)
    assert scene.do(c.DestroyRuntime("a"), Destroyed) == Destroyed(already=True)
    assert scene.append is None
    assert scene.retire_runtime("a") == Retired(already=True)
    assert scene.append is None
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_a_draining_member_can_be_destroyed_and_its_timers_go() -> None:
    scene = orphaned()
    assert scene.do(c.DestroyRuntime("a"), Destroyed) == Destroyed(2)
    assert scene.mob.timers == []
    # It was to leave the roster, and does.
    assert scene.kinds == ["input_abandoned", "member_destroyed", "member_retired"]
    scene = Scene("a")
    scene.serve()
    scene.put("a", "m1")
    scene.report(scene.run_of("a"), "error")
    scene.do(c.DestroyRuntime("a"))
    assert scene.mob.timers == []


def test_a_destroyed_member_leaves_when_it_is_retired() -> None:
    scene = Scene("a")
    scene.do(c.DestroyRuntime("a"))
    assert scene.retire("a") == Retired(already=True)
    assert scene.kinds == ["member_retiring", "member_retired"]
    assert scene.mob.members == {}


# After it has left.


def test_what_was_delivered_to_a_member_that_left_is_still_known() -> None:
    scene = draining()
    scene.ran()
    for name in ("m1", "m2", "m3"):
        answer = scene.send("a", name)
        assert isinstance(answer, Deduplicated)
        assert answer.terminal is True
    answer = scene.send("a", "m1", "other")
    assert isinstance(answer, Rejected)
    assert answer.cause == "content_conflict"
    with pytest.raises(MemberNotFound):
        scene.send("a", "new")


def test_a_name_that_is_spawned_again_goes_on_with_generation_and_keys() -> None:
    scene = draining()
    scene.ran()
    before = scene.former("a")
    view = scene.do(c.SpawnMember(c.MemberSpec("a", "lead")), MemberView)
    assert (view.generation, view.role, view.state) == (1, "lead", "idle")
    assert view.fence_token == scene.mob.fences
    assert (scene.mob.former, scene.mob.left) == ({}, [])
    assert scene.member("a").ended == before.ended != b""
    assert isinstance(scene.send("a", "m1"), Deduplicated)
    scene.put("a", "new")
    scene.retire("a")
    assert scene.former("a").generation == 1
    assert isinstance(scene.send("a", "m1"), Deduplicated)
    scene.spawn("a")
    assert scene.member("a").generation == 2
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_a_name_is_taken_while_its_member_retires() -> None:
    scene = draining()
    for command in (c.SpawnMember, c.EnsureMember):
        with pytest.raises(MemberExists) as taken:
            scene.do(command(c.MemberSpec("a", "analyst")))
        assert taken.value.details["lifecycle"] == "retiring"
    scene.ran()
    assert scene.do(c.EnsureMember(c.MemberSpec("a", "analyst")), EnsuredMember).spawned is True


def test_a_former_member_is_remembered_for_a_day() -> None:
    scene = Scene("a", "b", "c")
    scene.put("a", "m1")
    scene.retire("a")
    scene.now += DAY
    scene.retire("b")
    assert scene.event(e.MemberRetired).forgets is None
    assert isinstance(scene.send("a", "m1"), Deduplicated)
    scene.now += 1
    scene.retire("c")
    assert scene.event(e.MemberRetired).forgets == ["a"]
    assert scene.mob.left == ["b", "c"]
    with pytest.raises(MemberNotFound):
        scene.send("a", "m1")
    scene.spawn("a")
    assert scene.member("a").generation == 0
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_a_result_for_a_member_that_left_is_fenced() -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "m1")
    run = scene.run_of("a")
    scene.retire("a")
    scene.settle(run)
    assert scene.settle(run).disposition == "fenced"
    assert scene.mob.receipts == {}


def test_the_deadline_of_a_draining_run_holds() -> None:
    scene = running(timeout_s=5)
    scene.retire("a")
    scene.now += 5 * SECOND
    scene.do(c.Wake())
    assert scene.kinds == ["run_cancel_requested"]


# Its operation.


def test_the_operation_of_a_member_retires_with_it() -> None:
    scene = running()
    name = scene.member("a").operation_id
    assert scene.operation("a").status == "running"
    scene.retire("a")
    assert scene.operation("a").status == "retiring"
    scene.ran()
    operation = scene.mob.operations[name]
    assert (operation.status, operation.reason, operation.completion_seq) == ("retired", "", 1)
    assert scene.append is not None
    assert [(row.operation_id, row.status) for row in scene.append.operations] == [(name, "retired")]


def test_the_operation_of_a_member_that_was_never_served_is_aborted() -> None:
    scene = Scene("a", "b")
    name, other = scene.member("a").operation_id, scene.member("b").operation_id
    scene.retire("a")
    scene.do(c.DestroyRuntime("b"))
    first, second = scene.mob.operations[name], scene.mob.operations[other]
    assert (first.status, first.reason) == ("aborted", "retired before provisioning completed")
    assert (second.status, second.reason) == ("aborted", "the member was destroyed")


def test_the_operation_of_a_member_that_is_destroyed_is_terminated() -> None:
    for retires in (False, True):
        scene = running()
        name = scene.member("a").operation_id
        if retires:
            scene.retire_runtime("a")
        scene.do(c.DestroyRuntime("a"))
        operation = scene.mob.operations[name]
        assert (operation.status, operation.reason) == ("terminated", "the member was destroyed")


def test_those_who_drain_and_lose_their_agent_at_once_go_on_at_another_and_none_is_put_off() -> None:
    stage = Stage()
    names = [f"m{number:02}" for number in range(20)]
    stage.spawn(*names)
    first = stage.agent("first", capacity=1, max_members=20)
    for name in names:
        stage.accepted(name, "i1")
        stage.do(c.RetireRuntime(name))
    second = stage.agent("second", capacity=1, max_members=40)
    left = [name for name in names if stage.agent_of(name) == first]
    # More than are moved with the loss.
    assert len(left) == 19
    stage.leave(first)
    assert [one.member_id for one in stage.all(e.ExecutorAssigned)] == left
    assert {stage.agent_of(name) for name in names} == {second}
    assert stage.all(e.DrainSuspended) == []
