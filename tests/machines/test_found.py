"""What the property test over the aggregate found, each in its shortest form."""

from tests.machines.stage import Stage, role, text

from mobd_server.machines import commands as c
from mobd_server.machines.answers import Retired


def test_who_only_has_passive_inputs_gives_its_place_to_who_has_work() -> None:
    stage = Stage()
    stage.spawn("waits", "works")
    stage.agent("h", serves=[role("analyst")], max_members=1)
    stage.do(c.Deliver("waits", "i0", text("later"), wake=False))
    stage.deliver("works", "i1")
    assert (stage.agent_of("waits"), stage.agent_of("works") is None) == (None, False)


def test_who_retires_with_passive_inputs_runs_them_at_once() -> None:
    stage = Stage()
    stage.spawn("m")
    stage.agent("h")
    stage.do(c.Deliver("m", "i0", text("later"), wake=False))
    retired = stage.do(c.RetireMember("m"), Retired)
    assert (retired.inputs_pending_drain, stage.batch("m")) == (1, ["i0"])
    stage.finish(stage.run_of("m"))
    assert "m" not in stage.mob.members


def test_a_retired_member_that_is_cut_off_with_its_last_input_gets_no_other_agent() -> None:
    stage = Stage()
    stage.spawn("m")
    stage.agent("h")
    stage.accepted("m", "i0")
    stage.agent("other")
    run = stage.run_of("m")
    stage.do(c.RetireRuntime("m"))
    stage.do(c.HardCancel("m", run.run_id))
    stage.do(c.FenceOff(run.attachment_id, run.run_id, run.fence, run.control_id, "silent"))
    assert "executor_assigned" not in stage.kinds
    assert stage.agent_of("m") is None
