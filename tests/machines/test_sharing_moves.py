"""Moves between agents, in whole: what goes where, what goes away for it, and who comes into the place that is left."""

import pytest
from tests.machines.scene import Scene
from tests.machines.stage import Stage, named, role, text

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import Again, Reaction, SendAssign, SendUnassign

MOVED = "another agent is free"
ROOM = "its place is needed for a member with work"


def busy(*members: str, capacity: int = 1) -> tuple[Stage, str]:
    """Return a mob whose one agent has every member and runs the first ones."""
    stage = Stage()
    stage.spawn(*members)
    first = stage.agent("first", capacity=capacity)
    for member_id in members[:capacity]:
        stage.accepted(member_id, "i1")
    return stage, first


def on_its_last_attempt(stage: Stage, member_id: str) -> None:
    """Lose the member's run twice: it runs once more, and alone."""
    for _ in range(2):
        stage.lose(stage.run_of(member_id))


def told(stage: Stage) -> list[Reaction]:
    """Return who is told to serve whom, and to serve whom no longer."""
    return [one for one in stage.reactions if isinstance(one, SendAssign | SendUnassign)]


def test_a_move_is_told_to_both_agents() -> None:
    stage, first = busy("a", "b")
    second = stage.agent("second", capacity=1)
    fence = stage.executor("b").fence
    stage.accepted("b", "i1")
    assert stage.events[1:] == [
        e.ExecutorReleased("b", first, fence, MOVED),
        e.ExecutorAssigned("b", second, stage.executor("b").fence),
    ]
    unassign, assign = told(stage)
    assert unassign == SendUnassign(first, "b", fence, MOVED)
    assert isinstance(assign, SendAssign)
    assert (assign.attachment_id, assign.member_id, assign.fence) == (second, "b", stage.executor("b").fence)
    assert assign.confirmed is False


# Room where it goes.


def test_who_moves_to_a_full_agent_takes_the_place_of_the_one_that_was_idle_longest() -> None:
    stage = Stage()
    stage.spawn("a", "b")
    first = stage.agent("first", capacity=1)
    second = stage.attach("second", capacity=1, max_members=2)
    stage.spawn("x", "y")
    stage.confirm("x", "y")
    assert sorted(stage.attachment(second).members) == ["x", "y"]
    stage.accepted("x", "i1")
    stage.finish(stage.run_of("x"))
    stage.accepted("a", "i1")
    fences = {m: stage.executor(m).fence for m in ("b", "y")}
    stage.accepted("b", "i1")
    assert stage.events[1:] == [
        e.ExecutorReleased("y", second, fences["y"], ROOM),
        e.ExecutorReleased("b", first, fences["b"], MOVED),
        e.ExecutorAssigned("b", second, stage.executor("b").fence),
    ]
    assert told(stage)[:2] == [
        SendUnassign(second, "y", fences["y"], ROOM),
        SendUnassign(first, "b", fences["b"], MOVED),
    ]


def test_nobody_moves_to_a_full_agent_where_all_are_busy() -> None:
    stage, first = busy("a", "b")
    stage.agent("second", capacity=2, max_members=1, serves=[named("x"), named("b")])
    stage.spawn("x", of="lead")
    stage.confirm("x")
    stage.accepted("x", "i1")
    stage.accepted("b", "i1")
    assert stage.kinds == ["input_accepted"]
    assert stage.agent_of("b") == first


# The place that is left.


def test_the_place_of_who_moved_goes_to_the_member_that_waits_for_it() -> None:
    stage = Stage()
    stage.spawn("a", "b")
    first = stage.agent("first", capacity=1, max_members=2)
    stage.accepted("a", "i1")
    stage.accepted("b", "i1")
    stage.spawn("c")
    stage.accepted("c", "i1")
    assert (stage.agent_of("b"), stage.agent_of("c")) == (first, None)
    free = stage.attach("free", capacity=1, serves=[named("b")])
    assert stage.kinds == ["attachment_opened", "executor_released", "executor_assigned", "executor_assigned"]
    assert (stage.agent_of("b"), stage.agent_of("c")) == (free, first)


# Who must be alone.


