"""What an agent is sent for a member and for a run, in whole, and how many runs one decision starts."""

from typing import get_args

import pytest
from msgspec import Raw
from msgspec.structs import replace
from tests.machines.scene import Scene
from tests.machines.stage import SECOND, Stage, named, role, text

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import Again, BatchDelivered, RunInput, SendAssign, SendStartRun
from mobd_server.machines.decision import _evolve
from mobd_server.machines.draft import Draft
from mobd_server.machines.placement import dispatch, dispatches, run_inputs
from mobd_server.machines.state import EMPTY_DIGEST, Definition, Mob, Pending, Phase, Profile


def test_an_agent_is_sent_all_that_it_must_know_of_a_member() -> None:
    scene = Scene(timeout_s=60)
    context = Raw(b'{"deep":[null]}')
    scene.do(c.SpawnMember(c.MemberSpec("a", "analyst", context=context)))
    scene.spawn("b")
    agent = scene.join()
    profile = scene.mob.definition.profiles["analyst"]
    assert profile.run_timeout_s == 60
    first, second = scene.sent(SendAssign)
    assert first == SendAssign(
        agent,
        "a",
        fence=3,
        confirmed=False,
        profile=profile,
        context=context,
        generation=0,
        fence_token=1,
        session_id=scene.member("a").session_id,
        message_count=0,
        digest=EMPTY_DIGEST,
    )
    assert second == replace(
        first, member_id="b", fence=4, context=None, fence_token=2, session_id=scene.member("b").session_id
    )
    assert first.session_id != second.session_id
    assert scene.events[1:] == [e.ExecutorAssigned("a", agent, 3), e.ExecutorAssigned("b", agent, 4)]


def test_an_agent_is_sent_how_long_the_transcript_of_a_member_is() -> None:
    stage = Stage()
    stage.spawn("a")
    first = stage.agent()
    stage.accepted("a", "i1")
    stage.finish(stage.run_of("a"), messages=['{"role":"user"}', '{"role":"assistant"}'])
    stage.leave(first)
    stage.attach("other")
    (assign,) = stage.sent(SendAssign)
    assert (assign.message_count, assign.digest) == (2, "digest-2")


def test_an_agent_is_sent_all_that_it_must_know_of_a_run() -> None:
    scene = Scene(timeout_s=60)
    scene.spawn("a")
    scene.put("a", "i1")
    about = Raw(b'{"intent":"review"}')
    scene.put("a", "i2", kind="peer_request", intent="review", correlation_id="c1", about=about)
    agent = scene.serve()
    run = scene.run_of("a")
    assert run.run_id.startswith("run-")
    assert scene.event(e.RunStarted) == e.RunStarted(
        "a",
        run.run_id,
        agent,
        run.fence,
        [scene.canonical("i1"), scene.canonical("i2")],
        [1, 1],
        deadline=scene.now + 60 * SECOND,
    )
    content = text("hello")
    assert scene.sent(SendStartRun) == [
        SendStartRun(
            agent,
            run.run_id,
            run.fence,
            "a",
            [
                RunInput(scene.canonical("i1"), "i1", content, "anonymous", 1),
                RunInput(scene.canonical("i2"), "i2", content, "anonymous", 1, "peer_request", "c1", about),
            ],
            None,
            deadline=scene.now + 60 * SECOND,
        )
    ]


def test_a_run_is_traced_as_the_delivery_of_its_first_input_was() -> None:
    stage = Stage()
    stage.spawn("a")
    for n in (1, 2):
        stage.decide(c.Deliver("a", f"i{n}", text("hello")), traceparent=f"trace-{n}")
    stage.agent()
    assert [one.traceparent for one in stage.sent(SendStartRun)] == ["trace-1"]


def test_every_input_of_a_run_has_its_attempt() -> None:
    stage = Stage()
    stage.spawn("a")
    stage.agent()
    stage.accepted("a", "i1")
    for attempts in ([], [1, 1]):
        with pytest.raises(ValueError, match="zip"):
            run_inputs(stage.run_of("a").inputs, attempts)


def test_a_member_whose_role_the_definition_has_no_more_is_served_without_a_limit() -> None:
    scene = Scene("a", timeout_s=60)
    # No command leads there.
    scene.mob.definition = Definition("mob")
    scene.attach(serves=[named("a")])
    assert [one.profile for one in scene.sent(SendAssign)] == [Profile("analyst")]
    scene.confirm("a")
    scene.put("a", "i1")
    assert scene.event(e.RunStarted).deadline == 0


