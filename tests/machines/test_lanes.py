"""The two lanes of a member: what a run takes, what rides along, and what replaces what (runtime §2.6, §2.10)."""

import pytest
from msgspec import Raw
from tests.machines.scene import SILENT, Scene
from tests.machines.stage import state_bytes, text

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import Accepted, BatchDelivered, Deduplicated, Rejected, SendStartRun
from mobd_server.machines.state import Stamp
from mobd_server.machines.views import view_member, waiting_reason


def waiting(*inputs: tuple[str, str], steers: bool = False) -> Scene:
    """Return a mob in which inputs wait, each with its kind; then an agent comes."""
    scene = Scene("a")
    for input_id, kind in inputs:
        options = {"kind": kind.removesuffix("/steer").removesuffix("/quiet"), "wake": not kind.endswith("/quiet")}
        if kind.endswith("/steer"):
            options["handling_mode"] = "steer"
        scene.put("a", input_id, **options)
    scene.serve(steers=steers)
    return scene


# What one run takes.


def test_a_batch_ends_with_its_prompt() -> None:
    scene = waiting(("m1", "peer_message"), ("p1", "prompt"), ("m2", "peer_message"), ("p2", "prompt"))
    # The first that drives is no prompt, so it does not reach the first prompt.
    assert scene.ran() == [["m1"], ["p1"], ["m2"], ["p2"]]


def test_a_prompt_that_drives_takes_what_rides_before_it_along_and_nothing_behind_it() -> None:
    scene = waiting(("m1", "peer_message/quiet"), ("p1", "prompt"), ("p2", "prompt"), ("m2", "peer_message"))
    assert scene.ran() == [["m1", "p1"], ["p2"], ["m2"]]


def test_two_prompts_never_share_a_run() -> None:
    assert waiting(("p1", "prompt"), ("p2", "prompt"), ("p3", "prompt")).ran() == [["p1"], ["p2"], ["p3"]]


def test_a_passive_prompt_at_the_head_goes_alone_and_what_drives_behind_it_follows() -> None:
    scene = waiting(("p1", "prompt/quiet"), ("m1", "peer_message"), ("m2", "peer_message"))
    assert scene.ran() == [["p1"], ["m1", "m2"]]


def test_a_passive_prompt_behind_what_drives_waits() -> None:
    scene = waiting(("m1", "peer_message"), ("p1", "prompt/quiet"), ("m2", "peer_message"))
    assert scene.ran() == [["m1"], ["p1"], ["m2"]]


def test_a_passive_prompt_before_a_prompt_goes_alone() -> None:
    assert waiting(("p1", "prompt/quiet"), ("p2", "prompt")).ran() == [["p1"], ["p2"]]


def test_other_kinds_share_a_run_in_their_order() -> None:
    kinds = ("peer_message", "peer_request", "flow_step", "external_event")
    assert waiting(*((kind, kind) for kind in kinds)).ran() == [list(kinds)]


def test_a_batch_of_the_queue_ends_where_execution_or_intent_changes() -> None:
    scene = Scene("a")
    scene.put("a", "m1")
    scene.put("a", "t1", "t2", kind="peer_response_terminal")
    scene.put("a", "m2")
    scene.put("a", "c1", kind="continuation", handling_mode="queue")
    scene.put("a", "m3")
    scene.serve()
    stamps = []
    batches = []
    while scene.member("a").run_id is not None:
        stamps.append(scene.event(e.RunStarted).stamp)
        batches.append(scene.batch("a"))
        scene.settle(scene.run_of("a"))
    assert batches == [["m1"], ["t1", "t2"], ["m2"], ["c1"], ["m3"]]
    assert stamps == [
        Stamp(),
        Stamp("run_start", "content_turn", "append_context_and_run"),
        Stamp(),
        Stamp("run_start", "resume_pending"),
        Stamp(),
    ]


def test_the_steer_lane_goes_first_whoever_woke_the_member() -> None:
    scene = waiting(("m1", "peer_message"), ("s1", "peer_message/steer"), ("m2", "peer_message"))
    assert scene.event(e.RunStarted).lane == "steer"
    assert scene.ran() == [["s1"], ["m1", "m2"]]


