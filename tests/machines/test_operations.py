"""Operations: the table of steps, one end each, the registry's limits, and what members' events do to them."""

from itertools import product
from typing import Any, Final, get_args

import msgspec
import pytest
from msgspec import Raw
from tests.machines.stage import Stage, state_bytes

from mobd_server.errors import (
    MemberNotFound,
    OperationAmbiguous,
    OperationExists,
    OperationLimit,
    OperationNotFound,
    OperationTransition,
    PeerNotExpected,
    StaleFence,
)
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import OperationView
from mobd_server.machines.decision import decide
from mobd_server.machines.operation import name_of
from mobd_server.machines.operation_table import TABLE, Action
from mobd_server.machines.state import Operation, OperationStatus

LIVE: Final = ("provisioning", "running", "retiring")
ENDED: Final = ("completed", "failed", "aborted", "cancelled", "retired", "terminated")

# The reference's table, written down anew (runtime §5.2; provisioning fails while it goes on and never later).
OK: Final[dict[str, dict[str, str]]] = {
    "provisioning_succeeded": {"provisioning": "running"},
    "provisioning_failed": {"provisioning": "failed"},
    "abort_provisioning": {"provisioning": "aborted"},
    "peer_ready": {"running": "running", "retiring": "retiring"},
    "report_progress": {"running": "running", "retiring": "retiring"},
    "complete": {"running": "completed", "retiring": "completed"},
    "fail": dict.fromkeys(LIVE, "failed"),
    "cancel": dict.fromkeys(LIVE, "cancelled"),
    "request_retire": {"running": "retiring"},
    "mark_retired": {"running": "retired", "retiring": "retired"},
    "terminate": dict.fromkeys(LIVE, "terminated"),
}

# Steps by which an operation comes to a status.
WAY: Final[dict[str, list[Any]]] = {
    "provisioning": [],
    "running": ["provisioning_succeeded"],
    "retiring": ["provisioning_succeeded", "request_retire"],
    "completed": ["provisioning_succeeded", "complete"],
    "failed": ["fail"],
    "aborted": ["abort_provisioning"],
    "cancelled": ["cancel"],
    "retired": ["provisioning_succeeded", "mark_retired"],
    "terminated": ["terminate"],
}


def stage_with(status: str, peer: bool = False) -> Stage:
    """Return a mob with operation `op` in a status; one that expects a peer is of kind mob_member_child."""
    stage = Stage()
    kind: Any = "mob_member_child" if peer else "background_tool"
    stage.do(c.RegisterOperation("op", "work", kind=kind, expect_peer_channel=peer))
    for action in WAY[status]:
        if action == "terminate":
            stage.do(c.TerminateOwner("", "over"))
        else:
            stage.do(c.MoveOperation("op", action))
    assert stage.mob.operations["op"].status == status
    return stage


def move(stage: Stage, action: Any, name: str = "op", **more: Any) -> OperationView:
    return stage.do(c.MoveOperation(name, action, **more), OperationView)


def test_the_table_is_that_of_the_reference() -> None:
    assert set(OK) == set(get_args(Action))
    assert {(action, before): after for action, row in OK.items() for before, after in row.items()} == TABLE
    assert {*LIVE, *ENDED} == set(get_args(OperationStatus)) == set(WAY)


@pytest.mark.parametrize(
    ("action", "status"),
    [
        one
        for one in product(sorted(OK), (*LIVE, *ENDED))
        if one[0] != "terminate" and not (one[0] == "peer_ready" and one[1] == "terminated")
    ],
)
def test_every_step_in_every_status(action: Any, status: str) -> None:
    # Only what expects a peer can have one.
    stage = stage_with(status, peer=action == "peer_ready")
    before = state_bytes(stage.mob)
    after = OK[action].get(status)
    if after is None:
        with pytest.raises(OperationTransition) as refused:
            move(stage, action)
        allowed = sorted(name for name, row in OK.items() if status in row)
        assert refused.value.details == {
            "operation_id": "op",
            "status": status,
            "action": action,
            "allowed": ", ".join(allowed),
        }
        assert state_bytes(stage.mob) == before
        return
    assert move(stage, action).status == after
    assert (stage.mob.operations["op"].completion_seq > 0) == (after in ENDED)
    assert state_bytes(stage.replayed()) == state_bytes(stage.mob)


