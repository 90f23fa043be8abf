"""The mob as a whole: its life, its destruction in slices, its members, and what a view shows."""

import msgspec
import pytest
from msgspec import Raw
from tests.machines.stage import NOW, Stage, named, role, state_bytes, text

from mobd_server.errors import InvalidTransition, MemberExists, MobExists, MobFull, ProfileNotFound
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import (
    Again,
    DestroyAnswer,
    EndStream,
    EnsuredMember,
    MemberOutcome,
    MemberView,
    MobView,
    SendStartRun,
    SendUnassign,
    SpawnedMembers,
    SpawnRefusal,
)
from mobd_server.machines.decision import new_mob, wake_at
from mobd_server.machines.roster import MEMBERS
from mobd_server.machines.state import EMPTY_DIGEST, NOTHING, Definition, Profile
from mobd_server.machines.views import view_member, view_mob, waiting_reason


def spec(member_id: str, of: str = "analyst") -> c.MemberSpec:
    return c.MemberSpec(member_id, of)


# Its life.


def test_a_mob_begins_with_its_definition_and_runs() -> None:
    stage = Stage()
    assert stage.kinds == ["mob_created", "mob_started"]
    assert (stage.mob.phase, stage.mob.log_id, stage.mob.created_at, stage.mob.head) == ("running", "log", NOW, 2)
    assert stage.append is not None
    assert stage.append.base == 0
    assert stage.append.create is not None
    assert stage.append.create.log_id == "log"
    assert msgspec.json.decode(stage.append.create.definition, type=Definition) == stage.mob.definition


def test_a_mob_can_be_created_without_being_started() -> None:
    stage = Stage(start=False)
    assert stage.kinds == ["mob_created"]
    assert stage.mob.phase == "creating"
    assert stage.do(c.StartMob(), MobView).phase == "running"


def test_a_mob_has_the_labels_of_its_definition_and_those_of_its_creation_go_first() -> None:
    stage = Stage()
    stage.mob = new_mob("other")
    definition = Definition("other", labels={"a": "1", "b": "1"})
    view = stage.do(c.CreateMob(definition, {"b": "2", "c": "2"}, "log"), MobView)
    assert view.labels == {"a": "1", "b": "2", "c": "2"}


def test_a_mob_that_is_there_is_not_created_again() -> None:
    stage = Stage()
    before = state_bytes(stage.mob)
    with pytest.raises(MobExists) as refused:
        stage.do(c.CreateMob(Definition(), {}, "other"))
    assert refused.value.details == {"mob_id": "mob"}
    assert state_bytes(stage.mob) == before


def test_a_stopped_mob_keeps_its_runs_and_starts_nothing_until_it_resumes() -> None:
    stage = Stage()
    stage.spawn("a", "b")
    stage.agent(capacity=1)
    stage.accepted("a", "i1")
    stage.accepted("b", "i1")
    stage.do(c.StopMob())
    assert stage.member("a").state == "running"
    stage.finish(stage.run_of("a"))
    assert stage.mob.runs == {}
    stage.do(c.Continue())
    assert stage.append is None
    stage.agent("late", serves=[role("lead")])
    stage.do(c.ResumeMob())
    assert stage.kinds == ["mob_resumed", "run_started"]
    assert [one.member_id for one in stage.sent(SendStartRun)] == ["b"]


def test_start_revives_a_stopped_mob_as_resume_does() -> None:
    stage = Stage()
    stage.spawn("a")
    stage.accepted("a", "i1")
    stage.do(c.StopMob())
    stage.agent()
    assert stage.member("a").run_id is None
    stage.do(c.StartMob())
    assert stage.kinds == ["mob_started", "run_started"]


# Its destruction.


