"""Agents: who serves whom, what a gone or silent one leaves, and that no work waits while an agent has room."""

import pytest
from tests.machines.stage import Stage, named, role, state_bytes

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import (
    Again,
    Attached,
    AttachRefused,
    Done,
    EndStream,
    SendAssign,
    SendStartRun,
    SendUnassign,
    ServeOutcome,
)


def with_members(*member_ids: str, of: str = "analyst") -> Stage:
    stage = Stage()
    stage.spawn(*member_ids, of=of)
    return stage


def served_by(stage: Stage) -> dict[str, str | None]:
    """Return the host that serves each member."""
    hosts: dict[str, str | None] = {}
    for member_id in stage.mob.members:
        attachment_id = stage.agent_of(member_id)
        hosts[member_id] = stage.attachment(attachment_id).host_id if attachment_id is not None else None
    return hosts


# Attaching.


def test_an_agent_gets_the_members_that_it_serves_and_they_run_when_it_confirms() -> None:
    stage = with_members("a", "b")
    stage.spawn("l", of="lead")
    stage.accepted("b", "i1")
    attachment_id = stage.attach()
    assert stage.kinds == ["attachment_opened", "executor_assigned", "executor_assigned"]
    assert [one.member_id for one in stage.sent(SendAssign)] == ["b", "a"], "those with work first"
    assert stage.sent(SendStartRun) == []
    stage.confirm("b")
    assert stage.kinds == ["executor_confirmed", "run_started"]
    assert served_by(stage) == {"a": "h", "b": "h", "l": None}
    assert stage.attachment(attachment_id).runs == [stage.run_of("b").run_id]


def test_an_agent_is_told_what_became_of_each_of_its_interests() -> None:
    stage = with_members("a")
    stage.agent()
    stage.spawn("l", of="lead")
    serves = [role("lead"), named("a"), named("nobody"), role("analyst")]
    answer = stage.do(c.Attach("other", "1", 1, 9, serves), Attached)
    assert answer.resumed is False
    assert answer.log_id == "log"
    assert answer.serves == [
        ServeOutcome(serves[0], assigned=1),
        ServeOutcome(serves[1], waiting="member 'a' is served by another agent"),
        ServeOutcome(serves[2], waiting="member 'nobody' does not exist yet"),
        ServeOutcome(serves[3], waiting="every member of role 'analyst' is served by another agent"),
    ]


def test_an_unknown_role_is_refused_naming_the_roles() -> None:
    stage = with_members("a")
    before = state_bytes(stage.mob)
    refused = stage.do(c.Attach("h", "1", 1, 1, [role("nurse"), role("analyst")]), AttachRefused)
    assert refused.cause == "unknown_role"
    assert refused.message == "mob 'mob' has no role nurse: it has analyst, lead"
    assert state_bytes(stage.mob) == before


def test_a_mob_has_at_most_a_thousand_agents() -> None:
    stage = with_members("a")
    for n in range(1_000):
        stage.attach(f"h{n}", serves=[role("lead")])
    assert stage.do(c.Attach("one more", "1", 1, 1, [role("lead")]), AttachRefused) == AttachRefused(
        "too_many_agents", "a mob has at most 1000 agents"
    )
    assert stage.do(c.Attach("h7", "2", 1, 1, [role("lead")]), Attached).resumed is False


def test_a_member_spawned_later_is_given_to_an_agent_with_room() -> None:
    stage = Stage()
    stage.agent(max_members=1)
    stage.agent("other", serves=[named("b")])
    stage.spawn("a")
    assert stage.kinds == ["member_spawned", "executor_assigned"]
    stage.spawn("b", "c")
    assert served_by(stage) == {"a": "h", "b": "other", "c": None}


def test_a_name_goes_before_a_role_and_the_less_loaded_before_the_older() -> None:
    stage = Stage()
    stage.agent("first", serves=[role("analyst")])
    stage.agent("second", serves=[role("analyst")])
    stage.agent("named", serves=[named("c")])
    stage.spawn("a", "b", "c")
    assert served_by(stage) == {"a": "first", "b": "second", "c": "named"}


