"""Invariants 19 and 20: operations have one end, everybody is told of it once, and the feed of ends has no gap.

The guard table is tried cell by cell in tests/machines/test_operation.py, and there is what can't be brought about over
the protocol: a second operation of a member, and the order in which memory lets go of those that ended.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from tests.faults.conftest import World
from tests.faults.ledger import of_kind
from tests.invariants.scripted import COMMITTED, name
from tests.invariants.stage import Stage, staged
from tests.support.peers import CALL_S, MOB

from mobd.v1 import agents_pb2, common_pb2, members_pb2, operations_pb2, operations_pb2_grpc

pytestmark = pytest.mark.asyncio

Operation = operations_pb2.Operation
ILLEGAL = "FAILED_PRECONDITION", "OPERATION_TRANSITION"


class Operations:
    """The operations of the mob, as callers see them."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.stub: Any = operations_pb2_grpc.OperationServiceStub(stage.peer.channel)

    async def get(self, operation_id: str) -> operations_pb2.Operation:
        request = operations_pb2.GetOperationRequest(mob_id=MOB, operation_id=operation_id)
        found = (await self.stage.ask(self.stub.GetOperation, request)).operation
        assert isinstance(found, Operation)
        return found

    async def all(self, **filters: Any) -> list[operations_pb2.Operation]:
        request = operations_pb2.ListOperationsRequest(mob_id=MOB, **filters)
        return list((await self.stage.ask(self.stub.ListOperations, request)).operations)

    async def of_member(self, member_id: str) -> operations_pb2.Operation:
        return await self.get((await self.stage.member(member_id)).operation_id)

    async def completions(self, after_seq: int = 0) -> list[operations_pb2.Operation]:
        """Return the feed behind a place, and check that it counts without a gap."""
        request = operations_pb2.ListCompletionsRequest(mob_id=MOB, after_seq=after_seq)
        answer = await self.stage.ask(self.stub.ListCompletions, request)
        ended = list(answer.operations)
        assert [one.completion_seq for one in ended] == list(range(after_seq + 1, answer.watermark + 1))
        return ended

    def wait(self, *operation_ids: str, count: int = 1) -> "list[asyncio.Future[Any]]":
        """Let so many callers wait for the ends of operations."""
        request = operations_pb2.WaitOperationsRequest(
            mob_id=MOB, operation_ids=operation_ids, timeout=Duration(seconds=15)
        )
        return [asyncio.ensure_future(self.stub.WaitOperations(request, timeout=CALL_S)) for _ in range(count)]

    async def watched(self, operation_id: str, watchers: int) -> None:
        """Return when so many callers wait for an operation."""
        async with asyncio.timeout(CALL_S):
            while (await self.get(operation_id)).watchers != watchers:
                pass


def statuses(operations: Iterable[operations_pb2.Operation]) -> list[str]:
    return [operations_pb2.OperationStatus.Name(one.status).removeprefix("OPERATION_STATUS_") for one in operations]


async def test_19_an_operation_of_a_tool_ends_once_for_everybody_over_kills(world: World) -> None:
    async with staged(world) as stage:
        operations = Operations(stage)
        stub = operations.stub
        register = operations_pb2.RegisterOperationRequest(mob_id=MOB, operation_id="tool", display_name="a tool")
        await stage.ask(stub.RegisterOperation, register)
        progress = operations_pb2.ReportProgressRequest(mob_id=MOB, operation_id="tool", message="half", percent=50)
        await stage.ask(stub.ReportProgress, progress)
        complete = operations_pb2.CompleteOperationRequest(
            mob_id=MOB, operation_id="tool", result_json='{"n":1}', request_id="the-end"
        )
        async with stage.doomed("operations"):
            call = asyncio.ensure_future(stub.CompleteOperation(complete, timeout=CALL_S))
            await stage.decided("ada")
        await stage.broken(call)
        now = await operations.get("tool")
        assert (statuses([now]), now.progress_count, now.progress_percent) == (["RUNNING"], 1, 50)
        assert await operations.completions() == []

        waits = operations.wait("tool", count=3)
        await operations.watched("tool", 3)
        ended = (await stage.ask(stub.CompleteOperation, complete)).operation
        for answer in await asyncio.gather(*waits):
            assert list(answer.ended) == [await operations.get("tool")]
        assert (ended.completion_seq, ended.result_json) == (1, '{"n":1}')
        for killed in (False, True):
            if killed:
                await stage.crash()
            fail = operations_pb2.FailOperationRequest(mob_id=MOB, operation_id="tool", error="too late")
            cancel = operations_pb2.CancelOperationRequest(mob_id=MOB, operation_id="tool")
            assert await stage.refused(stub.FailOperation, fail) == ILLEGAL
            assert await stage.refused(stub.CancelOperation, cancel) == ILLEGAL
            assert await stage.refused(stub.ReportProgress, progress) == ILLEGAL
            again = await stage.ask(stub.CompleteOperation, complete)
            assert (again.replayed, again.operation) == (True, ended)
            exists = await stage.refused(stub.RegisterOperation, register)
            assert exists == ("ALREADY_EXISTS", "OPERATION_EXISTS")
            [late] = await asyncio.gather(*operations.wait("tool"))
            assert list(late.ended) == [ended]
            assert (await operations.get("tool")).watchers == 0
            assert await operations.completions() == [ended]
        assert len(of_kind(await stage.log(), "operation_ended")) == 1


