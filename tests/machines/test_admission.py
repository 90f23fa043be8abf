"""Which phase admits which command, and what may be beside one that goes on (api §7, core §4): every triple."""

from typing import Final, NamedTuple, get_args

import pytest
from msgspec import Raw
from tests.machines.examples import EXAMPLES, busy
from tests.machines.scene import Scene
from tests.machines.stage import Stage, role, state_bytes, text

from mobd_server.errors import InvalidTransition, MobExists
from mobd_server.machines import commands as c
from mobd_server.machines.admission import ADMITTED, BESIDE, admits
from mobd_server.machines.answers import (
    Attached,
    AttachRefused,
    Deduplicated,
    DestroyAnswer,
    Done,
    MobReport,
    RunAnswer,
)
from mobd_server.machines.decision import DECIDE
from mobd_server.machines.state import Definition, Pending, Phase

ALL_PHASES: Final = ("creating", "running", "stopped", "completed", "destroyed")
ALL_PENDING: Final = ("none", "complete", "reset", "retire_all", "destroy")

# Every command that the mob's phase can refuse -> the phases that admit it, what may be pending beside it, and the
# phase that a refusal names.
TABLE: Final = """
StartMob          creating,stopped                                   none                      running
StopMob           running                                            none                      stopped
ResumeMob         stopped                                            none                      running
CompleteMob       running                                            none                      running
ResetMob          running,stopped,completed                          none                      running
DestroyMob        creating,running,stopped,completed,destroyed       none,complete,reset,retire_all,destroy  -
RetireAllMembers  running,stopped                                    none                      running
SpawnMember       running                                            none                      running
SpawnMembers      running                                            none                      running
EnsureMember      running                                            none                      running
RespawnMember     running                                            none                      running
Deliver           running                                            none                      running
DeliverBatch      running                                            none                      running
RetireMember      running,stopped                                    none,complete,retire_all  running
RetireRuntime     running,stopped                                    none,complete,retire_all  running
DestroyRuntime    running,stopped                                    none,complete,retire_all  running
Interrupt         running,stopped                                    none,complete,retire_all  running
HardCancel        running                                            none,complete,retire_all  running
RegisterOperation running                                            none                      running
MoveOperation     running,stopped,completed                          none,complete,retire_all  running
TerminateOwner    running,stopped,completed                          none                      running
Attach            creating,running,stopped,completed                 none,complete,retire_all,reset          -
"""

# A command that goes on is joined by its like, in whatever phase it has brought the mob to.
JOINED: Final = {"CompleteMob": "complete", "ResetMob": "reset", "RetireAllMembers": "retire_all"}

# What a refusal calls a command whose name is not its own, and what it says of what is pending.
CALLED: Final = {"StartMob": "start", "StopMob": "stop", "ResumeMob": "resume", "DeliverBatch": "Deliver"}
WORDS: Final = {
    "complete": "the mob is being completed",
    "reset": "the mob is being reset",
    "retire_all": "all members are being retired",
    "destroy": "the mob is being destroyed",
}


class Row(NamedTuple):
    """One line of the table."""

    phases: tuple[str, ...]
    beside: tuple[str, ...]
    target: str


def rows() -> dict[str, Row]:
    found = {}
    for line in TABLE.strip().splitlines():
        name, phases, beside, target = line.split()
        found[name] = Row(tuple(phases.split(",")), tuple(beside.split(",")), target)
    return found


ROWS: Final = rows()
COMMANDS: Final = {name: getattr(c, name) for name in ROWS}

# What agents, timers and the actor bring tells of something that happened; no phase refuses it.
ALWAYS: Final[dict[type[c.Command], c.Command]] = {
    c.Continue: c.Continue(),
    c.Wake: c.Wake(),
    c.Confirm: c.Confirm("att-0", "a", 1),
    c.Decline: c.Decline("att-0", "a", 1),
    c.SettleRun: c.SettleRun("att-0", "run-0", 1, Raw(b"1"), b"hash"),
    c.FailRun: c.FailRun("att-0", "run-0", 1, "error"),
    c.LoseRun: c.LoseRun("att-0", "run-0", 1, "silent"),
    c.CancelUnsent: c.CancelUnsent("att-0", "run-0", 1),
    c.FenceOff: c.FenceOff("att-0", "run-0", 1, "ctl-0", "silent"),
    c.ReportRunProgress: c.ReportRunProgress("att-0", "run-0", 1, "half"),
    c.DrainAttachment: c.DrainAttachment("att-0"),
    c.CloseAttachment: c.CloseAttachment("att-0", "lost"),
}


