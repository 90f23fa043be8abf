"""Decisions as such: requests made twice, decisions that leave no trace, and logs that do not add up."""

from collections.abc import Callable
from typing import Any, Final

import msgspec
import pytest
from msgspec import Raw
from tests.machines.examples import EXAMPLES, ready_for
from tests.machines.scene import Scene
from tests.machines.stage import DAY, CountedIds, Stage, state_bytes, stored, text

from mobd_server.errors import DecisionTooLarge, InvalidTransition, MemberExists, RequestConflict
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import Answer, MemberView
from mobd_server.machines.decision import ANSWER_TYPES, DECIDE, EVOLVE, REQUESTS, fold, new_mob
from mobd_server.machines.draft import MAX_BYTES, MAX_EVENTS, Draft
from mobd_server.machines.records import Record
from mobd_server.machines.state import Ledger
from mobd_server.machines.undo import Undo

SPAWN: Final = c.SpawnMember(c.MemberSpec("a", "analyst"))


# Requests that are made twice.


def test_a_repeated_request_is_answered_from_the_row_of_the_first() -> None:
    stage = Stage()
    first = stage.decide(SPAWN, "r1")
    before = state_bytes(stage.mob)
    again = stage.decide(SPAWN, "r1")
    assert (again.answer, again.append, again.reactions) == (None, None, [])
    row = stage.log[again.replay_seq - 1]
    assert (row.request_id, row.request_hash) == ("r1", "SpawnMember")
    assert row.answer is not None
    assert msgspec.json.decode(row.answer, type=ANSWER_TYPES[c.SpawnMember]) == first.answer
    assert state_bytes(stage.mob) == before


def test_the_row_of_a_request_is_the_last_of_its_decision() -> None:
    stage = Stage()
    stage.attach()
    stage.decide(SPAWN, "r1")
    assert stage.kinds == ["member_spawned", "executor_assigned"]
    assert [record.request_id for record in stage.log[-2:]] == [None, "r1"]


def test_a_repeated_request_is_answered_before_the_phase_is_looked_at() -> None:
    stage = Stage()
    stage.decide(SPAWN, "r1")
    stage.do(c.DestroyMob())
    assert stage.decide(SPAWN, "r1").replay_seq == 3


def test_a_request_id_with_another_request_is_a_conflict() -> None:
    stage = Stage()
    stage.decide(SPAWN, "r1", "one hash")
    before = state_bytes(stage.mob)
    with pytest.raises(RequestConflict) as refused:
        stage.decide(SPAWN, "r1", "another hash")
    assert refused.value.details == {"request_id": "r1", "cursor": "3"}
    assert state_bytes(stage.mob) == before


def test_request_ids_belong_to_their_callers() -> None:
    stage = Stage()
    stage.decide(SPAWN, "r1", principal="ada")
    with pytest.raises(MemberExists):
        stage.decide(SPAWN, "r1", principal="bob")


def test_a_request_that_was_refused_or_changed_nothing_is_not_remembered() -> None:
    stage = Stage()
    with pytest.raises(InvalidTransition):
        stage.decide(c.ResumeMob(), "r1")
    assert stage.decide(SPAWN, "r1").replay_seq == 0
    stage.decide(c.EnsureMember(SPAWN.spec), "r2")
    assert "anonymous\nr2" not in stage.mob.requests


def test_a_request_is_remembered_for_a_day() -> None:
    stage = Stage()
    stage.decide(c.StopMob(), "r1", "stop")
    stage.now += DAY
    assert stage.decide(c.StopMob(), "r1", "stop").replay_seq == 3
    stage.now += 1
    assert stage.decide(c.ResumeMob(), "r1", "resume").replay_seq == 0
    assert stage.mob.phase == "running"
    assert stage.mob.request_order == ["anonymous\nr1"]
    assert stage.decide(c.ResumeMob(), "r1", "resume").replay_seq == 4


