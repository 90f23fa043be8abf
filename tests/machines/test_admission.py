"""Which phase admits which command (api §7), every pair of them, and with a destruction pending."""

from typing import Any, Final

import pytest
from msgspec import Raw
from tests.machines.stage import Stage, role, state_bytes, text

from mobd_server.errors import InvalidTransition
from mobd_server.machines import commands as c
from mobd_server.machines.admission import ADMITTED, admitted_phases, require_admitted
from mobd_server.machines.answers import Attached, AttachRefused, Deduplicated, DestroyAnswer, Done, RunAnswer
from mobd_server.machines.decision import DECIDE
from mobd_server.machines.state import Definition, Phase

ALL_PHASES: Final = ("creating", "running", "stopped", "completed", "destroyed")

SPEC: Final = c.MemberSpec("new", "analyst")

# Every command that the mob's phase can refuse -> the phases that admit it.
BY_PHASE: Final[dict[type[c.Command], tuple[str, ...]]] = {
    c.SpawnMember: ("running",),
    c.SpawnMembers: ("running",),
    c.EnsureMember: ("running",),
    c.Deliver: ("running",),
    c.DeliverBatch: ("running",),
    c.StartMob: ("creating", "stopped"),
    c.StopMob: ("running",),
    c.ResumeMob: ("stopped",),
    c.DestroyMob: ("creating", "running", "stopped", "completed", "destroyed"),
    c.Attach: ("creating", "running", "stopped", "completed"),
}

# What agents, timers and the actor bring tells of something that happened; no phase refuses it.
ALWAYS: Final[tuple[type[c.Command], ...]] = (
    c.Continue,
    c.Wake,
    c.Confirm,
    c.Decline,
    c.SettleRun,
    c.FailRun,
    c.LoseRun,
    c.DrainAttachment,
    c.CloseAttachment,
)

EXAMPLES: Final[dict[type[c.Command], c.Command]] = {
    c.SpawnMember: c.SpawnMember(SPEC),
    c.SpawnMembers: c.SpawnMembers([SPEC]),
    c.EnsureMember: c.EnsureMember(SPEC),
    c.Deliver: c.Deliver("a", "fresh", text("hello")),
    c.DeliverBatch: c.DeliverBatch([c.Deliver("a", "fresh", text("hello"))]),
    c.StartMob: c.StartMob(),
    c.StopMob: c.StopMob(),
    c.ResumeMob: c.ResumeMob(),
    c.DestroyMob: c.DestroyMob(),
    c.Attach: c.Attach("host", "1", 1, 1, [role("analyst")]),
    c.Continue: c.Continue(),
    c.Wake: c.Wake(),
    c.Confirm: c.Confirm("att-0", "a", 1),
    c.Decline: c.Decline("att-0", "a", 1),
    c.SettleRun: c.SettleRun("att-0", "run-0", 1, Raw(b"1"), b"hash"),
    c.FailRun: c.FailRun("att-0", "run-0", 1, "error"),
    c.LoseRun: c.LoseRun("att-0", "run-0", 1, "silent"),
    c.DrainAttachment: c.DrainAttachment("att-0"),
    c.CloseAttachment: c.CloseAttachment("att-0", "lost"),
}

# What a refusal says that the command would lead to.
TARGETS: Final[dict[type[c.Command], str]] = {c.StopMob: "stopped", c.DestroyMob: "destroyed"}


def in_phase(phase: Phase) -> Stage:
    """Return a mob in `phase`, with a member where it can have one."""
    if phase == "creating":
        return Stage(start=False)
    stage = Stage()
    stage.spawn("a")
    if phase == "stopped":
        stage.do(c.StopMob())
    if phase == "completed":
        # No command of this release leads there; the table knows the phase.
        stage.mob.phase = "completed"
    if phase == "destroyed":
        stage.do(c.DestroyMob())
    return stage


def test_every_command_has_its_place_here() -> None:
    assert set(DECIDE) == set(BY_PHASE) | set(ALWAYS) | {c.CreateMob}
    assert not set(BY_PHASE) & set(ALWAYS)
    assert set(EXAMPLES) == set(BY_PHASE) | set(ALWAYS)