def prepared(phase: Phase, pending: Pending = "none") -> Scene:
    """Return a mob in which every command would succeed, put into a phase with something pending."""
    scene = busy()
    # Some of these pairs no command leads to; the table holds for them as for the others.
    scene.mob.phase, scene.mob.pending = phase, pending
    return scene


def admitted(name: str, phase: str, pending: str) -> bool:
    """Return what the table says."""
    return JOINED.get(name) == pending or (phase in ROWS[name].phases and pending in ROWS[name].beside)


def test_every_command_has_its_place_here() -> None:
    assert set(DECIDE) == set(COMMANDS.values()) | set(ALWAYS) | {c.CreateMob}
    assert not set(COMMANDS.values()) & set(ALWAYS)
    assert set(EXAMPLES) == set(ROWS)
    assert get_args(Phase) == ALL_PHASES
    assert get_args(Pending) == ALL_PENDING


@pytest.mark.parametrize("pending", ALL_PENDING)
@pytest.mark.parametrize("phase", ALL_PHASES)
@pytest.mark.parametrize("name", ROWS)
def test_every_command_is_admitted_exactly_as_the_table_says(name: str, phase: Phase, pending: Pending) -> None:
    scene = prepared(phase, pending)
    command = EXAMPLES[name](scene)
    before = state_bytes(scene.mob)
    if admitted(name, phase, pending):
        answer = scene.do(command)
        assert not isinstance(answer, AttachRefused)
        ends = name == "DestroyMob" and (phase == "destroyed" or pending == "destroy")
        nothing_new = ends or JOINED.get(name) == pending
        assert (state_bytes(scene.mob) == before) == nothing_new
        return
    if name == "Attach":
        assert scene.do(command, AttachRefused).cause == "mob_destroyed"
    else:
        with pytest.raises(InvalidTransition) as refused:
            scene.do(command)
        expected = {"from": phase, "to": ROWS[name].target, "allowed": ",".join(ROWS[name].phases)}
        message = f"{CALLED.get(name, name)} is not legal"
        if pending != "none":
            expected |= {"allowed": "", "pending": pending}
            message += f": {WORDS[pending]}"
        else:
            message += f" while the mob is {phase}: legal in {', '.join(ROWS[name].phases)}"
        assert (refused.value.message, refused.value.details) == (message, expected)
    assert state_bytes(scene.mob) == before


def test_the_tables_are_the_one_written_here() -> None:
    own = {"StartMob", "StopMob", "ResumeMob", "DestroyMob"}
    named = {command.__name__: phases for command, phases in ADMITTED.items()}
    assert named == {name: row.phases for name, row in ROWS.items() if name not in own}
    for pending in get_args(Pending):
        assert {command.__name__ for command in BESIDE[pending]} == {
            name for name, row in ROWS.items() if name not in own and pending in row.beside
        }
    for phase in ALL_PHASES:
        for pending in get_args(Pending):
            mob = prepared(phase, pending).mob
            for command in ADMITTED:
                row = ROWS[command.__name__]
                assert admits(mob, command) == (phase in row.phases and pending in row.beside)


@pytest.mark.parametrize("pending", ALL_PENDING)
@pytest.mark.parametrize("phase", ALL_PHASES)
@pytest.mark.parametrize("command", ALWAYS, ids=lambda command: command.__name__)
def test_what_agents_and_timers_bring_is_refused_nowhere(
    command: type[c.Command], phase: Phase, pending: Pending
) -> None:
    if command is c.Continue and pending != "none" and phase not in GOES_ON[pending]:
        return
    assert isinstance(prepared(phase, pending).do(ALWAYS[command]), Done | RunAnswer)


# Where a pending command can be gone on with: where it can have brought the mob.
GOES_ON: Final = {
    "complete": ("running",),
    "reset": ("stopped",),
    "retire_all": ("running", "stopped"),
    "destroy": ("creating", "running", "stopped", "completed"),
}


# The same by the commands that lead there, where nothing is put into the state by hand.


def many() -> Scene:
    """Return a mob with more members than end in one decision."""
    scene = Scene()
    scene.do(c.SpawnMembers([c.MemberSpec(f"m{n:04}", "analyst") for n in range(600)]))
    scene.spawn("a", "b")
    scene.do(c.RegisterOperation("tool", "a tool"))
    return scene