def test_ten_thousand_requests_are_remembered() -> None:
    stage = Stage()
    for n in range(REQUESTS - 1):
        stage.mob.requests[f"anonymous\nold{n}"] = Ledger("h", 1, stage.now)
        stage.mob.request_order.append(f"anonymous\nold{n}")
    stage.decide(c.StopMob(), "r1")
    assert len(stage.mob.requests) == REQUESTS == 10_000
    assert "anonymous\nold0" in stage.mob.requests
    stage.decide(c.ResumeMob(), "r2")
    assert len(stage.mob.requests) == len(stage.mob.request_order) == 10_000
    assert "anonymous\nold0" not in stage.mob.requests
    assert stage.mob.request_order[-2:] == ["anonymous\nr1", "anonymous\nr2"]


def test_requests_are_known_again_after_a_replay() -> None:
    stage = Stage()
    stage.decide(SPAWN, "r1")
    stage.decide(c.StopMob(), "r2", principal="ada")
    assert stage.replayed().requests == stage.mob.requests
    assert stage.replayed().request_order == stage.mob.request_order


STORED: Final = sorted(command.__name__ for command in ANSWER_TYPES if command is not c.CreateMob)


@pytest.mark.parametrize("name", STORED)
def test_a_stored_answer_is_read_back_as_it_was_given(name: str) -> None:
    scene = ready_for(name)
    command = EXAMPLES[name](scene)
    first = scene.decide(command, "r1")
    row = scene.log[-1]
    answer: Answer = msgspec.json.decode(row.answer or "", type=ANSWER_TYPES[type(command)])
    assert msgspec.json.encode(answer) == msgspec.json.encode(first.answer)
    before = state_bytes(scene.mob)
    again = scene.decide(command, "r1")
    assert (again.answer, again.append, again.reactions, again.replay_seq) == (None, None, [], row.seq)
    with pytest.raises(RequestConflict):
        scene.decide(command, "r1", "another hash")
    assert state_bytes(scene.mob) == before
    assert scene.replayed().requests == scene.mob.requests


def test_the_answer_of_a_creation_is_stored() -> None:
    stage = Stage()
    definition = stage.mob.definition
    stage.mob, stage.log = new_mob("mob"), []
    decided = stage.decide(c.CreateMob(definition, {}, "log"), "r1")
    answer = msgspec.json.decode(stage.log[-1].answer or "", type=ANSWER_TYPES[c.CreateMob])
    assert msgspec.json.encode(answer) == msgspec.json.encode(decided.answer)
    assert stage.decide(c.CreateMob(definition, {}, "log"), "r1").replay_seq == 2


def test_answers_are_stored_for_every_mutation_of_callers_but_deliveries() -> None:
    # The key of a delivery is its input_id; who terminates an owner has no request of its own.
    assert set(STORED) == set(EXAMPLES) - {"Deliver", "DeliverBatch", "Attach", "TerminateOwner"}


# Decisions that leave no trace.


def test_a_decision_with_too_many_events_leaves_no_trace() -> None:
    stage = Stage()
    stage.do(c.SpawnMembers([c.MemberSpec(f"m{n}", "analyst") for n in range(500)]))
    before = state_bytes(stage.mob)
    with pytest.raises(DecisionTooLarge):
        stage.do(c.DeliverBatch([c.Deliver(f"m{n % 500}", f"i{n}", text("x")) for n in range(MAX_EVENTS + 1)]))
    assert state_bytes(stage.mob) == before
    stage.do(c.DeliverBatch([c.Deliver(f"m{n % 500}", f"i{n}", text("x")) for n in range(MAX_EVENTS)]))
    assert len(stage.events) == MAX_EVENTS == 2_000