@pytest.mark.parametrize("status", [*LIVE, *ENDED])
def test_an_owner_that_ends_terminates_what_lives_and_nothing_else(status: str) -> None:
    stage = stage_with(status)
    stage.do(c.TerminateOwner("", "gone"))
    after = stage.mob.operations["op"]
    assert after.status == ("terminated" if status in LIVE else status)
    assert [one.reason for one in stage.all(e.OperationEnded)] == (["gone"] if status in LIVE else [])


@pytest.mark.parametrize("action", sorted(set(OK) - {"terminate"}))
def test_what_nobody_knows_can_take_no_step(action: Any) -> None:
    stage = Stage()
    with pytest.raises(OperationNotFound):
        move(stage, action, "nobody")


def test_a_name_is_taken_whatever_became_of_it() -> None:
    for status in (*LIVE, *ENDED):
        with pytest.raises(OperationExists):
            stage_with(status).do(c.RegisterOperation("op", "again"))


def test_a_peer_is_ready_once_and_only_where_one_is_expected() -> None:
    stage = stage_with("running", peer=True)
    handle = Raw(b'{"address":"there"}')
    ready = move(stage, "peer_ready", handle=handle)
    assert (ready.peer_ready, bytes(ready.peer_handle)) == (True, bytes(handle))
    with pytest.raises(OperationTransition, match="already"):
        move(stage, "peer_ready", handle=Raw(b'"other"'))
    assert bytes(stage.mob.operations["op"].peer_handle) == bytes(handle)
    # That nothing expects a peer is said before that the status is wrong.
    for status in ("provisioning", "completed"):
        with pytest.raises(PeerNotExpected):
            move(stage_with(status), "peer_ready")


def test_an_end_says_how_and_counts() -> None:
    stage = Stage()
    steps: list[tuple[str, str, dict[str, Any]]] = [
        ("a", "complete", {"result": Raw(b'{"n":1}'), "is_error": True}),
        ("b", "fail", {"message": "broken"}),
        ("c", "cancel", {"message": "unwanted"}),
    ]
    for place, (name, action, more) in enumerate(steps, 1):
        stage.do(c.RegisterOperation(name, name))
        move(stage, "provisioning_succeeded", name)
        ended = move(stage, action, name, **more)
        assert (ended.completion_seq, ended.ended_at) == (place, stage.now)
    operations = stage.mob.operations
    assert (bytes(operations["a"].result), operations["a"].is_error) == (b'{"n":1}', True)
    assert (operations["b"].error, operations["c"].reason) == ("broken", "unwanted")
    assert (stage.mob.completed, stage.mob.completions) == (["a", "b", "c"], 3)


def test_progress_counts_and_keeps_the_newest() -> None:
    stage = stage_with("running")
    move(stage, "report_progress", message="half", percent=50)
    shown = move(stage, "report_progress", message="more")
    assert (shown.progress_count, shown.progress_message, shown.progress_percent) == (2, "more", None)


def test_the_oldest_ends_leave_memory_in_order_and_live_ones_never() -> None:
    stage = Stage()
    stage.do(c.RegisterOperation("lives", "lives"))
    names = [f"op-{number:03}" for number in range(300)]
    for at, name in enumerate(names, 1):
        stage.do(c.RegisterOperation(name, name))
        move(stage, "cancel", name)
        assert stage.mob.completed == names[max(0, at - 256) : at]
    assert stage.mob.completions == 300
    assert set(stage.mob.operations) == {*names[-256:], "lives"}
    with pytest.raises(OperationNotFound):
        move(stage, "cancel", names[0])
    assert state_bytes(stage.replayed()) == state_bytes(stage.mob)


def test_what_leaves_memory_in_the_decision_that_ends_it_is_stored_like_all_others() -> None:
    stage = Stage()
    stage.spawn("a", "b")
    for owner, number in product(("a", "b"), range(256)):
        stage.do(c.RegisterOperation(f"{owner}-{number:03}", "tool", owner=owner))
    ended: list[int | None] = []
    stage.do(c.ResetMob())
    assert stage.append is not None
    ended += [one.completion_seq for one in stage.append.operations]
    # Two lives and 512 tools, of which no more than 256 can be in memory.
    assert sorted(filter(None, ended)) == list(range(1, 515))
    assert len(stage.mob.completed) == len(stage.mob.operations) == 256
    assert state_bytes(stage.replayed()) == state_bytes(stage.mob)


