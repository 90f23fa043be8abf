"""Asking only, and acting for a run: what would be decided, without a trace, and whose agent may still decide."""

from collections.abc import Callable
from typing import Final

import msgspec
import pytest
from tests.machines.examples import EXAMPLES, SPEC, ready_for
from tests.machines.scene import Scene
from tests.machines.stage import CountedIds, state_bytes

from mobd_server.errors import InvalidTransition, MemberExists, StaleFence
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import Deduplicated, DestroyAnswer, MemberView, MobReport, Retired
from mobd_server.machines.decision import decide, new_mob
from mobd_server.machines.records import Record
from mobd_server.machines.state import Definition, Mob, Profile, Run

# Asking only.


def facts(records: list[Record]) -> list[tuple[int, str, str | None, str | None, str]]:
    return [(one.seq, one.kind, one.member_id, one.run_id, one.payload) for one in records]


@pytest.mark.parametrize("name", EXAMPLES)
def test_who_only_asks_is_told_what_would_be_and_nothing_is(name: str) -> None:
    scene = ready_for(name)
    command = EXAMPLES[name](scene)
    before, count, log = state_bytes(scene.mob), scene.ids.count, len(scene.log)
    would = scene.would(command)
    assert (would.append, would.reactions, would.replay_seq) == (None, [], 0)
    assert would.would
    assert state_bytes(scene.mob) == before
    assert len(scene.log) == log
    # The same ids: what is decided then is what was told.
    scene.ids = CountedIds(count)
    decided = scene.decide(command)
    assert decided.append is not None
    assert facts(would.would) == facts(decided.append.records)
    assert msgspec.json.encode(would.answer) == msgspec.json.encode(decided.answer)
    assert decided.would == []


def test_who_only_asks_for_a_creation_leaves_no_mob() -> None:
    mob = new_mob("mob")
    before = state_bytes(mob)
    command = c.CreateMob(Definition("mob", profiles={"analyst": Profile("analyst")}), {}, "log")
    decided = decide(mob, command, c.Context(1, CountedIds(), validate_only=True), 1)
    assert [one.kind for one in decided.would] == ["mob_created", "mob_started"]
    assert (decided.append, state_bytes(mob)) == (None, before)


@pytest.mark.parametrize("name", ["SpawnMember", "Interrupt", "RetireMember", "DestroyMob"])
def test_who_only_asks_neither_reads_nor_writes_the_ledger(name: str) -> None:
    scene = ready_for(name)
    command = EXAMPLES[name](scene)

    def ask(request_hash: str) -> tuple[int, list[Record]]:
        context = c.Context(
            scene.now,
            CountedIds(scene.ids.count),
            scene.connected,
            request_id="r1",
            request_hash=request_hash,
            validate_only=True,
        )
        decided = decide(scene.mob, command, context, 1)
        return decided.replay_seq, decided.would

    seq, first = ask("one")
    assert seq == 0
    assert scene.mob.requests == {}
    assert all((one.request_id, one.answer) == (None, None) for one in first)
    # Neither is it a conflict to ask again with other words.
    assert facts(ask("another")[1]) == facts(first)
    assert scene.decide(command, "r1", "one").replay_seq == 0
    assert scene.decide(command, "r1", "one").replay_seq > 0


def test_who_only_asks_is_not_answered_with_what_was_decided_before() -> None:
    scene = Scene("a")
    scene.serve()
    scene.decide(c.RetireRuntime("a"), "r1", "one")
    for request_hash in ("one", "another"):
        context = c.Context(
            scene.now, scene.ids, scene.connected, request_id="r1", request_hash=request_hash, validate_only=True
        )
        decided = decide(scene.mob, c.RetireRuntime("a"), context, 1)
        assert (decided.replay_seq, decided.answer) == (0, Retired(already=True))


def test_a_refusal_is_a_refusal_for_who_only_asks_too() -> None:
    scene = Scene("a")
    before = state_bytes(scene.mob)
    with pytest.raises(MemberExists):
        scene.would(c.SpawnMember(c.MemberSpec("a", "analyst")))
    with pytest.raises(InvalidTransition):
        scene.would(c.ResumeMob())
    assert state_bytes(scene.mob) == before


def test_what_would_change_nothing_would_append_nothing() -> None:
    scene = Scene("a")
    scene.put("a", "i1")
    decided = scene.would(c.Deliver("a", "i1", scene.inputs("a")[0].content))
    assert isinstance(decided.answer, Deduplicated)
    assert decided.would == []


