"""Logs that a correct server writes, and that are easily taken for wrong."""

from collections.abc import Iterable

from tests.checker.folding import fold
from tests.checker.history import Plain
from tests.checker.plain import plain
from tests.machines.stage import Stage

from mobd.v1 import events_pb2
from mobd_server.adapters.rpc import convert_events
from mobd_server.machines import commands as c
from mobd_server.machines.records import Record


def told(log: Iterable[Record]) -> list[Plain]:
    """Return a log as its readers see it."""
    return [plain(events_pb2.Event.FromString(convert_events.wire(record))) for record in log]


def test_what_a_retirement_gave_up_is_not_what_the_respawn_after_it_gives_up() -> None:
    stage = Stage()
    stage.spawn("a")
    stage.agent()
    stage.accepted("a", "i1")
    assert len(stage.run_of("a").inputs) == 1
    stage.accepted("a", "i2", "i3")
    stage.do(c.StopMob())
    # What waits is given up, for nothing is started; the run goes on.
    stage.decide(c.RetireRuntime("a"), "first")
    stage.do(c.ResumeMob())
    stage.decide(c.RespawnMember("a"), "second")
    assert fold("mob", told(stage.log)).breaches == []
    # The counts are compared all the same.
    log = told(stage.log)
    (respawned,) = [event for event in log if event["kind"] == "member_respawned"]
    assert respawned["member_respawned"]["inputs_abandoned"] == 1
    respawned["member_respawned"]["inputs_abandoned"] = 3
    (breach,) = fold("mob", log).breaches
    assert "says 3 abandoned, and it was 1" in breach.text