def test_a_refused_decision_brings_back_what_left_memory() -> None:
    stage = Stage()
    for number in range(257):
        stage.do(c.RegisterOperation(f"op-{number}", "tool", running=number == 256))
        if number < 256:
            move(stage, "cancel", f"op-{number}")
    before = state_bytes(stage.mob)
    context = c.Context(stage.now, stage.ids, stage.connected, validate_only=True)
    decided = decide(stage.mob, c.MoveOperation("op-256", "complete"), context, 1)
    assert [record.kind for record in decided.would] == ["operation_ended"]
    assert state_bytes(stage.mob) == before


def test_one_that_needs_no_preparation_runs_at_once() -> None:
    stage = Stage()
    shown = stage.do(c.RegisterOperation("op", "tool", running=True), OperationView)
    assert stage.kinds == ["operation_registered", "operation_started"]
    assert (shown.status, shown.started_at) == ("running", stage.now)


def test_a_name_that_only_the_store_knows_is_taken_but_a_repeated_request_is_answered() -> None:
    stage = Stage()
    stage.decide(c.RegisterOperation("op", "tool"), request_id="r", request_hash="h")
    seq = stage.mob.head
    with pytest.raises(OperationExists):
        stage.do(c.RegisterOperation("old", "tool", taken=True))
    assert (
        stage.decide(c.RegisterOperation("op", "tool", taken=True), request_id="r", request_hash="h").replay_seq == seq
    )


def test_a_destroyed_mob_has_no_operation_that_lives() -> None:
    stage = Stage()
    stage.spawn("a")
    for owner in ("", "a"):
        stage.do(c.RegisterOperation(f"of-{owner}", "tool", owner=owner))
    stage.do(c.DestroyMob())
    assert {one.status for one in stage.mob.operations.values()} == {"aborted", "terminated"}
    assert stage.mob.operations["of-"].reason == "the mob was destroyed"
    assert stage.mob.owned == {}
    assert stage.append is not None
    assert sorted(one.completion_seq or 0 for one in stage.append.operations) == [1, 2, 3]
    assert state_bytes(stage.replayed()) == state_bytes(stage.mob)


def test_a_destroyed_member_owns_nothing_new() -> None:
    stage = Stage()
    stage.spawn("a")
    stage.do(c.DestroyRuntime("a"))
    with pytest.raises(OperationTransition) as refused:
        stage.do(c.RegisterOperation("op", "tool", owner="a"))
    assert refused.value.details["status"] == "destroyed"
    stage.do(c.RespawnMember("a"))
    stage.do(c.RegisterOperation("op", "tool", owner="a"))


def test_an_owner_and_a_mob_have_so_many_at_a_time() -> None:
    stage = Stage()
    stage.spawn("a")
    for number in range(256):
        stage.do(c.RegisterOperation(f"tool-{number}", "work", owner="a"))
    with pytest.raises(OperationLimit) as refused:
        stage.do(c.RegisterOperation("more", "work", owner="a"))
    assert refused.value.details == {"owner": "a", "limit": "256", "active": "256"}
    # That the name is taken is said first.
    with pytest.raises(OperationExists):
        stage.do(c.RegisterOperation("tool-0", "work", owner="a"))
    stage.do(c.RegisterOperation("other", "work"))
    move(stage, "cancel", "tool-7")
    stage.do(c.RegisterOperation("more", "work", owner="a"))


def test_an_owner_must_be_there() -> None:
    with pytest.raises(MemberNotFound):
        Stage().do(c.RegisterOperation("op", "work", owner="nobody"))


# Members.


def life(stage: Stage, member_id: str = "a") -> Operation:
    return stage.mob.operations[stage.member(member_id).operation_id]


def test_a_member_has_an_operation_from_its_first_event_on() -> None:
    stage = Stage()
    stage.spawn("a")
    operation = life(stage)
    assert (operation.status, operation.kind, operation.member_id) == ("provisioning", "mob_member_child", "a")
    assert (name_of(stage.mob, operation), operation.owner) == ("mob/analyst/a", "")
    assert stage.kinds == ["member_spawned"]
    agent = stage.agent()
    assert (life(stage).status, life(stage).peer_ready) == ("running", True)
    assert msgspec.json.decode(life(stage).peer_handle) == {"attachment_id": agent, "host_id": "h"}


