"""Runs that fail, are lost, are given back or sent again: attempts, order, pauses, and who is blamed."""

import msgspec
import pytest
from tests.machines.stage import SECOND, Stage, role, state_bytes, text

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import SendSettled, SendStartRun
from mobd_server.machines.state import Kind, Run


def served(*member_ids: str, capacity: int = 8, max_members: int = 8) -> Stage:
    stage = Stage()
    stage.spawn(*(member_ids or ("a",)))
    stage.agent(capacity=capacity, max_members=max_members)
    return stage


def outcomes(stage: Stage) -> list[str]:
    return [one.outcome for one in stage.event(e.RunSettled).outcomes]


def wake(stage: Stage) -> None:
    """Let the pause pass."""
    stage.now = stage.mob.timers[0][0]
    stage.do(c.Wake())


# An error.


def test_an_error_goes_behind_what_waits() -> None:
    stage = served()
    stage.accepted("a", "i1", "i2")
    stage.fail(stage.run_of("a"))
    assert outcomes(stage) == ["requeued_behind"]
    assert stage.event(e.RunSettled).retry_at == 0
    assert stage.batch("a") == ["i2"]
    assert stage.waits("a") == ["i1"]


def test_an_error_with_nothing_behind_it_pauses_for_a_second_and_then_for_ten() -> None:
    stage = served()
    stage.accepted("a", "i1")
    for pause, attempt in ((1, 2), (10, 3)):
        stage.fail(stage.run_of("a"))
        assert outcomes(stage) == ["requeued"]
        assert stage.event(e.RunSettled).retry_at == stage.now + pause * SECOND
        assert stage.member("a").run_id is None
        stage.advance(pause - 0.000001)
        assert stage.append is None
        stage.advance(0.000001)
        assert stage.kinds == ["retry_due", "run_started"]
        assert stage.event(e.RunStarted).attempts == [attempt]


def test_the_third_failed_attempt_abandons() -> None:
    stage = served()
    stage.accepted("a", "i1")
    for _ in range(2):
        stage.fail(stage.run_of("a"))
        wake(stage)
    assert stage.fail(stage.run_of("a"), "no luck").disposition == "abandoned"
    (outcome,) = stage.event(e.RunSettled).outcomes
    assert outcome.outcome == "abandoned"
    assert outcome.reason == "max_attempts_exhausted: 3 attempts failed: no luck"
    assert stage.waits("a") == []
    assert stage.mob.timers == []


def test_the_inputs_of_a_failed_batch_run_alone() -> None:
    stage = Stage()
    stage.spawn("a")
    stage.accepted("a", "i1", "i2", "i3")
    stage.agent()
    stage.fail(stage.run_of("a"))
    assert outcomes(stage) == ["requeued"] * 3
    wake(stage)
    ran: list[list[str]] = []
    while stage.member("a").run_id is not None and len(ran) < 4:
        ran.append(stage.batch("a"))
        stage.finish(stage.run_of("a"))
    assert ran == [["i1"], ["i2"], ["i3"]]


def test_what_comes_during_a_pause_waits_for_its_end() -> None:
    stage = served()
    stage.accepted("a", "i1")
    stage.fail(stage.run_of("a"))
    stage.accepted("a", "i2")
    assert stage.member("a").run_id is None
    wake(stage)
    assert stage.batch("a") == ["i1"]


def test_a_pause_outlives_the_agent() -> None:
    stage = served()
    stage.accepted("a", "i1")
    stage.fail(stage.run_of("a"))
    stage.leave(stage.agent_of("a") or "")
    stage.agent("other")
    assert stage.member("a").run_id is None
    wake(stage)
    assert stage.event(e.RunStarted).attempts == [2]


def test_a_pause_that_ends_in_a_stopped_mob_ends_without_a_run() -> None:
    stage = served()
    stage.accepted("a", "i1")
    stage.fail(stage.run_of("a"))
    stage.do(c.StopMob())
    wake(stage)
    assert stage.kinds == ["retry_due"]
    stage.do(c.ResumeMob())
    assert stage.kinds == ["mob_resumed", "run_started"]