def test_a_batch_of_the_steer_lane_ends_where_any_part_of_the_stamp_changes() -> None:
    scene = Scene("a")
    scene.steer("a", "s1", "s2")
    scene.put("a", "c1", "c2", kind="continuation")
    scene.steer("a", "t1", kind="peer_response_terminal")
    scene.steer("a", "s3")
    scene.serve()
    assert scene.ran() == [["s1", "s2"], ["c1", "c2"], ["t1"], ["s3"]]


def test_what_was_applied_where_is_in_the_result() -> None:
    scene = Scene("a")
    scene.steer("a", "s1")
    scene.put("a", "m1")
    scene.serve()
    scene.settle(scene.run_of("a"))
    assert scene.event(e.RunSettled).boundary == "run_checkpoint"
    scene.settle(scene.run_of("a"))
    assert scene.event(e.RunSettled).boundary == "run_start"


def test_progress_is_carried_by_what_drives_in_either_lane_and_starts_nothing() -> None:
    scene = waiting(("g1", "peer_response_progress"))
    assert scene.member("a").run_id is None
    scene.put("a", "m1")
    # The queue's message wakes the member; the steer lane is looked at first.
    assert scene.batch("a") == ["g1"]
    scene.settle(scene.run_of("a"))
    assert scene.batch("a") == ["m1"]
    scene.put("a", "g2", kind="peer_response_progress")
    scene.settle(scene.run_of("a"))
    assert scene.member("a").run_id is None
    assert scene.steering("a") == ["g2"]


@pytest.mark.parametrize("lane", ["queue", "steer"])
def test_a_batch_is_at_most_64_inputs_and_a_mebibyte_in_either_lane(lane: str) -> None:
    scene = Scene("a")
    for n in range(65):
        scene.put("a", f"i{n}", handling_mode=lane)
    for name, size in (("big1", 600_000), ("big2", 600_000), ("huge", 2_000_000)):
        scene.do(c.Deliver("a", name, Raw(b"1" * size), handling_mode=lane), Accepted)  # type: ignore[arg-type]  # a lane
    scene.serve()
    assert scene.ran() == [[f"i{n}" for n in range(64)], ["i64", "big1"], ["big2"], ["huge"]]


def test_a_batch_of_deliveries_is_one_batch_of_a_run() -> None:
    scene = Scene("a", "b")
    scene.serve()
    wanted = [c.Deliver(name, f"{name}{n}", text("x")) for n in range(3) for name in ("a", "b")]
    scene.do(c.DeliverBatch(wanted), BatchDelivered)
    assert scene.kinds == ["input_accepted"] * 6 + ["run_started"] * 2
    assert (scene.batch("a"), scene.batch("b")) == (["a0", "a1", "a2"], ["b0", "b1", "b2"])


def test_a_run_tells_its_agent_the_stamp_of_its_batch() -> None:
    scene = waiting(("c1", "continuation"))
    (sent,) = scene.sent(SendStartRun)
    assert (sent.boundary, sent.execution, sent.intent) == ("run_checkpoint", "resume_pending", "none")


# Pauses: a lane whose head failed is passed over, the other one runs.


def test_while_the_queue_pauses_the_steer_lane_runs() -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "m1")
    scene.report(scene.run_of("a"), "error")
    assert scene.member("a").retry_at
    scene.steer("a", "s1")
    assert scene.batch("a") == ["s1"]
    scene.settle(scene.run_of("a"))
    assert scene.member("a").run_id is None
    scene.advance(1)
    assert scene.batch("a") == ["m1"]


def test_while_the_steer_lane_pauses_the_queue_runs() -> None:
    scene = Scene("a")
    scene.serve()
    scene.steer("a", "s1")
    scene.report(scene.run_of("a"), "error")
    assert scene.event(e.RunSettled).retry_at == scene.now + 1_000_000
    scene.put("a", "m1")
    assert scene.batch("a") == ["m1"]
    scene.settle(scene.run_of("a"))
    assert scene.member("a").run_id is None
    scene.advance(1)
    assert scene.batch("a") == ["s1"]


def test_what_fails_goes_behind_the_backlog_of_its_own_lane_only() -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "m1")
    scene.steer("a", "s1", wake=False)
    # What waits in the other lane is no backlog: the failed one pauses.
    assert scene.report(scene.run_of("a"), "error").disposition == "requeued"
    assert scene.outcomes() == [("m1", "requeued")]
    assert scene.member("a").retry_at


# What does not wake.