def test_what_one_decision_cannot_start_follows_in_the_next() -> None:
    stage = Stage()
    names = [f"m{n:04}" for n in range(1_901)]
    for part in (names[:1_000], names[1_000:]):
        stage.do(c.SpawnMembers([c.MemberSpec(name, "analyst") for name in part]))
    terms = c.Attach("h", "1", 2_000, 2_000, [role("analyst")])
    agent = stage.attach(capacity=2_000, max_members=2_000)
    while stage.sent(Again):
        stage.do(c.Continue())
    stage.confirm(*names)
    stage.suspend(agent)
    for part in (names[:1_000], names[1_000:]):
        stage.do(c.DeliverBatch([c.Deliver(name, "i1", text("hello")) for name in part]), BatchDelivered)
    assert stage.mob.runs == {}
    stage.do(terms)
    assert [one.member_id for one in stage.all(e.RunStarted)] == names[:1_900]
    assert stage.reactions[-1] == Again()
    stage.connected.add(agent)
    stage.do(c.Continue())
    assert [one.member_id for one in stage.all(e.RunStarted)] == names[1_900:]
    assert stage.sent(Again) == []


# Who is given to an agent.


@pytest.mark.parametrize("phase", get_args(Phase))
@pytest.mark.parametrize("pending", get_args(Pending))
def test_runs_start_while_the_mob_runs_and_nothing_ends_what_waits(phase: Phase, pending: Pending) -> None:
    starts = phase == "running" and pending in ("none", "complete", "retire_all")
    assert dispatches(Mob("mob", phase=phase, pending=pending)) == starts


def test_an_agent_that_serves_by_name_is_given_who_waits_longest_but_not_whom_it_declined() -> None:
    stage = Stage()
    stage.spawn("a", "b", "c")
    for member_id in ("a", "c", "b"):
        stage.accepted(member_id, "i1")
    agent = stage.attach(serves=[named("nobody"), named("a"), named("b"), named("c")], max_members=1)
    assert [one.member_id for one in stage.sent(SendAssign)] == ["a"]
    stage.do(c.Decline(agent, "a", stage.executor("a").fence))
    assert [one.member_id for one in stage.sent(SendAssign)] == ["c"]
    stage.confirm("c")
    stage.finish(stage.run_of("c"))
    assert [one.member_id for one in stage.sent(SendAssign)] == ["b"], "a waits since it was declined"


def test_an_agent_is_given_at_most_500_members_with_work_at_once() -> None:
    stage = Stage()
    names = [f"m{n:03}" for n in range(502)]
    stage.do(c.SpawnMembers([c.MemberSpec(name, "analyst") for name in names]))
    stage.do(c.DeliverBatch([c.Deliver(name, "i1", text("hello")) for name in names]))
    stage.attach(max_members=1_000)
    assert [one.member_id for one in stage.all(e.ExecutorAssigned)] == names[:500]
    assert stage.sent(Again) == [Again()]
    stage.do(c.Continue())
    assert [one.member_id for one in stage.all(e.ExecutorAssigned)] == names[500:]
    assert stage.sent(Again) == []


def test_an_agent_is_given_half_of_what_the_decision_still_has_room_for() -> None:
    stage = Stage()
    stage.do(c.SpawnMembers([c.MemberSpec(f"m{n:03}", "analyst") for n in range(999)]))
    stage.attach(max_members=1_000)
    while stage.sent(Again):
        stage.do(c.Continue())
    stage.attach(max_members=1_000, incarnation="2")
    # 1,900 are appended at most before a decision asks to be gone on with: 1,001 are, for what the old one leaves.
    assert len(stage.all(e.ExecutorLost)) == 999
    assert len(stage.all(e.ExecutorAssigned)) == 449


def test_an_idle_member_of_a_full_agent_that_comes_back_leaves_for_one_with_work() -> None:
    stage = Stage()
    stage.spawn("a", "b")
    agent = stage.agent(max_members=1)
    fence = stage.executor("a").fence
    stage.suspend(agent)
    stage.accepted("b", "i1")
    stage.attach(max_members=1)
    assert stage.events == [
        e.ExecutorReleased("a", agent, fence, "its place is needed for a member with work"),
        e.ExecutorAssigned("b", agent, stage.executor("b").fence),
    ]


def test_a_full_decision_starts_nothing_more_and_asks_to_be_gone_on_with() -> None:
    stage = Stage()
    stage.spawn("a", "b")
    agent = stage.agent()
    stage.suspend(agent)
    stage.accepted("a", "i1")
    stage.accepted("b", "i1")
    d = Draft(stage.mob, c.Context(stage.now, stage.ids, {agent}), _evolve)
    while d.room > 1:
        d.emit(e.RetryDue("a"), "a")
    attachment = stage.attachment(agent)
    dispatch(d, attachment)
    assert [type(one) for one in d.reactions] == [SendStartRun, Again]
    assert (d.room, len(attachment.ready)) == (0, 1)