def test_who_must_be_alone_moves_only_to_an_agent_without_runs() -> None:
    stage, first = busy("a", "b", capacity=2)
    second = stage.agent("second", capacity=3, serves=[named("x"), named("y"), named("b")])
    stage.spawn("x", "y", of="lead")
    for member_id in ("x", "y"):
        stage.confirm(member_id)
        stage.accepted(member_id, "i1")
    on_its_last_attempt(stage, "b")
    assert stage.member("b").run_id is None, "a runs there"
    stage.finish(stage.run_of("x"))
    assert stage.agent_of("b") == first, "y still runs on the other agent"
    stage.finish(stage.run_of("y"))
    assert stage.agent_of("b") == second


def test_who_need_not_be_alone_moves_beside_others() -> None:
    stage, first = busy("a", "b")
    second = stage.agent("second", capacity=2, serves=[named("x"), named("b")])
    stage.spawn("x", of="lead")
    stage.confirm("x")
    stage.accepted("x", "i1")
    stage.accepted("b", "i1")
    assert stage.agent_of("b") == second
    assert stage.agent_of("a") == first


def test_those_behind_who_must_be_alone_run_when_it_moves_away() -> None:
    scene = Scene("a", "b", "c")
    scene.serve("first", capacity=2)
    scene.put("a", "i1")
    scene.put("b", "i1")
    on_its_last_attempt(scene, "b")
    scene.put("c", "i1")
    assert scene.member("c").run_id is None, "its turn comes after b's"
    scene.join("second")
    assert scene.kinds == ["attachment_opened", "executor_released", "executor_assigned", "run_started"]
    assert scene.batch("c") == ["i1"]


# To whom.


def test_who_moves_goes_to_the_agent_with_the_fewest_runs_then_members_then_to_the_oldest() -> None:
    stage, _ = busy("a", "b")
    for name, members in (("busy", "xy"), ("old", "pq"), ("young", "uv"), ("crowd", "klm")):
        stage.agent(name, capacity=2, serves=[*map(named, members), named("b")])
        stage.spawn(*members, of="lead")
        stage.confirm(*members)
    # It has as many members as the others, and a run.
    stage.accepted("x", "i1")
    stage.accepted("b", "i1")
    assert stage.attachment(stage.agent_of("b") or "").host_id == "old"


# Who comes into the place of a member that has nothing left to do.


def test_a_member_with_nothing_left_to_do_leaves_a_full_agent_for_who_waits() -> None:
    stage, agent = Stage(), ""
    stage.spawn("a", "b")
    agent = stage.agent(max_members=1)
    stage.accepted("a", "i1")
    stage.accepted("b", "i1")
    fence = stage.executor("a").fence
    stage.finish(stage.run_of("a"))
    assert stage.events[1:] == [
        e.ExecutorReleased("a", agent, fence, ROOM),
        e.ExecutorAssigned("b", agent, stage.executor("b").fence),
    ]
    assert told(stage)[0] == SendUnassign(agent, "a", fence, ROOM)


def test_an_agent_that_is_away_gets_nobody_when_its_run_ends() -> None:
    stage = Stage()
    stage.spawn("a", "b")
    agent = stage.agent(max_members=1)
    stage.accepted("a", "i1")
    stage.accepted("b", "i1")
    stage.suspend(agent)
    stage.finish(stage.run_of("a"))
    assert stage.kinds == ["run_settled"]
    assert (stage.agent_of("a"), stage.agent_of("b")) == (agent, None)


def test_an_agent_that_takes_who_waits_takes_nobody_from_another_besides() -> None:
    stage = Stage()
    stage.spawn("a", "b")
    first = stage.agent("first", capacity=1, max_members=2)
    second = stage.agent("second", capacity=1)
    stage.spawn("x", "w")
    stage.confirm("x")
    for member_id in ("a", "x", "w", "b"):
        stage.accepted(member_id, "i1")
    stage.do(c.Decline(second, "w", stage.executor("w").fence))
    assert (stage.agent_of("b"), stage.agent_of("w")) == (first, None)
    stage.finish(stage.run_of("x"))
    assert stage.kinds == ["run_settled", "executor_assigned"]
    assert (stage.agent_of("b"), stage.agent_of("w")) == (first, second)


