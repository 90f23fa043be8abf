"""What the property test over the aggregate found, each in its shortest form."""

from tests.machines.stage import Stage, role, text

from mobd_server.machines import commands as c


def test_who_only_has_passive_inputs_gives_its_place_to_who_has_work() -> None:
    stage = Stage()
    stage.spawn("waits", "works")
    stage.agent("h", serves=[role("analyst")], max_members=1)
    stage.do(c.Deliver("waits", "i0", text("later"), wake=False))
    stage.deliver("works", "i1")
    assert (stage.agent_of("waits"), stage.agent_of("works") is None) == (None, False)