def test_a_destruction_abandons_inputs_ends_runs_and_sends_the_agents_away() -> None:
    stage = Stage()
    stage.spawn("a", "b")
    agent = stage.agent(serves=[named("a")])
    stage.accepted("a", "i1", "i2", "i3")
    stage.accepted("b", "i1")
    answer = stage.do(c.DestroyMob(), DestroyAnswer)
    assert stage.kinds == [
        "mob_destroying",
        "run_settled",
        "input_abandoned",
        "executor_released",
        "member_destroyed",
        "input_abandoned",
        "member_destroyed",
        "attachment_closed",
        "mob_destroyed",
    ]
    assert (answer.done, answer.already, answer.inputs_abandoned) == (True, False, 4)
    assert answer.outcomes == [MemberOutcome("a", 3), MemberOutcome("b", 1)]
    assert answer.mob.phase == "destroyed"
    assert {one.reason for event in stage.all(e.RunSettled) for one in event.outcomes} == {"destroyed"}
    assert [(one.attachment_id, one.reason) for one in stage.sent(EndStream)] == [(agent, "revoked")]
    assert [one.member_id for one in stage.sent(SendUnassign)] == ["a"]
    assert (stage.mob.runs, stage.mob.attachments, stage.mob.waiting, stage.mob.timers) == ({}, {}, {}, [])


def test_a_destroyed_mob_answers_with_the_same_report() -> None:
    stage = Stage()
    stage.spawn("a")
    stage.accepted("a", "i1")
    first = stage.do(c.DestroyMob(), DestroyAnswer)
    again = stage.do(c.DestroyMob(), DestroyAnswer)
    assert stage.append is None
    assert again == msgspec.structs.replace(first, already=True)


def test_a_member_in_a_pause_is_destroyed_with_it() -> None:
    stage = Stage()
    stage.spawn("a")
    stage.agent()
    stage.accepted("a", "i1")
    stage.fail(stage.run_of("a"))
    assert stage.mob.timers
    assert stage.do(c.DestroyMob(), DestroyAnswer).inputs_abandoned == 1
    assert stage.mob.timers == []


def test_two_thousand_members_with_inputs_and_runs_are_destroyed_in_slices() -> None:
    stage = Stage()
    for part in range(2):
        stage.do(c.SpawnMembers([spec(f"m{part}-{n:03}") for n in range(1_000)]))
    stage.attach(capacity=256, max_members=1_000)
    while stage.sent(Again):
        stage.do(c.Continue())
    for member_id in [m for m, member in stage.mob.members.items() if member.executor is not None]:
        stage.confirm(member_id)
    for member_id in stage.mob.members:
        stage.accepted(member_id, "i1", "i2", "i3")
    assert len(stage.mob.runs) == 256
    answer = stage.do(c.DestroyMob(), DestroyAnswer)
    assert answer.done is False
    assert stage.mob.pending == "destroy"
    slices = 1
    while stage.sent(Again):
        assert len(stage.events) < 600
        with pytest.raises(InvalidTransition):
            stage.do(c.StopMob())
        assert stage.do(c.DestroyMob(), DestroyAnswer).done is False
        assert stage.append is None, "who joins does no work: the destruction goes on by itself"
        stage.do(c.Continue())
        slices += 1
    assert slices > 5
    report = stage.do(c.DestroyMob(), DestroyAnswer)
    assert (report.done, report.already, report.inputs_abandoned) == (True, True, 6_000)
    assert len(report.outcomes) == 2_000
    assert {one.inputs_abandoned for one in report.outcomes} == {3}
    assert (stage.mob.phase, stage.mob.pending, stage.mob.runs) == ("destroyed", "none", {})
    assert state_bytes(stage.replayed()) == state_bytes(stage.mob)


def test_a_slice_with_many_inputs_ends_by_its_bytes() -> None:
    stage = Stage()
    stage.ids.count = 10**60
    for n in range(20):
        stage.spawn(f"m{n:02}")
        for part in range(4):
            ids = [f"{part}-{i}" for i in range(250)]
            stage.do(c.DeliverBatch([c.Deliver(f"m{n:02}", one, text("x")) for one in ids]))
    assert stage.do(c.DestroyMob(), DestroyAnswer).done is False
    assert 1 << 20 < sum(len(record.payload) for record in stage.log[-len(stage.events) :]) < (1 << 20) + 100_000
    stage.do(c.Continue())
    assert stage.mob.phase == "destroyed"