def test_a_decision_with_too_many_bytes_leaves_no_trace() -> None:
    stage = Stage()
    stage.spawn("a", "b")
    stage.agent()
    before = state_bytes(stage.mob)
    content = Raw(b"1" * (MAX_BYTES // 2))
    with pytest.raises(DecisionTooLarge):
        stage.do(c.DeliverBatch([c.Deliver("a", "i1", content), c.Deliver("b", "i1", content)]))
    assert state_bytes(stage.mob) == before


@pytest.mark.parametrize("broken", [Raw(b"\xff"), object()], ids=["text that is no UTF-8", "no JSON at all"])
def test_what_cannot_be_stored_leaves_no_trace(broken: Any) -> None:
    stage = Stage()
    stage.spawn("a")
    stage.agent()
    stage.accepted("a", "i1")
    run = stage.run_of("a")
    before = state_bytes(stage.mob)
    with pytest.raises((TypeError, UnicodeDecodeError)):
        stage.do(c.SettleRun(run.attachment_id, run.run_id, run.fence, broken, b"hash"))
    assert state_bytes(stage.mob) == before


class Stumbles(CountedIds):
    """Fails at its nth id."""

    def __init__(self, at: int) -> None:
        super().__init__(1_000)
        self.at = at

    def new(self, prefix: str) -> str:
        self.at -= 1
        if not self.at:
            raise RuntimeError("no more ids")
        return super().new(prefix)


@pytest.mark.parametrize("at", range(1, 9))
def test_a_decision_that_fails_in_its_middle_leaves_no_trace(at: int) -> None:
    stage = Stage()
    stage.spawn("a", "b", "c")
    stage.agent(capacity=1)
    for member_id in ("a", "b"):
        stage.accepted(member_id, "i1", "i2")
    stage.fail(stage.run_of("a"))
    before = state_bytes(stage.mob)
    stage.ids = Stumbles(at)
    deliveries = [c.Deliver(member_id, f"n{n}", text("x")) for n in range(3) for member_id in ("c", "a", "d")]
    try:
        stage.do(c.DeliverBatch(deliveries))
    except RuntimeError:
        assert state_bytes(stage.mob) == before
    else:
        assert at > 6


def drafted(stage: Stage, command: c.Command) -> Draft:
    """Carry out `command` without sealing it."""

    def evolve(mob: Any, undo: Undo, record: Record) -> None:
        EVOLVE[type(record.event)](mob, undo, record, record.event)
        mob.head = record.seq

    draft = Draft(stage.mob, c.Context(stage.now, stage.ids, stage.connected), evolve)
    DECIDE[type(command)](draft, command)
    return draft


# Commands whose examples append nothing, or are refused, in the mob of the next test.
IDLE: Final = ("StartMob", "ResumeMob", "Interrupt", "HardCancel")


def test_every_command_can_be_undone() -> None:
    scene = Scene("a", "b", "c", "d", timeout_s=60)
    scene.serve(capacity=2, max_members=3)
    for member_id in ("a", "b", "c", "d"):
        scene.put(member_id, "i1", "i2", "i3")
    scene.report(scene.run_of("b"), "error")
    scene.steer("b", "s1")
    scene.steer("a", "s1")
    scene.cancel("a")
    scene.do(c.RegisterOperation("tool", "a tool"))
    scene.do(c.RetireRuntime("c"))
    run = scene.run_of("a")
    agent = scene.agent_of("a") or ""
    fence = scene.executor("a").fence
    serves = scene.attachment(agent).serves
    commands: list[c.Command] = [
        *(example(scene) for name, example in EXAMPLES.items() if name not in IDLE),
        c.Deliver("d", "i9", text("x")),
        c.Attach("h", "2", 4, 4, serves),
        c.Attach("h", "1", 2, 3, serves, steers=True),
        c.Decline(agent, "a", fence),
        c.SettleRun(agent, run.run_id, run.fence, Raw(b"1"), b"hash", [Raw(b"{}")], 1, "d", None, scene.taken("a")),
        c.FailRun(agent, run.run_id, run.fence, "error"),
        c.FailRun(agent, run.run_id, run.fence, "cancelled", steered=scene.taken("a")),
        c.LoseRun(agent, run.run_id, run.fence, "gone"),
        c.CancelUnsent(agent, run.run_id, run.fence),
        c.FenceOff(agent, run.run_id, run.fence, run.control_id, "silent"),
        c.ReportRunProgress(agent, run.run_id, run.fence, "half", 50),
        c.DrainAttachment(agent),
        c.CloseAttachment(agent, "lost"),
        c.RespawnMember("c"),
        c.DestroyRuntime("b"),
        c.Interrupt("c"),
        c.HardCancel("c", scene.run_of("c").run_id),
    ]
    for command in commands:
        before = state_bytes(scene.mob)
        draft = drafted(scene, command)
        assert draft.records, command
        assert state_bytes(scene.mob) != before
        draft.rollback()
        assert state_bytes(scene.mob) == before, command


# Logs that do not add up.


# The canonical id of the one input of `log_of_a_run`.
INPUT: Final = "in-4"


def fold_all(log: list[Record]) -> None:
    mob = new_mob("mob")
    for record in log:
        fold(mob, record)


def log_of_a_run() -> list[Record]:
    stage = Stage()
    stage.spawn("a")
    stage.agent()
    stage.accepted("a", "i1")
    stage.finish(stage.run_of("a"))
    return [stored(record) for record in stage.log]


def altered(kind: type[e.Event], **changes: Any) -> Callable[[list[Record]], None]:
    def alter(log: list[Record]) -> None:
        for at, record in enumerate(log):
            if isinstance(record.event, kind):
                event = msgspec.structs.replace(record.event, **changes)
                log[at] = msgspec.structs.replace(record, event=event)

    return alter


def moved(log: list[Record], start: int) -> None:
    for at in range(start, len(log)):
        log[at] = msgspec.structs.replace(log[at], seq=at + 1)


def without(kind: type[e.Event]) -> Callable[[list[Record]], None]:
    def drop(log: list[Record]) -> None:
        log[:] = [record for record in log if not isinstance(record.event, kind)]
        moved(log, 0)

    return drop


def twice(kind: type[e.Event]) -> Callable[[list[Record]], None]:
    def repeat(log: list[Record]) -> None:
        (at,) = [at for at, record in enumerate(log) if isinstance(record.event, kind)]
        log.insert(at, log[at])
        moved(log, 0)

    return repeat


DAMAGE: Final[dict[str, Callable[[list[Record]], None]]] = {
    "a gap": lambda log: log.__delitem__(3),
    "an event twice": lambda log: log.insert(3, log[3]),
    "two beginnings": twice(e.MobCreated),
    "a second start": twice(e.MobStarted),
    "a member twice": twice(e.MemberSpawned),
    "an input twice": twice(e.InputAccepted),
    "a run twice": twice(e.RunStarted),
    "a result twice": twice(e.RunSettled),
    "a confirmation twice": twice(e.ExecutorConfirmed),
    "no member": without(e.MemberSpawned),
    "no agent": without(e.AttachmentOpened),
    "no confirmation": without(e.ExecutorConfirmed),
    "no input": without(e.InputAccepted),
    "no run": without(e.RunStarted),
    "a run of another input": altered(e.RunStarted, canonical_input_ids=["in-0"]),
    "an outcome that the result cannot have": altered(e.RunSettled, outcomes=[e.Outcome(INPUT, "requeued")]),
    "an outcome of another input": altered(e.RunSettled, outcomes=[e.Outcome("in-0", "consumed")]),
    "too many outcomes": altered(e.RunSettled, outcomes=[e.Outcome(INPUT, "consumed")] * 2),
    "a forgotten input that has not ended": altered(e.InputAccepted, forgets=["00"]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_log_that_does_not_add_up_is_not_folded(damage: str) -> None:
    log = log_of_a_run()
    DAMAGE[damage](log)
    with pytest.raises((ValueError, KeyError, InvalidTransition)):
        fold_all(log)


def test_an_undamaged_log_is_folded() -> None:
    log = log_of_a_run()
    fold_all(log)
    assert [one.event.canonical_input_id for one in log if isinstance(one.event, e.InputAccepted)] == [INPUT]


def test_an_agent_is_not_closed_while_it_has_members() -> None:
    stage = Stage()
    stage.spawn("a")
    agent = stage.agent()
    last = stage.log[-1]
    event = e.AttachmentClosed(agent, "lost")
    with pytest.raises(ValueError, match="with members or runs"):
        fold(stage.mob, msgspec.structs.replace(last, seq=last.seq + 1, kind=event.kind, event=event))


def test_every_event_has_an_evolve_and_every_command_a_decision() -> None:
    assert set(EVOLVE) == set(e.EVENT_TYPES) == set(e.BY_KIND.values())
    assert len({event.kind for event in e.EVENT_TYPES}) == len(e.EVENT_TYPES)
    assert set(DECIDE) == set(c.Command.__subclasses__())
    assert set(ANSWER_TYPES) < set(DECIDE)
    assert ANSWER_TYPES[c.SpawnMember] is MemberView