def test_what_does_not_wake_waits_and_rides_along_in_its_place() -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "q1", wake=False)
    assert scene.kinds == ["input_accepted"]
    assert scene.member("a").state == "attached"
    assert view_member(scene.mob, scene.member("a")).inputs_waiting == 1
    reason = waiting_reason(scene.mob, scene.member("a"), scene.connected)
    assert reason == "it does not wake its member: another input must"
    scene.put("a", "m1")
    assert scene.batch("a") == ["q1", "m1"]
    scene.put("a", "q2", wake=False)
    scene.settle(scene.run_of("a"))
    assert scene.waits("a") == ["q2"]
    assert scene.member("a").run_id is None


def test_an_agent_that_comes_does_not_wake_what_does_not_wake() -> None:
    scene = waiting(("q1", "peer_message/quiet"))
    assert scene.member("a").run_id is None
    assert scene.member("a").state == "attached"


def test_what_was_only_riding_along_rides_again_after_a_failure() -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "q1", wake=False)
    scene.put("a", "m1")
    scene.report(scene.run_of("a"), "error")
    assert scene.waits("a") == ["q1", "m1"]
    scene.advance(1)
    # What failed is run again one by one, the passive one too: it is the head of its lane.
    assert scene.ran() == [["q1"], ["m1"]]


def test_a_steer_that_does_not_wake_waits_for_what_does() -> None:
    scene = Scene("a")
    scene.serve()
    scene.steer("a", "s1", wake=False)
    assert scene.kinds == ["input_accepted"]
    scene.steer("a", "s2")
    assert scene.batch("a") == ["s1", "s2"]


def test_a_silenced_request_runs_with_the_next_and_is_told_apart_from_none() -> None:
    scene = waiting(("m1", "peer_message/quiet"))
    scene.put("a", "r1", kind="peer_request", intent=SILENT[0])
    assert scene.member("a").run_id is None
    scene.put("a", "r2", kind="peer_request", intent="review")
    assert scene.batch("a") == ["m1", "r1", "r2"]


def test_what_was_passive_only_because_a_run_was_in_flight_runs_after_it() -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "m1")
    scene.put("a", "p1", kind="prompt")
    scene.put("a", "x1", kind="external_event")
    scene.settle(scene.run_of("a"))
    assert scene.ran() == [["p1"], ["x1"]]


# One takes the place of another.


def test_a_newer_input_of_the_same_kind_and_key_takes_the_place_of_the_waiting_one() -> None:
    scene = Scene("a")
    scene.put("a", "i1", "other")
    scene.put("a", "k1", supersession_key="k")
    scene.put("a", "last")
    old = scene.canonical("k1")
    answer = scene.send("a", "k2", supersession_key="k")
    assert isinstance(answer, Accepted)
    assert scene.events == [
        e.InputSuperseded("a", old, answer.canonical_input_id),
        scene.event(e.InputAccepted),
    ]
    assert scene.kinds == ["input_superseded", "input_accepted"]
    assert answer.seq == scene.mob.head
    assert scene.waits("a") == ["i1", "other", "last", "k2"]
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)
    assert scene.do(c.Deliver("a", "k1", text("hello")), Deduplicated).terminal is True
    scene.serve()
    assert scene.ran() == [["i1", "other", "last", "k2"]]


def test_progress_is_coalesced_and_not_superseded() -> None:
    scene = Scene("a")
    scene.put("a", "g1", kind="peer_response_progress", supersession_key="k")
    scene.put("a", "g2", kind="peer_response_progress", supersession_key="k")
    assert scene.events[0] == e.InputCoalesced("a", scene.canonical("g1"), scene.canonical("g2"))
    assert scene.kinds == ["input_coalesced", "input_accepted"]
    assert scene.steering("a") == ["g2"]


def test_kinds_and_keys_are_not_mixed_up() -> None:
    scene = Scene("a", "b")
    scene.put("a", "i1", supersession_key="k")
    scene.put("a", "i2", kind="prompt", supersession_key="k")
    scene.put("a", "i3", supersession_key="K")
    scene.put("a", "i4")
    scene.put("b", "i5", supersession_key="k")
    assert scene.logged(e.InputSuperseded) == []
    scene.put("a", "i6", kind="prompt", supersession_key="k")
    assert [scene.named(one.canonical_input_id) for one in scene.logged(e.InputSuperseded)] == ["i2"]