def test_a_destruction_that_was_begun_goes_on_after_a_restart() -> None:
    stage = Stage()
    stage.do(c.SpawnMembers([spec(f"m{n}") for n in range(600)]))
    stage.do(c.DestroyMob())
    assert wake_at(stage.mob) == 0
    stage.mob = stage.replayed()
    stage.do(c.Continue())
    assert stage.mob.phase == "destroyed"
    assert wake_at(stage.mob) is None


# Its members.


def test_a_member_is_spawned_with_all_that_it_was_given() -> None:
    stage = Stage()
    given = c.MemberSpec("a", "analyst", {"team": "red"}, Raw(b'{"x":[1]}'))
    view = stage.do(c.SpawnMember(given), MemberView)
    assert (view.member_id, view.role, view.state, view.generation, view.fence_token) == ("a", "analyst", "idle", 0, 1)
    assert (view.labels, bytes(view.context), view.created_at) == ({"team": "red"}, b'{"x":[1]}', NOW)
    assert (view.message_count, view.digest) == (0, EMPTY_DIGEST)
    assert stage.append is not None
    assert [(row.session_id, row.digest) for row in stage.append.sessions] == [(view.session_id, EMPTY_DIGEST)]
    assert state_bytes(stage.replayed()) == state_bytes(stage.mob)


@pytest.mark.parametrize("context", [None, Raw(b"null"), Raw(b'"x"'), Raw(b"{}")], ids=["none", "null", "text", "map"])
def test_a_context_is_read_back_from_the_log_as_it_was(context: Raw | None) -> None:
    stage = Stage()
    stage.do(c.SpawnMember(c.MemberSpec("a", "analyst", context=context)))
    assert stage.replayed().members["a"].context == (NOTHING if context is None else context)
    assert (stage.member("a").context is NOTHING) == (context is None)
    assert state_bytes(stage.replayed()) == state_bytes(stage.mob)


def test_a_profile_is_read_back_from_the_log_as_it_was() -> None:
    stage = Stage()
    profile = Profile("analyst", "read", {"a": "b"}, Raw(b"[1]"))
    stage.mob, stage.log = new_mob("mob"), []
    stage.do(c.CreateMob(Definition("mob", "words", {"l": "1"}, {"analyst": profile}), {}, "log"))
    assert stage.replayed().definition == stage.mob.definition


def test_fences_come_from_one_counter_and_never_repeat() -> None:
    stage = Stage()
    stage.spawn("a")
    stage.agent()
    stage.spawn("b")
    fences = [stage.member("a").fence_token, stage.executor("a").fence]
    fences += [stage.member("b").fence_token, stage.executor("b").fence]
    assert fences == [1, 2, 3, 4]


def test_a_taken_name_an_unknown_role_and_a_full_mob_are_refused_with_their_facts() -> None:
    stage = Stage()
    stage.spawn("a")
    before = state_bytes(stage.mob)
    with pytest.raises(MemberExists) as taken:
        stage.spawn("a", of="lead")
    assert taken.value.details == {
        "mob_id": "mob",
        "member_id": "a",
        "role": "analyst",
        "lifecycle": "active",
    }
    with pytest.raises(ProfileNotFound) as unknown:
        stage.spawn("b", of="nurse")
    assert unknown.value.details == {"mob_id": "mob", "role": "nurse", "roles": "analyst, lead"}
    assert state_bytes(stage.mob) == before
    for part in range(10):
        stage.do(c.SpawnMembers([spec(f"m{part}-{n}") for n in range(1_000)]))
    assert len(stage.mob.members) == MEMBERS == 10_000
    with pytest.raises(MobFull):
        stage.spawn("one-more")


def test_many_are_spawned_in_order_and_each_for_itself() -> None:
    stage = Stage()
    stage.spawn("b")
    answer = stage.do(
        c.SpawnMembers([spec("a"), spec("b"), spec("c", "nurse"), spec("a"), spec("d", "lead")]), SpawnedMembers
    )
    short = [one.reason if isinstance(one, SpawnRefusal) else one.member_id for one in answer.results]
    assert short == ["a", "MEMBER_EXISTS", "PROFILE_NOT_FOUND", "MEMBER_EXISTS", "d"]
    assert stage.kinds == ["member_spawned", "member_spawned"]