def test_only_the_first_agent_makes_its_peer_ready() -> None:
    stage = Stage()
    stage.spawn("a")
    first = stage.agent("h1")
    seq = life(stage).updated_seq
    stage.leave(first)
    stage.agent("h2")
    assert msgspec.json.decode(life(stage).peer_handle)["host_id"] == "h1"
    assert life(stage).updated_seq == seq


def test_a_failed_run_never_fails_it() -> None:
    stage = Stage()
    stage.spawn("a")
    stage.agent()
    stage.accepted("a", "i")
    stage.fail(stage.run_of("a"), retryable=False)
    assert life(stage).status == "running"


@pytest.mark.parametrize("served", [False, True])
def test_it_retires_with_its_member_or_never_began(served: bool) -> None:
    stage = Stage()
    stage.spawn("a")
    if served:
        stage.agent()
    name = stage.member("a").operation_id
    stage.do(c.RetireMember("a"))
    assert "a" not in stage.mob.members
    operation = stage.mob.operations[name]
    assert operation.status == ("retired" if served else "aborted")
    assert operation.reason == ("" if served else "retired before provisioning completed")
    # To retire whoever is not there makes nothing up.
    before = state_bytes(stage.mob)
    stage.do(c.RetireMember("a"))
    stage.do(c.RetireMember("nobody"))
    assert state_bytes(stage.mob) == before


def test_it_is_retiring_while_its_member_drains() -> None:
    stage = Stage()
    stage.spawn("a")
    stage.agent()
    stage.accepted("a", "i")
    stage.do(c.RetireMember("a"))
    assert life(stage).status == "retiring"
    name = stage.member("a").operation_id
    stage.finish(stage.run_of("a"))
    assert stage.mob.operations[name].status == "retired"


@pytest.mark.parametrize("served", [False, True])
def test_it_ends_with_the_destruction_of_its_member(served: bool) -> None:
    stage = Stage()
    stage.spawn("a")
    if served:
        stage.agent()
    stage.do(c.DestroyRuntime("a"))
    assert life(stage).status == ("terminated" if served else "aborted")
    assert life(stage).reason == "the member was destroyed"


def test_a_successor_has_one_of_its_own() -> None:
    stage = Stage()
    stage.spawn("a")
    stage.agent()
    old = stage.member("a").operation_id
    stage.do(c.RespawnMember("a"))
    assert stage.mob.operations[old].status == "retired"
    assert life(stage).operation_id != old
    assert life(stage).status == "provisioning"


def test_nobody_but_its_member_moves_it() -> None:
    stage = Stage()
    stage.spawn("a")
    stage.agent()
    for action in ("complete", "fail", "cancel", "mark_retired", "request_retire"):
        with pytest.raises(OperationTransition, match="retire the member"):
            move(stage, action, stage.member("a").operation_id)
    assert move(stage, "report_progress", stage.member("a").operation_id, message="on").progress_count == 1


def test_a_second_one_that_lives_is_refused_and_both_are_named() -> None:
    stage = Stage()
    stage.spawn("a")
    one = stage.member("a").operation_id
    with pytest.raises(OperationAmbiguous) as refused:
        stage.do(c.RegisterOperation("two", "life", kind="mob_member_child", member_id="a"))
    assert refused.value.details == {"member_id": "a", "operation_ids": f"{one},two"}
    stage.do(c.DestroyRuntime("a"))
    stage.do(c.RegisterOperation("two", "life", kind="mob_member_child", member_id="a"))
    assert stage.member("a").operation_id == "two"


def test_the_progress_of_a_run_is_that_of_its_member() -> None:
    stage = Stage()
    stage.spawn("a")
    stage.agent()
    stage.accepted("a", "i")
    run = stage.run_of("a")
    stage.do(c.ReportRunProgress(run.attachment_id, run.run_id, run.fence, "half", 50))
    assert (life(stage).progress_message, life(stage).progress_percent) == ("half", 50)
    # A zombie's changes nothing; nor does one of a life that has ended.
    before = state_bytes(stage.mob)
    stage.do(c.ReportRunProgress(run.attachment_id, run.run_id, run.fence + 1, "all"))
    stage.do(c.ReportRunProgress("other", run.run_id, run.fence, "all"))
    assert state_bytes(stage.mob) == before


