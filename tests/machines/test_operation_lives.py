"""The life of a member as an operation: what each event of the member leaves of it, and of the tools that it owns."""

from collections.abc import Callable
from typing import Any, Final

import msgspec
import pytest
from msgspec import Raw
from tests.machines.scene import Scene
from tests.machines.stage import NOW, Stage, state_bytes

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import OperationView
from mobd_server.machines.decision import fold
from mobd_server.machines.operation import name_of, view
from mobd_server.machines.state import NOTHING, Operation, OperationStatus


def begun(scene: Stage) -> Operation:
    """Return a life of member a as it is when it begins, now."""
    return Operation(
        operation_id=scene.member("a").operation_id,
        kind="mob_member_child",
        owner="",
        display_name="",
        created_seq=scene.mob.head,
        created_at=scene.now,
        member_id="a",
        expect_peer_channel=True,
        updated_seq=scene.mob.head,
    )


def same(scene: Stage, expected: Operation) -> bool:
    """Whether the operation of that name is what is expected, whatever its texts are made of."""
    found = scene.mob.operations[expected.operation_id]
    return msgspec.json.encode(found) == msgspec.json.encode(expected)


def changed(operation: Operation, **fields: Any) -> Operation:
    return msgspec.structs.replace(operation, **fields)


# What its member's events leave of it.


def test_a_life_from_the_spawn_of_its_member_to_its_retirement() -> None:
    scene = Scene("a")
    life = begun(scene)
    assert same(scene, life)
    scene.now += 1
    agent = scene.serve()
    # Its member is assigned first, and confirmed last.
    life = changed(
        life,
        status="running",
        peer_ready=True,
        peer_handle=Raw(msgspec.json.encode({"attachment_id": agent, "host_id": "h"})),
        started_at=NOW + 1,
        updated_seq=scene.mob.head,
    )
    assert same(scene, life)
    scene.put("a", "i1")
    assert same(scene, life)
    scene.now += 1
    scene.retire("a")
    assert scene.kinds == ["member_retiring", "runtime_retired"]
    life = changed(life, status="retiring", updated_seq=scene.mob.head)
    assert same(scene, life)
    scene.now += 1
    scene.settle(scene.run_of("a"))
    # The name that it was called by outlives its member.
    life = changed(
        life,
        status="retired",
        display_name="mob/analyst/a",
        ended_at=NOW + 3,
        updated_seq=scene.mob.head,
        completion_seq=1,
    )
    assert "a" not in scene.mob.members
    assert same(scene, life)
    assert scene.mob.completed == [life.operation_id]
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_a_life_that_an_agent_serves_again_is_as_it_was() -> None:
    scene = Scene("a")
    scene.serve("h1")
    before = changed(scene.operation("a"))
    scene.now += 1
    scene.leave(scene.agent_of("a") or "")
    assert scene.serve("h2") == scene.agent_of("a")
    assert same(scene, before)


UNBEGUN: Final = "retired before provisioning completed"
RESPAWNED: Final = "the member was respawned"
DESTROYED: Final = "the member was destroyed"

# What ends the member, in which event -> how its life ends, by what it had come to, and why; then why its tools do.
ENDS: Final[dict[str, tuple[c.Command, type[e.Event], dict[OperationStatus, tuple[OperationStatus, str]], str]]] = {
    "retired": (
        c.RetireMember("a"),
        e.MemberRetired,
        {"provisioning": ("aborted", UNBEGUN), "running": ("retired", "")},
        "its owner has left the roster",
    ),
    "respawned": (
        c.RespawnMember("a"),
        e.MemberRespawned,
        {
            "provisioning": ("aborted", RESPAWNED),
            "running": ("retired", RESPAWNED),
            "retiring": ("retired", RESPAWNED),
        },
        RESPAWNED,
    ),
    "destroyed": (
        c.DestroyRuntime("a"),
        e.MemberDestroyed,
        {
            "provisioning": ("aborted", DESTROYED),
            "running": ("terminated", DESTROYED),
            "retiring": ("terminated", DESTROYED),
        },
        DESTROYED,
    ),
}


def in_status(status: OperationStatus) -> Scene:
    """Return a mob with member a, whose life has come so far, and with a tool of it."""
    scene = Scene("a")
    scene.do(c.RegisterOperation("tool", "a tool", "a"))
    if status != "provisioning":
        scene.serve()
    if status == "retiring":
        scene.put("a", "i1")
        scene.retire_runtime("a")
    assert scene.operation("a").status == status
    return scene


def seq_of(scene: Stage, kind: type[e.Event]) -> int:
    (seq,) = [record.seq for record in scene.log if isinstance(record.event, kind)]
    return seq


@pytest.mark.parametrize(("what", "status"), [(what, status) for what in ENDS for status in ENDS[what][2]])
def test_the_end_of_a_member_ends_its_life_and_its_tools_and_says_why(what: str, status: OperationStatus) -> None:
    command, event, ways, tools_reason = ENDS[what]
    after, reason = ways[status]
    scene = in_status(status)
    life, tool = changed(scene.operation("a")), changed(scene.mob.operations["tool"])
    scene.now += 1
    scene.do(command)
    over = seq_of(scene, event)
    # What never began ends as soon as nothing can begin any more.
    seq = seq_of(scene, e.RuntimeRetired) if reason == UNBEGUN else over
    ended: dict[str, Any] = {"status": after, "reason": reason, "ended_at": NOW + 1, "updated_seq": seq}
    assert same(scene, changed(life, **ended, display_name="mob/analyst/a", completion_seq=1))
    ended = {"status": "terminated", "reason": tools_reason, "ended_at": NOW + 1, "updated_seq": over}
    assert same(scene, changed(tool, **ended, completion_seq=2))
    assert (scene.mob.owned, scene.mob.completed) == ({}, [life.operation_id, "tool"])
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