@pytest.mark.parametrize("phase", ALL_PHASES)
@pytest.mark.parametrize("command", BY_PHASE, ids=lambda command: command.__name__)
def test_every_command_is_admitted_in_exactly_its_phases(command: type[c.Command], phase: Phase) -> None:
    stage = in_phase(phase)
    before = state_bytes(stage.mob)
    if phase in BY_PHASE[command]:
        answer = stage.do(EXAMPLES[command])
        assert not isinstance(answer, AttachRefused)
        assert (state_bytes(stage.mob) == before) == (phase == "destroyed")
        return
    if command is c.Attach:
        assert stage.do(EXAMPLES[command], AttachRefused).cause == "mob_destroyed"
    else:
        with pytest.raises(InvalidTransition) as refused:
            stage.do(EXAMPLES[command])
        assert refused.value.details == {
            "from": phase,
            "to": TARGETS.get(command, "running"),
            "allowed": ",".join(BY_PHASE[command]),
        }
    assert state_bytes(stage.mob) == before


@pytest.mark.parametrize("phase", ALL_PHASES)
@pytest.mark.parametrize("command", ALWAYS, ids=lambda command: command.__name__)
def test_what_agents_and_timers_bring_is_refused_in_no_phase(command: type[c.Command], phase: Phase) -> None:
    answer = in_phase(phase).do(EXAMPLES[command])
    assert isinstance(answer, Done | RunAnswer)


@pytest.mark.parametrize("command", BY_PHASE, ids=lambda command: command.__name__)
def test_while_a_destruction_is_pending_nothing_but_destroy_is_admitted(command: type[c.Command]) -> None:
    stage = Stage()
    stage.do(c.SpawnMembers([c.MemberSpec(f"m{n:04}", "analyst") for n in range(600)]))
    stage.spawn("a")
    stage.do(c.DestroyMob())
    assert (stage.mob.phase, stage.mob.pending) == ("running", "destroy")
    before = state_bytes(stage.mob)
    if command is c.DestroyMob:
        assert stage.do(EXAMPLES[command], DestroyAnswer).done is False
    elif command is c.Attach:
        assert stage.do(EXAMPLES[command], AttachRefused).cause == "mob_destroyed"
    else:
        with pytest.raises(InvalidTransition) as refused:
            stage.do(EXAMPLES[command])
        assert refused.value.details == {
            "from": "running",
            "to": TARGETS.get(command, "running"),
            "allowed": "",
            "pending": "destroy",
        }
        assert "is being destroyed" in refused.value.message
    assert state_bytes(stage.mob) == before


def test_a_mob_is_created_once() -> None:
    stage = Stage()
    with pytest.raises(Exception, match="exists already"):
        stage.do(c.CreateMob(Definition("mob"), {}, "other"))


def test_the_table_is_the_one_written_here() -> None:
    literal = {command: phases for command, phases in BY_PHASE.items() if any(one is command for one, _ in ADMITTED)}
    assert {(command, phase) for command, phases in literal.items() for phase in phases} == ADMITTED
    assert set(literal) == {c.SpawnMember, c.SpawnMembers, c.EnsureMember, c.Deliver, c.DeliverBatch, c.Attach}
    for command, phases in literal.items():
        assert admitted_phases(command) == phases


@pytest.mark.parametrize(
    "command",
    [
        c.SpawnMember(c.MemberSpec("new", "nobody")),
        c.SpawnMember(c.MemberSpec("a", "analyst")),
        c.EnsureMember(c.MemberSpec("new", "nobody")),
        c.Deliver("nobody", "fresh", text("hello")),
        c.DeliverBatch([c.Deliver("nobody", "fresh", text("hello"))]),
    ],
    ids=["spawn of an unknown role", "spawn of a taken name", "ensure", "deliver", "deliver batch"],
)
def test_admission_comes_before_look_ups(command: c.Command) -> None:
    with pytest.raises(InvalidTransition):
        in_phase("stopped").do(command)


@pytest.mark.parametrize("phase", ["stopped", "destroyed"])
def test_only_dedupe_comes_before_admission(phase: Phase) -> None:
    stage = Stage()
    stage.spawn("a")
    stage.accepted("a", "i1")
    stage.do(c.StopMob() if phase == "stopped" else c.DestroyMob())
    assert stage.do(c.Deliver("a", "i1", text("hello")), Deduplicated).terminal == (phase == "destroyed")
    with pytest.raises(InvalidTransition):
        stage.do(c.Deliver("a", "i2", text("hello")))


def test_a_command_without_a_row_is_refused_everywhere() -> None:
    for phase in ALL_PHASES:
        mob: Any = in_phase(phase).mob
        with pytest.raises(InvalidTransition):
            require_admitted(mob, c.Wake)


def test_an_agent_attaches_before_the_mob_starts_and_while_it_is_stopped() -> None:
    for phase in ("creating", "stopped"):
        stage = in_phase(phase)
        assert stage.do(EXAMPLES[c.Attach], Attached).resumed is False