def test_a_thousand_are_spawned_at_once_and_given_to_agents() -> None:
    stage = Stage()
    stage.attach(max_members=1_000)
    answer = stage.do(c.SpawnMembers([spec(f"m{n}") for n in range(1_000)]), SpawnedMembers)
    assert all(isinstance(one, MemberView) for one in answer.results)
    while stage.sent(Again):
        stage.do(c.Continue())
    assert all(member.executor is not None for member in stage.mob.members.values())


def test_ensuring_a_member_spawns_it_once() -> None:
    stage = Stage()
    first = stage.do(c.EnsureMember(spec("a")), EnsuredMember)
    again = stage.do(c.EnsureMember(spec("a")), EnsuredMember)
    assert (first.spawned, again.spawned) == (True, False)
    assert first.member == again.member
    assert stage.append is None
    with pytest.raises(MemberExists):
        stage.do(c.EnsureMember(spec("a", "lead")))


# When it owes something.


def test_a_mob_owes_nothing_unless_it_has_agents_a_pause_or_a_destruction_to_end() -> None:
    stage = Stage()
    stage.spawn("a")
    stage.accepted("a", "i1")
    assert wake_at(stage.mob) is None
    agent = stage.agent()
    assert wake_at(stage.mob) == 0
    assert stage.append is not None
    assert stage.append.wake_at == 0
    stage.fail(stage.run_of("a"))
    stage.leave(agent, "detached")
    assert wake_at(stage.mob) == NOW + 1_000_000
    assert stage.append.wake_at == NOW + 1_000_000
    stage.advance(1)
    assert wake_at(stage.mob) is None


# What is shown of it.


def test_a_view_of_a_mob_counts_what_is_in_it() -> None:
    stage = Stage()
    stage.spawn("a", "b", "c")
    stage.agent(max_members=2)
    stage.accepted("a", "i1", "i2", "i3")
    view = view_mob(stage.mob)
    assert view.members == {"total": 3, "running": 1, "attached": 1, "idle": 1}
    assert (view.agents, view.inputs_waiting, view.head, view.phase) == (1, 2, stage.mob.head, "running")


def test_a_view_of_a_member_tells_where_its_inputs_are() -> None:
    stage = Stage()
    stage.spawn("a")
    agent = stage.agent()
    stage.accepted("a", "i1")
    stage.now += 5
    stage.accepted("a", "i2")
    view = view_member(stage.mob, stage.member("a"))
    assert (view.attachment_id, view.host_id, view.run_id) == (agent, "h", stage.run_of("a").run_id)
    assert (view.inputs_waiting, view.inputs_running, view.oldest_waiting_at) == (1, 1, NOW + 5)
    stage.fail(stage.run_of("a"))
    stage.fail(stage.run_of("a"))
    stage.finish(stage.run_of("a"), '"x"')
    stage.fail(stage.run_of("a"), "no")
    view = view_member(stage.mob, stage.member("a"))
    assert (view.last_output, view.last_error) == ('"x"', "no")
    assert view.retry_at == stage.now + 10_000_000


def test_a_waiting_input_is_told_what_it_waits_for() -> None:
    def reason() -> str:
        return waiting_reason(stage.mob, stage.member("a"), stage.connected)

    stage = Stage()
    stage.spawn("a", "b")
    stage.accepted("a", "i1")
    assert reason() == "no agent serves role analyst"
    first = stage.attach(max_members=1)
    assert reason() == "an agent was asked to serve the member and has not answered yet"
    stage.do(c.Decline(first, "a", stage.executor("a").fence))
    assert reason() == "every agent that serves role analyst is full or away"
    stage.leave(first)
    second = stage.agent("other", capacity=1)
    assert reason() == "an earlier run of the member is in flight"
    stage.finish(stage.run_of("a"))
    stage.accepted("b", "i1")
    stage.accepted("a", "i2")
    assert reason() == "the member's agent is busy with other members"
    stage.suspend(second)
    assert reason() == "the agent on host other is away"
    stage.do(c.StopMob())
    assert reason() == "the mob is stopped"
    stage.mob.pending = "destroy"
    assert reason() == "the mob is being destroyed"
