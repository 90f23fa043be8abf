"""The end of a member, word for word: events, rows, what agents are told, and who gets the place (core §5, §11.3)."""

from collections.abc import Callable
from typing import Final

import pytest
from msgspec import Raw
from tests.machines.scene import Scene
from tests.machines.stage import DAY, SECOND, state_bytes, text

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import (
    Again,
    Destroyed,
    Rejected,
    Respawned,
    Retired,
    SendRetire,
    SendUnassign,
)
from mobd_server.machines.draft import MAX_EVENTS
from mobd_server.machines.records import SessionRow
from mobd_server.machines.state import EMPTY_DIGEST, OPERATIONS_KEPT, Member

END: Final[dict[str, Callable[[str], c.Command]]] = {
    "retired": c.RetireMember,
    "destroyed": c.DestroyRuntime,
    "respawned": c.RespawnMember,
}


# What is told of an end.


def test_an_agent_is_told_to_drain_for_a_single_input() -> None:
    scene = Scene("a")
    agent = scene.serve()
    scene.put("a", "m1")
    fence = scene.executor("a").fence
    assert scene.retire("a") == Retired(0, 1)
    assert scene.reactions == [SendRetire(agent, "a", fence, drain=True)]


def test_a_destruction_is_told_with_its_reason() -> None:
    scene = Scene("a")
    agent = scene.serve()
    fence = scene.executor("a").fence
    assert scene.do(c.DestroyRuntime("a"), Destroyed) == Destroyed(0)
    assert scene.events == [
        e.ExecutorReleased("a", agent, fence, "the member is destroyed"),
        e.MemberDestroyed("a", 0),
    ]
    assert scene.reactions == [SendUnassign(agent, "a", fence, "the member is destroyed")]


def test_an_agent_is_told_that_its_member_has_drained() -> None:
    scene = Scene("a")
    agent = scene.serve()
    fence = scene.executor("a").fence
    scene.retire("a")
    assert scene.event(e.ExecutorReleased) == e.ExecutorReleased("a", agent, fence, "the member is retired")
    assert scene.sent(SendUnassign) == [SendUnassign(agent, "a", fence, "the member is retired")]


def test_a_respawn_is_told_with_its_reason_and_every_new_name() -> None:
    scene = Scene("a")
    agent = scene.serve()
    fence = scene.executor("a").fence
    scene.suspend(agent)
    scene.ids.count = 100
    answer = scene.do(c.RespawnMember("a", initial_message=text("begin")), Respawned)
    why = "the member is respawned"
    token = scene.member("a").fence_token
    assert scene.events[:2] == [
        e.ExecutorReleased("a", agent, fence, why),
        e.MemberRespawned("a", 1, token, "ses-101", "op-102", initial_input_id="in-103"),
    ]
    assert scene.event(e.InputAccepted).canonical_input_id == answer.member.initial_input_id == "in-103"
    assert scene.sent(SendUnassign) == [SendUnassign(agent, "a", fence, why)]
    assert scene.append is not None
    assert scene.append.sessions == [SessionRow("ses-101", "a", 0, EMPTY_DIGEST)]


def test_a_new_incarnation_is_the_old_one_without_its_work() -> None:
    scene = Scene()
    scene.do(c.SpawnMember(c.MemberSpec("a", "analyst", {"team": "red"}, Raw(b'{"x":1}'))))
    agent = scene.serve()
    scene.put("a", "m1")
    run = scene.run_of("a")
    scene.finish(run, messages=['{"n":1}'])
    scene.leave(agent, "detached")
    scene.put("a", "m2")
    old = scene.member("a")
    scene.now += SECOND
    scene.ids.count = 100
    scene.do(c.RespawnMember("a"))
    assert scene.append is not None
    assert scene.member("a") == Member(
        "a",
        "analyst",
        1,
        old.fence_token + 2,
        "ses-101",
        scene.now,
        "idle",
        labels={"team": "red"},
        context=Raw(b'{"x":1}'),
        ended=old.ended,
        receipts=(run.run_id,),
        active_seq=scene.append.records[-1].seq,
        operation_id="op-102",
    )


def test_a_respawn_belongs_to_nobodys_registry_when_its_operation_is_long_forgotten() -> None:
    scene = Scene("a", "b")
    scene.serve()
    scene.put("a", "m1")
    run = scene.run_of("a")
    scene.act(c.SpawnMember(c.MemberSpec("child", "analyst")), run.run_id, run.fence)
    scene.do(c.DestroyRuntime("child"))
    for n in range(OPERATIONS_KEPT):
        scene.do(c.RegisterOperation(f"tool-{n}", "a tool", running=True))
        scene.do(c.MoveOperation(f"tool-{n}", "complete"))
    assert scene.member("child").operation_id not in scene.mob.operations
    scene.do(c.RespawnMember("child"))
    assert scene.event(e.MemberRespawned).owner == scene.operation("child").owner == ""