def test_many_pauses_end_in_parts() -> None:
    stage = served(*(f"m{n}" for n in range(201)), capacity=256, max_members=256)
    for member_id in stage.mob.members:
        stage.accepted(member_id, "i1")
        stage.fail(stage.run_of(member_id))
    wake(stage)
    assert len(stage.all(e.RetryDue)) == 200
    stage.do(c.Wake())
    assert len(stage.all(e.RetryDue)) == 1


def test_a_pause_that_was_planned_by_a_clock_far_ahead_ends_when_that_is_set_right() -> None:
    stage = served()
    stage.accepted("a", "i1")
    stage.now += 3_600 * SECOND
    stage.fail(stage.run_of("a"))
    # A clock that is a little behind makes a pause a little longer, and no more.
    stage.now -= 60 * SECOND
    stage.do(c.Wake())
    assert stage.append is None
    stage.now -= 3_500 * SECOND
    stage.do(c.Wake())
    assert stage.kinds == ["retry_due", "run_started"]


def test_a_failure_for_good_abandons_at_the_first_attempt() -> None:
    stage = Stage()
    stage.spawn("a")
    stage.accepted("a", "i1", "i2")
    stage.agent()
    assert stage.fail(stage.run_of("a"), "unreadable", retryable=False).disposition == "abandoned"
    assert stage.event(e.RunSettled).state == "failed"
    assert [(one.outcome, one.reason) for one in stage.event(e.RunSettled).outcomes] == [
        ("abandoned", "given up by its agent: unreadable")
    ] * 2


def test_the_last_error_is_shown_until_a_run_succeeds() -> None:
    stage = served()
    stage.accepted("a", "i1")
    stage.fail(stage.run_of("a"), "x" * 500)
    assert stage.member("a").last_error == "x" * 200
    wake(stage)
    stage.finish(stage.run_of("a"), '"fine"')
    assert (stage.member("a").last_error, stage.member("a").last_output) == ("", '"fine"')


# Given back.


def test_a_run_that_is_given_back_is_no_attempt() -> None:
    stage = served()
    stage.accepted("a", "i1")
    for _ in range(5):
        assert stage.give_back(stage.run_of("a")).disposition == "requeued"
        assert stage.event(e.RunSettled).state == "released"
        assert stage.event(e.RunStarted).attempts == [1]


def test_a_last_attempt_that_is_given_back_stays_a_last_attempt() -> None:
    stage = served()
    stage.accepted("a", "i1")
    for _ in range(2):
        stage.fail(stage.run_of("a"))
        wake(stage)
    stage.give_back(stage.run_of("a"))
    assert stage.event(e.RunStarted).attempts == [3]
    assert stage.fail(stage.run_of("a")).disposition == "abandoned"


def test_what_is_given_back_or_lost_keeps_its_place() -> None:
    for cause in ("give_back", "lose"):
        stage = served()
        stage.accepted("a", "i1", "i2")
        stage.do(c.StopMob())
        getattr(stage, cause)(stage.run_of("a"))
        assert stage.waits("a") == ["i1", "i2"]


# Lost.


def test_a_lost_run_runs_again_as_its_next_attempt() -> None:
    stage = served()
    stage.accepted("a", "i1", "i2")
    lost = stage.run_of("a")
    assert stage.lose(lost).disposition == "requeued"
    assert (stage.event(e.RunSettled).state, outcomes(stage)) == ("lost", ["requeued"])
    assert stage.batch("a") == ["i1"]
    assert stage.run_of("a").attempts == [2]
    assert stage.run_of("a").run_id != lost.run_id


def test_what_kills_its_agent_is_abandoned_at_the_third_attempt() -> None:
    stage = Stage()
    stage.spawn("a")
    stage.accepted("a", "poison", "i2")
    started = []
    for life in range(1, 10):
        agent = stage.agent(f"h{life}")
        started.append(stage.batch("a"))
        if "poison" not in stage.batch("a"):
            break
        stage.leave(agent)
    assert started == [["poison", "i2"], ["poison"], ["poison"], ["i2"]]
    abandoned = [one for event in stage.logged(e.RunSettled) for one in event.outcomes if one.outcome == "abandoned"]
    assert [one.reason.split(":")[0] for one in abandoned] == ["max_attempts_exhausted"]


