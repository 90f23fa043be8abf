"""SIGTERM: a server and an agent end in order, and nothing is lost by it."""

import asyncio
import re
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.faults.conftest import World
from tests.faults.ledger import check_consumed_once, check_gap_free, check_order, check_runs, of_kind
from tests.support.peers import CALL_S, MOB, Peer, answered, canonical, reason
from tests.support.processes import say, until
from tests.support.served import Served

from mobd.v1 import agents_pb2, bridge_pb2, events_pb2

CALLS = 600


class Rush:
    """Many deliveries at once; the first answer makes the server's SIGTERM."""

    def __init__(self, served: Served, members: list[str]) -> None:
        self.acknowledged: dict[tuple[str, str], str] = {}
        self.refused: list[tuple[grpc.StatusCode, str]] = []
        # Answers of the process that had the signal.
        self.answered_late = 0
        self._served = served
        self._members = members
        self._asked = False

    async def deliver(self, peer: Peer, at: int) -> None:
        member_id, input_id = self._members[at % len(self._members)], f"in-{at}"
        request = peer.delivery(member_id, input_id, n=at)

        async def once() -> str:
            try:
                return canonical(await peer.bridge.Deliver(request, wait_for_ready=True, timeout=CALL_S))
            except grpc.aio.AioRpcError as error:
                self.refused.append((error.code(), reason(error)))
                raise

        self.acknowledged[member_id, input_id] = await answered(once)
        if self._asked:
            self.answered_late += len(self._served.pids) == 1
        else:
            self._asked = True
            self._served.process.send(signal.SIGTERM)


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert caught is not None
    return bool(int(caught[1], 16) >> (number - 1) & 1)


@pytest.mark.asyncio
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="which signals a process handles is told by Linux")
async def test_a_server_that_is_asked_to_end_while_it_starts_ends_at_once(alone: World) -> None:
    """The first process of a container is not ended by a signal that it does not handle."""
    served = Served(alone.folder)
    process = served.spawn()
    alone.later(process.kill)
    await until(lambda: handles(process.pid, signal.SIGTERM), "a handler")
    # Long before it has read its settings.
    process.send(signal.SIGTERM)
    assert await process.ended() == 0
    assert process.output() == ""
    await alone.serve()


@pytest.mark.asyncio
async def test_a_server_that_is_asked_to_end_answers_what_it_has_and_the_next_one_goes_on(world: World) -> None:
    served = await world.serve()
    admin = await world.peer(served)
    members = [f"m{at}" for at in range(10)]
    await admin.create([*members, "busy"])
    agent = world.agent(served, "agent", capacity=16)
    await admin.deliver("busy", "long", do="sleep", s=3)
    [long] = await agent.called()
    rush = Rush(served, members)

    async with AsyncExitStack() as stack:
        peers = [await world.peer(served) for _ in range(8)]
        await asyncio.gather(*(peer.channel.channel_ready() for peer in peers))
        calls = [asyncio.ensure_future(rush.deliver(peers[at % 8], at)) for at in range(CALLS)]
        stack.callback(lambda: [call.cancel() for call in calls])
        code = await served.process.ended()
        output = served.process.output()
        await served.restart()
        await asyncio.gather(*calls)

    say(f"{rush.answered_late} answered after the signal, {len(rush.refused)} refused")
    assert code == 0, output
    assert rush.answered_late, "the signal came when nothing was in flight"
    assert {status for status, _ in rush.refused} <= {grpc.StatusCode.UNAVAILABLE}
    assert "Traceback" not in output
    await asyncio.gather(*(admin.end_of(*key) for key in rush.acknowledged))
    ended = await admin.end_of("busy", "long")
    log = await admin.log()
    assert (ended.run_id, ended.attempt) == (long.run, 1)
    assert [call for call in agent.calls() if call.member == "busy"] == [long]
    check_gap_free(log)
    check_consumed_once(log, rush.acknowledged)
    check_runs(log)
    check_order(log)


async def to_the_end(stream: grpc.aio.UnaryStreamCall[Any, Any]) -> None:
    """Read what a stream still brings, and raise how it ended."""
    while await stream.read() is not grpc.aio.EOF:
        pass


@pytest.mark.asyncio
async def test_streams_end_with_unavailable_and_a_reason_when_the_server_drains(world: World) -> None:
    served = await world.serve()
    peer = await world.peer(served)
    await peer.create(["ada"])
    await peer.deliver("ada", "nobody-serves", n=1)
    start = events_pb2.EventStart(after_cursor=0)
    events = peer.events.WatchEvents(events_pb2.WatchEventsRequest(mob_id=MOB, start=start), timeout=CALL_S)
    watch = peer.bridge.WatchInput(
        bridge_pb2.WatchInputRequest(mob_id=MOB, member_id="ada", input_id="nobody-serves"), timeout=CALL_S
    )
    first = await watch.read()
    assert isinstance(first, bridge_pb2.WatchInputResponse)
    assert first.input.state == bridge_pb2.INPUT_STATE_QUEUED
    await events.read()
    served.process.send(signal.SIGTERM)
    for stream in (events, watch):
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await to_the_end(stream)
        assert (ended.value.code(), reason(ended.value)) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert await served.process.ended() == 0


@pytest.mark.asyncio
async def test_an_agent_that_is_asked_to_end_finishes_its_turn_and_leaves_the_rest_to_another(world: World) -> None:
    served = await world.serve()
    peer = await world.peer(served)
    await peer.create(["ada"])
    first = world.agent(served, "first")
    await peer.deliver("ada", "long", do="sleep", s=1)
    await first.called()
    await peer.deliver("ada", "next", n=1)
    second = world.agent(served, "second")
    code = await first.terminate()
    long = await peer.end_of("ada", "long")
    after = await peer.end_of("ada", "next")

    log = await peer.log()
    assert code == 0, first.log.read_text()
    assert (long.state, long.attempt, long.run_id) == (bridge_pb2.INPUT_STATE_CONSUMED, 1, first.calls()[0].run)
    assert (after.state, after.attempt) == (bridge_pb2.INPUT_STATE_CONSUMED, 1)
    assert [call.inputs[0][0] for call in first.calls()] == ["long"]
    assert [call.inputs[0][0] for call in second.calls()] == ["next"]
    closed = [event.attachment_closed.reason for event in of_kind(log, "attachment_closed")]
    assert closed == ["detached"]


@pytest.mark.asyncio
async def test_agents_come_back_to_the_attachment_that_they_had(world: World) -> None:
    served = await world.serve()
    peer = await world.peer(served)
    await peer.create(["ada", "bob"])
    agent = world.agent(served, "agent")
    await peer.deliver("ada", "first", n=1)
    await peer.end_of("ada", "first")
    assert await served.terminate() == 0
    await served.restart()
    await peer.deliver("ada", "second", n=2)
    ended = await peer.end_of("ada", "second")
    log = await peer.log()
    answer = await peer.agents.ListAgents(agents_pb2.ListAgentsRequest(mob_id=MOB), timeout=CALL_S)
    assert ended.state == bridge_pb2.INPUT_STATE_CONSUMED
    assert len(of_kind(log, "attachment_opened")) == 1
    assert len(answer.agents) == 1
    assert len({call.fence for call in agent.calls()}) == 1