def test_a_life_that_is_provisioning_starts_before_its_progress() -> None:
    stage = Stage()
    stage.spawn("a")
    stage.agent()
    stage.do(c.DestroyRuntime("a"))
    stage.do(c.RespawnMember("a"))
    stage.confirm("a")
    stage.accepted("a", "i")
    run = stage.run_of("a")
    # As if it had been replaced meanwhile by one that nobody confirmed.
    life(stage).status = "provisioning"
    stage.do(c.ReportRunProgress(run.attachment_id, run.run_id, run.fence, "on"))
    assert stage.kinds == ["operation_started", "operation_progressed"]


def test_tools_end_with_the_member_in_whose_registry_they_are() -> None:
    for command in (c.RetireMember("a"), c.DestroyRuntime("a"), c.RespawnMember("a")):
        stage = Stage()
        stage.spawn("a", "b")
        stage.do(c.RegisterOperation("of-a", "tool", owner="a"))
        stage.do(c.RegisterOperation("of-b", "tool", owner="b"))
        stage.do(c.RegisterOperation("of-mob", "tool"))
        stage.do(command)
        states = {name: stage.mob.operations[name].status for name in ("of-a", "of-b", "of-mob")}
        assert states == {"of-a": "terminated", "of-b": "provisioning", "of-mob": "provisioning"}
        assert sorted(stage.mob.owned) == ["", "b"]
        assert state_bytes(stage.replayed()) == state_bytes(stage.mob)


def test_who_acts_for_a_run_owns_what_it_begins() -> None:
    stage = Stage()
    stage.spawn("a")
    stage.agent()
    stage.accepted("a", "i")
    run = stage.run_of("a")

    def acting(command: c.Command, fence: int) -> None:
        context = c.Context(stage.now, stage.ids, stage.connected, acting=(run.run_id, fence))
        decided = decide(stage.mob, command, context, 1)
        assert decided.append is not None
        stage.log.extend(decided.append.records)

    acting(c.RegisterOperation("op", "tool"), run.fence)
    acting(c.SpawnMember(c.MemberSpec("child", "lead")), run.fence)
    assert (stage.mob.operations["op"].owner, life(stage, "child").owner) == ("a", "a")
    before = state_bytes(stage.mob)
    with pytest.raises(StaleFence):
        acting(c.RegisterOperation("late", "tool"), run.fence + 1)
    assert state_bytes(stage.mob) == before
    # A member's life is its own: it does not end with the one that spawned it.
    stage.do(c.DestroyRuntime("a"))
    assert (stage.mob.operations["op"].status, life(stage, "child").status) == ("terminated", "provisioning")


# Rows.


def test_a_decision_writes_each_operation_that_it_changed_once_as_it_is_at_the_end() -> None:
    stage = Stage()
    stage.spawn("a")
    assert stage.append is not None
    (row,) = stage.append.operations
    assert (row.status, row.member_id, row.completion_seq) == ("provisioning", "a", None)
    stage.agent()
    assert stage.append is not None
    assert [one.status for one in stage.append.operations] == ["running"]
    stage.do(c.RegisterOperation("tool", "tool", owner="a"))
    stage.deliver("a", "i")
    assert stage.append is not None
    assert stage.append.operations == []
    stage.finish(stage.run_of("a"))
    stage.do(c.RetireMember("a"))
    assert stage.append is not None
    assert sorted((one.status, one.completion_seq) for one in stage.append.operations) == [
        ("retired", 1),
        ("terminated", 2),
    ]
    for one in stage.append.operations:
        assert msgspec.json.decode(one.snapshot, type=OperationView).completion_seq == one.completion_seq


def test_the_rows_of_a_whole_mob_are_written_when_it_ends() -> None:
    stage = Stage()
    stage.do(c.SpawnMembers([c.MemberSpec(f"m{number:03}", "analyst") for number in range(400)]))
    ended: dict[str, int | None] = {}
    stage.do(c.ResetMob())
    while True:
        assert stage.append is not None
        ended.update({one.operation_id: one.completion_seq for one in stage.append.operations})
        if stage.mob.pending == "none":
            break
        stage.do(c.Continue())
    assert sorted(one or 0 for one in ended.values()) == list(range(1, 401))
