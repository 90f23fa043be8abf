"""Agents that come back, decline, drain and go: every event and every reaction of it, in whole and in order."""

from collections.abc import Callable
from typing import Final

import pytest
from msgspec.structs import replace
from tests.machines.scene import Scene
from tests.machines.stage import NOW, Stage, named, role, state_bytes

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import (
    Again,
    Attached,
    AttachRefused,
    Done,
    EndStream,
    Reaction,
    SendAssign,
    SendUnassign,
    ServeOutcome,
)
from mobd_server.machines.state import SUPERSEDED_KEPT, Attachment


def with_members(*member_ids: str) -> Stage:
    stage = Stage()
    stage.spawn(*member_ids)
    return stage


def served_twice(*member_ids: str) -> tuple[Stage, str, str]:
    """Return a mob whose members the first of two agents serves."""
    stage = with_members(*member_ids)
    first = stage.agent("first")
    return stage, first, stage.agent("second")


def without_settlements(stage: Stage) -> list[e.Event]:
    return [event for event in stage.events if not isinstance(event, e.RunSettled)]


# Attaching.


def test_an_agent_is_stored_with_its_terms() -> None:
    stage = with_members("a")
    serves = [role("analyst"), named("b"), role("lead")]
    answer = stage.do(c.Attach("h", "life", 2, 3, serves, steers=True), Attached)
    agent = answer.attachment_id
    fence = stage.executor("a").fence
    assert answer == Attached(
        agent,
        resumed=False,
        log_id="log",
        serves=[
            ServeOutcome(serves[0], assigned=1),
            ServeOutcome(serves[1], waiting="member 'b' does not exist yet"),
            ServeOutcome(serves[2], waiting="no member of role 'lead' exists yet"),
        ],
    )
    assert stage.events == [
        e.AttachmentOpened(agent, "h", "life", 2, 3, serves, steers=True),
        e.ExecutorAssigned("a", agent, fence),
    ]
    assert [type(one) for one in stage.reactions] == [SendAssign]
    seq = stage.mob.head - 1
    stored = Attachment(
        agent, "h", "life", 2, 3, serves, ["analyst", "lead"], ["b"], seq, NOW, {"a": fence}, [], [], steers=True
    )
    assert stage.attachment(agent) == stage.replayed().attachments[agent] == stored


def test_the_next_incarnation_gets_all_that_the_one_before_had_at_once() -> None:
    stage = with_members("a", "b")
    old = stage.agent()
    stage.accepted("b", "i1")
    stage.attach("other", serves=[role("lead")])
    new = stage.attach(incarnation="2")
    assert [type(one) for one in stage.reactions] == [EndStream, SendAssign, SendAssign]
    assert (stage.agent_of("a"), stage.agent_of("b")) == (new, new)
    assert old not in stage.mob.attachments


# Coming back.


def test_an_agent_that_comes_back_is_told_all_that_it_was_told_at_first() -> None:
    stage = with_members("a", "b")
    serves = [role("analyst"), named("nobody"), named("a")]
    attach = c.Attach("h", "1", 8, 100, serves)
    first = stage.do(attach, Attached)
    assert first.attachment_id.startswith("att-")
    told = sorted(stage.sent(SendAssign), key=lambda one: one.member_id)
    assert [(one.attachment_id, one.member_id) for one in told] == [(first.attachment_id, m) for m in ("a", "b")]
    stage.connected.add(first.attachment_id)
    stage.confirm("a")
    again = stage.do(attach, Attached)
    assert stage.reactions == [replace(told[0], confirmed=True), told[1]]
    assert again == replace(first, resumed=True)
    assert again.log_id == "log"
    assert again.serves == [
        ServeOutcome(serves[0], assigned=2),
        ServeOutcome(serves[1], waiting="member 'nobody' does not exist yet"),
        ServeOutcome(serves[2], assigned=1),
    ]
    assert stage.append is None


def test_an_agent_that_comes_back_with_its_run_is_only_told_whom_it_serves() -> None:
    scene = Scene("a")
    agent = scene.serve()
    scene.put("a", "m1")
    scene.suspend(agent)
    scene.join(held=[scene.run_of("a").run_id])
    assert [type(one) for one in scene.reactions] == [SendAssign]
    assert scene.append is None


# Declining.


@pytest.mark.parametrize(("said", "kept"), [("no tools", "declined: no tools"), ("", "declined")])
def test_the_reason_of_a_refusal_is_kept(said: str, kept: str) -> None:
    stage, first, second = served_twice("a")
    stage.accepted("a", "i1")
    fence = stage.executor("a").fence
    assert stage.do(c.Decline(first, "a", fence, said), Done) == Done()
    settled = stage.event(e.RunSettled)
    assert (settled.state, settled.error) == ("released", said)
    assert stage.events == [
        settled,
        e.ExecutorReleased("a", first, fence, kept),
        e.ExecutorAssigned("a", second, stage.executor("a").fence),
    ]


# Draining.