async def test_19_every_end_of_a_member_is_an_end_of_its_operation_in_one_feed_over_kills(world: World) -> None:
    members = ("never", "retired", "destroyed", "respawned")
    async with staged(world, members) as stage:
        operations = Operations(stage)
        first = {member_id: (await stage.member(member_id)).operation_id for member_id in members}
        # Nobody serves it: it ends before it has ever run.
        await stage.retire("never")
        agent = await stage.agent(serves=name(*members[1:]))
        for member_id in members[1:]:
            await stage.event("executor_confirmed", member_id)
        assert statuses([await operations.of_member(one) for one in members]) == ["ABORTED", *["RUNNING"] * 3]
        assert (await operations.of_member("retired")).peer_ready
        await stage.deliver("retired", "one")
        run = await agent.run()
        waits = operations.wait(*first.values(), count=2)
        await operations.watched(first["respawned"], 2)
        await stage.retire("retired")
        assert statuses([await operations.of_member("retired")]) == ["RETIRING"]
        await asyncio.gather(*(stage.destroy("destroyed"), stage.respawn("respawned")))
        await stage.crash()
        await stage.broken(*waits)

        await agent.attach()
        again = operations.wait(*first.values())
        assert await agent.settle(run) == COMMITTED
        retire = members_pb2.RetireMemberRequest(mob_id=MOB, member_id="retired")
        await stage.ask(stage.peer.members.RetireMember, retire)
        await stage.event("member_retired", "retired")
        [answer] = await asyncio.gather(*again)
        assert statuses(answer.ended) == ["ABORTED", "RETIRED", "TERMINATED", "RETIRED"]
        feed = await operations.completions()
        assert {one.operation_id for one in feed} == set(first.values())
        assert feed[0].operation_id == first["never"]
        assert feed[-1].operation_id == first["retired"]
        successor = await operations.of_member("respawned")
        assert successor.operation_id != first["respawned"]
        assert successor.completion_seq == 0
        await stage.crash()
        assert await operations.completions() == feed
        assert await operations.completions(after_seq=3) == feed[3:]


async def test_20_operations_live_in_the_registry_of_their_owner_and_end_with_it_over_a_kill(world: World) -> None:
    async with staged(world, ("ada", "bob")) as stage:
        operations = Operations(stage)
        stub = operations.stub
        agent = await stage.agent(serves=name("ada"))
        await stage.deliver("ada", "one")
        run = await agent.run()
        acting = common_pb2.Acting(run_id=run.run_id, executor_fence=run.executor_fence)
        child = operations_pb2.RegisterOperationRequest(
            mob_id=MOB, operation_id="child", display_name="a child", acting=acting, provisioning=True
        )
        assert (await stage.ask(stub.RegisterOperation, child)).operation.owner == "ada"
        report = operations_pb2.ReportProgressRequest(mob_id=MOB, operation_id="child", message="early")
        assert await stage.refused(stub.ReportProgress, report) == ILLEGAL, "it runs before it makes progress"
        await stage.ask(stub.StartOperation, operations_pb2.StartOperationRequest(mob_id=MOB, operation_id="child"))
        peer = operations_pb2.MarkPeerReadyRequest(mob_id=MOB, operation_id="child")
        assert (await stage.refused(stub.MarkPeerReady, peer))[1] == "PEER_NOT_EXPECTED"
        own = operations_pb2.MarkPeerReadyRequest(mob_id=MOB, operation_id=(await stage.member("ada")).operation_id)
        assert await stage.refused(stub.MarkPeerReady, own) == ILLEGAL, "it was ready with its agent, once"
        assert [one.operation_id for one in await operations.all(owner="ada")] == ["child"]
        assert await operations.all(owner="bob") == []

        # What a run reports is progress of its member's operation.
        await agent.send(
            run_progress=agents_pb2.RunProgress(
                run_id=run.run_id, executor_fence=run.executor_fence, message="half", percent=50, sequence=1
            )
        )
        await stage.event("operation_progressed", "ada")
        before = await operations.all()
        unknown = members_pb2.RetireMemberRequest(mob_id=MOB, member_id="nobody")
        assert (await stage.ask(stage.peer.members.RetireMember, unknown)).already
        assert await operations.all() == before
        await stage.crash()
        assert await operations.all() == before
        mine = await operations.of_member("ada")
        assert (mine.progress_count, mine.progress_message, mine.progress_percent) == (1, "half", 50)

        await stage.destroy("ada")
        ended = await operations.completions()
        assert {(one.operation_id, one.status) for one in ended} == {
            (mine.operation_id, operations_pb2.OPERATION_STATUS_TERMINATED),
            ("child", operations_pb2.OPERATION_STATUS_TERMINATED),
        }
        late = operations_pb2.CompleteOperationRequest(mob_id=MOB, operation_id="child", result_json="1", acting=acting)
        assert await stage.refused(stub.CompleteOperation, late) == ("FAILED_PRECONDITION", "STALE_FENCE")
        assert await operations.completions() == ended
