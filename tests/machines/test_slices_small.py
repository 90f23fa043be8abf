"""The slices of commands that end many members: what each one does, where it ends, and how it goes on (core §11)."""

from typing import Final

import pytest
from tests.machines.scene import Scene
from tests.machines.stage import state_bytes

from mobd_server.errors import InvalidTransition
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import (
    Again,
    DestroyAnswer,
    Done,
    EndStream,
    MemberOutcome,
    MobReport,
    SendStartRun,
    SendUnassign,
)
from mobd_server.machines.slices import SLICE_BYTES, SLICE_EVENTS
from mobd_server.machines.views import view_mob

BEGINS: Final[dict[str, c.Command]] = {"complete": c.CompleteMob(), "retire_all": c.RetireAllMembers()}


# As many as need three slices to retire, and two to be destroyed or reset.
MANY: Final = 600


def crowd() -> Scene:
    """Return a mob of many members without work or agent, with names that come after `a` and before `z`."""
    scene = Scene()
    scene.do(c.SpawnMembers([c.MemberSpec(f"m{n:03}", "analyst") for n in range(MANY)]))
    return scene


def contested() -> tuple[Scene, str, int]:
    """Return such a mob with an agent that has room for `a` alone, while `z` waits; and the fence of that."""
    scene = Scene("a", "z")
    scene.do(c.SpawnMembers([c.MemberSpec(f"m{n:03}", "analyst") for n in range(MANY)]))
    scene.put("a", "m1")
    agent = scene.join(max_members=1)
    scene.put("z", "m1")
    assert (scene.agent_of("a"), scene.agent_of("z")) == (agent, None)
    return scene, agent, scene.executor("a").fence


def go_on(scene: Scene) -> None:
    """Go on after a slice that asked for it."""
    assert scene.sent(Again) == [Again()]
    assert scene.do(c.Continue()) == Done()


# Where a slice ends.


def test_a_slice_ends_with_the_event_that_fills_it() -> None:
    scene = crowd()
    assert scene.do(c.DestroyMob(), DestroyAnswer).done is False
    assert scene.kinds == ["mob_destroying", *["member_destroyed"] * (SLICE_EVENTS - 1)]
    go_on(scene)
    assert scene.kinds == [*["member_destroyed"] * (MANY - SLICE_EVENTS + 1), "mob_destroyed"]


@pytest.mark.parametrize(("missing", "destroyed"), [(0, 1), (1, 2)], ids=["full", "one byte is left"])
def test_a_slice_ends_with_the_byte_that_fills_it(missing: int, destroyed: int) -> None:
    def begun(size: int) -> tuple[int, int]:
        """Begin to destroy two members, one with a name of that size; return the bytes up to its end, and the ends."""
        scene = Scene("a" * size, "b")
        scene.do(c.DestroyMob())
        assert scene.append is not None
        return sum(len(record.payload) for record in scene.append.records[:2]), len(scene.all(e.MemberDestroyed))

    written, _ = begun(SLICE_BYTES)
    assert begun(SLICE_BYTES - (written - SLICE_BYTES) - missing) == (SLICE_BYTES - missing, destroyed)


# Destroying.


def test_a_destruction_in_slices_gives_no_member_another_agent_and_keeps_all_in_its_report() -> None:
    scene, agent, fence = contested()
    # It is to leave when it has drained; whoever is destroyed with the mob does not.
    scene.retire("a")
    assert scene.do(c.DestroyMob()) == DestroyAnswer(view_mob(scene.mob), [])
    assert scene.kinds[:4] == ["mob_destroying", "input_abandoned", "executor_released", "member_destroyed"]
    assert set(scene.kinds[4:]) == {"member_destroyed"}
    assert scene.event(e.ExecutorReleased) == e.ExecutorReleased("a", agent, fence, "the mob is destroyed")
    assert scene.sent(SendUnassign) == [SendUnassign(agent, "a", fence, "the mob is destroyed")]
    released = scene.reactions
    assert scene.do(c.DestroyMob()) == DestroyAnswer(view_mob(scene.mob), [])
    assert (scene.append, scene.reactions) == (None, [])
    scene.reactions = released
    go_on(scene)
    assert set(scene.kinds[:-4]) == {"member_destroyed"}
    assert scene.kinds[-4:] == ["input_abandoned", "member_destroyed", "attachment_closed", "mob_destroyed"]
    assert scene.events[-2:] == [e.AttachmentClosed(agent, "destroyed"), e.MobDestroyed(MANY + 2, 2)]
    assert scene.reactions == [EndStream(agent, "revoked", "mob 'mob' is destroyed")]
    outcomes = [MemberOutcome(one, int(one in ("a", "z"))) for one in sorted(scene.mob.members)]
    assert len(outcomes) == MANY + 2
    assert scene.do(c.DestroyMob()) == DestroyAnswer(view_mob(scene.mob), outcomes, 2, done=True, already=True)
    assert scene.do(c.Continue()) == Done(changed=False)
    assert state_bytes(scene.replayed()) == state_bytes(scene.mob)


