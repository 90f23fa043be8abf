"""Processes that stand still: a server whose time stood still expires nothing, an agent that did is fenced."""

import signal

import pytest
from tests.faults.conftest import World
from tests.faults.ledger import check_consumed_once, check_gap_free, check_order, check_runs, of_kind
from tests.support.processes import until

from mobd.v1 import bridge_pb2, runs_pb2

# A turn that takes longer than lease and grace together.
SHORT = {"MOBD_HEARTBEAT_S": "0.3", "MOBD_LEASE_S": "1", "MOBD_GRACE_S": "1"}
TURN_S = 3.5


@pytest.mark.asyncio
async def test_a_server_that_stood_still_expires_nobody_s_lease(alone: World) -> None:
    served = await alone.serve(**SHORT)
    peer = await alone.peer(served)
    await peer.create(["ada", "bob"])
    agent = alone.agent(served, "agent")
    await peer.deliver("ada", "long", do="sleep", s=TURN_S)
    await peer.deliver("bob", "short", n=1)
    await peer.end_of("bob", "short")
    served.process.send(signal.SIGSTOP)
    try:
        # The agent's turn is the clock: when it is over, every lease and grace would be too.
        await until(lambda: any(note.at == "done" and note.member == "ada" for note in agent.notes()), "the turn")
    finally:
        served.process.send(signal.SIGCONT)
    ended = await peer.end_of("ada", "long")
    log = await peer.log()
    assert (ended.state, ended.attempt) == (bridge_pb2.INPUT_STATE_CONSUMED, 1)
    assert [call.run for call in agent.calls() if call.member == "ada"] == [ended.run_id]
    assert not of_kind(log, "executor_lost", "run_resent")


@pytest.mark.asyncio
async def test_an_agent_that_stood_still_too_long_is_replaced_and_its_late_result_changes_nothing(world: World) -> None:
    served = await world.serve(**SHORT)
    peer = await world.peer(served)
    await peer.create(["ada"])
    first = world.agent(served, "first")
    await peer.deliver("ada", "one", do="sleep", s=0.5)
    [call] = await first.called()
    first.process.send(signal.SIGSTOP)
    second = world.agent(served, "second")
    try:
        one = await peer.end_of("ada", "one")
        assert not [note for note in first.notes() if note.at == "done"], "the agent did not stand still"
    finally:
        first.process.send(signal.SIGCONT)
    # It goes on where it stood, and brings a result of a run that was lost.
    await until(lambda: [note for note in first.notes() if note.at == "done"], "the end of the late turn")
    second.kill9()
    await peer.deliver("ada", "two", n=2)
    two = await peer.end_of("ada", "two")

    log = await peer.log()
    assert (one.state, one.attempt) == (bridge_pb2.INPUT_STATE_CONSUMED, 2)
    assert one.run_id == second.calls()[0].run != call.run
    assert second.calls()[0].fence > call.fence
    states = {event.run_id: event.run_settled.state for event in of_kind(log, "run_settled")}
    assert states[call.run] == runs_pb2.RUN_STATE_LOST
    assert two.run_id == first.calls()[-1].run, "the first agent serves again"
    acknowledged = {("ada", "one"): one.canonical_input_id, ("ada", "two"): two.canonical_input_id}
    check_gap_free(log)
    check_consumed_once(log, acknowledged)
    check_runs(log)
    check_order(log)
