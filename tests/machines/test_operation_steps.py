"""What each step of an operation leaves: its event, where that is filed, the whole view, and the row (runtime §5)."""

from typing import Any, Final, NamedTuple

import msgspec
import pytest
from msgspec import Raw
from tests.machines.scene import Scene
from tests.machines.stage import NOW, Stage, state_bytes

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import Done, OperationView
from mobd_server.machines.records import OperationRow

HANDLE: Final = Raw(b'{"address":"there"}')
RESULT: Final = Raw(b'{"n":1}')


def shown(**more: Any) -> OperationView:
    """Return the view of a tool of member a, but for what is given."""
    fields: dict[str, Any] = {
        "operation_id": "tool",
        "kind": "background_tool",
        "owner": "a",
        "status": "provisioning",
        "display_name": "a tool",
        "created_seq": 4,
        "updated_seq": 4,
        "created_at": NOW,
    }
    return OperationView(**fields | more)


def row_of(view: OperationView) -> OperationRow:
    """Return the row that belongs to a view; its snapshot is the view itself."""
    return OperationRow(
        view.operation_id,
        view.kind,
        view.member_id or None,
        view.owner,
        view.status,
        view.display_name,
        view.created_seq,
        view.updated_seq,
        view.completion_seq or None,
        msgspec.json.encode(view).decode(),
    )


def rows(stage: Stage) -> list[OperationRow]:
    assert stage.append is not None
    return stage.append.operations


def filed(stage: Stage) -> list[tuple[str, str | None, str | None]]:
    """Return the kinds of the events of the last decision, and the member and the run that they can be found by."""
    assert stage.append is not None
    return [(one.kind, one.member_id, one.run_id) for one in stage.append.records]


# Steps.


class Step(NamedTuple):
    """A step that is taken a microsecond after the one before: its event, and how the view differs from then on."""

    command: c.MoveOperation
    event: e.Event
    after: dict[str, Any]


def step(action: Any, event: e.Event, options: dict[str, Any] | None = None, **after: Any) -> Step:
    return Step(c.MoveOperation("tool", action, **options or {}), event, after)


STARTED: Final = step("provisioning_succeeded", e.OperationStarted("tool"), status="running", started_at=NOW + 1)
RETIRING: Final = step("request_retire", e.OperationRetiring("tool"), status="retiring")

WAYS: Final[dict[str, list[Step]]] = {
    "progress, and a result": [
        STARTED,
        step(
            "report_progress",
            e.OperationProgressed("tool", "half", 50),
            {"message": "half", "percent": 50},
            progress_count=1,
            progress_message="half",
            progress_percent=50,
        ),
        step(
            "report_progress",
            e.OperationProgressed("tool", "more"),
            {"message": "more"},
            progress_count=2,
            progress_message="more",
            progress_percent=None,
        ),
        step(
            "complete",
            e.OperationEnded("tool", "completed", RESULT),
            {"result": RESULT},
            status="completed",
            result=RESULT,
            ended_at=NOW + 4,
        ),
    ],
    "a result that is an error": [
        STARTED,
        step(
            "complete",
            e.OperationEnded("tool", "completed", RESULT, is_error=True),
            {"result": RESULT, "is_error": True},
            status="completed",
            result=RESULT,
            is_error=True,
            ended_at=NOW + 2,
        ),
    ],
    "a result of nothing": [
        STARTED,
        step("complete", e.OperationEnded("tool", "completed"), status="completed", ended_at=NOW + 2),
    ],
    "a failure on the way": [
        STARTED,
        step(
            "fail",
            e.OperationEnded("tool", "failed", error="broken"),
            {"message": "broken"},
            status="failed",
            error="broken",
            ended_at=NOW + 2,
        ),
    ],
    "a failure before it began": [
        step(
            "provisioning_failed",
            e.OperationEnded("tool", "failed", error="no room"),
            {"message": "no room"},
            status="failed",
            error="no room",
            ended_at=NOW + 1,
        ),
    ],
    "given up before it began": [
        step(
            "abort_provisioning",
            e.OperationEnded("tool", "aborted", reason="not now"),
            {"message": "not now"},
            status="aborted",
            reason="not now",
            ended_at=NOW + 1,
        ),
    ],
    "cancelled": [
        step(
            "cancel",
            e.OperationEnded("tool", "cancelled", reason="unwanted"),
            {"message": "unwanted"},
            status="cancelled",
            reason="unwanted",
            ended_at=NOW + 1,
        ),
    ],
    "retired in two steps": [
        STARTED,
        RETIRING,
        step(
            "mark_retired",
            e.OperationEnded("tool", "retired", reason="done"),
            {"message": "done"},
            status="retired",
            reason="done",
            ended_at=NOW + 3,
        ),
    ],
}


@pytest.mark.parametrize("way", WAYS)
def test_every_step_of_a_tool_from_its_registration_to_its_end(way: str) -> None:
    stage = Stage()
    stage.spawn("a")
    view = stage.do(c.RegisterOperation("tool", "a tool", "a"), OperationView)
    assert (view, stage.events) == (shown(), [e.OperationRegistered("tool", "background_tool", "a", "a tool")])
    assert (filed(stage), rows(stage)) == ([("operation_registered", "a", None)], [row_of(view)])
    fields: dict[str, Any] = {}
    for command, event, after in WAYS[way]:
        stage.now += 1
        view = stage.do(command, OperationView)
        fields |= {"updated_seq": stage.mob.head, **after}
        fields["completion_seq"] = 1 if "ended_at" in fields else 0
        assert (view, stage.events) == (shown(**fields), [event])
        assert (filed(stage), rows(stage)) == ([(event.kind, "a", None)], [row_of(view)])
    assert view.ended_at == stage.now
    assert state_bytes(stage.replayed()) == state_bytes(stage.mob)


