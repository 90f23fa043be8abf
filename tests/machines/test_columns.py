"""The columns of a stored event: it is filtered by the member and the run that it tells of, so each names its own."""

from typing import Final

from tests.machines.scene import Scene
from tests.machines.stage import SECOND

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.records import Record

# An operation's events are found by its member or its owner; tests of operations have those.
KINDS: Final = {one.kind for one in e.EVENT_TYPES if not one.kind.startswith("operation_")}


def runs_and_inputs() -> list[Record]:
    """Return a log of runs that are steered, sent again, cancelled, lost and tried again."""
    scene = Scene("a", "b")
    scene.serve()
    scene.put("a", "i1", "i2")
    scene.steer("a", "s1")
    scene.join()
    scene.put("a", "k1", supersession_key="k")
    scene.put("a", "k2", supersession_key="k")
    scene.put("a", "g1", kind="peer_response_progress", supersession_key="k")
    scene.put("a", "g2", kind="peer_response_progress", supersession_key="k")
    scene.interrupt("a")
    scene.report(scene.run_of("a"), "cancelled")
    scene.cancel("a")
    scene.fence_off(scene.run_of("a"))
    scene.put("b", "i1")
    scene.report(scene.run_of("b"), "error")
    scene.advance(1)
    scene.do(c.StopMob())
    scene.do(c.ResumeMob())
    scene.do(c.ResetMob())
    return scene.log


def departures() -> list[Record]:
    """Return a log of members that are respawned, retired, destroyed and drain, and of a mob that completes."""
    scene = Scene("a", "b", "d")
    agent = scene.serve()
    for member_id in ("a", "b", "d"):
        scene.put(member_id, "i1", "i2")
    scene.do(c.RespawnMember("a"))
    scene.do(c.DestroyRuntime("b"))
    scene.retire("d")
    scene.leave(agent, "lost")
    scene.do(c.RetireAllMembers())
    scene.now += 60 * SECOND
    scene.do(c.Wake())
    scene.do(c.CompleteMob())
    scene.do(c.DestroyMob())
    return scene.log


def test_every_event_is_stored_under_the_member_and_the_run_that_it_names() -> None:
    log = [*runs_and_inputs(), *departures()]
    assert {record.kind for record in log} == KINDS
    for record in log:
        named = getattr(record.event, "member_id", None), getattr(record.event, "run_id", None)
        assert (record.member_id, record.run_id) == named, record.kind
