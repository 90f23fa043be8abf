"""Attach over a socket: frames of every kind both ways, and every way in which a stream can end."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.rpc.conftest import settings, speaking
from tests.rpc.speaking import TIMEOUT_S, Refusal, Speaker, refusal_of

from mobd.v1 import agents_pb2 as pb
from mobd.v1 import bridge_pb2, common_pb2, members_pb2, mobs_pb2

pytestmark = pytest.mark.asyncio

LEAD = pb.Serve(role="lead")


def hello(mob_id: str = "m", **more: Any) -> pb.Hello:
    fields = {"host_id": "host", "incarnation": "1", "protocol": 1, "serves": [LEAD], "capacity": 2, "max_members": 10}
    return pb.Hello(mob_id=mob_id, **{**fields, **more})


class Stream:
    """One Attach call, entry by entry."""

    def __init__(self, peer: Speaker) -> None:
        self.call: Any = peer.agents.Attach(timeout=TIMEOUT_S * 3)
        self._frames: list[pb.ServerFrame] = []

    async def send(self, *frames: dict[str, Any]) -> None:
        """Send entries in one message."""
        await self.call.write(pb.AttachRequest(frames=[pb.AgentFrame(**frame) for frame in frames]))

    async def next(self) -> Any:
        """Return the next entry, whatever it is; None at the end."""
        async with asyncio.timeout(TIMEOUT_S):
            while not self._frames:
                response = await self.call.read()
                if response is grpc.aio.EOF:
                    return None
                self._frames += response.frames
        frame = self._frames.pop(0)
        return getattr(frame, frame.WhichOneof("frame") or "")

    async def ended(self) -> tuple[list[Any], grpc.StatusCode, Refusal | None]:
        """Return what still came, and how the stream ended."""
        rest = []
        try:
            while (frame := await self.next()) is not None:
                rest.append(frame)
            code = await asyncio.wait_for(self.call.code(), TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return rest, error.code(), refusal_of(error)
        if code is not grpc.StatusCode.OK:
            broken = grpc.aio.AioRpcError(
                code, await self.call.initial_metadata(), await self.call.trailing_metadata(), await self.call.details()
            )
            return rest, code, refusal_of(broken)
        return rest, code, None


async def attached(peer: Speaker, **more: Any) -> tuple[Stream, pb.Welcome]:
    stream = Stream(peer)
    await stream.send({"hello": hello(**more)})
    welcome = await stream.next()
    assert isinstance(welcome, pb.Welcome)
    return stream, welcome


async def serving(peer: Speaker, *members: str, **more: Any) -> Stream:
    """Return a stream that serves all members of a new mob."""
    await peer.create("m", *members)
    stream, _ = await attached(peer, **more)
    for _ in members:
        assign = await stream.next()
        assert isinstance(assign, pb.Assign)
        await stream.send({"assigned": pb.Assigned(member_id=assign.member_id, executor_fence=assign.executor_fence)})
    return stream


async def listed(peer: Speaker) -> pb.Agent:
    (agent,) = (await peer.agents.ListAgents(pb.ListAgentsRequest(mob_id="m"))).agents
    assert isinstance(agent, pb.Agent)
    return agent


async def until_suspended(peer: Speaker) -> None:
    """Return when the one agent is suspended: the server hears of the end of a stream in its own time."""
    async with asyncio.timeout(TIMEOUT_S):
        while (await listed(peer)).connectivity != common_pb2.CONNECTIVITY_SUSPENDED:
            pass


async def test_a_whole_life_on_one_stream(peer: Speaker) -> None:
    await peer.create("m")
    spec = members_pb2.MemberSpec(member_id="ada", role="lead", context_json='{"k": [1]}')
    await peer.members.SpawnMember(members_pb2.SpawnMemberRequest(mob_id="m", spec=spec))
    stream, welcome = await attached(peer)
    assert welcome.attachment_id
    assert welcome.log_id
    assert not welcome.resumed
    assert (welcome.heartbeat.seconds, welcome.lease.seconds, welcome.grace.seconds) == (10, 30, 60)
    assert welcome.limits.message_bytes == 4 << 20
    assert [(one.serve, one.assigned) for one in welcome.serves] == [(LEAD, 1)]
    assign = await stream.next()
    assert (assign.member_id, assign.role, assign.instructions) == ("ada", "lead", "merge")
    assert json.loads(assign.profile_json) == {"role": "lead", "instructions": "merge"}
    assert json.loads(assign.context_json) == {"k": [1]}
    assert (assign.message_count, len(assign.digest)) == (0, 64)
    fence = assign.executor_fence
    await stream.send({"heartbeat": pb.Heartbeat()}, {"assigned": pb.Assigned(member_id="ada", executor_fence=fence)})
    assert isinstance(await stream.next(), pb.HeartbeatAck)
    blocks = [
        common_pb2.Block(text="hi"),
        common_pb2.Block(value_json='{"n": 12345678901234567890}'),
        common_pb2.Block(image=common_pb2.Image(media_type="image/png", data=b"\x00\xff")),
    ]
    content = common_pb2.Content(blocks=blocks)
    request = bridge_pb2.DeliverRequest(mob_id="m", member_id="ada", input_id="i1", content=content)
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    answer = await peer.bridge.Deliver(request, metadata=(("traceparent", trace),))
    assert answer.accepted.executor == common_pb2.CONNECTIVITY_CONNECTED
    start = await stream.next()
    assert (start.member_id, start.executor_fence, start.boundary) == ("ada", fence, "run_start")
    assert start.traceparent == trace
    (one,) = start.inputs
    assert (one.input_id, one.canonical_input_id) == ("i1", answer.accepted.canonical_input_id)
    assert (one.kind, one.sender, one.attempt, one.content) == ("peer_message", "anonymous", 1, content)
    await stream.send(
        {"run_accepted": pb.RunAccepted(run_id=start.run_id, executor_fence=fence)},
        {
            "run_result": pb.RunResult(
                run_id=start.run_id,
                executor_fence=fence,
                output_json='{"n": 1}',
                messages_json=['{"role": "user"}', '"x"'],
                expected_message_count=0,
            )
        },
    )
    settled = await stream.next()
    assert (settled.run_id, settled.disposition) == (start.run_id, pb.RUN_DISPOSITION_COMMITTED)
    member = await peer.members.GetMember(members_pb2.GetMemberRequest(mob_id="m", member_id="ada"))
    assert member.member.session.message_count == 2
    await stream.send({"drain": pb.Drain()}, {"detach": pb.Detach()})
    rest, code, _ = await stream.ended()
    assert [(type(frame), frame.member_id) for frame in rest] == [(pb.Unassign, "ada")]
    assert code is grpc.StatusCode.OK
    assert not (await peer.agents.ListAgents(pb.ListAgentsRequest(mob_id="m"))).agents


async def test_failures_are_settled_by_what_they_are(peer: Speaker) -> None:
    stream = await serving(peer, "ada")
    await peer.deliver("ada", "i1")
    dispositions = []
    for kind, retryable in ((pb.FAILURE_KIND_RELEASED, True), (pb.FAILURE_KIND_ERROR, False)):
        start = await stream.next()
        failed = pb.RunFailed(run_id=start.run_id, executor_fence=start.executor_fence, kind=kind, retryable=retryable)
        await stream.send({"run_failed": failed})
        dispositions.append((await stream.next()).disposition)
    assert dispositions == [pb.RUN_DISPOSITION_REQUEUED, pb.RUN_DISPOSITION_ABANDONED]


async def test_an_agent_may_come_before_its_mob(peer: Speaker) -> None:
    stream, welcome = await attached(peer)
    assert welcome.attachment_id == ""
    assert [one.waiting for one in welcome.serves] == ["mob 'm' does not exist yet"]
    await stream.send({"heartbeat": pb.Heartbeat()})
    assert isinstance(await stream.next(), pb.HeartbeatAck)
    await peer.create("m", "ada")
    assert (await stream.next()).attachment_id
    assert (await stream.next()).member_id == "ada"


async def test_an_unknown_role_is_rejected_and_the_stream_ends_in_order(peer: Speaker) -> None:
    await peer.create("m")
    stream = Stream(peer)
    await stream.send({"hello": hello(serves=[pb.Serve(role="cook")])})
    (reject,), code, _ = await stream.ended()
    assert reject.cause == pb.REJECT_REASON_UNKNOWN_ROLE
    assert "analyst, lead" in reject.message
    assert not reject.HasField("retry_after")
    assert code is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("frames", "path"),
    [
        ([{"heartbeat": pb.Heartbeat()}], "frames[0].hello"),
        ([], "frames"),
        ([{}], "frames[0].frame"),
        ([{"hello": hello(capacity=0)}], "frames[0].hello.capacity"),
        ([{"hello": hello(), }, {"heartbeat": pb.Heartbeat()}, {"hello": hello()}], "frames[2].hello"),
        ([{"hello": hello()}, {"assigned": pb.Assigned(member_id="ada")}], "frames[1].assigned.executor_fence"),
    ],
)  # fmt: skip
async def test_a_frame_that_breaks_a_rule_ends_the_stream_by_its_path(
    peer: Speaker, frames: list[dict[str, Any]], path: str
) -> None:
    await peer.create("m")
    stream = Stream(peer)
    await stream.send(*frames)
    _, code, refusal = await stream.ended()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal is not None
    assert refusal.reason == "FIELD_INVALID"
    assert list(refusal.fields) == [path]


async def test_after_a_malformed_frame_the_agent_is_what_it_is_after_any_broken_stream(peer: Speaker) -> None:
    stream = await serving(peer, "ada")
    await peer.deliver("ada", "i1")
    start = await stream.next()
    await stream.send({"run_failed": pb.RunFailed(run_id=start.run_id, executor_fence=start.executor_fence)})
    _, code, refusal = await stream.ended()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal is not None
    assert list(refusal.fields) == ["frames[0].run_failed.kind"]
    await until_suspended(peer)
    again, welcome = await attached(peer, resume=pb.Resume(attachment_id="att", run_ids=[start.run_id]))
    assert welcome.resumed
    assert (await again.next()).member_id == "ada"
    result = pb.RunResult(run_id=start.run_id, executor_fence=start.executor_fence, output_json="1")
    await again.send({"run_result": result})
    assert (await again.next()).disposition == pb.RUN_DISPOSITION_COMMITTED


@pytest.mark.parametrize("way", ["close", "cancel"])
async def test_a_stream_that_the_agent_ends_without_detach_is_suspended(peer: Speaker, way: str) -> None:
    stream = await serving(peer, "ada")
    assert (await listed(peer)).connectivity == common_pb2.CONNECTIVITY_CONNECTED
    if way == "close":
        await stream.call.done_writing()
        assert (await stream.ended())[1] is grpc.StatusCode.OK
    else:
        stream.call.cancel()
    await until_suspended(peer)
    assert peer.server.hub.connections == 0


async def test_a_second_stream_of_the_same_process_takes_over(peer: Speaker) -> None:
    first = await serving(peer, "ada")
    await listed(peer)
    second, welcome = await attached(peer)
    assert welcome.resumed
    rest, code, _ = await first.ended()
    assert [frame.reason for frame in rest] == [pb.GOODBYE_REASON_SUPERSEDED]
    assert code is grpc.StatusCode.OK
    assert (await listed(peer)).connectivity == common_pb2.CONNECTIVITY_CONNECTED
    await peer.deliver("ada", "i1")
    assert isinstance(await second.next(), pb.Assign)
    assert isinstance(await second.next(), pb.StartRun)


async def test_the_stream_of_a_destroyed_mob_ends(peer: Speaker) -> None:
    stream = await serving(peer, "ada")
    await peer.mobs.DestroyMob(mobs_pb2.DestroyMobRequest(mob_id="m"))
    rest, code, _ = await stream.ended()
    assert [type(frame) for frame in rest] == [pb.Unassign, pb.Goodbye]
    assert rest[-1].reason == pb.GOODBYE_REASON_REVOKED
    assert code is grpc.StatusCode.OK


async def test_an_agent_that_drains_is_listed_as_such(peer: Speaker) -> None:
    stream = await serving(peer, "ada")
    await stream.send({"drain": pb.Drain()})
    assert isinstance(await stream.next(), pb.Unassign)
    agent = await listed(peer)
    assert agent.draining
    assert agent.connectivity == common_pb2.CONNECTIVITY_CONNECTED


@asynccontextmanager
async def drained(folder: Path) -> AsyncIterator[Stream]:
    """Yield the stream of an agent whose server has drained meanwhile."""
    async with speaking(settings(folder)) as peer:
        stream = await serving(peer, "ada")
        peer.server.hub.drain()
        yield stream


async def test_a_server_that_drains_says_goodbye(tmp_path: Path) -> None:
    async with drained(tmp_path) as stream:
        rest, code, _ = await stream.ended()
        assert [frame.reason for frame in rest] == [pb.GOODBYE_REASON_DRAINING]
        assert rest[0].HasField("retry_after")
        assert code is grpc.StatusCode.OK


async def test_a_large_role_is_assigned_in_messages_that_fit(peer: Speaker) -> None:
    await peer.create("m")
    context = json.dumps("x" * 20_000)
    for start in range(0, 500, 50):
        names = [f"m{place:03}" for place in range(start, start + 50)]
        specs = [members_pb2.MemberSpec(member_id=name, role="lead", context_json=context) for name in names]
        await peer.members.SpawnMembers(members_pb2.SpawnMembersRequest(mob_id="m", specs=specs))
    stream, _ = await attached(peer, max_members=1_000)
    assigns = [await stream.next() for _ in range(500)]
    assert [one.member_id for one in assigns] == [f"m{place:03}" for place in range(500)]
    stream.call.cancel()
    await until_suspended(peer)
    again, _ = await attached(peer, max_members=1_000)
    assert len([await again.next() for _ in range(500)]) == 500


async def test_an_agent_that_reads_too_slowly_learns_why_its_stream_ended(peer: Speaker) -> None:
    names = [f"m{place}" for place in range(64)]
    stream = await serving(peer, *names, capacity=64, max_members=64)
    await stream.send({"heartbeat": pb.Heartbeat()})
    assert isinstance(await stream.next(), pb.HeartbeatAck)
    for name in names:
        await peer.deliver(name, f"for-{name}", "x" * 200_000)
        if (await listed(peer)).connectivity == common_pb2.CONNECTIVITY_SUSPENDED:
            break
    rest, code, refusal = await stream.ended()
    assert len(rest) < 32
    assert rest[-1].reason == pb.GOODBYE_REASON_SLOW
    assert code is grpc.StatusCode.UNAVAILABLE
    assert refusal is not None
    assert refusal.retry
    again, welcome = await attached(peer, capacity=64, max_members=64)
    assert welcome.resumed
    assert isinstance(await again.next(), pb.Assign)
