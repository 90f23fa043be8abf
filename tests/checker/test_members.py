"""The sequential model of one member, and what concurrent callers may be told of it."""

from typing import Any

import pytest
from tests.checker.history import Answered, Invoked, Plain, Refused, Unknown
from tests.checker.members import linearizable
from tests.checker.seen import Call, MobSeen

MOB = "crew"
ADA: Plain = {"member_id": "ada"}


class Told:
    """A history of calls about one member, in the order of the clock."""

    def __init__(self) -> None:
        self.seen = MobSeen(MOB)

    def call(self, begin: int, end: int | None, rpc: str, request: Plain, answer: Plain | str | None = None) -> "Told":
        """Add a call: answered, refused with a reason (a text), or of unknown outcome."""
        name = f"c{len(self.seen.calls)}"
        call = Call(Invoked(begin, name, name, rpc, MOB, {**ADA, **request}))
        if isinstance(answer, dict):
            call.answers.append(Answered(end or 0, name, name, answer))
        elif answer is not None:
            call.refused = Refused(end or 0, name, name, "FAILED_PRECONDITION", answer)
        elif end is not None:
            call.unknown = Unknown(end, name, name, "UNAVAILABLE")
        self.seen.calls.append(call)
        return self

    def spawn(self, begin: int, end: int | None, generation: int = 0, token: int = 1) -> "Told":
        member = {"member": {"generation": generation, "fence_token": token}}
        return self.call(begin, end, "SpawnMember", {"spec": ADA}, member if end is not None else None)

    def deliver(self, begin: int, end: int | None, input_id: str, outcome: str = "", **more: Any) -> "Told":
        answers: dict[str, Plain] = {
            "accepted": {"accepted": {"canonical_input_id": f"in-{input_id}"}},
            "deduplicated": {"deduplicated": {"canonical_input_id": f"in-{input_id}"}},
            "not_ready": {"rejected": {"cause": "REJECT_CAUSE_NOT_READY"}},
            "stale": {"rejected": {"cause": "REJECT_CAUSE_STALE_FENCE"}},
            "conflict": {"rejected": {"cause": "REJECT_CAUSE_CONTENT_CONFLICT"}},
        }
        return self.call(begin, end, "Deliver", {"input_id": input_id, **more}, answers.get(outcome))

    @property
    def agrees(self) -> bool:
        return not list(linearizable(self.seen))


def spawned() -> Told:
    return Told().spawn(1, 2)


def test_what_is_asked_after_a_retirement_was_answered_is_not_accepted() -> None:
    retired = spawned().call(3, 4, "Retire", {}, {"inputs_abandoned": 0})
    assert not retired.deliver(5, 6, "i1", "accepted").agrees
    assert spawned().call(3, 6, "Retire", {}, {}).deliver(4, 5, "i1", "accepted").agrees
    assert spawned().call(3, 4, "Retire", {}, {}).deliver(5, 6, "i1", "not_ready").agrees


def test_one_of_two_retirements_at_a_time_is_the_first() -> None:
    first: Plain = {}
    second: Plain = {"already": True}
    assert spawned().call(3, 6, "Retire", {}, first).call(4, 5, "Retire", {}, second).agrees
    assert not spawned().call(3, 6, "Retire", {}, first).call(4, 5, "Retire", {}, first).agrees


def test_an_input_of_unknown_outcome_may_be_known_and_never_be_unknown_again() -> None:
    lost = spawned().deliver(3, 4, "i1")
    assert lost.deliver(5, 6, "i1", "accepted").agrees
    assert spawned().deliver(3, 4, "i1").deliver(5, 6, "i1", "deduplicated").agrees
    assert not spawned().deliver(5, 6, "i1", "deduplicated").agrees
    assert not spawned().deliver(3, 4, "i1").deliver(5, 6, "i1", "deduplicated").deliver(7, 8, "i1", "accepted").agrees


def test_other_content_under_a_known_id_conflicts() -> None:
    one, two = {"blocks": [{"text": "one"}]}, {"blocks": [{"text": "two"}]}
    known = spawned().deliver(3, 4, "i1", "accepted", content=one)
    assert known.deliver(5, 6, "i1", "conflict", content=two).agrees
    assert not known.deliver(7, 8, "i1", "accepted", content=two).agrees


@pytest.mark.parametrize(
    ("fence", "outcome", "agrees"),
    [
        ({"generation": 0}, "accepted", True),
        ({"generation": 0}, "stale", False),
        ({"generation": 1}, "accepted", False),
        ({"fence_token": 9}, "stale", True),
    ],
)
def test_a_fence_is_judged_by_the_incarnation_in_force(fence: Plain, outcome: str, agrees: bool) -> None:
    assert spawned().deliver(3, 4, "i1", outcome, fence=fence).agrees is agrees


def test_a_respawn_of_unknown_outcome_may_or_may_not_have_made_a_fence_stale() -> None:
    for outcome in ("accepted", "stale"):
        lost = spawned().call(3, None, "RespawnMember", {})
        assert lost.deliver(4, 5, "i1", outcome, fence={"generation": 0}).agrees
    told = {"previous": {"generation": 0, "fence_token": 1}, "member": {"generation": 1, "fence_token": 2}}
    known = spawned().call(3, 4, "RespawnMember", {}, told)
    assert not known.deliver(5, 6, "i1", "accepted", fence={"generation": 0}).agrees


def test_a_batch_of_unknown_outcome_may_have_been_accepted_in_part() -> None:
    told = Told().spawn(1, None)
    batch = {"deliveries": [{**ADA, "input_id": "i1", "fence": {"generation": 3}}, {**ADA, "input_id": "i2"}]}
    told.call(3, 4, "DeliverBatch", batch)
    told.deliver(5, 6, "i2", "deduplicated").deliver(7, 8, "i1", "stale", fence={"generation": 3})
    assert told.agrees


def test_a_member_that_leaves_may_have_gone_at_any_moment_and_not_before() -> None:
    leaving = spawned().call(3, 4, "RetireMember", {}, {})
    assert leaving.call(5, 6, "Observe", {}, "MEMBER_NOT_FOUND").spawn(7, 8, 1, 2).agrees
    assert not spawned().call(5, 6, "Observe", {}, "MEMBER_NOT_FOUND").agrees
    assert not spawned().spawn(3, 4, 1, 2).agrees


def test_a_search_that_is_given_up_is_no_proof() -> None:
    # Many calls that may have happened and change everything, and one answer that no order of them explains.
    told = spawned()
    for at in range(16):
        told.call(3, None, "RespawnMember", {})
        told.deliver(3, None, f"i{at}", fence={"generation": at})
    told.deliver(4, 5, "unheard", "deduplicated")
    assert [one.check for one in linearizable(told.seen)] == ["undecided"]