def test_the_report_of_who_only_asks_is_that_of_the_first_decision() -> None:
    scene = Scene("a", "b")
    scene.put("a", "i1")
    answer = scene.would(c.CompleteMob()).answer
    assert isinstance(answer, MobReport)
    assert (answer.mob.phase, scene.mob.phase) == ("completed", "running")
    ended = scene.would(c.DestroyMob()).answer
    assert isinstance(ended, DestroyAnswer)
    assert (ended.done, scene.mob.phase) == (True, "running")


# Acting for a run.


def running() -> Scene:
    scene = Scene("a", "b")
    scene.serve()
    scene.put("a", "m1", "m2")
    return scene


def fenced_off(scene: Scene, run: Run) -> None:
    scene.cancel("a")
    scene.fence_off(run)


# After which nobody acts for the run any more.
OVER: Final[dict[str, Callable[[Scene, Run], object]]] = {
    "a result": lambda scene, run: scene.settle(run),
    "a failure": lambda scene, run: scene.report(run, "error"),
    "a fenced agent": fenced_off,
    "a respawn": lambda scene, _: scene.do(c.RespawnMember("a")),
    "a destruction": lambda scene, _: scene.do(c.DestroyRuntime("a")),
}


def refused(scene: Scene, command: c.Command, run_id: str, fence: int) -> None:
    before = state_bytes(scene.mob)
    with pytest.raises(StaleFence) as stale:
        scene.act(command, run_id, fence)
    assert stale.value.reason == "STALE_FENCE"
    assert stale.value.details == {"run_id": run_id, "executor_fence": str(fence)}
    assert state_bytes(scene.mob) == before


@pytest.mark.parametrize("after", OVER)
@pytest.mark.parametrize("name", ["SpawnMember", "Deliver", "RetireMember", "RegisterOperation", "StopMob"])
def test_who_acts_for_a_run_that_is_over_is_refused(after: str, name: str) -> None:
    scene = running()
    run = scene.run_of("a")
    OVER[after](scene, run)
    refused(scene, EXAMPLES[name](scene), run.run_id, run.fence)


def test_who_acts_for_no_run_or_with_another_fence_is_refused() -> None:
    scene = running()
    run = scene.run_of("a")
    refused(scene, c.SpawnMember(SPEC), "run-0", run.fence)
    refused(scene, c.SpawnMember(SPEC), run.run_id, run.fence + 1)


def test_who_acts_for_the_run_in_flight_may() -> None:
    scene = running()
    run = scene.run_of("a")
    decided = scene.act(c.SpawnMember(SPEC), run.run_id, run.fence)
    assert isinstance(decided.answer, MemberView)
    # The operation of the new member begins in the registry of the one that spawned it.
    assert scene.event(e.MemberSpawned).owner == "a"
    assert scene.operation("new").owner == "a"
    scene.act(c.Deliver("b", "i1", scene.run_of("a").inputs[0].content), run.run_id, run.fence)
    assert scene.batch("b") == ["i1"]
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_a_member_that_is_spawned_by_a_caller_has_its_operation_in_the_mobs_registry() -> None:
    scene = running()
    assert (scene.operation("a").owner, scene.operation("b").owner) == ("", "")


def test_a_respawn_keeps_the_operation_in_its_registry() -> None:
    scene = running()
    run = scene.run_of("a")
    scene.act(c.SpawnMember(SPEC), run.run_id, run.fence)
    scene.do(c.RespawnMember("new"))
    assert scene.event(e.MemberRespawned).owner == "a"
    assert scene.operation("new").owner == "a"


def test_a_known_request_is_answered_also_to_an_agent_whose_run_has_ended() -> None:
    scene = running()
    run = scene.run_of("a")

    def spawn(mob: Mob) -> int:
        acting = (run.run_id, run.fence)
        context = c.Context(scene.now, scene.ids, scene.connected, request_id="r1", request_hash="h", acting=acting)
        decided = decide(mob, c.SpawnMember(SPEC), context, 1)
        scene.log.extend(decided.append.records if decided.append is not None else [])
        return decided.replay_seq

    assert spawn(scene.mob) == 0
    scene.settle(scene.run_of("a"))
    assert spawn(scene.mob) > 0