def test_a_last_attempt_after_a_loss_is_alone_on_its_agent() -> None:
    stage = served("a", "b", capacity=8)
    stage.accepted("b", "long")
    stage.accepted("a", "i1")
    stage.lose(stage.run_of("a"))
    stage.lose(stage.run_of("a"))
    assert stage.member("a").run_id is None, "it waits until the agent has no other run"
    stage.finish(stage.run_of("b"))
    assert stage.event(e.RunStarted).exclusive is True
    assert stage.batch("a") == ["i1"]
    stage.accepted("b", "next")
    assert stage.member("b").run_id is None, "nothing is started beside it"
    stage.finish(stage.run_of("a"))
    assert stage.batch("b") == ["next"]
    assert stage.attachment(stage.agent_of("a") or "").exclusive is None


@pytest.mark.parametrize("own_errors", [0, 1, 2])
def test_no_input_is_abandoned_because_another_kills_the_agent(own_errors: int) -> None:
    stage = Stage()
    stage.spawn("a", "b", "c")
    stage.accepted("a", "poison")
    stage.accepted("b", "i1")
    stage.accepted("c", "i1")
    agent = ""
    for life in range(20):
        agent = stage.agent(f"h{life}")
        for _ in range(own_errors if life == 0 else 0):
            for member_id in ("b", "c"):
                stage.fail(stage.run_of(member_id))
            wake(stage)
        while stage.mob.runs and not any(stage.batch(run.member_id) == ["poison"] for run in stage.mob.runs.values()):
            stage.finish(next(iter(stage.mob.runs.values())))
            assert stage.mob.head < 1_000, "what has ended is run again and again"
        if not stage.mob.runs:
            break
        stage.leave(agent)
    ended = {"consumed": 0, "abandoned": 0}
    for event in stage.logged(e.RunSettled):
        for one in event.outcomes:
            if one.outcome in ended:
                ended[one.outcome] += 1
    assert ended == {"consumed": 2, "abandoned": 1}
    (abandoned,) = [run for run in stage.logged(e.RunSettled) if run.outcomes[0].outcome == "abandoned"]
    assert abandoned.member_id == "a"


def test_a_loss_beside_others_repeats_the_last_attempt_alone() -> None:
    stage = served("a", "b")
    stage.accepted("a", "i1")
    for _ in range(2):
        stage.fail(stage.run_of("a"))
        wake(stage)
    assert (stage.run_of("a").attempts, stage.run_of("a").exclusive) == ([3], False)
    stage.accepted("b", "poison")
    stage.leave(stage.agent_of("a") or "")
    stage.agent("next")
    assert (stage.run_of("a").attempts, stage.run_of("a").exclusive) == ([3], True)
    assert stage.member("b").run_id is None
    assert stage.lose(stage.run_of("a")).disposition == "abandoned"
    assert stage.run_of("b").attempts == [2]


# Sent again.


def back(stage: Stage, held: list[str]) -> None:
    stage.attach(max_members=8, held=held)


def test_a_run_that_its_agent_holds_is_not_sent_again() -> None:
    stage = served()
    stage.accepted("a", "i1")
    run = stage.run_of("a")
    back(stage, [run.run_id])
    assert stage.append is None
    assert stage.sent(SendStartRun) == []
    assert stage.run_of("a") is run


def test_a_run_that_its_agent_does_not_hold_is_sent_twice_and_then_lost() -> None:
    stage = served()
    stage.accepted("a", "i1")
    run_id = stage.run_of("a").run_id
    for count in (1, 2):
        back(stage, [])
        assert stage.event(e.RunResent) == e.RunResent("a", run_id, count)
        assert [one.run_id for one in stage.sent(SendStartRun)] == [run_id]
    back(stage, [])
    assert stage.kinds == ["run_settled", "run_started"]
    assert stage.event(e.RunSettled).state == "lost"
    assert stage.event(e.RunStarted).attempts == [2]
    assert [one.run_id for one in stage.sent(SendStartRun)] == [stage.run_of("a").run_id]


