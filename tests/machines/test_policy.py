"""What becomes of an input: the table of the reference, written out once more (runtime §2.7).

Every kind, with every handling mode, while its member rests and while it runs.
"""

from typing import Final, NamedTuple, get_args

import pytest
from msgspec import Raw
from tests.machines.scene import SILENT, Scene
from tests.machines.stage import text

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import Accepted, Rejected, SendStartRun
from mobd_server.machines.policy import BY_KIND, BY_MODE, drives, mode_invalid, policy_of, shared, stamp_of
from mobd_server.machines.state import CONTENT_TURN, Boundary, Execution, Intent, Kind, Lane, Stamp

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
MODES: Final[tuple[Lane | None, ...]] = (None, "queue", "steer")


class Row(NamedTuple):
    """One row: what is applied where, what wakes, how it queues, when it is consumed, drained, routed, written down."""

    apply: str
    wake: str
    queue: str
    consume: str
    drain: str
    routing: str
    transcript: bool


def line(cells: str) -> Row:
    apply, wake, queue, consume, drain, routing, transcript = cells.split()
    return Row(apply, wake, queue, consume, drain, routing, transcript == "yes")


WAKING: Final = line("run_start wake_if_idle fifo on_run_complete queue_next_turn queue yes")
RIDING: Final = line("run_start none fifo on_run_complete queue_next_turn queue yes")
PROGRESS: Final = line("run_boundary none coalesce on_run_complete steer_batch steer yes")
GOES_ON: Final = line("run_boundary wake_if_idle fifo on_run_complete steer_batch steer no")
GOES_ON_AT_ONCE: Final = line("run_boundary interrupt_yielding fifo on_run_complete steer_batch steer no")
IGNORED: Final = line("ignore none priority on_accept ignore drop no")
STEERS: Final = line("run_boundary wake_if_idle fifo on_run_complete steer_batch steer yes")
STEERS_AT_ONCE: Final = line("run_boundary interrupt_yielding fifo on_run_complete steer_batch steer yes")
TERMINAL_STEERS: Final = line("run_start wake_if_idle fifo on_run_complete steer_batch steer yes")
TERMINAL_STEERS_AT_ONCE: Final = line("run_start interrupt_yielding fifo on_run_complete steer_batch steer yes")

# The kind's own row, while its member rests and while it runs.
OWN: Final[dict[str, tuple[Row, Row]]] = {
    "prompt": (WAKING, RIDING),
    "peer_message": (WAKING, WAKING),
    "peer_request": (WAKING, WAKING),
    "peer_response_progress": (PROGRESS, PROGRESS),
    "peer_response_terminal": (WAKING, WAKING),
    "flow_step": (WAKING, RIDING),
    "external_event": (WAKING, RIDING),
    "continuation": (GOES_ON, GOES_ON_AT_ONCE),
    "operation": (IGNORED, IGNORED),
}


def expected(kind: str, mode: str | None, *, running: bool) -> Row:
    """Return the row that the reference gives."""
    if mode is None or kind in ("peer_response_progress", "operation"):
        return OWN[kind][running]
    if kind == "peer_response_terminal":
        return WAKING if mode == "queue" else (TERMINAL_STEERS, TERMINAL_STEERS_AT_ONCE)[running]
    return (WAKING, RIDING)[running] if mode == "queue" else (STEERS, STEERS_AT_ONCE)[running]


