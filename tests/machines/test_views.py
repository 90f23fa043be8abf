"""What callers see: a member with all that can be said of it, who is final, and what a waiting input waits for."""

from collections.abc import Callable
from typing import Final

import msgspec
import pytest
from msgspec import Raw
from tests.machines.scene import Scene
from tests.machines.stage import NOW, SECOND, named, text

from mobd_server.machines import commands as c
from mobd_server.machines.answers import MemberView, MobView
from mobd_server.machines.decision import new_mob
from mobd_server.machines.state import DRAIN_US, EMPTY_DIGEST, Definition, Profile
from mobd_server.machines.views import is_final, view_member, view_mob, waiting_reason


def test_a_member_shows_all_that_can_be_said_of_it() -> None:
    scene = Scene()
    scene.do(c.SpawnMember(c.MemberSpec("a", "analyst", {"team": "red"}, Raw(b'{"x":[1]}'), text("begin"))))
    agent = scene.serve()
    scene.now += 1
    scene.put("a", "i1")
    scene.now += 1
    scene.steer("a", "s1")
    scene.retire("a")
    member = scene.member("a")
    served = MemberView(
        mob_id="mob",
        member_id="a",
        generation=0,
        fence_token=1,
        role="analyst",
        state="retired",
        session_id=member.session_id,
        message_count=0,
        digest=EMPTY_DIGEST,
        created_at=NOW,
        labels={"team": "red"},
        context=Raw(b'{"x":[1]}'),
        attachment_id=agent,
        host_id="h",
        run_id=scene.run_of("a").run_id,
        # The prompt that it began with runs, and so does what was steered in.
        inputs_waiting=1,
        oldest_waiting_at=NOW + 1,
        inputs_running=2,
        lifecycle="retiring",
        operation_id=member.operation_id,
        initial_input_id=member.initial_input_id,
        kickoff_complete=False,
    )
    assert msgspec.json.encode(view_member(scene.mob, member)) == msgspec.json.encode(served)
    scene.leave(agent)
    scene.now += SECOND
    scene.do(c.Wake())
    alone = msgspec.structs.replace(
        served,
        attachment_id=None,
        host_id="",
        run_id=None,
        inputs_waiting=3,
        inputs_steering=1,
        oldest_waiting_at=NOW,
        inputs_running=0,
        last_error="its agent was lost",
        drain_until=NOW + 2 + DRAIN_US,
    )
    assert msgspec.json.encode(view_member(scene.mob, member)) == msgspec.json.encode(alone)


def test_a_member_that_has_nothing_says_so() -> None:
    scene = Scene("a")
    member = scene.member("a")
    assert view_member(scene.mob, member) == MemberView(
        mob_id="mob",
        member_id="a",
        generation=0,
        fence_token=1,
        role="analyst",
        state="idle",
        session_id=member.session_id,
        message_count=0,
        digest=EMPTY_DIGEST,
        created_at=NOW,
        operation_id=member.operation_id,
    )


def test_a_mob_that_is_being_reset_shows_all_that_can_be_said_of_it() -> None:
    scene = Scene()
    definition = Definition("mob", labels={"team": "red"}, profiles={"analyst": Profile("analyst")})
    scene.mob = new_mob("mob")
    scene.do(c.CreateMob(definition, {"colour": "blue"}, "log"))
    scene.serve()
    scene.do(c.SpawnMembers([c.MemberSpec(f"m{number:03}", "analyst") for number in range(300)]))
    scene.put("m299", "i1", "i2")
    scene.now += 1
    scene.do(c.ResetMob())
    left = len(scene.mob.members)
    # No command of today starts what this counts.
    scene.mob.active_run_count = 2
    shown = MobView(
        mob_id="mob",
        phase="stopped",
        pending="reset",
        labels={"team": "red", "colour": "blue"},
        members={"total": left, "idle": left},
        head=scene.mob.head,
        log_id="log",
        definition=Raw(msgspec.json.encode(definition)),
        created_at=NOW,
        agents=1,
        inputs_waiting=2,
        cleanup_pending=True,
        active_run_count=2,
    )
    assert msgspec.json.encode(view_mob(scene.mob)) == msgspec.json.encode(shown)


# Who is final.


def served() -> Scene:
    scene = Scene("a")
    scene.serve()
    return scene