# Results.


def test_a_result_consumes_the_batch_and_keeps_output_and_transcript() -> None:
    stage = served()
    stage.accepted("a", "i1")
    run = stage.run_of("a")
    assert stage.finish(run, '{"errors":3}', ['{"role":"user"}', '{"role":"agent"}']).disposition == "committed"
    settled = stage.event(e.RunSettled)
    assert (bytes(settled.output), settled.message_count, settled.digest) == (b'{"errors":3}', 2, "digest-2")
    assert stage.append is not None
    assert [(row.position, row.payload) for row in stage.append.messages] == [
        (0, '{"role":"user"}'),
        (1, '{"role":"agent"}'),
    ]
    assert [(row.message_count, row.digest) for row in stage.append.sessions] == [(2, "digest-2")]
    assert [(row.run_id, row.state, row.host_id, row.attempts) for row in stage.append.runs] == [
        (run.run_id, "committed", "h", "[1]")
    ]
    member = stage.member("a")
    assert (member.message_count, member.digest, member.last_output) == (2, "digest-2", '{"errors":3}')
    stage.accepted("a", "i2")
    stage.finish(stage.run_of("a"), "1", ['{"role":"user"}'])
    assert stage.append is not None
    assert [row.position for row in stage.append.messages] == [2]


def test_a_result_without_messages_leaves_the_transcript() -> None:
    stage = served()
    stage.accepted("a", "i1")
    stage.finish(stage.run_of("a"), "1", ["{}"])
    stage.accepted("a", "i2")
    stage.finish(stage.run_of("a"), "2")
    assert stage.append is not None
    assert (stage.append.messages, stage.append.sessions) == ([], [])
    assert (stage.member("a").message_count, stage.member("a").digest) == (1, "digest-1")
    assert stage.event(e.RunSettled).message_count == 1


@pytest.mark.parametrize("output", ["null", "0", '""', "[]", '{"a":null}'])
def test_every_output_is_read_back_from_the_log_as_it_was(output: str) -> None:
    stage = served()
    stage.accepted("a", "i1")
    stage.finish(stage.run_of("a"), output)
    assert stage.member("a").last_output == output
    assert state_bytes(stage.replayed()) == state_bytes(stage.mob)


def test_a_result_that_comes_again_is_a_duplicate_or_a_conflict() -> None:
    stage = served()
    stage.accepted("a", "i1")
    run = stage.run_of("a")
    stage.finish(run, "1")
    assert [one.disposition for one in stage.sent(SendSettled)] == ["committed"]
    before = state_bytes(stage.mob)
    assert stage.finish(run, "1").disposition == "duplicate"
    assert [one.disposition for one in stage.sent(SendSettled)] == ["duplicate"]
    assert stage.finish(run, "2").disposition == "conflict"
    assert stage.sent(SendSettled) == []
    assert state_bytes(stage.mob) == before


def altered(run: Run, **changes: object) -> Run:
    return msgspec.structs.replace(run, **changes)


@pytest.mark.parametrize("how", ["finish", "fail", "lose", "give_back"])
@pytest.mark.parametrize("what", ["fence", "attachment_id", "run_id"])
def test_what_does_not_name_the_run_in_flight_changes_nothing(how: str, what: str) -> None:
    stage = served()
    stage.accepted("a", "i1")
    run = stage.run_of("a")
    stale = altered(run, **{what: run.fence - 1 if what == "fence" else "another"})
    before = state_bytes(stage.mob)
    assert getattr(stage, how)(stale).disposition == "fenced"
    assert [one.disposition for one in stage.sent(SendSettled)] == ["fenced"]
    assert stage.append is None
    assert state_bytes(stage.mob) == before