def test_a_name_goes_before_a_role_however_loaded_its_agent_is() -> None:
    stage = Stage()
    stage.agent("named", serves=[named("x"), named("y"), named("z")])
    stage.agent("any", serves=[role("analyst")])
    stage.spawn("x", "y", "z")
    assert set(served_by(stage).values()) == {"named"}


# Capacity.


def test_an_agent_runs_as_many_as_it_can_and_the_rest_in_the_order_of_their_waiting() -> None:
    stage = with_members("a", "b", "c", "d")
    stage.agent(capacity=2)
    for member_id in ("c", "a", "d", "b"):
        stage.accepted(member_id, "i1", "i2")
    assert {run.member_id for run in stage.mob.runs.values()} == {"a", "c"}
    stage.finish(stage.run_of("a"))
    assert stage.event(e.RunStarted).member_id == "d", "the turn goes round: a waits behind those who waited before"
    stage.finish(stage.run_of("c"))
    assert stage.event(e.RunStarted).member_id == "b"
    stage.finish(stage.run_of("b"))
    assert stage.event(e.RunStarted).member_id == "a"


def test_a_member_has_one_run_at_a_time() -> None:
    stage = with_members("a")
    stage.agent(capacity=8)
    stage.accepted("a", "i1", "i2", "i3")
    assert len(stage.mob.runs) == 1


# Room for members.


def test_an_agent_serves_no_more_members_than_it_takes() -> None:
    stage = with_members("a", "b", "c")
    attachment_id = stage.agent(max_members=2)
    assert sorted(stage.attachment(attachment_id).members) == ["a", "b"]
    stage.spawn("d")
    assert stage.agent_of("d") is None


def test_the_member_that_was_idle_longest_makes_room_for_one_with_work() -> None:
    stage = with_members("a", "b", "c")
    attachment_id = stage.agent(max_members=2)
    stage.accepted("a", "i1")
    stage.finish(stage.run_of("a"))
    stage.accepted("c", "i1")
    assert stage.kinds == ["input_accepted", "executor_released", "executor_assigned"]
    assert stage.event(e.ExecutorReleased).member_id == "b"
    assert [(one.member_id, one.attachment_id) for one in stage.sent(SendUnassign)] == [("b", attachment_id)]
    stage.confirm("c")
    assert stage.batch("c") == ["i1"]


def test_nobody_with_work_or_unconfirmed_makes_room() -> None:
    stage = with_members("a", "b", "c")
    stage.attach(max_members=2)
    stage.confirm("a")
    stage.accepted("a", "i1")
    stage.accepted("c", "i1")
    assert stage.agent_of("c") is None
    stage.confirm("b")
    assert stage.kinds == ["executor_confirmed", "executor_released", "executor_assigned"]
    assert served_by(stage) == {"a": "h", "b": None, "c": "h"}


def test_a_member_that_has_nothing_left_to_do_makes_room_for_who_waits() -> None:
    stage = with_members("a", "b")
    stage.agent(max_members=1)
    stage.accepted("a", "i1", "i2")
    stage.accepted("b", "i1")
    stage.finish(stage.run_of("a"))
    assert stage.agent_of("b") is None, "a has more to do"
    stage.finish(stage.run_of("a"))
    assert stage.agent_of("a") is None
    stage.confirm("b")
    assert stage.batch("b") == ["i1"]


# Declining.


def test_a_declined_member_is_given_to_another_agent() -> None:
    stage = with_members("a")
    stage.attach("first")
    executor = stage.executor("a")
    second = stage.attach("second")
    stage.accepted("a", "i1")
    stage.do(c.Decline(executor.attachment_id, "a", executor.fence, "no tools"))
    assert stage.kinds == ["executor_released", "executor_assigned"]
    assert stage.event(e.ExecutorReleased).reason == "declined: no tools"
    assert stage.agent_of("a") == second


def test_a_declined_member_is_not_given_to_the_same_agent_at_once() -> None:
    stage = with_members("a")
    attachment_id = stage.attach()
    stage.accepted("a", "i1")
    stage.do(c.Decline(attachment_id, "a", stage.executor("a").fence))
    assert stage.agent_of("a") is None
    stage.do(c.Continue())
    assert stage.agent_of("a") == attachment_id


