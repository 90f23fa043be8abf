"""What is stored of an input, in whole: its event, what its member holds of it, and when it is looked for a place."""

from typing import Final

import pytest
from msgspec import Raw
from tests.machines.scene import Scene
from tests.machines.stage import NOW, Stage, text

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import Accepted
from mobd_server.machines.inbox import input_key
from mobd_server.machines.state import CONTENT_TURN, Input, Lane, Stamp

ABOUT: Final = Raw(b'{"intent":"review"}')
CHECKPOINT: Final = Stamp("run_checkpoint")


@pytest.mark.parametrize(("mode", "lane", "stamp"), [("queue", "queue", CONTENT_TURN), ("steer", "steer", CHECKPOINT)])
@pytest.mark.parametrize("wake", [False, True])
def test_an_input_is_stored_with_all_that_its_sender_said_and_that_was_decided(
    mode: Lane, lane: Lane, stamp: Stamp, wake: bool
) -> None:
    scene = Scene("a")
    command = c.Deliver(
        "a",
        "i1",
        text("hello"),
        handling_mode=mode,
        wake=wake,
        supersession_key="k",
        correlation_id="c1",
        kind="peer_request",
        intent="review",
        about=ABOUT,
    )
    answer = scene.decide(command, principal="alice", traceparent="trace").answer
    seq = scene.mob.head
    assert answer == Accepted("i1", "in-3", None, seq)
    assert scene.events == [
        e.InputAccepted(
            "a",
            "i1",
            "in-3",
            text("hello"),
            "alice",
            input_kind="peer_request",
            lane=lane,
            drives=wake,
            stamp=stamp,
            supersession_key="k",
            correlation_id="c1",
            about=ABOUT,
        )
    ]
    for member in (scene.member("a"), scene.replayed().members["a"]):
        assert (member.steer if lane == "steer" else member.queue) == [
            Input(
                "in-3",
                "i1",
                input_key("i1"),
                text("hello"),
                len(bytes(text("hello"))),
                "alice",
                seq,
                NOW,
                "trace",
                kind="peer_request",
                lane=lane,
                drives=wake,
                stamp=stamp,
                supersession_key="k",
                correlation_id="c1",
                about=ABOUT,
            )
        ]
        assert member.active_seq == seq
        assert member.queue_bytes == len(bytes(text("hello")))


def test_an_input_that_says_nothing_more_is_stored_as_a_message() -> None:
    scene = Scene("a")
    scene.put("a", "i1")
    assert scene.events == [e.InputAccepted("a", "i1", "in-3", text("hello"), "anonymous")]
    assert scene.inputs("a") == [
        Input("in-3", "i1", input_key("i1"), text("hello"), len(bytes(text("hello"))), "anonymous", scene.mob.head, NOW)
    ]


def test_an_operation_notice_is_stored_as_over() -> None:
    scene = Scene("a")
    scene.put("a", "i1", kind="operation")
    assert scene.events == [
        e.InputAccepted(
            "a", "i1", "in-3", text("hello"), "anonymous", input_kind="operation", drives=False, consumed=True
        )
    ]


def test_progress_goes_up_in_newer_progress() -> None:
    scene = Scene("a")
    scene.put("a", "g1", "g2", kind="peer_response_progress", supersession_key="k")
    assert scene.events[0] == e.InputCoalesced("a", scene.canonical("g1"), scene.canonical("g2"))
    assert scene.steering("a") == ["g2"]


# When a place is looked for.


@pytest.mark.parametrize("served", [False, True], ids=["without an agent", "with a busy agent"])
def test_a_place_is_looked_for_when_a_member_begins_to_wait_and_not_with_every_input(served: bool) -> None:
    stage = Stage()
    free = stage.attach("free")
    stage.suspend(free)
    stage.spawn("a", "b")
    if served:
        stage.agent("busy", capacity=1)
        stage.accepted("a", "i1")
    stage.accepted("b", "i1")
    before = stage.agent_of("b")
    assert before != free
    # The server would look at all that waits, and says so with a command of its own.
    stage.connected.add(free)
    stage.accepted("b", "i2")
    assert stage.kinds == ["input_accepted"]
    assert stage.agent_of("b") == before