def test_the_peer_of_a_child_is_ready_with_its_handle() -> None:
    stage = Stage()
    command = c.RegisterOperation("child", "a child", kind="mob_member_child", expect_peer_channel=True, running=True)
    begun = stage.do(command, OperationView)
    assert stage.events == [
        e.OperationRegistered("child", "mob_member_child", "", "a child", expect_peer_channel=True),
        e.OperationStarted("child"),
    ]
    assert (begun.status, begun.started_at, begun.updated_seq) == ("running", NOW, stage.mob.head)
    view = stage.do(c.MoveOperation("child", "peer_ready", handle=HANDLE), OperationView)
    assert stage.events == [e.OperationPeerReady("child", HANDLE)]
    ready = msgspec.structs.replace(begun, peer_ready=True, peer_handle=HANDLE, updated_seq=stage.mob.head)
    assert (view, rows(stage)) == (ready, [row_of(ready)])
    assert state_bytes(stage.replayed()) == state_bytes(stage.mob)


def test_a_peer_without_a_handle_is_ready_too() -> None:
    stage = Stage()
    command = c.RegisterOperation("child", "a child", kind="mob_member_child", expect_peer_channel=True, running=True)
    begun = stage.do(command, OperationView)
    ready = msgspec.structs.replace(begun, peer_ready=True, updated_seq=4 + 1)
    assert stage.do(c.MoveOperation("child", "peer_ready"), OperationView) == ready
    assert rows(stage) == [row_of(ready)]


# Where events are filed.


def of_two() -> Scene:
    """Return a mob with member b, and with member a, whose own operation ended when it was destroyed."""
    scene = Scene("a", "b")
    scene.do(c.DestroyRuntime("a"))
    return scene


OWNERS: Final[dict[str, tuple[dict[str, Any], str | None]]] = {
    "a tool of the mob": ({}, None),
    "a tool of a member": ({"owner": "b"}, "b"),
    "a life in the registry of the mob": ({"kind": "mob_member_child", "member_id": "a"}, "a"),
    "a life in the registry of another": ({"kind": "mob_member_child", "member_id": "a", "owner": "b"}, "a"),
}


@pytest.mark.parametrize("what", OWNERS)
def test_events_are_filed_under_the_member_whose_life_it_is_or_whose_tool(what: str) -> None:
    options, member_id = OWNERS[what]
    scene = of_two()
    scene.do(c.RegisterOperation("op", "an operation", running=True, **options))
    assert filed(scene) == [("operation_registered", member_id, None), ("operation_started", member_id, None)]
    scene.do(c.MoveOperation("op", "report_progress", "half"))
    assert filed(scene) == [("operation_progressed", member_id, None)]


@pytest.mark.parametrize(("owner", "member_id"), [("", None), ("b", "b")])
def test_what_an_owner_has_is_terminated_and_filed_under_it(owner: str, member_id: str | None) -> None:
    scene = of_two()
    for name in ("one", "two"):
        scene.do(c.RegisterOperation(name, "a tool", owner))
    assert scene.do(c.TerminateOwner(owner, "over"), Done).changed is True
    assert scene.events == [e.OperationEnded(name, "terminated", reason="over") for name in ("one", "two")]
    assert filed(scene) == [("operation_ended", member_id, None)] * 2
    assert scene.do(c.TerminateOwner(owner, "over"), Done).changed is False
    assert scene.append is None


def test_the_progress_of_a_run_is_filed_under_its_member_and_itself() -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "i1")
    run, life = scene.run_of("a"), scene.operation("a")
    report = c.ReportRunProgress(run.attachment_id, run.run_id, run.fence, "half", 50)
    assert scene.do(report, Done).changed is True
    assert scene.events == [e.OperationProgressed(life.operation_id, "half", 50)]
    assert filed(scene) == [("operation_progressed", "a", run.run_id)]
    # As if it had been replaced meanwhile by one that nobody confirmed.
    life.status = "provisioning"
    assert scene.do(report, Done).changed is True
    assert filed(scene) == [("operation_started", "a", run.run_id), ("operation_progressed", "a", run.run_id)]


def test_the_progress_of_what_is_over_changes_nothing() -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "i1")
    run, life = scene.run_of("a"), scene.operation("a")
    for stale in (
        c.ReportRunProgress("other", run.run_id, run.fence, "all"),
        c.ReportRunProgress(run.attachment_id, "other", run.fence, "all"),
        c.ReportRunProgress(run.attachment_id, run.run_id, run.fence + 1, "all"),
    ):
        assert scene.do(stale, Done).changed is False
        assert scene.append is None
    # As if the life had ended before the run.
    life.status = "retired"
    report = c.ReportRunProgress(run.attachment_id, run.run_id, run.fence, "all")
    assert scene.do(report, Done).changed is False
    assert scene.append is None
