"""OperationService: what is shown, waited for and changed, as any client sees it."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from tests.rpc.speaking import TIMEOUT_S, RawAgent, Speaker

from mobd.v1 import bridge_pb2, common_pb2, events_pb2, members_pb2, mobs_pb2, operations_pb2_grpc
from mobd.v1 import operations_pb2 as pb

pytestmark = pytest.mark.asyncio

RUNNING, RETIRING = pb.OPERATION_STATUS_RUNNING, pb.OPERATION_STATUS_RETIRING
PROVISIONING, COMPLETED = pb.OPERATION_STATUS_PROVISIONING, pb.OPERATION_STATUS_COMPLETED


class Operations:
    """OperationService of mob m."""

    def __init__(self, peer: Speaker) -> None:
        self.peer = peer
        self.stub: Any = operations_pb2_grpc.OperationServiceStub(peer.channel)

    async def register(self, name: str, display_name: str = "a tool", **more: Any) -> pb.RegisterOperationResponse:
        request = pb.RegisterOperationRequest(mob_id="m", operation_id=name, display_name=display_name, **more)
        answer = await self.stub.RegisterOperation(request, timeout=TIMEOUT_S)
        assert isinstance(answer, pb.RegisterOperationResponse)
        return answer

    async def complete(self, name: str, result_json: str = "1", **more: Any) -> pb.CompleteOperationResponse:
        request = pb.CompleteOperationRequest(mob_id="m", operation_id=name, result_json=result_json, **more)
        answer = await self.stub.CompleteOperation(request, timeout=TIMEOUT_S)
        assert isinstance(answer, pb.CompleteOperationResponse)
        return answer

    async def get(self, name: str) -> pb.Operation:
        answer = await self.stub.GetOperation(pb.GetOperationRequest(mob_id="m", operation_id=name))
        assert isinstance(answer.operation, pb.Operation)
        return answer.operation

    async def names(self, **wanted: Any) -> list[str]:
        answer = await self.stub.ListOperations(pb.ListOperationsRequest(mob_id="m", **wanted))
        return [one.operation_id for one in answer.operations]

    async def of(self, member_id: str) -> pb.Operation:
        answer = await self.stub.ListOperations(pb.ListOperationsRequest(mob_id="m", member_id=member_id))
        (found,) = answer.operations
        assert isinstance(found, pb.Operation)
        return found

    def wait(self, *names: str, seconds: int = 10) -> "asyncio.Future[Any]":
        request = pb.WaitOperationsRequest(mob_id="m", operation_ids=names, timeout=Duration(seconds=seconds))
        waiting: asyncio.Future[Any] = asyncio.ensure_future(self.stub.WaitOperations(request, timeout=TIMEOUT_S))
        return waiting

    async def refused(self, method: str, **fields: Any) -> tuple[grpc.StatusCode, str]:
        call = getattr(self.stub, method)
        request = getattr(pb, f"{method}Request")(mob_id="m", **fields)
        refused = await self.peer.refused(call, request)
        return refused.code, refused.reason


async def test_the_operation_of_a_tool_from_its_first_event_to_its_last(peer: Speaker) -> None:
    await peer.create("m")
    operations = Operations(peer)
    stub = operations.stub
    registered = await operations.register("op", provisioning=True)
    shown = registered.operation
    assert (shown.kind, shown.status) == (pb.OPERATION_KIND_BACKGROUND_TOOL, PROVISIONING)
    assert not shown.HasField("start_time")
    started = await stub.StartOperation(pb.StartOperationRequest(mob_id="m", operation_id="op"))
    assert started.operation.status == RUNNING
    assert started.operation.HasField("start_time")
    await stub.ReportProgress(pb.ReportProgressRequest(mob_id="m", operation_id="op", message="begun"))
    request = pb.ReportProgressRequest(mob_id="m", operation_id="op", message="half", percent=50)
    progressed = (await stub.ReportProgress(request)).operation
    assert (progressed.progress_count, progressed.progress_message, progressed.progress_percent) == (2, "half", 50)
    ended = await operations.complete("op", '{"n": 1}', is_error=True)
    assert (ended.operation.status, ended.operation.result_json) == (COMPLETED, '{"n": 1}')
    assert (ended.operation.is_error, ended.operation.completion_seq) == (True, 1)
    assert ended.operation.cursor == ended.cursor
    assert await operations.get("op") == ended.operation
    start = events_pb2.EventStart(after_cursor=registered.cursor - 1)
    log = await peer.events.PollEvents(events_pb2.PollEventsRequest(mob_id="m", start=start))
    assert [event.kind for event in log.events] == [
        "operation_registered",
        "operation_started",
        "operation_progressed",
        "operation_progressed",
        "operation_ended",
    ]
    assert (log.events[-1].operation.status, log.events[-1].operation.result_json) == ("completed", '{"n": 1}')


async def test_one_that_needs_no_preparation_takes_progress_at_once(peer: Speaker) -> None:
    await peer.create("m")
    operations = Operations(peer)
    assert (await operations.register("op")).operation.status == RUNNING
    assert await operations.refused("StartOperation", operation_id="op") == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "OPERATION_TRANSITION",
    )
    failed = await operations.stub.FailOperation(pb.FailOperationRequest(mob_id="m", operation_id="op", error="broken"))
    assert (failed.operation.status, failed.operation.error) == (pb.OPERATION_STATUS_FAILED, "broken")
    await operations.register("other", provisioning=True)
    cancel = pb.CancelOperationRequest(mob_id="m", operation_id="other", reason="unwanted")
    cancelled = (await operations.stub.CancelOperation(cancel)).operation
    assert (cancelled.status, cancelled.reason) == (pb.OPERATION_STATUS_CANCELLED, "unwanted")


async def test_refusals_say_what_would_be_legal(peer: Speaker) -> None:
    await peer.create("m", "a")
    operations = Operations(peer)
    await operations.register("op", provisioning=True)
    request = pb.ReportProgressRequest(mob_id="m", operation_id="op", message="early")
    refused = await peer.refused(operations.stub.ReportProgress, request)
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "OPERATION_TRANSITION")
    assert (refused.details["status"], refused.details["action"]) == ("provisioning", "report_progress")
    assert "provisioning_succeeded" in refused.details["allowed"]
    precondition, missing = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND
    assert await operations.refused("MarkPeerReady", operation_id="op") == (precondition, "PEER_NOT_EXPECTED")
    assert await operations.refused("GetOperation", operation_id="x") == (missing, "OPERATION_NOT_FOUND")
    assert await operations.refused("CancelOperation", operation_id="x") == (missing, "OPERATION_NOT_FOUND")
    assert await operations.refused("WaitOperations", operation_ids=["op", "x"]) == (missing, "OPERATION_NOT_FOUND")
    taken = await operations.refused("RegisterOperation", operation_id="op", display_name="again")
    assert taken == (grpc.StatusCode.ALREADY_EXISTS, "OPERATION_EXISTS")
    nobody = await operations.refused("RegisterOperation", operation_id="y", display_name="y", owner="b")
    assert nobody == (missing, "MEMBER_NOT_FOUND")
    # A member's ends with the member alone.
    life = (await operations.of("a")).operation_id
    for method, more in (("CancelOperation", {}), ("FailOperation", {"error": "x"}), ("StartOperation", {})):
        assert await operations.refused(method, operation_id=life, **more) == (precondition, "OPERATION_TRANSITION")
    assert (await operations.of("a")).status == PROVISIONING


async def test_an_owner_has_at_most_256_that_live(peer: Speaker) -> None:
    await peer.create("m", "a")
    operations = Operations(peer)
    for number in range(256):
        await operations.register(f"op-{number}", owner="a")
    full = await operations.refused("RegisterOperation", operation_id="more", display_name="more", owner="a")
    assert full == (grpc.StatusCode.FAILED_PRECONDITION, "OPERATION_LIMIT")
    await operations.complete("op-7")
    await operations.register("more", owner="a")


async def test_the_life_of_a_member_is_an_operation(peer: Speaker) -> None:
    await peer.create("m", "a")
    operations = Operations(peer)
    life = await operations.of("a")
    assert (life.kind, life.status) == (pb.OPERATION_KIND_MOB_MEMBER_CHILD, PROVISIONING)
    assert (life.display_name, life.owner, life.peer_ready) == ("m/lead/a", "", False)
    async with RawAgent(peer, host_id="kitchen") as agent:
        await peer.deliver("a", "i")
        run = await agent.accept_run()
        served = await operations.get(life.operation_id)
        assert (served.status, served.peer_ready) == (RUNNING, True)
        assert '"host_id":"kitchen"' in served.peer_handle_json
        acting = common_pb2.Acting(run_id=run.run_id, executor_fence=run.executor_fence)
        tool = (await operations.register("tool", acting=acting)).operation
        assert tool.owner == "a"
        waits = [operations.wait(life.operation_id, "tool") for _ in range(3)]
        await peer.members.RetireMember(members_pb2.RetireMemberRequest(mob_id="m", member_id="a"))
        assert (await operations.get(life.operation_id)).status == RETIRING
        assert not any(one.done() for one in waits)
        await agent.succeed(run)
        for answer in await asyncio.gather(*waits):
            assert [one.status for one in answer.ended] == [
                pb.OPERATION_STATUS_RETIRED,
                pb.OPERATION_STATUS_TERMINATED,
            ]
            assert not answer.pending_operation_ids
        # The run is over: its agent begins nothing more.
        late = await operations.refused("RegisterOperation", operation_id="late", display_name="late", acting=acting)
        assert late == (grpc.StatusCode.FAILED_PRECONDITION, "STALE_FENCE")


async def test_a_wait_looks_once_without_a_timeout_and_refuses_names_that_are_given_twice(peer: Speaker) -> None:
    await peer.create("m")
    operations = Operations(peer)
    await operations.register("b")
    await operations.register("a")
    await operations.complete("a")
    answer = await operations.wait("b", "a", seconds=0)
    assert [one.operation_id for one in answer.ended] == ["a"]
    assert list(answer.pending_operation_ids) == ["b"]
    nothing = await operations.wait()
    assert (len(nothing.ended), len(nothing.pending_operation_ids)) == (0, 0)
    request = pb.WaitOperationsRequest(mob_id="m", operation_ids=["a", "b", "a"])
    refused = await peer.refused(operations.stub.WaitOperations, request)
    assert (refused.reason, list(refused.fields)) == ("FIELD_INVALID", ["operation_ids[2]"])


async def test_any_number_wait_at_once_and_are_counted_while_they_do(peer: Speaker) -> None:
    await peer.create("m")
    operations = Operations(peer)
    await operations.register("op")
    waits = [operations.wait("op") for _ in range(20)]
    async with asyncio.timeout(TIMEOUT_S):
        # They arrive on a connection of their own time: looked for until all are there.
        while (await operations.get("op")).watchers < 20:
            pass
    ended = (await operations.complete("op")).operation
    for answer in await asyncio.gather(*waits):
        assert list(answer.ended) == [ended]
    assert (await operations.get("op")).watchers == 0


async def test_results_that_are_too_large_for_one_answer_come_with_the_next(peer: Speaker) -> None:
    await peer.create("m")
    operations = Operations(peer)
    names = [f"op-{number:02}" for number in range(20)]
    for name in names:
        await operations.register(name)
        await operations.complete(name, '"' + "x" * 250_000 + '"')
    left, seen = names, []
    while left:
        answer = await operations.wait(*left)
        assert answer.ByteSize() < 4 << 20
        assert answer.more == bool(answer.pending_operation_ids)
        seen += [one.operation_id for one in answer.ended]
        left = list(answer.pending_operation_ids)
    assert seen == names
    token, listed = "", []
    while True:
        request = pb.ListOperationsRequest(mob_id="m", page_size=1_000, page_token=token)
        page = await operations.stub.ListOperations(request)
        assert page.ByteSize() < 4 << 20
        listed += [one.operation_id for one in page.operations]
        token = page.next_page_token
        if not token:
            break
    assert listed == names
    fed: list[int] = []
    while len(fed) < 20:
        feed = await operations.stub.ListCompletions(pb.ListCompletionsRequest(mob_id="m", after_seq=len(fed)))
        assert feed.ByteSize() < 4 << 20
        assert (feed.watermark, bool(feed.operations)) == (20, True)
        fed += [one.completion_seq for one in feed.operations]
    assert fed == list(range(1, 21))


async def test_operations_are_listed_by_display_name_and_then_by_id(peer: Speaker) -> None:
    await peer.create("m", "a", "b")
    operations = Operations(peer)
    for name, display in (("3", "x"), ("1", "y"), ("2", "x"), ("4", "two\nlines")):
        await operations.register(name, display, owner="a" if name == "3" else "")
    await operations.complete("2")
    lives = [(await operations.of(one)).operation_id for one in ("a", "b")]
    assert await operations.names() == [*lives, "4", "2", "3", "1"]
    assert await operations.names(kind=pb.OPERATION_KIND_MOB_MEMBER_CHILD) == lives
    assert await operations.names(owner="a") == ["3"]
    assert await operations.names(status=COMPLETED) == ["2"]
    assert await operations.names(status=RUNNING, kind=pb.OPERATION_KIND_BACKGROUND_TOOL) == ["4", "3", "1"]
    seen: list[str] = []
    request = pb.ListOperationsRequest(mob_id="m", page_size=1)
    while True:
        page = await operations.stub.ListOperations(request)
        seen += [one.operation_id for one in page.operations]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == [*lives, "4", "2", "3", "1"]
    foreign = pb.ListOperationsRequest(mob_id="m", page_token=request.page_token, owner="a")
    assert (await peer.refused(operations.stub.ListOperations, foreign)).reason == "FIELD_INVALID"


async def test_what_lives_ends_with_the_runtime_of_its_member_and_with_the_mob(peer: Speaker) -> None:
    await peer.create("m", "a")
    operations = Operations(peer)
    life = (await operations.of("a")).operation_id
    await operations.register("of-a", owner="a")
    await operations.register("of-mob")
    waiting = operations.wait("of-mob")
    await peer.bridge.Destroy(bridge_pb2.DestroyRequest(mob_id="m", member_id="a"))
    assert (await operations.get(life)).status == pb.OPERATION_STATUS_ABORTED
    assert (await operations.get("of-a")).status == pb.OPERATION_STATUS_TERMINATED
    refused = await operations.refused("RegisterOperation", operation_id="new", display_name="new", owner="a")
    assert refused == (grpc.StatusCode.FAILED_PRECONDITION, "OPERATION_TRANSITION")
    assert not waiting.done()
    await peer.mobs.DestroyMob(mobs_pb2.DestroyMobRequest(mob_id="m"))
    (ended,) = (await waiting).ended
    assert (ended.status, ended.reason) == (pb.OPERATION_STATUS_TERMINATED, "the mob was destroyed")
    assert await operations.get("of-mob") == ended


# Method -> what is asked for, of a running operation `op` and one that is provisioning.
CHANGES: dict[str, dict[str, Any]] = {
    "RegisterOperation": {"operation_id": "new", "display_name": "new"},
    "StartOperation": {"operation_id": "early"},
    "ReportProgress": {"operation_id": "op", "message": "on"},
    "MarkPeerReady": {"operation_id": "{life}", "peer_handle_json": '{"a":1}'},
    "CompleteOperation": {"operation_id": "op", "result_json": "1"},
    "FailOperation": {"operation_id": "op", "error": "broken"},
    "CancelOperation": {"operation_id": "op"},
}


async def test_every_change_is_tried() -> None:
    service = pb.DESCRIPTOR.services_by_name["OperationService"]
    reads = {"GetOperation", "ListOperations", "WaitOperations", "ListCompletions"}
    assert {method.name for method in service.methods} == {*CHANGES, *reads}


@pytest.mark.parametrize("method", CHANGES)
async def test_every_change_can_be_asked_for_repeated_and_made_for_a_run(peer: Speaker, method: str) -> None:
    await peer.create("m", "a")
    operations = Operations(peer)
    await operations.register("op")
    await operations.register("early", provisioning=True)
    async with RawAgent(peer) as agent:
        await peer.deliver("a", "i")
        run = await agent.accept_run()
        life = await operations.of("a")
        assert life.peer_ready
        fields = {name: life.operation_id if value == "{life}" else value for name, value in CHANGES[method].items()}
        call = getattr(operations.stub, method)
        make = getattr(pb, f"{method}Request")
        if method == "MarkPeerReady":
            # Its first agent has said so already, and that happens once.
            refused = await operations.refused(method, **fields)
            assert refused == (grpc.StatusCode.FAILED_PRECONDITION, "OPERATION_TRANSITION")
            return
        before = await operations.stub.ListOperations(pb.ListOperationsRequest(mob_id="m"))
        asked = await call(make(mob_id="m", validate_only=True, request_id="r", **fields))
        assert asked.would_append
        assert await operations.stub.ListOperations(pb.ListOperationsRequest(mob_id="m")) == before
        acting = common_pb2.Acting(run_id=run.run_id, executor_fence=run.executor_fence + 1)
        stale = await operations.refused(method, acting=acting, request_id="r", **fields)
        assert stale == (grpc.StatusCode.FAILED_PRECONDITION, "STALE_FENCE")
        acting.executor_fence = run.executor_fence
        done = await call(make(mob_id="m", request_id="r", acting=acting, **fields))
        assert (done.replayed, len(done.would_append)) == (False, 0)
        assert done.cursor == asked.would_append[-1].seq
        again = await call(make(mob_id="m", request_id="r", acting=acting, **fields))
        assert (again.replayed, again.cursor, again.operation) == (True, done.cursor, done.operation)