def test_what_only_a_retired_member_still_runs_is_in_the_report_of_who_retires_all() -> None:
    scene = Scene("a", "b")
    scene.serve()
    for member_id in ("a", "b"):
        scene.put(member_id, "m1", "m2")
    scene.retire_runtime("a")
    scene.do(c.RetireAllMembers())
    reports = [(one.member_id, one.inputs_abandoned, one.inputs_pending_drain) for one in scene.mob.reports.values()]
    assert reports == [("a", 0, 2), ("b", 0, 2)]


# The place that it had.


@pytest.mark.parametrize("end", END)
def test_the_place_of_a_member_that_had_nothing_to_do_goes_to_one_that_waits(end: str) -> None:
    scene = Scene("a", "b")
    # It was asked to serve `a` and has not answered: its place is not taken from it.
    agent = scene.join(max_members=1)
    scene.put("b", "m1")
    assert (scene.agent_of("a"), scene.agent_of("b")) == (agent, None)
    scene.do(END[end]("a"))
    assert scene.event(e.ExecutorAssigned).member_id == "b"
    assert scene.agent_of("b") == agent


def test_the_place_of_a_member_that_ends_in_a_stopped_mob_is_given_away_when_the_mob_runs_again() -> None:
    scene = Scene("a", "b")
    agent = scene.join(max_members=1)
    scene.put("b", "m1")
    scene.do(c.StopMob())
    scene.do(c.DestroyRuntime("a"))
    assert scene.kinds == ["executor_released", "member_destroyed"]
    scene.do(c.ResumeMob())
    assert scene.agent_of("b") == agent


# What outlives it.


@pytest.mark.parametrize("end", END)
def test_a_pause_ends_with_its_member(end: str) -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "m1", supersession_key="k")
    scene.report(scene.run_of("a"), "error")
    # A newer input takes the place of the one that failed, and runs at once.
    scene.put("a", "m2", supersession_key="k")
    assert scene.kinds == ["input_superseded", "input_accepted", "run_started"]
    scene.settle(scene.run_of("a"))
    assert (scene.inputs("a"), scene.mob.timers) == ([], [(scene.now + SECOND, "retry", "a")])
    scene.do(END[end]("a"))
    assert scene.mob.timers == []
    assert all(member.retry_at == 0 for member in scene.mob.members.values())
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_what_a_member_has_forgotten_stays_forgotten_in_all_that_come_after_it() -> None:
    scene = Scene("a")
    # Names that tell when they were made.
    older, newer = (f"018bcfe5-6800-7000-8000-{n:012}" for n in range(2))
    scene.serve()
    scene.put("a", older)
    scene.settle(scene.run_of("a"))
    scene.now += DAY + 1
    scene.put("a", "m1")
    at = scene.member("a").forgotten_at
    assert at > 0
    scene.do(c.RespawnMember("a"))
    assert scene.member("a").forgotten_at == at
    scene.retire("a")
    assert scene.former("a").forgotten_at == at
    scene.spawn("a")
    assert scene.member("a").forgotten_at == at
    refused = scene.send("a", newer)
    assert isinstance(refused, Rejected)
    assert refused.cause == "input_forgotten"


# Many at once.


def test_who_can_go_on_draining_in_no_more_decision_does_so_in_one_of_its_own() -> None:
    scene = Scene()
    count = 1_950
    names = [f"m{n:04}" for n in range(count)]
    for start in (0, 1_000):
        scene.do(c.SpawnMembers([c.MemberSpec(name, "analyst") for name in names[start : start + 1_000]]))
    for start in (0, 1_000):
        scene.do(c.DeliverBatch([c.Deliver(name, "m1", text("x")) for name in names[start : start + 1_000]]))
    agents = [scene.join(host, max_members=1_000) for host in ("h1", "h2")]
    while scene.sent(Again):
        scene.do(c.Continue())
    scene.do(c.RetireAllMembers())
    while scene.sent(Again):
        scene.do(c.Continue())
    scene.do(c.StopMob())
    for agent in agents:
        scene.leave(agent, "detached")
    assert len(scene.mob.draining) == count
    scene.do(c.ResumeMob())
    assert scene.kinds == ["mob_resumed", *["drain_suspended"] * (MAX_EVENTS - 101)]
    assert scene.sent(Again) == [Again()]
    # Whatever else is decided before goes on with nobody whom it does not touch.
    scene.spawn("new")
    assert scene.kinds == ["member_spawned"]
    scene.do(c.CompleteMob())
    assert "drain_suspended" not in scene.kinds
    scene.do(c.Continue())
    assert len(scene.all(e.DrainSuspended)) == count - (MAX_EVENTS - 101)
    assert {member.drain_until for member in scene.mob.members.values()} == {scene.now + 60 * SECOND}