def test_the_room_of_a_declined_member_goes_to_another_that_waits() -> None:
    stage = with_members("a", "b")
    attachment_id = stage.attach(max_members=1)
    stage.accepted("a", "i1")
    stage.accepted("b", "i1")
    stage.do(c.Decline(attachment_id, "a", stage.executor("a").fence))
    assert served_by(stage) == {"a": None, "b": "h"}


def test_a_member_declined_in_the_middle_of_a_run_gives_the_run_back_and_its_slot_to_the_next() -> None:
    stage = with_members("a", "b")
    attachment_id = stage.agent(capacity=1)
    stage.accepted("a", "i1")
    stage.accepted("b", "i1")
    stage.do(c.Decline(attachment_id, "a", stage.executor("a").fence))
    assert stage.event(e.RunSettled).state == "released"
    assert stage.batch("b") == ["i1"]
    assert stage.waits("a") == ["i1"]


@pytest.mark.parametrize("command", [c.Confirm, c.Decline])
@pytest.mark.parametrize("what", ["fence", "attachment", "member", "unknown member"])
def test_an_answer_to_another_assignment_changes_nothing(command: type[c.Confirm | c.Decline], what: str) -> None:
    stage = with_members("a")
    attachment_id = stage.attach()
    stage.spawn("l", of="lead")
    fence = stage.executor("a").fence
    before = state_bytes(stage.mob)
    stale = {
        "fence": command(attachment_id, "a", fence - 1),
        "attachment": command("att-0", "a", fence),
        "member": command(attachment_id, "l", fence),
        "unknown member": command(attachment_id, "nobody", fence),
    }
    assert stage.do(stale[what], Done).changed is False
    assert state_bytes(stage.mob) == before


def test_a_second_confirmation_changes_nothing() -> None:
    stage = with_members("a")
    stage.agent()
    stage.confirm("a")
    assert stage.append is None


# Suspended.


def test_nothing_is_sent_to_a_suspended_agent_and_it_keeps_its_members() -> None:
    stage = with_members("a", "b")
    attachment_id = stage.agent()
    stage.suspend(attachment_id)
    other = stage.agent("other")
    stage.accepted("a", "i1")
    stage.spawn("c")
    assert stage.member("a").run_id is None
    assert (stage.agent_of("a"), stage.agent_of("c")) == (attachment_id, other)
    assert all(one.attachment_id == other for one in stage.sent(SendAssign))
    stage.do(c.Continue())
    assert stage.member("a").run_id is None


def test_an_agent_that_comes_back_takes_up_what_it_had() -> None:
    stage = with_members("a", "b")
    attachment_id = stage.agent()
    stage.accepted("a", "i1")
    run = stage.run_of("a")
    stage.suspend(attachment_id)
    stage.accepted("b", "i1")
    answer = stage.do(c.Attach("h", "1", 8, 100, [role("analyst")], held=[run.run_id]), Attached)
    assert (answer.attachment_id, answer.resumed) == (attachment_id, True)
    assert [(one.member_id, one.confirmed) for one in stage.sent(SendAssign)] == [("a", True), ("b", True)]
    assert [one.member_id for one in stage.sent(SendStartRun)] == ["b"]
    assert stage.run_of("a") is run
    assert stage.kinds == ["run_started"]


def test_a_full_agent_that_comes_back_makes_room_for_what_came_meanwhile() -> None:
    stage = with_members("a", "b")
    attachment_id = stage.agent(max_members=1)
    stage.suspend(attachment_id)
    stage.accepted("b", "i1")
    assert stage.agent_of("b") is None
    stage.attach(max_members=1)
    assert stage.kinds == ["executor_released", "executor_assigned"]
    assert served_by(stage) == {"a": None, "b": "h"}


# Superseded.


