"""Delivering: what is known already, the order of the checks, limits, what is forgotten, and batches."""

import msgspec
import pytest
from msgspec import Raw
from tests.machines.stage import DAY, NOW, SECOND, Stage, state_bytes, text

from mobd_server.errors import InvalidTransition, MemberNotFound
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import Accepted, BatchDelivered, Deduplicated, Rejected, UnknownMember
from mobd_server.machines.inbox import input_key
from mobd_server.machines.keys import count_ended


def uuid7(at: int) -> str:
    """Return an id minted at `at` (µs)."""
    millis = f"{at // 1_000:012x}"
    return f"{millis[:8]}-{millis[8:]}-7000-8000-000000000000"


def one_member() -> Stage:
    stage = Stage()
    stage.spawn("a")
    return stage


def served() -> Stage:
    """Return a mob whose member runs what it gets at once."""
    stage = one_member()
    stage.agent()
    return stage


def run_all(stage: Stage, member_id: str = "a") -> None:
    while stage.member(member_id).run_id is not None:
        stage.finish(stage.run_of(member_id))


def end_many(stage: Stage, count: int, prefix: str = "i") -> None:
    """Deliver and end `count` inputs, in order, within the limits of the inbox."""
    for start in range(0, count, 256):
        ids = range(start, min(count, start + 256))
        stage.do(c.DeliverBatch([c.Deliver("a", f"{prefix}{n}", text("x")) for n in ids]))
        run_all(stage)


# What is known already.


def test_an_accepted_input_is_answered_with_its_canonical_id_and_place() -> None:
    stage = served()
    accepted = stage.do(c.Deliver("a", "i1", text("hello")), Accepted)
    assert accepted.input_id == "i1"
    assert accepted.canonical_input_id == stage.event(e.InputAccepted).canonical_input_id
    assert accepted.attachment_id == stage.agent_of("a")
    assert stage.log[accepted.seq - 1].event == stage.event(e.InputAccepted)


def test_a_repeated_delivery_changes_nothing_and_names_the_first() -> None:
    stage = one_member()
    first = stage.do(c.Deliver("a", "i1", text("hello")), Accepted)
    before = state_bytes(stage.mob)
    again = stage.do(c.Deliver("a", "i1", text("hello")), Deduplicated)
    assert (again.canonical_input_id, again.terminal) == (first.canonical_input_id, False)
    assert stage.append is None
    assert state_bytes(stage.mob) == before


def test_a_repeated_delivery_knows_that_the_first_has_ended() -> None:
    stage = served()
    stage.accepted("a", "i1")
    assert stage.do(c.Deliver("a", "i1", text("hello")), Deduplicated).terminal is False
    run_all(stage)
    assert stage.do(c.Deliver("a", "i1", text("hello")), Deduplicated).terminal is True


def test_an_abandoned_input_is_ended_and_not_run_again() -> None:
    stage = served()
    stage.accepted("a", "i1")
    stage.fail(stage.run_of("a"), retryable=False)
    assert stage.do(c.Deliver("a", "i1", text("hello")), Deduplicated).terminal is True
    assert stage.member("a").run_id is None


def test_the_same_id_with_other_content_is_a_conflict() -> None:
    stage = one_member()
    first = stage.do(c.Deliver("a", "i1", text("hello")), Accepted)
    refused = stage.do(c.Deliver("a", "i1", text("other")), Rejected)
    assert (refused.cause, refused.canonical_input_id) == ("content_conflict", first.canonical_input_id)
    assert "new input_id" in refused.reason
    assert stage.append is None


def test_the_same_id_for_another_member_is_another_input() -> None:
    stage = one_member()
    stage.spawn("b")
    first = stage.do(c.Deliver("a", "i1", text("hello")), Accepted)
    assert stage.do(c.Deliver("b", "i1", text("other")), Accepted).canonical_input_id != first.canonical_input_id