def running() -> Scene:
    """Return a mob whose member has a run, and an input that waits behind it."""
    scene = served()
    scene.put("a", "i1", "i2")
    return scene


def after(scene: Scene, command: c.Command) -> Scene:
    scene.do(command)
    return scene


def drained() -> Scene:
    scene = after(running(), c.RetireRuntime("a"))
    scene.ran("a")
    return scene


def lost() -> Scene:
    """Return a mob whose member drains, and has lost its agent with the run."""
    scene = after(running(), c.RetireRuntime("a"))
    scene.leave(scene.agent_of("a") or "")
    return scene


FINAL: Final[dict[str, tuple[Callable[[], Scene], bool]]] = {
    "at rest": (served, False),
    "running": (running, False),
    "retired with a run": (lambda: after(running(), c.RetireRuntime("a")), False),
    "retired with inputs that wait": (lost, False),
    "retired at rest": (lambda: after(served(), c.RetireRuntime("a")), True),
    "retired and drained": (drained, True),
    "destroyed": (lambda: after(running(), c.DestroyRuntime("a")), True),
    "respawned": (lambda: after(drained(), c.RespawnMember("a")), False),
}


@pytest.mark.parametrize("what", FINAL)
def test_a_member_is_final_when_nothing_more_will_come_of_it(what: str) -> None:
    prepare, final = FINAL[what]
    assert is_final(prepare().member("a")) is final


# What a waiting input waits for.


def unserved() -> Scene:
    scene = Scene("a")
    scene.put("a", "i1")
    return scene


def passive() -> Scene:
    scene = served()
    scene.put("a", "i1", wake=False)
    return scene


def failed() -> Scene:
    scene = served()
    scene.put("a", "i1")
    scene.report(scene.run_of("a"), "error")
    return scene


def away() -> Scene:
    scene = served()
    scene.suspend(scene.agent_of("a") or "")
    scene.put("a", "i1")
    return scene


def asked() -> Scene:
    scene = unserved()
    scene.join()
    return scene


def busy(*, shared: bool) -> Scene:
    """Return a mob whose one agent has a run of another member: it has no free run, or no place at all."""
    scene = Scene("b", "a")
    scene.serve(capacity=1, max_members=2 if shared else 1)
    scene.put("b", "i1")
    scene.put("a", "i1")
    return scene


def by_name(name: str) -> Scene:
    """Return a mob with an agent that serves one member by name, and is away."""
    scene = Scene()
    scene.suspend(scene.attach(serves=[named(name)]))
    scene.spawn("a")
    scene.put("a", "i1")
    return scene


def pending(command: c.Command) -> Scene:
    """Return a mob whose members can't all be taken off the roster in one decision."""
    scene = unserved()
    scene.do(c.SpawnMembers([c.MemberSpec(f"0{number:03}", "analyst") for number in range(600)]))
    scene.do(command)
    assert "a" in scene.mob.members
    return scene


NOBODY: Final = "no agent serves role analyst"
FULL: Final = "every agent that serves role analyst is full or away"

WAITS: Final[dict[str, tuple[Callable[[], Scene], str]]] = {
    "a destruction": (lambda: pending(c.DestroyMob()), "the mob is being destroyed"),
    "a reset": (lambda: pending(c.ResetMob()), "the mob is being reset"),
    "a stop": (lambda: after(running(), c.StopMob()), "the mob is stopped"),
    "its own run": (running, "an earlier run of the member is in flight"),
    "what wakes it": (passive, "it does not wake its member: another input must"),
    "a pause": (failed, "an attempt failed and is repeated after a pause"),
    "any agent": (unserved, NOBODY),
    "an agent for its name": (lambda: by_name("b"), NOBODY),
    "an agent with room": (lambda: busy(shared=False), FULL),
    "the agent for its name": (lambda: by_name("a"), FULL),
    "its agent": (away, "the agent on host h is away"),
    "its agent's word": (asked, "an agent was asked to serve the member and has not answered yet"),
    "a free run": (lambda: busy(shared=True), "the member's agent is busy with other members"),
}


@pytest.mark.parametrize("what", WAITS)
def test_a_waiting_input_is_told_what_it_waits_for(what: str) -> None:
    prepare, sentence = WAITS[what]
    scene = prepare()
    assert scene.inputs("a")
    assert waiting_reason(scene.mob, scene.member("a"), scene.connected) == sentence