def test_another_incarnation_takes_over_at_once_with_new_fences() -> None:
    stage = with_members("a", "b")
    old = stage.agent()
    stage.accepted("a", "i1")
    run, fences = stage.run_of("a"), [stage.executor(m).fence for m in ("a", "b")]
    new = stage.attach(incarnation="2")
    assert stage.kinds == [
        "run_settled",
        "executor_lost",
        "executor_lost",
        "attachment_closed",
        "attachment_opened",
        "executor_assigned",
        "executor_assigned",
    ]
    assert stage.event(e.RunSettled).state == "lost"
    assert stage.event(e.AttachmentClosed) == e.AttachmentClosed(old, "superseded")
    assert [(one.attachment_id, one.reason) for one in stage.sent(EndStream)] == [(old, "superseded")]
    assert new != old
    assert min(stage.executor(m).fence for m in ("a", "b")) > max(fences)
    assert stage.finish(run).disposition == "fenced"
    stage.confirm("a")
    assert stage.run_of("a").attempts == [2]


@pytest.mark.parametrize("change", ["serves", "capacity", "max_members"])
def test_the_same_incarnation_with_other_terms_begins_anew(change: str) -> None:
    stage = with_members("a")
    old = stage.agent()
    changed = {"serves": [role("analyst"), role("lead")], "capacity": 9, "max_members": 99}[change]
    assert stage.attach(**{change: changed}) != old  # type: ignore[arg-type]  # each change has the type of its option


def test_what_a_smaller_incarnation_leaves_is_given_to_others() -> None:
    stage = with_members("a", "b")
    stage.agent("h")
    other = stage.agent("other")
    for member_id in ("a", "b"):
        stage.accepted(member_id, "i1")
    stage.attach("h", incarnation="2", max_members=1)
    assert stage.sent(Again)
    stage.do(c.Continue())
    assert served_by(stage) == {"a": "h", "b": "other"}
    assert [one.attachment_id for one in stage.sent(SendAssign)] == [other]


def test_another_host_supersedes_nobody() -> None:
    stage = with_members("a")
    stage.agent("h")
    stage.agent("other")
    assert served_by(stage) == {"a": "h"}


# Leaving.


def test_an_agent_that_detaches_gives_its_runs_back() -> None:
    stage = with_members("a")
    stage.agent("h")
    other = stage.agent("other")
    stage.accepted("a", "i1")
    stage.leave(stage.agent_of("a") or "", "detached")
    assert stage.kinds == ["run_settled", "executor_released", "attachment_closed", "executor_assigned"]
    assert (stage.event(e.RunSettled).state, stage.event(e.AttachmentClosed).reason) == ("released", "detached")
    assert stage.agent_of("a") == other
    stage.confirm("a")
    assert stage.run_of("a").attempts == [1]


def test_an_agent_that_is_lost_loses_its_attempts() -> None:
    stage = with_members("a")
    attachment_id = stage.agent("h")
    stage.accepted("a", "i1", "i2")
    stage.leave(attachment_id)
    assert stage.kinds == ["run_settled", "executor_lost", "attachment_closed"]
    assert (stage.event(e.RunSettled).state, stage.event(e.AttachmentClosed).reason) == ("lost", "lost")
    assert stage.waits("a") == ["i1", "i2"]
    assert stage.member("a").state == "idle"
    assert stage.mob.attachments == {}


def test_an_agent_that_is_gone_already_is_no_news() -> None:
    stage = with_members("a")
    before = state_bytes(stage.mob)
    assert stage.do(c.CloseAttachment("att-0", "lost"), Done).changed is False
    assert stage.do(c.DrainAttachment("att-0"), Done).changed is False
    assert state_bytes(stage.mob) == before


def test_the_biggest_agent_can_be_lost_in_one_decision() -> None:
    stage = Stage()
    stage.do(c.SpawnMembers([c.MemberSpec(f"m{n}", "analyst") for n in range(1_000)]))
    big = stage.attach(capacity=256, max_members=1_000)
    while stage.sent(Again):
        stage.do(c.Continue())
    for member in list(stage.mob.members.values()):
        if member.executor is not None:
            stage.confirm(member.member_id)
    assert len(stage.attachment(big).members) == 1_000
    full = [f"a-rather-long-input-id-{n}" for n in range(65)]
    for n in range(256):
        stage.accepted(f"m{n}", *full)
        stage.finish(stage.run_of(f"m{n}"))
        assert len(stage.batch(f"m{n}")) == 64
    stage.agent("other", max_members=1)
    stage.leave(big)
    assert stage.mob.runs == {}
    while stage.sent(Again):
        stage.do(c.Continue())
        if stage.append is None:
            break
    assert served_by(stage)["m0"] == "other"


