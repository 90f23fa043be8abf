"""Respawning: a new incarnation under the same name, which nothing of the old one reaches (core §11.3, bridge §14)."""

import pytest
from msgspec import Raw
from tests.machines.scene import Scene
from tests.machines.stage import state_bytes, text

from mobd_server.errors import MemberNotFound, StaleFence
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import (
    Accepted,
    Deduplicated,
    Done,
    MemberView,
    Rejected,
    Respawned,
    Retired,
    SendAssign,
    SendUnassign,
)
from mobd_server.machines.operation import name_of
from mobd_server.machines.state import EMPTY_DIGEST


def running() -> Scene:
    """Return a mob whose member `a` has a transcript, runs `m2`, and has two inputs waiting."""
    scene = Scene()
    scene.do(c.SpawnMember(c.MemberSpec("a", "analyst", {"team": "red"}, Raw(b'{"x":1}'))))
    scene.serve()
    scene.put("a", "m1", "m2", "m3")
    scene.finish(scene.run_of("a"), messages=['{"n":1}'])
    scene.put("a", "m4")
    return scene


def respawn(scene: Scene, **options: object) -> Respawned:
    return scene.do(c.RespawnMember("a", **options), Respawned)  # type: ignore[arg-type]  # what the command takes


def test_the_old_incarnation_is_given_up_and_the_new_one_begins_empty() -> None:
    scene = running()
    old, run = scene.member("a"), scene.run_of("a")
    answer = respawn(scene)
    assert scene.kinds == [
        "run_settled",
        "input_abandoned",
        "executor_released",
        "member_respawned",
        "executor_assigned",
    ]
    assert scene.event(e.RunSettled).state == "abandoned"
    assert {one.reason for one in scene.event(e.RunSettled).outcomes} == {"retired"}
    assert scene.event(e.InputAbandoned).reason == "retired"
    assert (answer.previous_generation, answer.previous_fence_token, answer.inputs_abandoned) == (0, old.fence_token, 3)
    born = scene.event(e.MemberRespawned)
    assert (born.generation, born.inputs_abandoned, born.initial_input_id) == (1, 3, "")
    new = scene.member("a")
    assert (new.generation, new.fence_token) == (1, born.fence_token)
    assert new.fence_token > run.fence > old.fence_token
    assert new.session_id == born.session_id != old.session_id
    assert (new.message_count, new.digest, new.last_output, new.last_error) == (0, EMPTY_DIGEST, "", "")
    assert (new.state, new.run_id, scene.inputs("a"), new.queue_bytes) == ("idle", None, [], 0)
    assert (new.role, new.labels, bytes(new.context)) == ("analyst", {"team": "red"}, b'{"x":1}')
    assert scene.append is not None
    assert [(row.session_id, row.message_count, row.digest) for row in scene.append.sessions] == [
        (new.session_id, 0, EMPTY_DIGEST)
    ]
    assert (answer.member.generation, answer.member.kickoff_complete) == (1, True)
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_the_agent_is_told_that_it_serves_another_incarnation() -> None:
    scene = running()
    run = scene.run_of("a")
    respawn(scene)
    assert [(one.member_id, one.fence) for one in scene.sent(SendUnassign)] == [("a", run.fence)]
    (sent,) = scene.sent(SendAssign)
    assert (sent.generation, sent.fence_token, sent.message_count, sent.confirmed) == (
        1,
        scene.member("a").fence_token,
        0,
        False,
    )
    assert sent.fence > run.fence


def test_what_the_old_run_brings_is_fenced() -> None:
    scene = running()
    run = scene.run_of("a")
    respawn(scene)
    before = state_bytes(scene.mob)
    assert scene.settle(run).disposition == "fenced"
    assert scene.report(run, "error").disposition == "fenced"
    assert scene.do(c.Confirm(run.attachment_id, "a", run.fence), Done).changed is False
    assert scene.do(c.Decline(run.attachment_id, "a", run.fence), Done).changed is False
    assert state_bytes(scene.mob) == before


def test_a_result_of_the_old_incarnation_that_comes_again_is_still_known() -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "m1")
    run = scene.run_of("a")
    scene.settle(run)
    respawn(scene)
    assert scene.settle(run).disposition == "duplicate"
    assert scene.settle(run, output='"other"').disposition == "conflict"
    # It is forgotten with the member.
    scene.retire("a")
    assert scene.mob.receipts == {}


def test_what_was_delivered_to_the_old_incarnation_never_runs_in_the_new_one() -> None:
    scene = running()
    respawn(scene)
    scene.confirm("a")
    for name in ("m1", "m2", "m3", "m4"):
        answer = scene.send("a", name)
        assert isinstance(answer, Deduplicated)
        assert answer.terminal is True
    assert scene.member("a").run_id is None
    scene.put("a", "m5")
    assert scene.ran() == [["m5"]]
    assert scene.member("a").message_count == 0