def test_the_queue_is_looked_at_before_the_steer_lane() -> None:
    scene = Scene("a")
    scene.steer("a", "s1", supersession_key="k")
    scene.put("a", "m0")
    scene.mob.members["a"].queue[0].supersession_key = "k"  # type: ignore[index]  # two of one key: by hand
    scene.put("a", "m1", supersession_key="k")
    assert (scene.steering("a"), scene.waits("a")) == (["s1"], ["m1"])
    # It replaces what waits in the other lane too, and has a lane of its own.
    scene = Scene("a")
    scene.steer("a", "s1", supersession_key="k")
    scene.put("a", "m1", supersession_key="k")
    assert (scene.steering("a"), scene.waits("a")) == ([], ["m1"])


def test_what_runs_is_not_superseded() -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "k1", supersession_key="k")
    scene.put("a", "k2", supersession_key="k")
    assert scene.kinds == ["input_accepted"]
    assert (scene.batch("a"), scene.waits("a")) == (["k1"], ["k2"])
    scene.put("a", "k3", supersession_key="k")
    assert scene.waits("a") == ["k3"]


def test_what_failed_and_waits_again_can_be_superseded_and_its_pause_goes_on() -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "k1", supersession_key="k")
    scene.report(scene.run_of("a"), "error")
    scene.put("a", "k2", supersession_key="k")
    assert scene.kinds[:2] == ["input_superseded", "input_accepted"]
    # What is new has not failed: it does not wait for the end of the pause.
    assert scene.batch("a") == ["k2"]


def test_a_full_queue_takes_a_replacement_and_nothing_else() -> None:
    scene = Scene("a")
    for n in range(999):
        scene.put("a", f"i{n}")
    scene.put("a", "k1", supersession_key="k")
    refused = scene.send("a", "more")
    assert isinstance(refused, Rejected)
    assert refused.cause == "queue_full"
    for options in (
        {"supersession_key": "other"},
        {"kind": "prompt", "supersession_key": "k"},
        {"handling_mode": "steer"},
    ):
        refused = scene.send("a", "more", **options)
        assert isinstance(refused, Rejected)
        assert refused.cause == "queue_full"
    scene.put("a", "k2", supersession_key="k")
    assert len(scene.inputs("a")) == 1_000


def test_a_replacement_counts_by_what_it_adds_to_the_bytes_that_wait() -> None:
    scene = Scene("a")
    half, more = Raw(b"1" * (2 << 20)), Raw(b"1" * ((2 << 20) + 1))
    scene.do(c.Deliver("a", "i1", half), Accepted)
    scene.do(c.Deliver("a", "k1", half, supersession_key="k"), Accepted)
    assert scene.do(c.Deliver("a", "k2", more, supersession_key="k"), Rejected).cause == "queue_full"
    scene.do(c.Deliver("a", "k2", half, supersession_key="k"), Accepted)
    assert scene.member("a").queue_bytes == 4 << 20


def test_a_repeated_delivery_supersedes_nothing() -> None:
    scene = Scene("a")
    scene.put("a", "k1", "other", supersession_key="k")
    before = state_bytes(scene.mob)
    for name in ("k1", "other"):
        assert isinstance(scene.send("a", name, supersession_key="k"), Deduplicated)
        assert scene.append is None
    assert state_bytes(scene.mob) == before


def test_a_batch_of_deliveries_supersedes_within_itself() -> None:
    scene = Scene("a")
    scene.serve()
    wanted = [c.Deliver("a", f"k{n}", text("x"), supersession_key="k") for n in range(3)]
    scene.do(c.DeliverBatch(wanted), BatchDelivered)
    assert scene.kinds == [
        "input_accepted",
        "input_superseded",
        "input_accepted",
        "input_superseded",
        "input_accepted",
        "run_started",
    ]
    assert scene.batch("a") == ["k2"]


# A passive replacement puts a member to rest that was waiting for an agent.


def test_a_member_whose_only_driver_is_superseded_by_a_passive_one_waits_no_longer() -> None:
    scene = Scene("a")
    scene.put("a", "k1", supersession_key="k")
    assert scene.mob.waiting == {"analyst": [(scene.member("a").listed_at, "a")]}
    scene.put("a", "k2", supersession_key="k", wake=False)
    assert (scene.member("a").listed, scene.mob.waiting) == ("none", {})
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)
