"""What a decision hands to the store, in whole, and what is remembered of the requests behind it (api, Mutations)."""

from typing import Final

import msgspec
import pytest
from msgspec import Raw
from tests.machines.scene import Scene
from tests.machines.stage import DAY, NOW, Stage, state_bytes, text

from mobd_server.errors import MobdError, RequestConflict, StaleFence
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import RunAnswer, SendSettled
from mobd_server.machines.decision import Decided, decide, new_mob
from mobd_server.machines.operation import view
from mobd_server.machines.records import Append, MessageRow, MobRow, OperationRow, Record, RunRow, SessionRow
from mobd_server.machines.state import EMPTY_DIGEST, Definition, Ledger, Profile

DEFINITION: Final = Definition("mob", profiles={"analyst": Profile("analyst")})


def said(refusal: MobdError) -> tuple[str, str, dict[str, str]]:
    return refusal.reason, refusal.message, refusal.details


# Refusals of the decision itself.


def test_a_request_id_that_was_used_for_another_request_is_refused_with_where_that_is() -> None:
    stage = Stage()
    stage.decide(c.StopMob(), "r1", "one hash")
    with pytest.raises(RequestConflict) as refused:
        stage.decide(c.StopMob(), "r1", "another hash")
    assert said(refused.value) == (
        "REQUEST_CONFLICT",
        "request_id 'r1' was used for another request: use a new request_id for a new request",
        {"request_id": "r1", "cursor": "3"},
    )


@pytest.mark.parametrize(("run_id", "later"), [("run-0", 0), (None, 1), (None, -1)])
def test_who_acts_for_a_run_that_is_not_in_flight_is_told_so(run_id: str | None, later: int) -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "i1")
    run = scene.run_of("a")
    named, fence = run_id or run.run_id, run.fence + later
    before = state_bytes(scene.mob)
    with pytest.raises(StaleFence) as refused:
        scene.act(c.Deliver("a", "i2", text("hello")), named, fence)
    assert said(refused.value) == (
        "STALE_FENCE",
        f"run '{named}' is not in flight under executor fence {fence}: its agent may act for it no longer",
        {"run_id": named, "executor_fence": str(fence)},
    )
    assert state_bytes(scene.mob) == before
    assert scene.act(c.Deliver("a", "i2", text("hello")), run.run_id, run.fence).append is not None


# What is remembered of requests.


def test_a_request_that_is_made_anew_after_a_day_takes_the_newest_place_and_leaves_the_others_theirs() -> None:
    stage = Stage()
    stage.decide(c.StopMob(), "r0", "zero")
    stage.decide(c.ResumeMob(), "r1", "one")
    first = stage.now
    stage.now += 1
    stage.decide(c.StopMob(), "r2", "two")
    stage.decide(c.ResumeMob(), "r3", "three")
    stage.now = first + DAY + 1
    assert stage.decide(c.StopMob(), "r1", "another").replay_seq == 0
    assert stage.mob.request_order == [f"anonymous\n{name}" for name in ("r0", "r2", "r3", "r1")]
    assert stage.mob.requests == {
        "anonymous\nr0": Ledger("zero", 3, first),
        "anonymous\nr1": Ledger("another", 7, stage.now),
        "anonymous\nr2": Ledger("two", 5, first + 1),
        "anonymous\nr3": Ledger("three", 6, first + 1),
    }
    # Those that are not too old are answered from their rows.
    assert stage.decide(c.StopMob(), "r2", "two").replay_seq == 5
    assert state_bytes(stage.replayed()) == state_bytes(stage.mob)


@pytest.mark.parametrize(("request_id", "request_hash"), [("r1", None), (None, "one")])
def test_what_has_no_id_or_no_hash_is_not_remembered(request_id: str | None, request_hash: str | None) -> None:
    stage = Stage()
    context = c.Context(stage.now, stage.ids, request_id=request_id, request_hash=request_hash)
    decided = decide(stage.mob, c.StopMob(), context, 1)
    assert decided.append is not None
    stage.log.extend(decided.append.records)
    assert (stage.mob.requests, stage.mob.request_order) == ({}, [])
    assert state_bytes(stage.replayed()) == state_bytes(stage.mob)


# What is handed over.


def record(seq: int, event: e.Event, member_id: str | None = None, run_id: str | None = None) -> Record:
    """Return the row of an event of principal ada."""
    payload = msgspec.json.encode(event).decode()
    return Record(seq, NOW, event.kind, 1, member_id, run_id, None, None, None, "ada", "00-trace", payload, event)


def asked(stage: Stage, command: c.Command, request_id: str | None = None) -> Decided:
    """Decide for principal ada, under epoch 7."""
    context = c.Context(
        stage.now,
        stage.ids,
        stage.connected,
        "ada",
        "00-trace",
        request_id,
        "hash" if request_id is not None else None,
    )
    decided = decide(stage.mob, command, context, 7)
    if decided.append is not None:
        stage.log.extend(decided.append.records)
    return decided


