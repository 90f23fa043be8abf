"""RunService and ListAgents: what agents did, and who they are."""

from typing import Any

import grpc
import pytest
from tests.rpc.speaking import RawAgent, Speaker

from mobd.v1 import agents_pb2, common_pb2, runs_pb2

pytestmark = pytest.mark.asyncio


async def runs(peer: Speaker, **more: Any) -> list[runs_pb2.Run]:
    answer = await peer.runs.ListRuns(runs_pb2.ListRunsRequest(mob_id="m", **more))
    return list(answer.runs)


async def test_a_run_is_shown_in_flight_and_settled(peer: Speaker) -> None:
    await peer.create("m", "a")
    accepted = (await peer.deliver("a", "i")).accepted
    async with RawAgent(peer, host_id="kitchen") as agent:
        started = await agent.accept_run()
        request = runs_pb2.GetRunRequest(mob_id="m", run_id=started.run_id)
        run = (await peer.runs.GetRun(request)).run
        assert (run.mob_id, run.member_id, run.run_id) == ("m", "a", started.run_id)
        assert (run.state, run.host_id) == (runs_pb2.RUN_STATE_RUNNING, "kitchen")
        assert (list(run.canonical_input_ids), list(run.attempts)) == ([accepted.canonical_input_id], [1])
        assert run.executor_fence == started.executor_fence
        assert not run.HasField("end_time")
        assert await runs(peer) == [run]
        await agent.succeed(started, '{"n": 7}')
    settled = (await peer.runs.GetRun(request)).run
    assert settled.state == runs_pb2.RUN_STATE_COMMITTED
    assert (settled.output_json, settled.usage.input_tokens) == ('{"n": 7}', 3)
    assert list(settled.receipt.contributing_input_ids) == [accepted.canonical_input_id]
    assert settled.receipt.boundary == "run_start"
    assert settled.HasField("end_time")
    assert settled.start_time == run.start_time
    assert await runs(peer) == [settled]


async def test_a_failed_run_says_why_and_has_no_receipt(peer: Speaker) -> None:
    await peer.create("m", "a")
    await peer.deliver("a", "i")
    async with RawAgent(peer) as agent:
        started = await agent.accept_run()
        await agent.fail(started, retryable=False)
    (run,) = await runs(peer)
    assert (run.state, run.error) == (runs_pb2.RUN_STATE_FAILED, "boom")
    assert not run.HasField("receipt")


async def test_an_unknown_run_is_not_found(peer: Speaker) -> None:
    await peer.create()
    refused = await peer.refused(peer.runs.GetRun, runs_pb2.GetRunRequest(mob_id="m", run_id="x"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")
    refused = await peer.refused(peer.runs.GetRun, runs_pb2.GetRunRequest(mob_id="n", run_id="x"))
    assert refused.reason == "MOB_NOT_FOUND"


async def test_runs_are_listed_in_the_order_in_which_they_started(peer: Speaker) -> None:
    await peer.create("m", "a", "b")
    async with RawAgent(peer, capacity=2) as agent:
        started = []
        for number in range(5):
            await peer.deliver("a", f"i{number}")
            run = await agent.accept_run()
            started.append(run.run_id)
            if number == 3:
                await agent.fail(run, retryable=False)
            else:
                await agent.succeed(run)
        # One in flight, older than one that has settled.
        await peer.deliver("a", "long")
        long = await agent.accept_run()
        await peer.deliver("b", "short")
        short = await agent.accept_run()
        await agent.succeed(short)
        started += [long.run_id, short.run_id]
        assert [run.run_id for run in await runs(peer)] == started
        pages, token = [], ""
        while True:
            request = runs_pb2.ListRunsRequest(mob_id="m", page_size=2, page_token=token)
            answer = await peer.runs.ListRuns(request)
            pages.append([run.run_id for run in answer.runs])
            token = answer.next_page_token
            if not token:
                break
        assert pages == [started[0:2], started[2:4], started[4:6], started[6:7]]
        assert [run.run_id for run in await runs(peer, member_id="b")] == [short.run_id]
        assert [run.run_id for run in await runs(peer, state=runs_pb2.RUN_STATE_RUNNING)] == [long.run_id]
        assert [run.run_id for run in await runs(peer, state=runs_pb2.RUN_STATE_FAILED)] == [started[3]]
        assert len(await runs(peer, state=runs_pb2.RUN_STATE_COMMITTED)) == 5


async def test_a_page_of_runs_with_long_outputs_is_short(peer: Speaker) -> None:
    await peer.create("m", "a")
    output = '"' + "x" * 700_000 + '"'
    async with RawAgent(peer) as agent:
        for number in range(3):
            await peer.deliver("a", f"i{number}")
            await agent.succeed(await agent.accept_run(), output)
    answer = await peer.runs.ListRuns(runs_pb2.ListRunsRequest(mob_id="m"))
    assert len(answer.runs) == 1
    request = runs_pb2.ListRunsRequest(mob_id="m", page_token=answer.next_page_token)
    assert (await peer.runs.ListRuns(request)).runs[0].run_id > answer.runs[0].run_id


async def test_agents_are_listed_in_the_order_in_which_they_attached(peer: Speaker) -> None:
    await peer.create("m", "a")
    async with (
        RawAgent(peer, host_id="z", capacity=3, max_members=5) as first,
        RawAgent(peer, host_id="y", serves=[agents_pb2.Serve(member_id="b")]),
        RawAgent(peer, host_id="x"),
    ):
        answer = await peer.agents.ListAgents(agents_pb2.ListAgentsRequest(mob_id="m"))
        assert [agent.host_id for agent in answer.agents] == ["z", "y", "x"]
        seen = answer.agents[0]
        assert seen.attachment_id == first.welcome.attachment_id
        assert (seen.capacity, seen.max_members, seen.members, seen.runs) == (3, 5, 1, 0)
        assert (seen.connectivity, seen.draining) == (common_pb2.CONNECTIVITY_CONNECTED, False)
        assert seen.serves[0].role == "lead"
        assert answer.agents[1].serves[0].member_id == "b"
        assert seen.HasField("attach_time")
        pages, token = [], ""
        while True:
            request = agents_pb2.ListAgentsRequest(mob_id="m", page_size=1, page_token=token)
            answer = await peer.agents.ListAgents(request)
            pages.append([agent.host_id for agent in answer.agents])
            token = answer.next_page_token
            if not token:
                break
        assert pages == [["z"], ["y"], ["x"]]
    refused = await peer.refused(peer.agents.ListAgents, agents_pb2.ListAgentsRequest(mob_id="n"))
    assert refused.reason == "MOB_NOT_FOUND"
