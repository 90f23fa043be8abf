"""Agents share work: nobody waits for a busy agent while another is free, and nobody moves for nothing."""

from tests.machines.stage import Stage, named

from mobd_server.machines import commands as c
from mobd_server.machines.answers import AttachRefused
from mobd_server.machines.state import Serve


def with_members(*members: str) -> Stage:
    stage = Stage()
    stage.spawn(*members)
    return stage


def busy_and_free(*members: str) -> tuple[Stage, str, str]:
    """Two agents of one run each; the first has every member and runs the first one."""
    stage = with_members(*members)
    first = stage.agent("first", capacity=1)
    second = stage.agent("second", capacity=1)
    stage.accepted(members[0], "i1")
    return stage, first, second


def test_a_member_that_would_wait_moves_to_an_agent_that_is_free() -> None:
    stage, first, second = busy_and_free("a", "b")
    stage.accepted("b", "i1")
    assert stage.kinds == ["input_accepted", "executor_released", "executor_assigned"]
    assert (stage.agent_of("a"), stage.agent_of("b")) == (first, second)
    stage.confirm("b")
    assert stage.member("b").run_id is not None


def test_a_member_that_can_run_where_it_is_stays() -> None:
    stage, first, _ = busy_and_free("a", "b")
    stage.finish(stage.run_of("a"))
    stage.accepted("b", "i1")
    assert stage.kinds == ["input_accepted", "run_started"]
    assert stage.agent_of("b") == first


def test_a_member_whose_own_run_is_in_flight_stays() -> None:
    stage, first, _ = busy_and_free("a", "b")
    stage.accepted("a", "i2")
    assert stage.kinds == ["input_accepted"]
    assert stage.agent_of("a") == first


def test_an_agent_that_gets_free_takes_the_member_that_waits_longest_for_another() -> None:
    stage, first, second = busy_and_free("a", "b", "c", "d")
    stage.accepted("b", "i1")
    stage.confirm("b")
    stage.accepted("d", "i1")
    stage.accepted("c", "i1")
    assert (stage.agent_of("c"), stage.agent_of("d")) == (first, first)
    stage.finish(stage.run_of("b"))
    assert (stage.agent_of("c"), stage.agent_of("d")) == (first, second)


def test_an_agent_that_attaches_takes_as_many_as_it_can_run() -> None:
    stage = with_members("a", "b", "c", "d")
    first = stage.agent("first", capacity=1)
    for member in ("a", "b", "c", "d"):
        stage.accepted(member, "i1")
    second = stage.agent("second", capacity=2)
    assert [stage.agent_of(member) for member in ("a", "b", "c", "d")] == [first, second, second, first]


def test_a_member_moves_only_to_an_agent_that_serves_it() -> None:
    stage = with_members("a", "b")
    first = stage.agent("first", capacity=1, serves=[named("a"), named("b")])
    stage.agent("by-role", capacity=1)
    stage.accepted("a", "i1")
    stage.accepted("b", "i1")
    assert stage.agent_of("b") == first, "served by name, it does not go to one that serves its role"


def test_a_member_of_an_agent_that_is_away_waits_for_it() -> None:
    stage, first, _ = busy_and_free("a", "b")
    stage.suspend(first)
    stage.accepted("b", "i1")
    assert stage.agent_of("b") == first


def test_nobody_moves_while_the_mob_does_not_run() -> None:
    stage, first, _ = busy_and_free("a", "b")
    stage.suspend(first)
    stage.accepted("b", "i1")
    stage.do(c.StopMob())
    stage.agent("third", capacity=4)
    stage.connected.add(first)
    assert stage.agent_of("b") == first
    stage.do(c.ResumeMob())
    assert stage.agent_of("b") != first


def test_an_incarnation_whose_place_was_taken_does_not_take_it_back() -> None:
    stage = with_members("a")
    stage.agent("h", incarnation="1")
    second = stage.agent("h", incarnation="2")
    refused = stage.do(c.Attach("h", "1", 8, 100, [Serve(role="analyst")]), AttachRefused)
    assert refused.cause == "superseded"
    assert stage.agent_of("a") == second
    assert stage.replayed().superseded == [("h", "1")]
