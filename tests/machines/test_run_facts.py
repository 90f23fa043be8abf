"""The end of a run, word for word: its event, its rows in the store, what its agent is told, pauses (runtime §3)."""

from collections.abc import Callable
from typing import Any, Final

import msgspec
import pytest
from msgspec import Raw
from tests.machines.scene import Scene, running, steered
from tests.machines.stage import SECOND, state_bytes

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import RunAnswer, SendSettled, SendStartRun
from mobd_server.machines.records import MessageRow, RunRow, SessionRow
from mobd_server.machines.run import UNASKED
from mobd_server.machines.state import DEADLINE_STEP_US, MAX_RESENDS, Run, Usage

HASH: Final = b"\x01" * 32


def result(run: Run, **options: Any) -> c.SettleRun:
    return c.SettleRun(run.attachment_id, run.run_id, run.fence, Raw(b'"done"'), HASH, **options)


def lost(run: Run, reason: str = "it was not accepted in time") -> c.LoseRun:
    return c.LoseRun(run.attachment_id, run.run_id, run.fence, reason)


def failed(run: Run, kind: Any = "error", message: str = "", **options: Any) -> c.FailRun:
    return c.FailRun(run.attachment_id, run.run_id, run.fence, kind, message, **options)


def settled(scene: Scene) -> e.RunSettled:
    return scene.event(e.RunSettled)


def outcome(scene: Scene, input_id: str, ended: e.Ended, reason: str = "", **options: Any) -> e.Outcome:
    options.setdefault("attempt", 1)
    return e.Outcome(scene.canonical(input_id), ended, reason, **options)


# A result.


def test_a_result_is_told_to_the_log_the_store_and_the_agent() -> None:
    scene = running()
    run, began = scene.run_of("a"), scene.now
    (sent,) = scene.sent(SendStartRun)
    (started_seq,) = [one.seq for one in scene.log if one.kind == "run_started"]
    scene.join()
    scene.now += 5
    usage = Usage(3, 4)
    messages = [Raw(b'{"n":1}'), Raw(b'{"n":2}')]
    command = result(run, messages=messages, message_count=2, digest="two", usage=usage)
    assert scene.do(command, RunAnswer) == RunAnswer("committed")
    assert scene.events == [
        e.RunSettled(
            "a",
            sent.run_id,
            "committed",
            [outcome(scene, "m1", "consumed")],
            output=Raw(b'"done"'),
            usage=usage,
            message_count=2,
            digest="two",
            result_hash=HASH.hex(),
        )
    ]
    assert scene.append is not None
    assert scene.append.runs == [
        RunRow(
            run_id=sent.run_id,
            member_id="a",
            state="committed",
            host_id="h",
            executor_fence=sent.fence,
            started_seq=started_seq,
            settled_seq=scene.append.records[0].seq,
            started_at=began,
            settled_at=began + 5,
            inputs=msgspec.json.encode([scene.canonical("m1")]).decode(),
            attempts="[1]",
            resent=1,
            message_count=2,
            digest="two",
        )
    ]
    session = scene.member("a").session_id
    assert scene.append.messages == [
        MessageRow(session, 0, sent.run_id, '{"n":1}'),
        MessageRow(session, 1, sent.run_id, '{"n":2}'),
    ]
    assert scene.append.sessions == [SessionRow(session, "a", 2, "two")]
    assert scene.sent(SendSettled) == [SendSettled(sent.attachment_id, sent.run_id, "committed")]


def test_the_result_of_a_run_that_was_to_be_cancelled_is_a_result() -> None:
    scene = running()
    scene.interrupt("a", reason="enough")
    scene.do(result(scene.run_of("a")))
    assert (settled(scene).state, settled(scene).error) == ("committed", "")


@pytest.mark.parametrize("command", [result, lost, failed])
def test_what_is_said_of_no_run_is_answered_to_who_said_it(command: Callable[[Run], c.Command]) -> None:
    scene = running()
    stale = msgspec.structs.replace(scene.run_of("a"), attachment_id="att-0", run_id="run-0")
    assert scene.do(command(stale), RunAnswer) == RunAnswer("fenced")
    assert (scene.append, scene.reactions) == (None, [SendSettled("att-0", "run-0", "fenced")])


def test_a_result_that_comes_again_is_answered_for_its_run_to_who_brought_it() -> None:
    scene = running()
    again = msgspec.structs.replace(scene.run_of("a"), attachment_id="att-0")
    scene.do(result(scene.run_of("a")))
    assert scene.do(result(again), RunAnswer) == RunAnswer("duplicate")
    assert (scene.append, scene.reactions) == (None, [SendSettled("att-0", again.run_id, "duplicate")])


# No result: the kind of the agent's report, its words -> the state, what becomes of the input, the words that are kept.

