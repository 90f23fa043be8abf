"""What a crash leaves at each step, row by row of the table in docs/architecture.md, and what a failure leaves."""

import asyncio
import signal

import grpc
import pytest
from tests.faults.conftest import World
from tests.faults.ledger import check_calls, check_consumed_once, check_gap_free, check_order, check_runs, of_kind
from tests.support.peers import CALL_S, Peer, canonical, reason
from tests.support.served import Served

from mobd.v1 import bridge_pb2

pytestmark = pytest.mark.asyncio

# A mob with a member is made by two commits.
MADE = 2


async def armed(world: World, fault: str) -> tuple[Served, Peer]:
    """Start a server with a fault, or with none, and make a mob with a member on it."""
    served = await world.serve(**({"MOBD_FAULT": fault} if fault else {}))
    peer = await world.peer(served)
    await peer.create(["ada"])
    return served, peer


async def disarmed(served: Served) -> None:
    """Start the server again when it has died of its fault."""
    assert await served.process.ended() == -signal.SIGKILL
    del served.settings["MOBD_FAULT"]
    await served.restart()


async def delivered(peer: Peer) -> bridge_pb2.DeliverResponse:
    return await peer.bridge.Deliver(peer.delivery("ada", "one", n=1), wait_for_ready=True, timeout=CALL_S)


async def lost(peer: Peer) -> tuple[str, str]:
    """Deliver, and return how the call failed: its status, and the reason that the server gave."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await delivered(peer)
    return failed.value.code().name, reason(failed.value)


async def test_killed_before_the_commit_there_is_nothing_and_the_caller_repeats(world: World) -> None:
    served, peer = await armed(world, f"before_commit:crash@{MADE + 1}")
    assert await lost(peer) == ("UNAVAILABLE", "")
    await disarmed(served)
    assert not of_kind(await peer.log(), "input_accepted")
    assert (await delivered(peer)).HasField("accepted")


async def test_killed_after_the_commit_the_input_is_there_and_is_told_as_that(world: World) -> None:
    await killed_between_the_commit_and_the_answer(world, "after_commit")


@pytest.mark.parametrize("point", ["before_publish", "before_answer"])
async def test_killed_before_the_answer_the_input_is_there_and_is_told_as_that(alone: World, point: str) -> None:
    await killed_between_the_commit_and_the_answer(alone, point)


async def killed_between_the_commit_and_the_answer(world: World, point: str) -> None:
    served, peer = await armed(world, f"{point}:crash@{MADE + 1}")
    assert await lost(peer) == ("UNAVAILABLE", "")
    await disarmed(served)
    [accepted] = of_kind(await peer.log(), "input_accepted")
    answer = await delivered(peer)
    assert answer.HasField("deduplicated")
    assert canonical(answer) == accepted.input_accepted.canonical_input_id
    assert len(of_kind(await peer.log(), "input_accepted")) == 1


@pytest.mark.parametrize("time", [1, 2, 3])
async def test_killed_before_an_agent_is_told_it_is_told_afterwards_and_runs_each_run_once(
    alone: World, time: int
) -> None:
    served, peer = await armed(alone, f"before_dispatch:crash@{time}")
    agent = alone.agent(served, "agent")
    delivering = asyncio.ensure_future(peer.deliver("ada", "one", n=1))
    # The first is told of the member, then of the run, then that its result is stored.
    await disarmed(served)
    name = await delivering
    ended = await peer.end_of("ada", "one")
    log = await peer.log()
    assert (ended.state, ended.attempt) == (bridge_pb2.INPUT_STATE_CONSUMED, 1)
    check_gap_free(log)
    check_consumed_once(log, {("ada", "one"): name})
    check_runs(log)
    check_calls(log, agent.calls())
    assert len(agent.calls()) == 1


async def test_killed_before_a_result_is_committed_the_agent_sends_it_again(alone: World) -> None:
    served, peer = await armed(alone, "")
    agent = alone.agent(served, "agent")
    await peer.deliver("ada", "one", do="sleep", s=1)
    await agent.called()
    served.kill9()
    served.settings["MOBD_FAULT"] = "after_settle:crash"
    # It may die before anybody sees that it serves.
    served.spawn()
    await disarmed(served)
    ended = await peer.end_of("ada", "one")
    await peer.deliver("ada", "two", n=2)
    await peer.end_of("ada", "two")
    log = await peer.log()
    assert (ended.state, ended.attempt) == (bridge_pb2.INPUT_STATE_CONSUMED, 1)
    assert [call.inputs[0][0] for call in agent.calls()] == ["one", "two"]
    check_runs(log)
    check_order(log)
    check_calls(log, agent.calls())


async def test_an_outcome_that_nobody_knows_is_told_as_that_and_the_repetition_says_what_it_was(world: World) -> None:
    _, peer = await armed(world, f"after_commit:fail@{MADE + 1}")
    assert await lost(peer) == ("UNAVAILABLE", "COMMIT_UNKNOWN")
    name = await peer.deliver("ada", "one", n=1)
    [accepted] = of_kind(await peer.log(), "input_accepted")
    assert accepted.input_accepted.canonical_input_id == name


async def test_a_decision_that_can_not_be_stored_is_the_only_one_to_fail(world: World) -> None:
    # As one of a group, as one of its mob, and alone.
    served, peer = await armed(world, f"before_commit:fail@{MADE + 1}*3")
    assert await lost(peer) == ("INTERNAL", "INTERNAL")
    assert "append_refused" in served.process.output()
    assert canonical(await delivered(peer)) == await peer.deliver("ada", "one", n=1)
    check_gap_free(await peer.log())


async def test_a_publication_that_fails_is_made_good_by_the_next_load(alone: World) -> None:
    _, peer = await armed(alone, f"before_publish:fail@{MADE + 1}")
    code, why = await lost(peer)
    assert (code, why) == ("UNAVAILABLE", "MOB_RELOADING")
    answer = await delivered(peer)
    assert answer.HasField("deduplicated")
    check_gap_free(await peer.log())


@pytest.mark.parametrize("point", ["before_acquire", "after_acquire", "during_recovery"])
async def test_a_mob_that_can_not_be_taken_over_at_the_start_is_taken_over_soon(world: World, point: str) -> None:
    served, peer = await armed(world, "")
    agent = world.agent(served, "agent")
    await peer.deliver("ada", "one", do="sleep", s=1)
    await agent.called()
    served.kill9()
    served.settings["MOBD_FAULT"] = f"{point}:fail"
    await served.restart()
    ended = await peer.end_of("ada", "one")
    assert ended.state == bridge_pb2.INPUT_STATE_CONSUMED
    assert "fault_happens" in served.process.output()
    check_runs(await peer.log())