# Draining.


def test_an_agent_that_drains_finishes_its_runs_and_gives_the_rest_to_others() -> None:
    stage = with_members("a", "b")
    draining = stage.agent("h", capacity=1)
    other = stage.agent("other")
    stage.accepted("a", "i1")
    stage.suspend(draining)
    stage.accepted("b", "i1")
    assert stage.do(c.DrainAttachment(draining), Done).changed is True
    assert stage.kinds == ["executor_released", "executor_assigned"]
    assert [(one.member_id, one.attachment_id) for one in stage.sent(SendUnassign)] == [("b", draining)]
    assert (stage.agent_of("a"), stage.agent_of("b")) == (draining, other)
    stage.confirm("b")
    stage.accepted("a", "i2")
    assert stage.finish(stage.run_of("a")).disposition == "committed"
    assert stage.member("a").run_id is None, "nothing new is started there"
    stage.do(c.DrainAttachment(draining))
    assert stage.agent_of("a") == other


def test_an_idle_member_of_a_draining_agent_is_released_too() -> None:
    stage = with_members("a")
    draining = stage.agent()
    stage.suspend(draining)
    stage.do(c.DrainAttachment(draining))
    assert stage.kinds == ["executor_released"]
    assert stage.sent(Again), "another agent may take it in the next decision"


# No member with work waits while an agent has room: in many at once, in parts.


def test_more_members_than_one_decision_takes_follow_in_the_next() -> None:
    stage = Stage()
    stage.do(c.SpawnMembers([c.MemberSpec(f"m{n}", "analyst") for n in range(900)]))
    attachment_id = stage.attach(max_members=1_000)
    assert len(stage.attachment(attachment_id).members) == 500
    assert stage.sent(Again)
    stage.do(c.Continue())
    assert len(stage.attachment(attachment_id).members) == 900
    assert not stage.sent(Again)


def test_members_of_a_lost_agent_with_work_find_others_beyond_those_that_are_moved_at_once() -> None:
    stage = Stage()
    stage.do(c.SpawnMembers([c.MemberSpec(f"m{n:03}", "analyst") for n in range(300)]))
    first = stage.agent("first", max_members=300)
    for member_id in stage.mob.members:
        stage.accepted(member_id, "i1")
    stage.agent("second", max_members=300)
    stage.leave(first)
    assert len(stage.all(e.ExecutorAssigned)) == 16
    assert stage.sent(Again)
    stage.do(c.Continue())
    assert set(served_by(stage).values()) == {"second"}


def test_idle_members_make_room_for_many_with_work_in_the_order_of_their_idleness() -> None:
    stage = with_members("a", "b", "c", "d")
    attachment_id = stage.agent(max_members=2)
    stage.accepted("b", "i1")
    stage.finish(stage.run_of("b"))
    stage.suspend(attachment_id)
    for member_id in ("d", "c"):
        stage.accepted(member_id, "i1")
    stage.attach(max_members=2)
    assert [event.member_id for event in stage.all(e.ExecutorReleased)] == ["a", "b"]
    assert [event.member_id for event in stage.all(e.ExecutorAssigned)] == ["d", "c"]


@pytest.mark.parametrize("reverse", [False, True])
def test_agents_and_members_are_walked_by_age_whatever_the_order_of_a_dict(reverse: bool) -> None:
    stage = Stage()
    agents = [stage.attach(f"h{n}", max_members=2) for n in range(3)]
    stage.connected.clear()
    stage.spawn("c", "b", "a", "e", "d")
    if reverse:
        # As a state would be that was read back from an encoding with sorted keys.
        stage.mob.members = dict(reversed(stage.mob.members.items()))
        stage.mob.attachments = dict(reversed(stage.mob.attachments.items()))
    stage.connected.update(agents)
    stage.do(c.Continue())
    assert dict(sorted(served_by(stage).items())) == {
        "a": "h1",
        "b": "h0",
        "c": "h0",
        "d": "h2",
        "e": "h1",
    }