FAILED: Final[dict[str, tuple[dict[str, Any], tuple[e.Settled, e.Ended, str, str], str]]] = {
    "an error": ({"message": "boom"}, ("failed", "requeued", "", "boom"), "requeued"),
    "an error for good": (
        {"message": "boom", "retryable": False},
        ("failed", "abandoned", "given up by its agent: boom", "boom"),
        "abandoned",
    ),
    "an error for good without a word": (
        {"retryable": False},
        ("failed", "abandoned", "given up by its agent", ""),
        "abandoned",
    ),
    "given back": ({"kind": "released", "message": "full"}, ("released", "requeued", "", "full"), "requeued"),
    "cancelled, which nobody asked for": (
        {"kind": "cancelled", "message": "bye"},
        ("failed", "requeued", "", f"{UNASKED}: bye"),
        "requeued",
    ),
    "cancelled, which nobody asked for, without a word": (
        {"kind": "cancelled"},
        ("failed", "requeued", "", UNASKED),
        "requeued",
    ),
}


@pytest.mark.parametrize("name", FAILED)
def test_a_run_without_a_result_is_told_with_its_reason(name: str) -> None:
    said, (state, ended, reason, error), disposition = FAILED[name]
    scene = running()
    run = scene.run_of("a")
    scene.do(failed(run, **said))
    assert scene.events[0] == e.RunSettled(
        "a",
        run.run_id,
        state,
        [outcome(scene, "m1", ended, reason)],
        error=error,
        retry_at=scene.now + SECOND if state == "failed" and ended == "requeued" else 0,
    )
    assert scene.sent(SendSettled) == [SendSettled(run.attachment_id, run.run_id, disposition)]  # type: ignore[arg-type]  # one of the table


def test_a_lost_run_is_told_with_its_reason() -> None:
    scene = running()
    run = scene.run_of("a")
    scene.do(lost(run, "two heartbeats did not name it"))
    outcomes = [outcome(scene, "m1", "requeued")]
    assert scene.events[0] == e.RunSettled("a", run.run_id, "lost", outcomes, error="two heartbeats did not name it")
    assert scene.sent(SendSettled) == [SendSettled(run.attachment_id, run.run_id, "requeued")]


@pytest.mark.parametrize(
    ("message", "error", "why"), [("", "enough", "cancelled"), ("ok", "ok", "cancelled: ok")], ids=["silent", "told"]
)
def test_a_cancelled_run_is_told_with_the_words_of_its_agent_or_else_of_its_caller(
    message: str, error: str, why: str
) -> None:
    scene = running()
    run = scene.run_of("a")
    scene.interrupt("a", reason="enough")
    scene.do(failed(run, "cancelled", message))
    assert scene.events == [
        e.RunSettled("a", run.run_id, "cancelled", [outcome(scene, "m1", "abandoned", why)], error=error)
    ]
    assert scene.sent(SendSettled) == [SendSettled(run.attachment_id, run.run_id, "cancelled")]


# Steered inputs.

END: Final[dict[str, tuple[Callable[[Scene, Run, list[str]], object], list[tuple[e.Ended, str, int]]]]] = {
    "result": (
        lambda scene, run, took: scene.do(result(run, steered=took)),
        [("consumed", "", 0), ("consumed", "", 1), ("returned", "", 0), ("consumed", "", 2)],
    ),
    "error": (
        lambda scene, run, took: scene.do(failed(run, message="boom", steered=took)),
        [("requeued", "", 0), ("requeued", "", 0), ("returned", "", 0), ("requeued", "", 0)],
    ),
    "final": (
        lambda scene, run, took: scene.do(failed(run, message="boom", retryable=False, steered=took)),
        [
            ("abandoned", "given up by its agent: boom", 0),
            ("abandoned", "given up by its agent: boom", 0),
            ("returned", "", 0),
            ("abandoned", "given up by its agent: boom", 0),
        ],
    ),
    "lost": (lambda scene, run, _: scene.do(lost(run)), [("requeued", "", 0)] * 4),
    "destroyed": (
        lambda scene, _, __: scene.do(c.DestroyRuntime("a")),
        [("abandoned", "destroyed", 0)] * 4,
    ),
    "respawned": (lambda scene, _, __: scene.do(c.RespawnMember("a")), [("abandoned", "retired", 0)] * 4),
    "reset": (lambda scene, _, __: scene.do(c.ResetMob()), [("abandoned", "reset", 0)] * 4),
}


@pytest.mark.parametrize("cause", END)
def test_what_was_taken_in_shares_the_fate_of_the_batch_and_the_rest_comes_back(cause: str) -> None:
    end, ended = END[cause]
    scene = steered("s1", "s2", "s3")
    end(scene, scene.run_of("a"), [scene.canonical("s1"), scene.canonical("s3")])
    names = ["m1", "s1", "s2", "s3"]
    assert settled(scene).outcomes == [
        outcome(scene, name, what, why, sequence=at) for name, (what, why, at) in zip(names, ended, strict=True)
    ]


