"""Operations over kills: what is asked for again is answered as before, and who waits learns of the end once."""

import asyncio
from typing import Any

import pytest
from tests.faults.conftest import World
from tests.faults.ledger import check_gap_free, of_kind
from tests.support.peers import MOB
from tests.support.processes import WAIT_S

import mobd
from mobd.v1 import operations_pb2 as pb

pytestmark = pytest.mark.asyncio

WAITS = 4


async def watched(client: mobd.Client, name: str, count: int) -> None:
    """Return when so many wait for an operation at the server that runs now."""
    async with asyncio.timeout(WAIT_S):
        while (await client.get_operation(MOB, name)).watchers < count:
            pass


async def test_a_tool_goes_on_over_a_kill_and_everybody_who_waits_for_it_learns_of_its_one_end(world: World) -> None:
    served = await world.serve()
    peer = await world.peer(served)
    await peer.create(["ada"])
    agent = world.agent(served, "agent")
    await peer.deliver("ada", "one", n=1)
    await agent.called()
    async with mobd.Client(served.target) as client:
        first: dict[str, Any] = {"operation_id": "tool", "owner": "ada", "request_id": "begin"}
        begun = await client.register_operation(MOB, "a tool", **first)
        await client.report_progress(MOB, "tool", "half", percent=50)
        life = (await client.get_operation(MOB, (await client.get_member(MOB, "ada")).operation_id)).operation_id
        waits = [
            asyncio.ensure_future(client.wait_operations(MOB, ["tool", life], timeout=WAIT_S)) for _ in range(WAITS)
        ]
        await watched(client, "tool", WAITS)
        served.kill9()
        await served.restart()
        # Nobody asks again: each wait goes on by itself, with the server that is there now.
        await watched(client, "tool", WAITS)
        kept = await client.get_operation(MOB, "tool")
        assert (kept.status, kept.progress_message, kept.progress_percent) == (
            pb.OPERATION_STATUS_RUNNING,
            "half",
            50,
        )
        again = await client.register_operation(MOB, "a tool", **first)
        assert (again.replayed, again.cursor, again.operation) == (True, begun.cursor, begun.operation)

        ended = await client.complete_operation(MOB, "tool", {"n": 1}, request_id="end")
        served.kill9()
        await served.restart()
        repeated = await client.complete_operation(MOB, "tool", {"n": 1}, request_id="end")
        assert (repeated.replayed, repeated.operation) == (True, ended.operation)
        with pytest.raises(mobd.OperationTransition):
            await client.cancel_operation(MOB, "tool")
        assert not any(one.done() for one in waits)
        await client.retire_member(MOB, "ada")
        for answer in await asyncio.gather(*waits):
            assert answer.ended[0] == await client.get_operation(MOB, "tool")
            assert answer.ended[1].status == pb.OPERATION_STATUS_RETIRED
            assert not answer.pending_operation_ids
        feed = await client.list_completions(MOB)
        assert [one.operation_id for one in feed.operations] == ["tool", life]
        assert [one.completion_seq for one in feed.operations] == [1, 2]
    log = await peer.log()
    check_gap_free(log)
    assert len(of_kind(log, "operation_registered", "operation_ended")) == 2
