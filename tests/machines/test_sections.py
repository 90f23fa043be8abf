"""The whole state as its readers see it: every section of a mob, its whole value, and what the state weighs."""

from typing import Any, Final

import msgspec
from msgspec import Raw
from tests.machines.scene import Scene
from tests.machines.stage import NOW, SECOND, Stage, replay

from mobd_server.machines import commands as c
from mobd_server.machines.decision import new_mob
from mobd_server.machines.keys import input_key
from mobd_server.machines.sections import Part, parts, weight
from mobd_server.machines.state import EMPTY_DIGEST, Mob

CONTENT: Final = [{"text": "hello"}]
CHECKPOINT: Final = {"boundary": "run_checkpoint", "execution": "content_turn", "intent": "none"}


def read(mob: Mob) -> list[tuple[str, str, Any]]:
    """Return what the sections are about, and their values as whoever reads the JSON has them."""
    return [(part.kind, part.id, msgspec.json.decode(part.value)) for part in parts(mob)]


def of_kind(mob: Mob, kind: str) -> dict[str, Any]:
    return {name: value for what, name, value in read(mob) if what == kind}


def busy() -> Scene:
    """Return a mob with a run that took in an input, what waits behind it in both lanes, a tool, and a request."""
    scene = Scene("b", "a", timeout_s=60)
    scene.serve(max_members=1)
    scene.put("b", "i1", "i2")
    scene.steer("b", "s1")
    scene.suspend(scene.agent_of("b") or "")
    scene.now += 5
    scene.steer("a", "s2")
    scene.decide(c.RegisterOperation("tool", "a tool", owner="a"), "r1")
    return scene


def an_input(name: str, input_id: str, seq: int, **more: Any) -> tuple[str, str, dict[str, Any]]:
    """Return the section of an input that every field of `more` differs in from one that waits for member b."""
    value = {
        "canonical_input_id": name,
        "input_id": input_id,
        "key": input_key(input_id),
        "content": CONTENT,
        "size": len(msgspec.json.encode(CONTENT)),
        "sender": "anonymous",
        "seq": seq,
        "at": NOW,
        "member_id": "b",
        "state": "waiting",
        "run_id": None,
    }
    return "input", name, {**value, **more}


def a_life(name: str, member_id: str, seq: int, **more: Any) -> tuple[str, str, dict[str, Any]]:
    value = {
        "operation_id": name,
        "kind": "mob_member_child",
        "owner": "",
        # Nothing keeps the name of a life that goes on, and it is shown all the same.
        "display_name": f"mob/analyst/{member_id}",
        "created_seq": seq,
        "created_at": NOW,
        "member_id": member_id,
        "expect_peer_channel": True,
        "updated_seq": seq,
    }
    return "operation", name, {**value, **more}


def a_member(member_id: str, **more: Any) -> tuple[str, str, dict[str, Any]]:
    value = {
        "type": "member",
        "mob_id": "mob",
        "member_id": member_id,
        "generation": 0,
        "role": "analyst",
        "message_count": 0,
        "digest": EMPTY_DIGEST,
        "created_at": NOW,
    }
    return "member", member_id, {**value, **more}


OF_THE_MOB: Final = (
    "mob",
    "mob",
    {
        "mob_id": "mob",
        "phase": "running",
        "pending": "none",
        "labels": {},
        "members": {"total": 2, "running": 1, "idle": 1},
        "head": 14,
        "log_id": "log",
        "definition": {
            "id": "mob",
            "profiles": {
                "analyst": {"role": "analyst", "silent_intents": ["mob.joined", "mob.left"], "run_timeout_s": 60},
                "lead": {"role": "lead"},
            },
        },
        "created_at": NOW,
        "agents": 1,
        "inputs_waiting": 2,
    },
)

THE_RUN: Final = (
    "run",
    "run-7",
    {
        "run_id": "run-7",
        "member_id": "b",
        "attachment_id": "att-5",
        "host_id": "h",
        "fence": 3,
        # Its inputs have sections of their own.
        "inputs": ["in-6"],
        "attempts": [1],
        "seq": 9,
        "at": NOW,
        "resent": 0,
        "exclusive": False,
        "stamp": {"boundary": "run_start", "execution": "content_turn", "intent": "none"},
        "steered": ["in-9"],
        "steered_attempts": [1],
        "cancel": "none",
        "cancelled_by": "caller",
        "cancel_reason": "",
        "control_id": "",
        "deadline": NOW + 60 * SECOND,
    },
)