def test_a_destruction_that_is_full_with_its_last_member_ends_with_the_next_decision() -> None:
    scene = Scene("a" * SLICE_BYTES)
    agent = scene.join("h", "lead")
    assert scene.do(c.DestroyMob()) == DestroyAnswer(view_mob(scene.mob), [])
    assert scene.kinds == ["mob_destroying", "member_destroyed"]
    go_on(scene)
    assert scene.events == [e.AttachmentClosed(agent, "destroyed"), e.MobDestroyed(1, 0)]


@pytest.mark.parametrize(
    ("command", "trigger", "target"),
    [(c.StartMob(), "start", "running"), (c.StopMob(), "stop", "stopped"), (c.ResumeMob(), "resume", "running")],
    ids=["start", "stop", "resume"],
)
def test_a_mob_that_is_being_destroyed_is_neither_started_nor_stopped(
    command: c.Command, trigger: str, target: str
) -> None:
    scene = crowd()
    scene.do(c.DestroyMob())
    with pytest.raises(InvalidTransition) as refused:
        scene.do(command)
    assert refused.value.message == f"{trigger} is not legal: the mob is being destroyed"
    assert refused.value.details == {"from": "running", "to": target, "allowed": "", "pending": "destroy"}


# Resetting.


def test_a_reset_in_slices_gives_no_member_another_agent_and_tells_why() -> None:
    scene, agent, fence = contested()
    report = scene.do(c.ResetMob(), MobReport)
    assert scene.kinds[:3] == ["mob_stopped", "mob_resetting", "mob_cleanup_begun"]
    assert scene.kinds[3:7] == ["runtime_retired", "input_abandoned", "executor_released", "member_retired"]
    assert set(scene.kinds[7:]) == {"runtime_retired", "member_retired"}
    assert scene.event(e.ExecutorReleased) == e.ExecutorReleased("a", agent, fence, "the mob is reset")
    assert scene.sent(SendUnassign) == [SendUnassign(agent, "a", fence, "the mob is reset")]
    assert report == MobReport(
        view_mob(scene.mob), [MemberOutcome(one, int(one == "a")) for one in sorted(scene.mob.reports)]
    )
    while scene.mob.pending == "reset":
        go_on(scene)
        assert "executor_assigned" not in scene.kinds
    assert scene.kinds[-2:] == ["mob_cleanup_finished", "mob_started"]
    assert scene.do(c.Continue()) == Done(changed=False)


# Completing, and retiring all.


@pytest.mark.parametrize("pending", BEGINS)
def test_every_slice_asks_more_members_to_retire_and_lets_them_leave(pending: str) -> None:
    scene = crowd()
    report = scene.do(BEGINS[pending], MobReport)
    left = []
    while True:
        assert scene.kinds.count("member_retiring") == scene.kinds.count("runtime_retired")
        left.append(scene.kinds.count("member_retired"))
        if scene.mob.pending == "none":
            break
        assert scene.mob.pending == pending
        go_on(scene)
    assert left == [250, 250, 100]
    assert len(report.outcomes) == 250
    assert scene.kinds[-1] == ("mob_completed" if pending == "complete" else "member_retired")
    assert (scene.mob.members, len(scene.mob.reports)) == ({}, MANY)


@pytest.mark.parametrize("pending", ["none", *BEGINS])
def test_members_are_served_while_others_are_still_to_be_asked(pending: str) -> None:
    scene = crowd()
    scene.spawn("z", of="lead")
    agent = scene.serve("late", role="lead")
    scene.suspend(agent)
    scene.put("z", "m1")
    if pending != "none":
        scene.do(BEGINS[pending])
    # Its agent is back: a decision knows, and none was made for it.
    scene.connected.add(agent)
    scene.do(c.Continue())
    assert scene.mob.pending == pending
    assert [one.member_id for one in scene.sent(SendStartRun)] == ["z"]
