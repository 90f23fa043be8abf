"""The functions of the lanes by themselves, on a member that was made by hand: every bound, exactly."""

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec import Raw
from tests.machines.stage import DAY

from mobd_server.machines import lanes
from mobd_server.machines.lanes import BATCH_BYTES, BATCH_INPUTS, Batch
from mobd_server.machines.state import MAX_ATTEMPTS, Input, Lane, Member, Stamp
from mobd_server.machines.undo import Undo

LANES: tuple[Lane, ...] = ("queue", "steer")
STEERING = Stamp("run_checkpoint")


def one(name: str, size: int = 1, lane: Lane = "queue", **options: Any) -> Input:
    if lane == "steer":
        options.setdefault("stamp", STEERING)
    return Input(name, name, name, Raw(b"1"), size, "", 1, 0, lane=lane, **options)


def member(*inputs: Input, **options: Any) -> Member:
    found = Member("m", "analyst", 1, 1, "s", 0, **options)
    for each in inputs:
        lanes.add(touched(found), found, each)
    return found


def touched(what: Member) -> Undo:
    undo = Undo()
    undo.touch(what)
    return undo


def names(inputs: Sequence[Input] | None) -> list[str] | None:
    """Return the names of a lane's inputs; an empty lane is None, and costs nothing."""
    assert inputs is None or len(inputs), "a lane without inputs is none"
    return None if inputs is None else [each.canonical_input_id for each in inputs]


def lying(what: Member) -> tuple[list[str] | None, list[str] | None, int]:
    """Return what lies in the queue and in the steer lane, and the bytes of both."""
    return names(what.queue), names(what.steer), what.queue_bytes


# What makes a member run.


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("state", ["attached", "retired"])
def test_a_member_has_work_if_either_lane_drives_it_or_it_drains(lane: Lane, state: Any) -> None:
    drains = state == "retired"
    assert lanes.has_work(member(one("a", lane=lane), state=state))
    assert lanes.has_work(member(one("a", lane=lane, drives=False), one("b", lane=lane), state=state))
    assert lanes.has_work(member(one("a", lane=lane, drives=False), state=state)) == drains
    assert not lanes.has_work(member(state=state))


def test_the_queue_drives_what_lies_in_the_steer_lane_and_not_the_other_way_round() -> None:
    assert lanes.ready_lane(member(one("a", lane="steer", drives=False), one("b"))) == "steer"
    assert lanes.ready_lane(member(one("a", drives=False), one("b", lane="steer", attempts=1), retry_at=DAY)) is None
    assert lanes.ready_lane(member(one("a"), one("b", lane="steer", attempts=1), retry_at=DAY)) == "queue"
    for at in (1, DAY):
        assert lanes.ready_lane(member(one("a", attempts=1), retry_at=at)) is None
    assert lanes.ready_lane(member(one("a", attempts=1))) == "queue"
    assert lanes.ready_lane(member(one("a", lane="steer", attempts=1))) == "steer"
    assert lanes.ready_lane(member(one("a", attempts=0), retry_at=DAY)) == "queue"


def test_what_waits_is_told_and_counted_steer_lane_first() -> None:
    both = member(one("q1"), one("s1", lane="steer"), one("q2"))
    assert (names(lanes.waiting(both)), lanes.count_waiting(both)) == (["s1", "q1", "q2"], 3)
    assert (lanes.waiting(member()), lanes.count_waiting(member())) == ([], 0)
    assert names(lanes.lane_of(both, "steer")) == ["s1"]
    assert names(lanes.lane_of(both, "queue")) == ["q1", "q2"]


# What a run takes.


@pytest.mark.parametrize("lane", LANES)
def test_a_batch_has_exactly_the_bytes_that_it_may_have_and_no_more(lane: Lane) -> None:
    full = [one("a", BATCH_BYTES - 1, lane), one("b", 1, lane), one("c", 1, lane)]
    assert lanes.choose(member(*full)) == Batch(lane, 2)
    assert lanes.choose(member(one("a", BATCH_BYTES, lane), one("b", 1, lane))) == Batch(lane, 1)
    assert lanes.choose(member(one("a", BATCH_BYTES + 1, lane), one("b", 1, lane))) == Batch(lane, 1)


