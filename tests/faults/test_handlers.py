"""Handlers at work while the server is killed, handlers that block their loop, and handlers that kill their process."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from tests.faults.conftest import World
from tests.faults.ledger import check_gap_free, check_runs, of_kind
from tests.support.processes import until
from tests.support.settings import setting

from mobd.v1 import bridge_pb2, runs_pb2

FULL = setting("MOBD_TEST_FULL") == "1"
SLEEP_S = 5 if FULL else 2
BLOCK_S = 60 if FULL else 4


@pytest.mark.asyncio
async def test_a_handler_at_work_while_the_server_is_killed_keeps_its_run(world: World) -> None:
    served = await world.serve()
    peer = await world.peer(served)
    await peer.create(["ada"])
    agent = world.agent(served, "agent")
    name = await peer.deliver("ada", "long", do="sleep", s=SLEEP_S)
    [call] = await agent.called()
    served.kill9()
    assert agent.in_flight() == 1, "the kill came too late"
    await served.restart()

    ended = await peer.end_of("ada", "long")
    log = await peer.log()
    [started], [settled] = of_kind(log, "run_started"), of_kind(log, "run_settled")
    assert agent.calls() == [call]
    assert call.inputs == (("long", name, 1),)
    assert (ended.state, ended.attempt, ended.run_id) == (bridge_pb2.INPUT_STATE_CONSUMED, 1, call.run)
    assert started.run_id == settled.run_id == call.run
    assert settled.run_settled.state == runs_pb2.RUN_STATE_COMMITTED
    assert started.time.ToNanoseconds() < served.kills[0] * 1e9 < settled.time.ToNanoseconds()
    assert not of_kind(log, "run_resent", "executor_lost")


@pytest.mark.asyncio
async def test_a_handler_that_ends_while_there_is_no_server_is_settled_by_the_next(world: World) -> None:
    served = await world.serve()
    peer = await world.peer(served)
    await peer.create(["ada"])
    agent = world.agent(served, "agent")
    await peer.deliver("ada", "short", do="sleep", s=0.5)
    [call] = await agent.called()
    served.kill9()
    await until(lambda: len(agent.notes()) == 2, "the end of the handler")
    await served.restart()

    ended = await peer.end_of("ada", "short")
    assert (ended.state, ended.attempt, ended.run_id) == (bridge_pb2.INPUT_STATE_CONSUMED, 1, call.run)
    assert agent.calls() == [call]


@pytest.mark.asyncio
@pytest.mark.timeout(BLOCK_S + 60)
async def test_a_handler_that_blocks_its_loop_for_longer_than_lease_and_grace_keeps_its_run(world: World) -> None:
    served = await world.serve(MOBD_HEARTBEAT_S="0.3", MOBD_LEASE_S="1", MOBD_GRACE_S="1")
    peer = await world.peer(served)
    await peer.create(["ada"])
    agent = world.agent(served, "agent")
    await peer.deliver("ada", "stuck", do="block", s=BLOCK_S)
    ended = await peer.end_of("ada", "stuck", BLOCK_S + 30)
    log = await peer.log()
    assert (ended.state, ended.attempt) == (bridge_pb2.INPUT_STATE_CONSUMED, 1)
    assert [call.run for call in agent.calls()] == [ended.run_id]
    assert not of_kind(log, "run_resent", "executor_lost", "attachment_closed")
    [settled] = of_kind(log, "run_settled")
    assert settled.run_settled.state == runs_pb2.RUN_STATE_COMMITTED


@pytest.mark.asyncio
@pytest.mark.parametrize("same_host", [True, False], ids=["same host", "new host"])
async def test_a_handler_that_kills_its_process_is_abandoned_at_the_third_attempt_and_nobody_else(
    world: World, same_host: bool
) -> None:
    served = await world.serve(MOBD_GRACE_S="1", MOBD_HEARTBEAT_S="0.3", MOBD_LEASE_S="1")
    peer = await world.peer(served)
    neighbours = ["bob", "cid", "dan"]
    await peer.create(["ada", *neighbours])
    agent = world.agent(served, "agent", {"MOBD_HOST_ID": "house"} if same_host else {}, capacity=4)
    async with AsyncExitStack() as stack:
        supervisor = asyncio.ensure_future(agent.supervise())
        stack.push_async_callback(asyncio.wait, [supervisor])
        stack.callback(supervisor.cancel)
        # The neighbours are at work whenever the process dies.
        for number in range(6):
            for member_id in neighbours:
                await peer.deliver(member_id, f"{member_id}-{number}", do="sleep", s=0.2)
            if number == 1:
                await peer.deliver("ada", "poison", do="die")
                await peer.deliver("ada", "after", n=1)
        poison = await peer.end_of("ada", "poison")
        after = await peer.end_of("ada", "after")
        others = [await peer.end_of(name, f"{name}-{number}") for name in neighbours for number in range(6)]

    log = await peer.log()
    deaths = [call for call in agent.calls() if any(one[0] == "poison" for one in call.inputs)]
    assert poison.state == bridge_pb2.INPUT_STATE_ABANDONED
    assert "3 attempts" in poison.reason
    assert [one[2] for call in deaths for one in call.inputs if one[0] == "poison"] == [1, 2, 3]
    assert len(agent.pids) == 4
    assert after.state == bridge_pb2.INPUT_STATE_CONSUMED
    assert {one.state for one in others} == {bridge_pb2.INPUT_STATE_CONSUMED}
    outcomes = [one for event in of_kind(log, "run_settled") for one in event.run_settled.outcomes]
    assert [one.canonical_input_id for one in outcomes if one.outcome == "abandoned"] == [poison.canonical_input_id]
    check_gap_free(log)
    check_runs(log)


@pytest.mark.asyncio
async def test_a_handler_that_raises_is_tried_again_after_a_pause_that_a_restart_does_not_forget(world: World) -> None:
    served = await world.serve()
    peer = await world.peer(served)
    await peer.create(["ada"])
    agent = world.agent(served, "agent")
    await peer.deliver("ada", "bad", do="raise")
    await agent.called()
    await until(lambda: agent.log.exists() and "this turn fails" in agent.log.read_text(), "the traceback")
    served.kill9()
    await served.restart()
    calls = await agent.called(2)
    assert [call.inputs[0][2] for call in calls] == [1, 2]
    assert calls[0].run != calls[1].run