@pytest.mark.parametrize("end", [c.StopMob(), c.DestroyMob()], ids=["stop", "destroy"])
def test_what_is_known_is_known_over_a_stop_and_a_destruction(end: c.Command) -> None:
    stage = one_member()
    stage.accepted("a", "i1")
    stage.do(end)
    assert isinstance(stage.do(c.Deliver("a", "i1", text("hello"))), Deduplicated)
    assert stage.do(c.Deliver("a", "i1", text("other")), Rejected).cause == "content_conflict"
    with pytest.raises(InvalidTransition):
        stage.do(c.Deliver("a", "i2", text("hello")))


def test_what_is_known_is_answered_whatever_fence_the_caller_has() -> None:
    stage = one_member()
    stage.accepted("a", "i1")
    assert isinstance(stage.do(c.Deliver("a", "i1", text("hello"), fence_token=99)), Deduplicated)


# The order of the checks.


def test_the_phase_comes_before_the_member() -> None:
    stage = one_member()
    stage.do(c.StopMob())
    with pytest.raises(InvalidTransition):
        stage.do(c.Deliver("nobody", "i1", text("hello")))


def test_an_unknown_member_is_not_found() -> None:
    with pytest.raises(MemberNotFound) as missing:
        one_member().do(c.Deliver("nobody", "i1", text("hello")))
    assert missing.value.details == {"mob_id": "mob", "member_id": "nobody"}


def test_the_members_phase_comes_before_the_fence() -> None:
    stage = one_member()
    # No command of this release leads there while the mob runs.
    stage.member("a").state = "retired"
    refused = stage.do(c.Deliver("a", "i1", text("hello"), fence_token=99), Rejected)
    assert (refused.cause, refused.state) == ("not_ready", "retired")


@pytest.mark.parametrize(
    ("generation", "fence", "stale"),
    [
        (None, None, False),
        (0, None, False),
        (None, 1, False),
        (0, 1, False),
        (1, None, True),
        (None, 0, True),
        (None, 2, True),
        (0, 2, True),
        (1, 1, True),
    ],
)
def test_a_stale_generation_or_fence_is_told_the_current_ones(
    generation: int | None, fence: int | None, stale: bool
) -> None:
    stage = one_member()
    answer = stage.do(c.Deliver("a", "i1", text("hello"), generation, fence))
    if not stale:
        assert isinstance(answer, Accepted)
        return
    assert isinstance(answer, Rejected)
    assert (answer.cause, answer.generation, answer.fence_token) == ("stale_fence", 0, 1)
    assert stage.append is None


def test_the_fence_comes_before_what_was_forgotten_and_the_queue() -> None:
    stage = one_member()
    stage.member("a").forgotten_at = stage.now
    old = uuid7(stage.now - SECOND)
    for n in range(1_000):
        stage.accepted("a", f"i{n}")
    assert stage.do(c.Deliver("a", old, text("x"), fence_token=9), Rejected).cause == "stale_fence"
    assert stage.do(c.Deliver("a", old, text("x")), Rejected).cause == "input_forgotten"
    assert stage.do(c.Deliver("a", "i1000", text("x")), Rejected).cause == "queue_full"


# Limits.


def test_a_thousand_inputs_may_wait_and_no_more() -> None:
    stage = one_member()
    for n in range(1_000):
        stage.accepted("a", f"i{n}")
    refused = stage.do(c.Deliver("a", "one more", text("hello")), Rejected)
    assert (refused.cause, refused.retry_after_ms) == ("queue_full", 1_000)
    assert stage.append is None
    stage.agent()
    assert isinstance(stage.deliver("a", "one more"), Accepted)


def test_four_mebibytes_may_wait_and_no_more() -> None:
    stage = one_member()
    half = Raw(b'"' + b"x" * ((2 << 20) - 2) + b'"')
    assert isinstance(stage.do(c.Deliver("a", "i1", half)), Accepted)
    assert isinstance(stage.do(c.Deliver("a", "i2", half)), Accepted)
    assert stage.member("a").queue_bytes == 4 << 20
    assert stage.do(c.Deliver("a", "i3", Raw(b"1")), Rejected).cause == "queue_full"