@pytest.mark.parametrize("pending", ["complete", "reset", "retire_all", "destroy"])
def test_while_a_command_goes_on_only_what_may_be_beside_it_is_admitted(pending: str) -> None:
    begins: dict[str, c.Command] = {
        "complete": c.CompleteMob(),
        "reset": c.ResetMob(),
        "retire_all": c.RetireAllMembers(),
        "destroy": c.DestroyMob(),
    }
    scene = many()
    scene.do(begins[pending])
    assert scene.mob.pending == pending
    for name, row in ROWS.items():
        if name in ("Attach", "HardCancel", "DestroyMob") or admitted(name, scene.mob.phase, pending):
            continue
        before = state_bytes(scene.mob)
        with pytest.raises(InvalidTransition) as refused:
            scene.do(EXAMPLES[name](scene))
        assert refused.value.details == {
            "from": scene.mob.phase,
            "to": row.target,
            "allowed": "",
            "pending": pending,
        }
        assert state_bytes(scene.mob) == before
    if pending == "destroy":
        assert scene.do(c.DestroyMob(), DestroyAnswer).done is False
        assert scene.do(EXAMPLES["Attach"](scene), AttachRefused).cause == "mob_destroyed"
    else:
        assert scene.do(begins[pending], MobReport).mob.pending == pending
        assert scene.append is None
        assert scene.do(EXAMPLES["Attach"](scene), Attached).resumed is False


def in_phase(phase: Phase) -> Stage:
    """Return a mob in `phase`, as its commands lead there, with a member where it can have one."""
    if phase == "creating":
        return Stage(start=False)
    stage = Stage()
    if phase != "completed":
        stage.spawn("a")
    if phase == "stopped":
        stage.do(c.StopMob())
    if phase == "completed":
        stage.do(c.CompleteMob())
    if phase == "destroyed":
        stage.do(c.DestroyMob())
    assert stage.mob.phase == phase
    return stage


def test_a_mob_is_created_once() -> None:
    for phase in ALL_PHASES:
        stage = in_phase(phase)
        with pytest.raises(MobExists):
            stage.do(c.CreateMob(Definition("mob"), {}, "other"))


LOOK_UPS: Final[dict[str, c.Command]] = {
    "spawn of an unknown role": c.SpawnMember(c.MemberSpec("new", "nobody")),
    "spawn of a taken name": c.SpawnMember(c.MemberSpec("a", "analyst")),
    "ensure of an unknown role": c.EnsureMember(c.MemberSpec("new", "nobody")),
    "respawn of nobody": c.RespawnMember("nobody"),
    "respawn with a stale fence": c.RespawnMember("a", 7, 7),
    "deliver to nobody": c.Deliver("nobody", "fresh", text("hello")),
    "deliver with a stale fence": c.Deliver("a", "fresh", text("hello"), 7, 7),
    "deliver batch": c.DeliverBatch([c.Deliver("nobody", "fresh", text("hello"))]),
    "hard cancel of nobody's run": c.HardCancel("nobody", "run-0"),
    "operation of nobody": c.RegisterOperation("new", "a tool", "nobody"),
}
IN_COMPLETED: Final[dict[str, c.Command]] = {
    **LOOK_UPS,
    "retire of nobody": c.RetireMember("nobody"),
    "retire of nobody's runtime": c.RetireRuntime("nobody"),
    "destroy of nobody's runtime": c.DestroyRuntime("nobody"),
    "interrupt of nobody": c.Interrupt("nobody"),
}
IN_DESTROYED: Final[dict[str, c.Command]] = {
    **IN_COMPLETED,
    "step of no operation": c.MoveOperation("nothing", "cancel"),
}


@pytest.mark.parametrize("what", IN_DESTROYED)
@pytest.mark.parametrize("phase", ["creating", "stopped", "completed", "destroyed"])
def test_admission_comes_before_look_ups(what: str, phase: Phase) -> None:
    legal = {"stopped": LOOK_UPS, "completed": IN_COMPLETED}.get(phase, IN_DESTROYED)
    if what in legal:
        with pytest.raises(InvalidTransition):
            in_phase(phase).do(legal[what])


@pytest.mark.parametrize("phase", ["stopped", "completed", "destroyed"])
def test_only_dedupe_comes_before_admission(phase: Phase) -> None:
    stage = Stage()
    stage.spawn("a")
    stage.accepted("a", "i1")
    stage.do({"stopped": c.StopMob(), "completed": c.CompleteMob(), "destroyed": c.DestroyMob()}[phase])
    assert stage.mob.phase == phase
    assert stage.do(c.Deliver("a", "i1", text("hello")), Deduplicated).terminal == (phase != "stopped")
    with pytest.raises(InvalidTransition):
        stage.do(c.Deliver("a", "i2", text("hello")))


def test_an_agent_attaches_in_every_phase_but_the_last() -> None:
    for phase in ("creating", "running", "stopped", "completed"):
        stage = in_phase(phase)
        assert stage.do(c.Attach("host", "1", 1, 1, [role("analyst")]), Attached).resumed is False