@pytest.mark.parametrize("took", [True, False], ids=["taken in", "not taken in"])
def test_what_fails_in_the_steer_lane_waits_only_for_what_was_steered_and_comes_back(took: bool) -> None:
    scene = Scene("a")
    scene.serve()
    scene.steer("a", "s1")
    scene.steer("a", "s2")
    assert (scene.batch("a"), scene.steered("a")) == (["s1"], ["s2"])
    scene.report(scene.run_of("a"), "error", "boom", scene.taken("a") if took else [])
    ends: tuple[e.Ended, e.Ended] = ("requeued", "requeued") if took else ("requeued_behind", "returned")
    assert settled(scene) == e.RunSettled(
        "a",
        settled(scene).run_id,
        "failed",
        [outcome(scene, name, end) for name, end in zip(("s1", "s2"), ends, strict=True)],
        error="boom",
        retry_at=scene.now + SECOND if took else 0,
    )
    assert scene.steering("a") == (["s1", "s2"] if took else ["s1"])


@pytest.mark.parametrize(("lane", "behind"), [("steer", True), ("queue", False)])
def test_a_failed_input_goes_behind_what_waits_in_its_own_lane(lane: str, behind: bool) -> None:
    scene = Scene("a")
    scene.serve(steers=False)
    scene.steer("a", "s1")
    scene.put("a", "m1", handling_mode=lane)
    scene.report(scene.run_of("a"), "error")
    assert scene.outcomes() == [("s1", "requeued_behind" if behind else "requeued")]
    assert settled(scene).retry_at == (0 if behind else scene.now + SECOND)


def test_a_result_from_the_steer_lane_tells_where_its_inputs_were_applied() -> None:
    scene = Scene("a")
    scene.serve()
    scene.steer("a", "s1")
    scene.do(result(scene.run_of("a")))
    assert settled(scene).boundary == "run_checkpoint"


# Pauses.


def paused() -> Scene:
    """Return a mob whose member pauses for a failed steer and runs `m1` from its queue, half a second later."""
    scene = Scene("a")
    scene.serve()
    scene.steer("a", "s1")
    scene.report(scene.run_of("a"), "error")
    scene.now += SECOND // 2
    scene.put("a", "m1")
    assert scene.batch("a") == ["m1"]
    return scene


def test_a_result_beside_a_pause_leaves_the_pause() -> None:
    scene = paused()
    until = scene.now + SECOND // 2
    scene.do(result(scene.run_of("a")))
    assert settled(scene).retry_at == 0
    assert (scene.mob.timers, scene.member("a").retry_at) == ([(until, "retry", "a")], until)


def test_a_second_failure_makes_a_pause_longer_and_never_shorter() -> None:
    scene = paused()
    scene.report(scene.run_of("a"), "error")
    until = scene.now + SECOND
    assert settled(scene).retry_at == until
    assert (scene.mob.timers, scene.member("a").retry_at) == ([(until, "retry", "a")], until)
    scene.now = until
    scene.do(c.Wake())
    scene.report(scene.run_of("a"), "error")
    until = scene.now + 10 * SECOND
    assert scene.mob.timers == [(until, "retry", "a")]
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


# Sent again.


def test_a_run_that_is_to_be_cancelled_is_not_sent_again() -> None:
    scene = running()
    run = scene.run_of("a")
    scene.interrupt("a")
    scene.join()
    assert scene.events == [
        e.RunSettled(
            "a",
            run.run_id,
            "cancelled",
            [outcome(scene, "m1", "abandoned", "cancelled: its agent came back without it")],
            error="its agent came back without it",
        )
    ]


def test_a_run_that_was_sent_often_enough_is_lost() -> None:
    scene = running()
    run = scene.run_of("a")
    for count in range(1, MAX_RESENDS):
        scene.join()
        assert scene.events == [e.RunResent("a", run.run_id, count)]
    scene.join()
    assert scene.events[0] == e.RunSettled(
        "a",
        run.run_id,
        "lost",
        [outcome(scene, "m1", "requeued")],
        error="its agent came back 3 times without it",
    )


# Deadlines.


def test_a_run_has_its_deadline_among_the_timers_until_it_ends() -> None:
    scene = running(timeout_s=5)
    run = scene.run_of("a")
    assert scene.mob.timers == [(scene.now + 5 * SECOND, "deadline", run.run_id)]
    scene.advance(5)
    assert scene.mob.timers == [(scene.now + DEADLINE_STEP_US, "deadline", run.run_id)]
    scene.do(result(run))
    assert scene.mob.timers == []
    scene = running()
    assert scene.mob.timers == []