# What is forgotten.


def test_an_ended_input_is_remembered_for_a_day() -> None:
    stage = served()
    stage.accepted("a", "i1")
    run_all(stage)
    stage.now += DAY
    stage.accepted("a", "i2")
    assert stage.event(e.InputAccepted).forgets is None
    assert isinstance(stage.deliver("a", "i1"), Deduplicated)


def test_after_a_day_the_next_input_names_what_it_pushes_out() -> None:
    stage = served()
    stage.accepted("a", "i1")
    run_all(stage)
    stage.now += DAY + 1
    stage.accepted("a", "i2")
    assert stage.event(e.InputAccepted).forgets == [input_key("i1")]
    assert isinstance(stage.deliver("a", "i1"), Accepted)


def test_the_day_begins_at_the_end_of_an_input() -> None:
    stage = one_member()
    stage.accepted("a", "i1")
    stage.now += 2 * DAY
    stage.accepted("a", "i2")
    assert stage.event(e.InputAccepted).forgets is None
    stage.agent()
    run_all(stage)
    stage.now += DAY
    stage.accepted("a", "i3")
    assert stage.event(e.InputAccepted).forgets is None


def test_a_live_input_is_never_forgotten() -> None:
    stage = one_member()
    stage.accepted("a", "i1")
    stage.now += 30 * DAY
    stage.accepted("a", "i2")
    assert isinstance(stage.deliver("a", "i1"), Deduplicated)


def test_the_newest_4096_ended_inputs_are_remembered() -> None:
    stage = served()
    end_many(stage, 4_096)
    assert all(event.forgets is None for event in stage.logged(e.InputAccepted))
    stage.accepted("a", "first beyond")
    assert stage.event(e.InputAccepted).forgets is None
    run_all(stage)
    stage.accepted("a", "second beyond")
    assert stage.event(e.InputAccepted).forgets == [input_key("i0")]
    assert isinstance(stage.deliver("a", "i1", words="x"), Deduplicated)
    assert count_ended(stage.member("a")) == 4_096
    assert state_bytes(stage.replayed()) == state_bytes(stage.mob)


def test_one_input_pushes_out_at_most_64() -> None:
    stage = served()
    end_many(stage, 100)
    stage.now += DAY + 1
    stage.accepted("a", "next")
    assert stage.event(e.InputAccepted).forgets == [input_key(f"i{n}") for n in range(64)]
    stage.accepted("a", "and next")
    assert stage.event(e.InputAccepted).forgets == [input_key(f"i{n}") for n in range(64, 100)]


@pytest.mark.parametrize(
    ("minted", "forgotten"),
    [
        (NOW - SECOND, True),
        (NOW, True),
        # Accepted 700 µs into its millisecond: an id of the same millisecond is not younger.
        (NOW + 999, True),
        (NOW + 1_000, False),
        (NOW + DAY, False),
    ],
)
def test_an_id_that_is_older_than_what_is_remembered_never_runs(minted: int, forgotten: bool) -> None:
    stage = served()
    stage.now = NOW + 700
    stage.accepted("a", "i1")
    run_all(stage)
    stage.now += DAY + 1
    stage.accepted("a", "i2")
    answer = stage.do(c.Deliver("a", uuid7(minted), text("hello")))
    if forgotten:
        assert isinstance(answer, Rejected)
        assert answer.cause == "input_forgotten"
        assert stage.append is None
    else:
        assert isinstance(answer, Accepted)


def test_an_id_without_a_time_is_never_too_old() -> None:
    stage = served()
    stage.member("a").forgotten_at = NOW + 30 * DAY
    for name in ("i1", "7" * 36, "00000000-0000-4000-8000-000000000000", "zzzzzzzz-zzzz-7000-8000-000000000000"):
        assert isinstance(stage.deliver("a", name), Accepted)


# Batches of deliveries.