def test_an_agent_whose_member_goes_on_takes_another_that_it_can_run_beside_it() -> None:
    scene = Scene("a", "b")
    first = scene.serve("first", capacity=1)
    second = scene.join("second", capacity=2)
    scene.spawn("x")
    scene.confirm("x")
    scene.put("a", "i1")
    scene.put("x", "i1", "i2")
    # Nobody moves away from an agent that is not there; when it is, it has taken up its run.
    scene.suspend(first)
    scene.put("b", "i1")
    scene.join("first", capacity=1, held=[scene.run_of("a").run_id])
    assert scene.agent_of("b") == first
    scene.settle(scene.run_of("x"))
    assert scene.kinds == ["run_settled", "run_started", "executor_released", "executor_assigned"]
    assert (scene.batch("x"), scene.agent_of("b")) == (["i2"], second)


# From whom.


def test_an_agent_that_comes_takes_who_waits_longest_wherever_that_is() -> None:
    stage = Stage()
    agents = [stage.agent(host, capacity=1, serves=[named(m) for m in ms]) for host, ms in (("h1", "ab"), ("h2", "cd"))]
    stage.spawn("a", "b", "c", "d")
    assert [stage.agent_of(m) for m in ("a", "b", "c", "d")] == [agents[0], agents[0], agents[1], agents[1]]
    stage.confirm("a", "b", "c", "d")
    for member_id in ("a", "c", "d", "b"):
        stage.accepted(member_id, "i1")
    stage.attach("late", capacity=1, serves=[named("b"), named("d")])
    assert [one.member_id for one in stage.all(e.ExecutorReleased)] == ["d"]


def test_nobody_is_taken_from_an_agent_that_is_away() -> None:
    stage = Stage()
    stage.spawn("a", "b")
    away = stage.agent("away", capacity=1)
    busy_one = stage.agent("busy", capacity=1, serves=[named("c"), named("d")])
    stage.spawn("c", "d")
    stage.confirm("c", "d")
    for member_id in ("a", "b", "c", "d"):
        stage.accepted(member_id, "i1")
    assert (stage.agent_of("b"), stage.agent_of("d")) == (away, busy_one)
    stage.suspend(away)
    late = stage.agent("late", capacity=2, serves=[role("analyst"), named("d")])
    assert (stage.agent_of("b"), stage.agent_of("d")) == (away, late)


def test_an_agent_that_comes_back_takes_as_many_as_it_can_run_beside_what_it_runs() -> None:
    scene = Scene("a", "b", "c", "d")
    first = scene.serve("first", capacity=1)
    second = scene.join("second", capacity=2)
    scene.spawn("x")
    scene.confirm("x")
    scene.put("x", "i1")
    scene.suspend(second)
    for member_id in ("a", "b", "c", "d"):
        scene.put(member_id, "i1")
    scene.join("second", capacity=2, held=[scene.run_of("x").run_id])
    assert [scene.agent_of(m) for m in ("a", "b", "c", "d")] == [first, second, first, first]


def test_who_has_no_work_left_at_the_end_of_a_batch_is_not_given_an_agent() -> None:
    stage = Stage()
    free = stage.attach("free")
    stage.suspend(free)
    stage.spawn("a")
    stage.connected.add(free)
    work = c.Deliver("a", "i1", text("hello"), supersession_key="k")
    rest = c.Deliver("a", "i2", text("never mind"), supersession_key="k", wake=False)
    stage.do(c.DeliverBatch([work, rest]))
    assert stage.kinds == ["input_accepted", "input_superseded", "input_accepted"]
    assert stage.agent_of("a") is None


# Many at once.


@pytest.mark.parametrize("more", [0, 1])
def test_what_one_decision_cannot_move_follows_in_the_next(more: int) -> None:
    stage = Stage()
    names = [f"m{n:03}" for n in range(1_000)]
    stage.do(c.SpawnMembers([c.MemberSpec(name, "analyst") for name in names]))
    first = stage.attach("first", capacity=1, max_members=1_000)
    while stage.sent(Again):
        stage.do(c.Continue())
    stage.confirm(*names)
    stage.do(c.DeliverBatch([c.Deliver(name, "i1", text("hello")) for name in names]))
    # Without work, and first of all given to the agent that comes.
    stage.spawn(*["idle"] * more)
    second = stage.attach("second", capacity=1_000, max_members=1_001)
    moved = 950 - more
    assert len(stage.all(e.ExecutorReleased)) == moved
    assert stage.reactions[-1] == Again()
    stage.do(c.Continue())
    assert len(stage.all(e.ExecutorReleased)) == 999 - moved
    assert stage.sent(Again) == []
    assert sorted(stage.attachment(first).members) == names[:1]
    assert len(stage.attachment(second).members) == 999 + more