@pytest.mark.parametrize("lane", LANES)
def test_a_batch_has_exactly_the_inputs_that_it_may_have_and_no_more(lane: Lane) -> None:
    many = [one(str(n), lane=lane) for n in range(BATCH_INPUTS + 1)]
    assert lanes.choose(member(*many)) == Batch(lane, BATCH_INPUTS)
    assert lanes.choose(member(*many[:BATCH_INPUTS])) == Batch(lane, BATCH_INPUTS)


@pytest.mark.parametrize("lane", LANES)
def test_what_failed_goes_alone_and_ends_the_batch_before_it(lane: Lane) -> None:
    assert lanes.choose(member(one("a", lane=lane), one("b", lane=lane, attempts=1))) == Batch(lane, 1)
    failed = one("a", lane=lane, attempts=1)
    assert lanes.choose(member(failed, one("b", lane=lane))) == Batch(lane, 1, exclusive=False)


@pytest.mark.parametrize("losses", [0, 1, 2])
@pytest.mark.parametrize("attempts", range(1, MAX_ATTEMPTS))
def test_only_a_last_attempt_after_an_agent_was_lost_lets_nobody_be_beside_it(attempts: int, losses: int) -> None:
    last = attempts == MAX_ATTEMPTS - 1 and losses > 0
    assert lanes.choose(member(one("a", attempts=attempts, losses=losses))) == Batch("queue", 1, last)


def test_who_drains_runs_everything_so_its_first_input_drives() -> None:
    passive_first = [one("m", drives=False), one("p", kind="prompt")]
    # The prompt drives and takes along what rides before it; where everything drives, the first does, and is no prompt.
    assert lanes.choose(member(*passive_first)) == Batch("queue", 2)
    assert lanes.choose(member(*passive_first, state="retired")) == Batch("queue", 1)


@pytest.mark.parametrize("lane", LANES)
def test_only_the_steer_lane_lets_prompts_share_a_run_and_only_there_the_boundary_parts_inputs(lane: Lane) -> None:
    steers = lane == "steer"
    prompts = [one(name, lane=lane, kind="prompt") for name in "ab"]
    assert lanes.choose(member(*prompts)) == Batch(lane, 2 if steers else 1)
    parted = [one("a", lane=lane, stamp=STEERING), one("b", lane=lane, stamp=Stamp("run_start"))]
    assert lanes.choose(member(*parted)) == Batch(lane, 1 if steers else 2)


def test_a_choice_for_a_member_without_work_is_refused() -> None:
    for idle in (member(), member(one("a", drives=False)), member(one("a", attempts=1), retry_at=DAY)):
        with pytest.raises(ValueError, match="has nothing to run"):
            lanes.choose(idle)


# What a run in flight takes in.


def test_a_run_takes_in_as_many_inputs_and_bytes_as_a_batch_may_have() -> None:
    two = member(one("a", 10, "steer"), one("b", 20, "steer"))
    assert lanes.steerable(two, BATCH_INPUTS - 2, BATCH_BYTES - 30) == 2
    assert lanes.steerable(two, BATCH_INPUTS - 1, 0) == 0
    assert lanes.steerable(two, 0, BATCH_BYTES - 29) == 0


def test_a_run_takes_in_nothing_that_failed_or_wants_a_run_of_its_own_or_drives_nobody() -> None:
    for other in (
        one("b", lane="steer", attempts=1),
        one("b", lane="steer", stamp=Stamp("run_start")),
        one("b", lane="steer", stamp=Stamp("run_checkpoint", "resume_pending")),
    ):
        assert lanes.steerable(member(one("a", lane="steer"), other), 1, 1) == 0
    assert lanes.steerable(member(one("a", lane="steer", drives=False)), 1, 1) == 0
    assert lanes.steerable(member(one("a")), 1, 1) == 0