THE_AGENT: Final = (
    "attachment",
    "att-5",
    {
        "attachment_id": "att-5",
        "host_id": "h",
        "incarnation": "1",
        "capacity": 8,
        "max_members": 1,
        "serves": [{"role": "analyst"}],
        "roles": ["analyst"],
        "names": [],
        "seq": 5,
        "at": NOW,
        "members": {"b": 3},
        "runs": ["run-7"],
        "ready": [],
        "exclusive": None,
        "steers": True,
    },
)


def test_every_section_of_a_busy_mob() -> None:
    scene = busy()
    assert read(scene.mob) == [
        OF_THE_MOB,
        a_member(
            "a",
            fence_token=2,
            state="idle",
            session_id="ses-3",
            operation_id="op-4",
            inputs_waiting=1,
            inputs_steering=1,
            oldest_waiting_at=NOW + 5,
        ),
        a_member(
            "b",
            fence_token=1,
            state="running",
            session_id="ses-1",
            operation_id="op-2",
            attachment_id="att-5",
            host_id="h",
            run_id="run-7",
            inputs_waiting=1,
            oldest_waiting_at=NOW,
            inputs_running=2,
        ),
        an_input("in-10", "s2", 13, member_id="a", at=NOW + 5, lane="steer", stamp=CHECKPOINT),
        an_input("in-6", "i1", 8, state="running", run_id="run-7", attempts=1),
        an_input("in-8", "i2", 10),
        an_input("in-9", "s1", 11, state="running", run_id="run-7", attempts=1, lane="steer", stamp=CHECKPOINT),
        THE_RUN,
        THE_AGENT,
        a_life(
            "op-2",
            "b",
            3,
            status="running",
            peer_ready=True,
            peer_handle={"attachment_id": "att-5", "host_id": "h"},
            updated_seq=7,
            started_at=NOW,
        ),
        a_life("op-4", "a", 4),
        (
            "operation",
            "tool",
            {
                "operation_id": "tool",
                "kind": "background_tool",
                "owner": "a",
                "display_name": "a tool",
                "created_seq": 14,
                "created_at": NOW + 5,
                "updated_seq": 14,
            },
        ),
        ("requests", "mob", {"count": 1}),
    ]


def test_the_same_log_gives_the_same_text() -> None:
    scene = busy()
    assert list(parts(replay("mob", scene.log))) == list(parts(scene.mob))


def test_a_mob_that_is_not_there_yet_has_two_sections() -> None:
    assert [(kind, name) for kind, name, _ in read(new_mob("mob"))] == [("mob", "mob"), ("requests", "mob")]
    assert of_kind(new_mob("mob"), "requests") == {"mob": {"count": 0}}


def test_the_content_of_an_input_is_shown_as_it_is_stored() -> None:
    # Neither the order of the names nor how a number is written is ours to change.
    content = Raw(b'[{"data":{"b":1.50,"a":123456789012345678901234567890}}]')
    stage = Stage()
    stage.spawn("a")
    stage.do(c.Deliver("a", "i1", content))
    (shown,) = [part.value for part in parts(stage.mob) if part.kind == "input"]
    assert f'"content":{bytes(content).decode()},' in shown


def test_a_run_that_took_nothing_in_says_so() -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "i1")
    (run,) = of_kind(scene.mob, "run").values()
    assert (run["inputs"], run["steered"], run["steered_attempts"]) == ([scene.canonical("i1")], [], None)


def test_a_section_is_its_kind_its_name_and_its_text() -> None:
    stage = Stage()
    stage.decide(c.StopMob(), "r1")
    assert list(parts(stage.mob))[-1] == Part("requests", "mob", '{"count":1}')


def test_the_weight_counts_everything_that_can_be_many() -> None:
    # Two members, an agent, three operations; two inputs wait, one in each lane, and two run, one of them steered.
    assert weight(busy().mob) == 2 + 1 + 3 + 2 + 2
    assert weight(new_mob("mob")) == 0