def test_a_draining_agent_is_told_whom_it_serves_no_longer() -> None:
    stage, first, second = served_twice("a", "b", "c")
    stage.accepted("a", "i1")
    fences = {m: stage.executor(m).fence for m in ("b", "c")}
    stage.suspend(first)
    stage.accepted("c", "i1")
    assert stage.do(c.DrainAttachment(first), Done) == Done()
    why = "its agent drains"
    assert stage.events == [
        e.ExecutorReleased("b", first, fences["b"], why),
        e.ExecutorReleased("c", first, fences["c"], why),
        e.ExecutorAssigned("c", second, stage.executor("c").fence),
    ]
    (assign,) = stage.sent(SendAssign)
    assert stage.reactions == [
        SendUnassign(first, "b", fences["b"], why),
        SendUnassign(first, "c", fences["c"], why),
        assign,
        Again(),
    ]
    assert stage.do(c.DrainAttachment(first), Done) == Done(changed=False)


def test_a_draining_agent_is_not_given_back_what_it_gives_away() -> None:
    stage = with_members("a", "b")
    agent = stage.attach()
    stage.accepted("a", "i1")
    stage.do(c.DrainAttachment(agent))
    assert stage.kinds == ["executor_released", "executor_released"]
    assert (stage.agent_of("a"), stage.agent_of("b")) == (None, None)


# Leaving.


def superseded(stage: Stage, agent: str) -> None:
    stage.attach("first", serves=[role("lead")], incarnation="2")


LEAVES: Final[dict[str, Callable[[Stage, str], None]]] = {
    "detached": lambda stage, agent: stage.leave(agent, "detached"),
    "lost": lambda stage, agent: stage.leave(agent, "lost"),
    "superseded": superseded,
}
# How the agent is gone -> how its run settles, the event of its members, and what people are told.
GONE: Final[dict[str, tuple[str, type[e.ExecutorReleased | e.ExecutorLost], str]]] = {
    "detached": ("released", e.ExecutorReleased, "its agent left"),
    "lost": ("lost", e.ExecutorLost, "its agent was lost"),
    "superseded": ("lost", e.ExecutorLost, "another incarnation of host first took its place"),
}


@pytest.mark.parametrize("how", GONE)
def test_what_an_agent_that_is_gone_leaves_says_why(how: str) -> None:
    stage, first, second = served_twice("a", "b")
    stage.accepted("a", "i1")
    fences = [stage.executor(m).fence for m in ("a", "b")]
    LEAVES[how](stage, first)
    state, lost, why = GONE[how]
    settled = stage.event(e.RunSettled)
    assert stage.events[0] is settled
    assert (settled.state, settled.error) == (state, why)
    assert without_settlements(stage)[:3] == [
        lost("a", first, fences[0], why),
        lost("b", first, fences[1], why),
        e.AttachmentClosed(first, how),
    ]
    told = [one for one in stage.reactions if not isinstance(one, SendAssign)]
    expected: list[Reaction] = [Again()]
    if how == "superseded":
        expected.insert(0, EndStream(first, "superseded", why))
    else:
        assert without_settlements(stage)[3:] == [e.ExecutorAssigned("a", second, stage.executor("a").fence)]
    assert told == expected


def test_the_agents_of_a_mob_that_is_destroyed_are_told_so() -> None:
    stage = with_members("a")
    agent = stage.agent()
    fence = stage.executor("a").fence
    stage.do(c.DestroyMob())
    why = "the mob is destroyed"
    assert stage.event(e.ExecutorReleased) == e.ExecutorReleased("a", agent, fence, why)
    assert stage.event(e.AttachmentClosed) == e.AttachmentClosed(agent, "destroyed")
    assert stage.reactions == [
        SendUnassign(agent, "a", fence, why),
        EndStream(agent, "revoked", "mob 'mob' is destroyed"),
    ]


# Refused.


def test_an_agent_that_is_refused_is_told_what_is_wrong() -> None:
    stage = with_members("a")
    unknown = c.Attach("h", "1", 1, 1, [role("porter"), named("a"), role("analyst"), role("nurse")])
    assert stage.do(unknown, AttachRefused) == AttachRefused(
        "unknown_role", "mob 'mob' has no role nurse, porter: it has analyst, lead"
    )
    stage.do(c.DestroyMob())
    assert stage.do(unknown, AttachRefused) == AttachRefused("mob_destroyed", "mob 'mob' is destroyed")


# Incarnations whose place was taken.


def test_the_last_256_incarnations_whose_place_was_taken_do_not_come_back() -> None:
    stage = Scene()
    lives = [str(n) for n in range(SUPERSEDED_KEPT + 2)]
    for life in lives[:-1]:
        stage.attach(incarnation=life)
    kept = [("h", life) for life in lives[:SUPERSEDED_KEPT]]
    assert stage.mob.superseded == kept
    before = state_bytes(stage.mob)
    last = c.Attach("h", lives[-1], 8, 100, [role("analyst")])
    stage.would(last)
    assert state_bytes(stage.mob) == before
    stage.do(last)
    assert stage.mob.superseded == [*kept[1:], ("h", lives[-2])]
    assert len(stage.mob.superseded) == SUPERSEDED_KEPT == 256
    for life in lives[1:-1]:
        assert stage.do(c.Attach("h", life, 8, 100, [role("analyst")]), AttachRefused) == AttachRefused(
            "superseded", "another incarnation of host h took its place: give each process its own"
        )
    assert stage.do(c.Attach("h", "0", 8, 100, [role("analyst")]), Attached).resumed is False
    assert state_bytes(stage.replayed()) == state_bytes(stage.mob)