@pytest.mark.parametrize("running", [False, True], ids=["resting", "running"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_in_every_mode_is_handled_as_the_table_says(kind: Kind, mode: Lane | None, running: bool) -> None:
    policy = policy_of(kind, mode, running=running)
    assert Row(*(getattr(policy, name) for name in Row._fields)) == expected(kind, mode, running=running)


def test_the_tables_have_no_other_rows() -> None:
    assert set(BY_KIND) == {(kind, running) for kind in KINDS for running in (False, True)}
    flags = (False, True)
    assert set(BY_MODE) == {(mode, final, run) for mode in ("queue", "steer") for final in flags for run in flags}
    assert set(OWN) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_only_progress_refuses_a_handling_mode(kind: Kind) -> None:
    assert mode_invalid(kind, None) is False
    for mode in get_args(Lane):
        assert mode_invalid(kind, mode) == (kind == "peer_response_progress")


# (kind, mode) -> the stamp: what is applied where, how it is executed, what a terminal response asks for. A kind that
# is not here starts a content turn at the start of a run, or at a checkpoint if it steers.
STAMPED: Final[dict[tuple[str, str | None], tuple[Boundary, Execution, Intent]]] = {
    ("peer_response_progress", None): ("run_checkpoint", "content_turn", "none"),
    ("peer_response_terminal", None): ("run_start", "content_turn", "append_context_and_run"),
    ("peer_response_terminal", "queue"): ("run_start", "content_turn", "append_context_and_run"),
    ("peer_response_terminal", "steer"): ("run_start", "content_turn", "append_context_and_run"),
    ("continuation", None): ("run_checkpoint", "resume_pending", "none"),
    ("continuation", "queue"): ("run_start", "resume_pending", "none"),
    ("continuation", "steer"): ("run_checkpoint", "resume_pending", "none"),
    ("operation", "steer"): ("run_start", "content_turn", "none"),
}


@pytest.mark.parametrize("running", [False, True], ids=["resting", "running"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_input_is_stamped_when_it_is_accepted(kind: Kind, mode: Lane | None, running: bool) -> None:
    if mode_invalid(kind, mode):
        return
    common: tuple[Boundary, Execution, Intent] = (
        "run_checkpoint" if mode == "steer" else "run_start",
        "content_turn",
        "none",
    )
    wanted = Stamp(*STAMPED.get((kind, mode), common))
    assert stamp_of(kind, policy_of(kind, mode, running=running)) == wanted
    scene = Scene("a")
    scene.serve(steers=False)
    if running:
        scene.put("a", "before")
    answer = scene.send("a", "i1", kind=kind, handling_mode=mode)
    assert isinstance(answer, Accepted)
    accepted = scene.event(e.InputAccepted)
    row = expected(kind, mode, running=running)
    assert (accepted.input_kind, accepted.stamp) == (kind, wanted)
    assert accepted.lane == ("steer" if row.routing == "steer" else "queue")
    assert accepted.consumed == (row.consume == "on_accept")
    # A passive kind never drives; what came while a run was in flight drives when that run has ended.
    assert accepted.drives == (expected(kind, mode, running=False).wake != "none")
    assert scene.kinds == ["input_accepted"] + ["run_started"] * (accepted.drives and not running)
    assert scene.replayed().members["a"] == scene.member("a")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_whoever_says_so_is_not_woken(kind: Kind, mode: Lane | None) -> None:
    assert drives(kind, mode, wake=False, silent=False) is False
    assert drives(kind, mode, wake=True, silent=True) is False


def test_equal_stamps_that_were_read_are_one_object() -> None:
    assert shared(Stamp()) is shared(CONTENT_TURN) is CONTENT_TURN
    for read in (("run_checkpoint",), ("run_start", "resume_pending")):
        assert shared(Stamp(*read)) is shared(Stamp(*read)) == Stamp(*read)


# Handling modes that may not be.


def test_a_handling_mode_where_none_may_be_is_refused_before_anything_is_looked_up() -> None:
    scene = Scene("a")
    scene.put("a", "i1", kind="peer_response_progress")
    for phase in ("running", "stopped"):
        for member_id, input_id in (("a", "i1"), ("a", "new"), ("nobody", "i1")):
            for mode in get_args(Lane):
                answer = scene.send(member_id, input_id, kind="peer_response_progress", handling_mode=mode)
                assert isinstance(answer, Rejected)
                assert answer.cause == "handling_mode_invalid"
                assert scene.append is None
        if phase == "running":
            scene.do(c.StopMob())


# Silent intents.


@pytest.mark.parametrize("intent", SILENT)
def test_a_request_with_a_silent_intent_waits_for_another_input(intent: str) -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "quiet", kind="peer_request", intent=intent)
    assert scene.kinds == ["input_accepted"]
    assert scene.event(e.InputAccepted).drives is False
    assert scene.member("a").listed == "none"
    scene.put("a", "loud")
    assert scene.batch("a") == ["quiet", "loud"]


def test_an_intent_is_silent_for_requests_and_roles_that_say_so_and_no_others() -> None:
    scene = Scene("a")
    scene.spawn("l", of="lead")
    scene.put("a", "i1", kind="peer_request", intent="review")
    assert scene.event(e.InputAccepted).drives is True
    scene.put("a", "i2", kind="peer_message", intent=SILENT[0])
    assert scene.event(e.InputAccepted).drives is True
    scene.put("l", "i1", kind="peer_request", intent=SILENT[0])
    assert scene.event(e.InputAccepted).drives is True


# What is ignored.


def test_an_operation_notice_is_over_with_its_acceptance_and_still_known() -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "op1", kind="operation")
    assert scene.kinds == ["input_accepted"]
    assert scene.event(e.InputAccepted).consumed is True
    assert (scene.inputs("a"), scene.member("a").queue_bytes) == ([], 0)
    answer = scene.send("a", "op1", kind="operation")
    assert getattr(answer, "terminal", None) is True
    assert scene.replayed().members["a"] == scene.member("a")


# What an input knows beside its content goes with it.


def test_what_a_kind_knows_and_the_correlation_go_with_the_input_to_its_agent() -> None:
    scene = Scene("a")
    about = Raw(b'{"request_id":"q1","status":"done"}')
    command = c.Deliver("a", "i1", text("yes"), kind="peer_response_terminal", correlation_id="c1", about=about)
    scene.do(command, Accepted)
    scene.serve()
    (sent,) = scene.sent(SendStartRun)
    (one,) = sent.inputs
    assert (one.kind, one.correlation_id, bytes(one.about)) == ("peer_response_terminal", "c1", bytes(about))
    assert (sent.boundary, sent.execution, sent.intent) == ("run_start", "content_turn", "append_context_and_run")