def test_a_batch_is_one_decision_with_an_outcome_for_each() -> None:
    stage = one_member()
    stage.accepted("a", "i1")
    wanted = [
        c.Deliver("a", "i1", text("hello")),
        c.Deliver("a", "i2", text("hello")),
        c.Deliver("nobody", "i2", text("hello")),
        c.Deliver("a", "i2", text("hello")),
        c.Deliver("a", "i2", text("other")),
        c.Deliver("a", "i3", text("hello"), fence_token=7),
        c.Deliver("a", "i4", text("hello")),
    ]
    answer = stage.do(c.DeliverBatch(wanted), BatchDelivered)
    outcomes = [msgspec.to_builtins(one) for one in answer.outcomes]
    assert [(one["type"], one.get("cause")) for one in outcomes] == [
        ("deduplicated", None),
        ("accepted", None),
        ("unknown_member", None),
        ("deduplicated", None),
        ("rejected", "content_conflict"),
        ("rejected", "stale_fence"),
        ("accepted", None),
    ]
    assert stage.waits("a") == ["i1", "i2", "i4"]
    assert stage.kinds == ["input_accepted", "input_accepted"]


def test_a_batch_of_known_inputs_is_answered_in_a_stopped_mob_and_a_new_one_refuses_it_whole() -> None:
    stage = one_member()
    stage.accepted("a", "i1")
    stage.do(c.StopMob())
    known = c.Deliver("a", "i1", text("hello"))
    assert isinstance(stage.do(c.DeliverBatch([known]), BatchDelivered).outcomes[0], Deduplicated)
    with pytest.raises(InvalidTransition):
        stage.do(c.DeliverBatch([known, c.Deliver("a", "i2", text("hello"))]))


def test_an_unknown_member_fails_alone_in_a_batch() -> None:
    answer = one_member().do(c.DeliverBatch([c.Deliver("nobody", "i1", text("x"))]), BatchDelivered)
    assert answer.outcomes == [UnknownMember("nobody")]


# What one run takes.


def test_what_waits_runs_together_in_the_order_of_its_acceptance() -> None:
    stage = one_member()
    stage.accepted("a", "i1", "i2", "i3")
    stage.agent()
    assert stage.batch("a") == ["i1", "i2", "i3"]
    assert stage.event(e.RunStarted).attempts == [1, 1, 1]


def test_what_comes_during_a_run_runs_after_it() -> None:
    stage = served()
    stage.accepted("a", "i1", "i2", "i3")
    assert stage.batch("a") == ["i1"]
    stage.finish(stage.run_of("a"))
    assert stage.batch("a") == ["i2", "i3"]


def test_a_run_takes_at_most_64_inputs() -> None:
    stage = one_member()
    stage.accepted("a", *(f"i{n}" for n in range(65)))
    stage.agent()
    assert stage.batch("a") == [f"i{n}" for n in range(64)]
    assert stage.waits("a") == ["i64"]


def test_a_run_takes_at_most_a_mebibyte_but_always_one_input() -> None:
    stage = one_member()
    sizes = {"i1": 600_000, "i2": 448_576, "i3": 1, "i4": 2_000_000, "i5": 1}
    for name, size in sizes.items():
        content = Raw(b"1" * size)
        assert isinstance(stage.do(c.Deliver("a", name, content)), Accepted)
    stage.agent()
    batches = []
    while stage.member("a").run_id is not None:
        batches.append(stage.batch("a"))
        stage.finish(stage.run_of("a"))
    assert batches == [["i1", "i2"], ["i3"], ["i4"], ["i5"]]


def test_a_run_ends_before_an_input_with_a_failed_attempt() -> None:
    stage = served()
    stage.accepted("a", "i1", "i2")
    stage.fail(stage.run_of("a"))
    assert stage.batch("a") == ["i2"]
    stage.accepted("a", "i3")
    stage.give_back(stage.run_of("a"))
    assert stage.batch("a") == ["i2"]
    assert stage.waits("a") == ["i1", "i3"]
