"""One example of every command that callers can issue, and a mob in which each of them succeeds."""

from collections.abc import Callable
from typing import Final

from msgspec import Raw
from tests.machines.scene import Scene
from tests.machines.stage import role, text

from mobd_server.machines import commands as c

SPEC: Final = c.MemberSpec("new", "analyst", {"x": "y"}, Raw(b'{"deep":[null]}'), text("begin"))

EXAMPLES: Final[dict[str, Callable[[Scene], c.Command]]] = {
    "StartMob": lambda _: c.StartMob(),
    "StopMob": lambda _: c.StopMob(),
    "ResumeMob": lambda _: c.ResumeMob(),
    "CompleteMob": lambda _: c.CompleteMob(),
    "ResetMob": lambda _: c.ResetMob(),
    "DestroyMob": lambda _: c.DestroyMob(),
    "RetireAllMembers": lambda _: c.RetireAllMembers(),
    "SpawnMember": lambda _: c.SpawnMember(SPEC),
    "SpawnMembers": lambda _: c.SpawnMembers([SPEC, SPEC]),
    "EnsureMember": lambda _: c.EnsureMember(SPEC),
    "RespawnMember": lambda _: c.RespawnMember("a", initial_message=text("again")),
    "Deliver": lambda _: c.Deliver("a", "fresh", text("hello"), handling_mode="steer"),
    "DeliverBatch": lambda _: c.DeliverBatch([c.Deliver(name, "fresh", text("hello")) for name in ("a", "b")]),
    "RetireMember": lambda _: c.RetireMember("a", interrupt_first=True),
    "RetireRuntime": lambda _: c.RetireRuntime("a"),
    "DestroyRuntime": lambda _: c.DestroyRuntime("a"),
    "Interrupt": lambda _: c.Interrupt("a", reason="enough"),
    "HardCancel": lambda scene: c.HardCancel("a", scene.run_of("a").run_id, reason="enough"),
    "RegisterOperation": lambda _: c.RegisterOperation("new", "a tool"),
    "MoveOperation": lambda _: c.MoveOperation("tool", "provisioning_succeeded"),
    "TerminateOwner": lambda _: c.TerminateOwner("", "over"),
    "Attach": lambda _: c.Attach("other", "1", 1, 1, [role("analyst")]),
}


def busy() -> Scene:
    """Return a mob with an agent, a member that runs with work behind it, one that rests, and a tool."""
    scene = Scene("a", "b")
    scene.serve()
    scene.put("a", "i1", "i2")
    scene.do(c.RegisterOperation("tool", "a tool"))
    return scene


def ready_for(name: str) -> Scene:
    """Return a mob in which the example of this command succeeds."""
    scene = busy()
    if name in ("StartMob", "ResumeMob"):
        scene.do(c.StopMob())
    return scene