@pytest.mark.parametrize(
    ("running", "after", "reason"), [(False, "aborted", UNBEGUN), (True, "retired", "")], ids=["not begun", "begun"]
)
def test_a_life_that_a_destroyed_member_was_given_ends_when_it_leaves(
    running: bool, after: OperationStatus, reason: str
) -> None:
    scene = Scene("a")
    scene.do(c.DestroyRuntime("a"))
    command = c.RegisterOperation("second", "a second life", kind="mob_member_child", member_id="a", running=running)
    scene.do(command)
    second = changed(scene.operation("a"))
    assert second.operation_id == "second"
    scene.retire("a")
    assert scene.kinds == ["member_retiring", "member_retired"]
    expected = changed(second, status=after, reason=reason, ended_at=NOW, updated_seq=scene.mob.head, completion_seq=2)
    assert same(scene, expected)
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_the_end_of_a_mob_ends_what_lives_in_the_order_of_its_owners() -> None:
    scene = Scene("b", "a")
    for name, owner in (("of-b", "b"), ("of-mob-2", ""), ("of-mob-1", ""), ("of-a", "a")):
        scene.do(c.RegisterOperation(name, "a tool", owner))
    lives = [scene.member(name).operation_id for name in ("a", "b")]
    tool = changed(scene.mob.operations["of-mob-2"])
    scene.now += 1
    scene.do(c.DestroyMob())
    assert scene.mob.completed == [lives[0], "of-a", lives[1], "of-b", "of-mob-2", "of-mob-1"]
    assert same(
        scene,
        changed(
            tool,
            status="terminated",
            reason="the mob was destroyed",
            ended_at=NOW + 1,
            updated_seq=scene.mob.head,
            completion_seq=5,
        ),
    )
    assert scene.mob.owned == {}
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


# What it is called.


def test_a_life_is_called_by_its_mob_role_and_member_unless_it_was_given_a_name() -> None:
    scene = Scene("a")
    first = scene.operation("a")
    assert (first.display_name, name_of(scene.mob, first)) == ("", "mob/analyst/a")
    assert view(scene.mob, first) == OperationView(
        operation_id="op-2",
        kind="mob_member_child",
        owner="",
        status="provisioning",
        display_name="mob/analyst/a",
        created_seq=3,
        updated_seq=3,
        created_at=NOW,
        member_id="a",
    )
    scene.do(c.DestroyRuntime("a"))
    scene.do(c.RegisterOperation("second", "a second life", kind="mob_member_child", member_id="a"))
    assert name_of(scene.mob, scene.operation("a")) == "a second life"
    scene.do(c.RegisterOperation("nameless", ""))
    assert name_of(scene.mob, scene.mob.operations["nameless"]) == ""


def test_an_operation_without_result_has_none_and_its_row_can_be_read() -> None:
    scene = in_status("running")
    for command in (c.MoveOperation("tool", "cancel"), c.RetireMember("a")):
        scene.do(command)
        assert scene.append is not None
        for row in scene.append.operations:
            assert msgspec.json.decode(row.snapshot, type=OperationView).result is NOTHING
            assert scene.mob.operations[row.operation_id].result is NOTHING


# Logs that do not add up.


def logged(scene: Stage, event: e.Event) -> None:
    """Fold one more event that no decision made."""
    last = scene.log[-1]
    record = msgspec.structs.replace(
        last, seq=last.seq + 1, kind=event.kind, event=event, request_id=None, request_hash=None
    )
    fold(scene.mob, record)


def with_tool(*steps: Any) -> Callable[[], Stage]:
    def prepare() -> Stage:
        stage = Stage()
        stage.do(c.RegisterOperation("tool", "a tool"))
        for one in steps:
            stage.do(c.MoveOperation("tool", one))
        return stage

    return prepare


BROKEN: Final[dict[str, tuple[Callable[[], Stage], e.Event]]] = {
    "a second registration": (with_tool(), e.OperationRegistered("tool", "background_tool", "", "a tool")),
    "a second start": (with_tool("provisioning_succeeded"), e.OperationStarted("tool")),
    "progress before the start": (with_tool(), e.OperationProgressed("tool")),
    "a peer before the start": (with_tool(), e.OperationPeerReady("tool")),
    "a retirement before the start": (with_tool(), e.OperationRetiring("tool")),
    "a second end": (with_tool("cancel"), e.OperationEnded("tool", "completed")),
    "an end that is none": (with_tool(), e.OperationEnded("tool", "running")),
    "a life that comes back": (with_tool("cancel"), e.OperationEnded("tool", "running")),
}


@pytest.mark.parametrize("what", BROKEN)
def test_events_that_no_operation_can_have_had_are_not_folded(what: str) -> None:
    prepare, event = BROKEN[what]
    stage = prepare()
    with pytest.raises(ValueError, match="tool"):
        logged(stage, event)


def test_events_that_an_operation_can_have_had_are_folded() -> None:
    stage = with_tool("provisioning_succeeded")()
    logged(stage, e.OperationEnded("tool", "completed"))
    assert stage.mob.operations["tool"].status == "completed"