def test_a_duplicate_with_another_fence_is_fenced() -> None:
    stage = served()
    stage.accepted("a", "i1")
    run = stage.run_of("a")
    stage.finish(run)
    assert stage.finish(altered(run, fence=run.fence + 1)).disposition == "fenced"


def test_a_result_of_a_run_that_was_lost_is_fenced() -> None:
    stage = served()
    stage.accepted("a", "i1")
    lost = stage.run_of("a")
    stage.lose(lost)
    assert stage.finish(lost).disposition == "fenced"
    assert stage.finish(stage.run_of("a")).disposition == "committed"


def test_a_failure_after_the_result_is_fenced() -> None:
    stage = served()
    stage.accepted("a", "i1")
    run = stage.run_of("a")
    stage.finish(run)
    assert stage.fail(run).disposition == "fenced"


def test_sixteen_receipts_are_kept() -> None:
    stage = served()
    runs = []
    for n in range(17):
        stage.accepted("a", f"i{n}")
        runs.append(stage.run_of("a"))
        stage.finish(runs[-1])
    assert stage.finish(runs[0]).disposition == "fenced"
    assert {stage.finish(run).disposition for run in runs[1:]} == {"duplicate"}
    assert len(stage.mob.receipts) == 16


def test_a_result_settles_in_a_stopped_mob_and_starts_nothing() -> None:
    stage = served()
    stage.accepted("a", "i1", "i2")
    stage.do(c.StopMob())
    assert stage.kinds == ["mob_stopped"]
    assert stage.finish(stage.run_of("a")).disposition == "committed"
    assert stage.kinds == ["run_settled"]
    stage.do(c.ResumeMob())
    assert stage.batch("a") == ["i2"]


def test_a_started_run_tells_its_agent_everything() -> None:
    stage = Stage()
    stage.spawn("a")
    stage.decide(c.Deliver("a", "i1", msgspec.Raw(b'[{"text":"hi"}]')), principal="ada", traceparent="00-1")
    stage.agent(serves=[role("analyst")])
    (sent,) = stage.sent(SendStartRun)
    (one,) = sent.inputs
    assert (sent.member_id, sent.traceparent, sent.fence) == ("a", "00-1", stage.executor("a").fence)
    assert (one.input_id, one.sender, one.attempt, bytes(one.content)) == ("i1", "ada", 1, b'[{"text":"hi"}]')


# An end while it waits.


def test_what_ends_while_it_waits_is_told_with_the_attempts_that_failed() -> None:
    stage = served("a", capacity=1)
    stage.accepted("a", "i1")
    stage.fail(stage.run_of("a"))
    stage.accepted("a", "i2")
    names = [one.canonical_input_id for one in stage.member("a").queue or ()]
    stage.do(c.RespawnMember("a"))
    assert stage.event(e.InputAbandoned) == e.InputAbandoned("a", names, "retired", [1, 0])
    assert stage.replayed() == stage.mob


def test_of_what_was_never_run_no_attempts_are_told() -> None:
    stage = Stage()
    stage.spawn("a")
    stage.accepted("a", "i1", "i2")
    names = [one.canonical_input_id for one in stage.member("a").queue or ()]
    stage.do(c.RespawnMember("a"))
    assert stage.event(e.InputAbandoned) == e.InputAbandoned("a", names, "retired", [])


@pytest.mark.parametrize("kind", ["peer_message", "peer_response_progress"])
def test_what_a_newer_input_replaces_is_told_with_the_attempts_that_failed(kind: Kind) -> None:
    stage = served("a", capacity=1)
    stage.do(c.Deliver("a", "i1", text("hello"), kind=kind, supersession_key="s"))
    if kind == "peer_response_progress":
        # Nothing runs for it alone.
        stage.accepted("a", "beside")
    stage.fail(stage.run_of("a"))
    stage.do(c.Deliver("a", "i2", text("hello"), kind=kind, supersession_key="s"))
    (ended,) = [one for one in stage.events if isinstance(one, e.InputSuperseded | e.InputCoalesced)]
    assert (ended.kind, ended.attempt) == ("input_superseded" if kind == "peer_message" else "input_coalesced", 1)