@pytest.mark.parametrize(
    "make",
    [c.RetireMember, c.RetireRuntime, c.DestroyRuntime, c.RespawnMember, c.Interrupt],
    ids=lambda make: make.__name__,
)
def test_who_means_the_old_incarnation_does_not_touch_the_new_one(make: type[c.RetireMember]) -> None:
    scene = running()
    token = scene.member("a").fence_token
    respawn(scene)
    before = state_bytes(scene.mob)
    for fence in ({"generation": 0}, {"fence_token": token}, {"generation": 0, "fence_token": token}):
        with pytest.raises(StaleFence) as refused:
            scene.do(make("a", **fence))  # type: ignore[arg-type]  # each takes both
        new = scene.member("a")
        assert refused.value.details == {"member_id": "a", "generation": "1", "fence_token": str(new.fence_token)}
    answer = scene.do(c.Deliver("a", "new", text("x"), generation=0), Rejected)
    assert (answer.cause, answer.generation, answer.fence_token) == ("stale_fence", 1, scene.member("a").fence_token)
    assert state_bytes(scene.mob) == before
    assert isinstance(scene.do(c.Deliver("a", "new", text("x"), generation=1)), Accepted)


def test_a_respawn_begins_with_its_message() -> None:
    scene = running()
    answer = respawn(scene, initial_message=text("begin"))
    born, accepted = scene.event(e.MemberRespawned), scene.event(e.InputAccepted)
    assert born.initial_input_id == accepted.canonical_input_id == answer.member.initial_input_id
    assert (accepted.input_kind, bytes(accepted.content)) == ("prompt", bytes(text("begin")))
    assert answer.member.kickoff_complete is False
    scene.confirm("a")
    assert scene.batch("a") == [born.initial_input_id]
    scene.settle(scene.run_of("a"))
    assert scene.do(c.EnsureMember(c.MemberSpec("a", "analyst"))).member.kickoff_complete is True  # type: ignore[attr-defined]  # EnsuredMember
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_a_spawn_begins_with_its_message_too() -> None:
    scene = Scene()
    scene.serve()
    view = scene.do(c.SpawnMember(c.MemberSpec("a", "analyst", initial_message=text("begin"))), MemberView)
    assert scene.kinds == ["member_spawned", "executor_assigned", "input_accepted"]
    assert view.kickoff_complete is False
    scene.confirm("a")
    assert scene.batch("a") == [view.initial_input_id]


@pytest.mark.parametrize("state", ["idle", "attached", "draining", "drained", "destroyed", "in a pause"])
def test_a_member_can_be_respawned_in_every_state(state: str) -> None:
    scene = Scene("a", timeout_s=60)
    if state != "idle":
        scene.serve()
    if state in ("draining", "in a pause"):
        scene.put("a", "m1", "m2" if state == "draining" else "m1x", wake=False)
        scene.put("a", "m3")
    if state == "in a pause":
        scene.report(scene.run_of("a"), "error")
        assert scene.mob.timers
    if state in ("draining", "drained"):
        scene.retire_runtime("a")
    if state == "destroyed":
        scene.do(c.DestroyRuntime("a"))
    answer = respawn(scene)
    assert answer.inputs_abandoned == {"draining": 3, "in a pause": 3}.get(state, 0)
    assert (scene.member("a").state, scene.member("a").generation) == ("idle", 1)
    assert (scene.mob.timers, scene.mob.draining, scene.mob.runs) == ([], {}, {})
    if scene.agent_of("a") is None:
        scene.serve("late")
    else:
        scene.confirm("a")
    scene.put("a", "new")
    assert scene.ran() == [["new"]]
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_a_member_that_was_leaving_stays_when_it_is_respawned() -> None:
    scene = running()
    scene.retire("a")
    respawn(scene)
    assert scene.member("a").lifecycle == "active"
    scene.confirm("a")
    scene.put("a", "new")
    assert scene.ran() == [["new"]]
    assert "a" in scene.mob.members


def test_each_incarnation_has_a_generation_and_a_fence_of_its_own() -> None:
    scene = Scene("a")
    seen = [(scene.member("a").generation, scene.member("a").fence_token)]
    for _ in range(3):
        respawn(scene)
        seen.append((scene.member("a").generation, scene.member("a").fence_token))
    scene.do(c.RetireMember("a"), Retired)
    scene.spawn("a")
    seen.append((scene.member("a").generation, scene.member("a").fence_token))
    assert [generation for generation, _ in seen] == [0, 1, 2, 3, 4]
    assert sorted({token for _, token in seen}) == [token for _, token in seen]


def test_the_operation_of_the_old_incarnation_ends_and_the_new_one_has_its_own() -> None:
    scene = running()
    old = scene.member("a").operation_id
    respawn(scene)
    new = scene.member("a").operation_id
    assert new != old
    ended, begun = scene.mob.operations[old], scene.mob.operations[new]
    assert (ended.status, ended.reason) == ("retired", "the member was respawned")
    assert (begun.status, begun.member_id, name_of(scene.mob, begun)) == ("provisioning", "a", "mob/analyst/a")
    assert ended.display_name == "mob/analyst/a"
    assert scene.append is not None
    assert sorted((row.operation_id, row.status) for row in scene.append.operations) == sorted(
        [(old, "retired"), (new, "provisioning")]
    )
    scene.confirm("a")
    assert scene.operation("a").status == "running"
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_nobody_is_respawned() -> None:
    scene = Scene("a")
    with pytest.raises(MemberNotFound):
        scene.do(c.RespawnMember("nobody"))
    scene.do(c.RetireMember("a"))
    with pytest.raises(MemberNotFound):
        scene.do(c.RespawnMember("a"))


def test_the_place_of_the_old_incarnation_may_go_to_one_that_waits() -> None:
    scene = Scene("a", "b")
    scene.serve(max_members=1)
    scene.put("a", "m1")
    scene.put("b", "m1")
    respawn(scene)
    assert (scene.agent_of("a") is None, scene.agent_of("b") is None) == (True, False)