# Into the lanes and out of them; what is undone leaves no trace.


def test_a_taken_batch_leaves_what_lies_behind_it_and_an_empty_lane_is_none() -> None:
    full = member(one("q1", 1), one("q2", 2), one("s1", 4, "steer"), one("s2", 8, "steer"))
    undo = touched(full)
    assert names(lanes.take(undo, full, "steer", 1)) == ["s1"]
    assert lying(full) == (["q1", "q2"], ["s2"], 11)
    assert names(lanes.take(undo, full, "queue", 2)) == ["q1", "q2"]
    assert lying(full) == (None, ["s2"], 8)
    assert names(lanes.take(undo, full, "steer", 1)) == ["s2"]
    assert lying(full) == (None, None, 0)
    undo.rollback()
    assert lying(full) == (["q1", "q2"], ["s1", "s2"], 15)


@pytest.mark.parametrize("lane", LANES)
def test_more_than_lies_in_a_lane_cannot_be_taken(lane: Lane) -> None:
    other: Lane = "queue" if lane == "steer" else "steer"
    few = member(one("a", lane=lane), one("b", lane=other), one("c", lane=other))
    for what, count in ((few, 2), (member(one("b", lane=other)), 1)):
        before = lying(what)
        with pytest.raises(ValueError, match=f"no {count} inputs in lane {lane}"):
            lanes.take(touched(what), what, lane, count)
        assert lying(what) == before


def test_one_input_is_taken_from_its_place_in_either_lane() -> None:
    full = member(one("q1", 1), one("q2", 2), one("q3", 4), one("s1", 8, "steer"))
    undo = touched(full)
    assert lanes.take_one(undo, full, "q2").canonical_input_id == "q2"
    assert lying(full) == (["q1", "q3"], ["s1"], 13)
    assert lanes.take_one(undo, full, "s1").canonical_input_id == "s1"
    assert lying(full) == (["q1", "q3"], None, 5)
    for name in ("q1", "q3"):
        lanes.take_one(undo, full, name)
    assert lying(full) == (None, None, 0)
    with pytest.raises(ValueError, match="input q1 does not wait"):
        lanes.take_one(undo, full, "q1")
    undo.rollback()
    assert lying(full) == (["q1", "q2", "q3"], ["s1"], 15)


@pytest.mark.parametrize("at_end", [False, True])
def test_what_a_run_held_goes_back_into_its_lanes_before_or_behind_what_waits(at_end: bool) -> None:
    back = [one("q1", 1), one("s1", 2, "steer"), one("q2", 4), one("s2", 8, "steer")]
    full = member(one("q3", 16), one("s3", 32, "steer"))
    undo = touched(full)
    lanes.put_back(undo, full, back, at_end=at_end)
    lanes_after = (["q3", "q1", "q2"], ["s3", "s1", "s2"]) if at_end else (["q1", "q2", "q3"], ["s1", "s2", "s3"])
    assert lying(full) == (*lanes_after, 63)
    undo.rollback()
    assert lying(full) == (["q3"], ["s3"], 48)
    # The other lane may be empty, and what waits in this one stays.
    half = member(one("q3", 16))
    lanes.put_back(touched(half), half, [back[1]], at_end=at_end)
    assert lying(half) == (["q3"], ["s1"], 18)
    half = member(one("s3", 16, "steer"))
    lanes.put_back(touched(half), half, [back[1]], at_end=at_end)
    assert lying(half) == (None, ["s3", "s1"] if at_end else ["s1", "s3"], 18)
    for lane in LANES:
        empty = member()
        lanes.put_back(touched(empty), empty, [each for each in back if each.lane == lane], at_end=at_end)
        assert lying(empty) == ((["q1", "q2"], None, 5) if lane == "queue" else (None, ["s1", "s2"], 10))