def test_the_append_of_a_creation() -> None:
    stage = Stage()
    stage.mob, stage.log = new_mob("mob"), []
    decided = asked(stage, c.CreateMob(DEFINITION, {"team": "red"}, "log"), "r1")
    last = record(2, e.MobStarted())
    last.request_id, last.request_hash = "r1", "hash"
    last.answer = msgspec.json.encode(decided.answer).decode()
    assert decided.append == Append(
        mob_id="mob",
        log_id="log",
        epoch=7,
        base=0,
        records=[record(1, e.MobCreated(DEFINITION, "log", {"team": "red"})), last],
        phase="running",
        wake_at=None,
        create=MobRow("mob", "log", '{"team":"red"}', msgspec.json.encode(DEFINITION).decode(), NOW),
    )
    assert (decided.reactions, decided.replay_seq, decided.would) == ([], 0, [])


def test_the_append_of_a_spawn() -> None:
    stage = Stage()
    base = stage.mob.head
    decided = asked(stage, c.SpawnMember(c.MemberSpec("a", "analyst")))
    event = e.MemberSpawned("a", "analyst", 0, 1, "ses-1", "op-2")
    life = OperationRow(
        operation_id="op-2",
        kind="mob_member_child",
        member_id="a",
        owner="",
        status="provisioning",
        display_name="mob/analyst/a",
        created_seq=base + 1,
        updated_seq=base + 1,
        completion_seq=None,
        snapshot=msgspec.json.encode(view(stage.mob, stage.mob.operations["op-2"])).decode(),
    )
    assert decided.append == Append(
        mob_id="mob",
        log_id="log",
        epoch=7,
        base=base,
        # Without a request there is no answer to keep.
        records=[record(base + 1, event, "a")],
        phase="running",
        wake_at=None,
        sessions=[SessionRow("ses-1", "a", 0, EMPTY_DIGEST)],
        operations=[life],
    )
    assert decided.reactions == []


def test_the_append_of_a_result() -> None:
    stage = Stage()
    stage.spawn("a")
    agent = stage.agent()
    stage.accepted("a", "i1")
    run, base = stage.run_of("a"), stage.mob.head
    session = stage.member("a").session_id
    command = c.SettleRun(agent, run.run_id, run.fence, Raw(b'"x"'), b"\x01" * 32, [Raw(b'{"n":1}')], 1, "d1")
    name = run.inputs[0].canonical_input_id
    decided = asked(stage, command)
    event = e.RunSettled(
        "a",
        run.run_id,
        "committed",
        [e.Outcome(name, "consumed", attempt=1)],
        Raw(b'"x"'),
        message_count=1,
        digest="d1",
        result_hash="01" * 32,
    )
    row = RunRow(
        run_id=run.run_id,
        member_id="a",
        state="committed",
        host_id="h",
        executor_fence=run.fence,
        started_seq=run.seq,
        settled_seq=base + 1,
        started_at=run.at,
        settled_at=NOW,
        inputs=f'["{name}"]',
        attempts="[1]",
        resent=0,
        message_count=1,
        digest="d1",
    )
    assert decided.append == Append(
        mob_id="mob",
        log_id="log",
        epoch=7,
        base=base,
        records=[record(base + 1, event, "a", run.run_id)],
        phase="running",
        # A mob with agents owes them their graces.
        wake_at=0,
        runs=[row],
        messages=[MessageRow(session, 0, run.run_id, '{"n":1}')],
        sessions=[SessionRow(session, "a", 1, "d1")],
    )
    assert decided.reactions == [SendSettled(agent, run.run_id, "committed")]


def test_what_changes_nothing_hands_nothing_over_and_still_tells_agents() -> None:
    stage = Stage()
    decided = asked(stage, c.FailRun("att-0", "run-0", 1, "error"), "r1")
    assert (decided.append, decided.replay_seq, decided.would) == (None, 0, [])
    assert decided.reactions == [SendSettled("att-0", "run-0", "fenced")]
    assert decided.answer == RunAnswer("fenced")
    assert stage.mob.requests == {}


# What every decision ends with.


def test_who_drained_and_was_left_behind_leaves_when_the_mob_goes_on_and_not_before() -> None:
    scene = Scene("a")
    scene.serve()
    scene.retire_runtime("a")
    # As if there had been no room for its end in the decision that retired it.
    scene.member("a").lifecycle = "retiring"
    scene.do(c.Wake())
    assert scene.kinds == []
    scene.do(c.Continue())
    assert scene.kinds == ["member_retired"]


def test_a_completion_ends_with_whatever_decision_finds_nobody_left() -> None:
    scene = Scene()
    # As if the last member had just gone.
    scene.mob.pending = "complete"
    scene.do(c.Wake())
    assert (scene.kinds, scene.mob.phase, scene.mob.pending) == (["mob_completed"], "completed", "none")
