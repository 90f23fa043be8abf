"""What an agent says and does on its streams: nothing is run twice, nothing is lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.client.peer import MOB, WAIT_S, Code, Link, Peer, Said, duration, refusal

import mobd
from mobd.v1 import agents_pb2

pytestmark = [pytest.mark.floor, pytest.mark.asyncio]

FENCED = agents_pb2.RUN_DISPOSITION_FENCED


class Worker:
    """An agent whose turns end when the test says so."""

    def __init__(self, peer: Peer, **options: Any) -> None:
        self.agent = mobd.Agent(peer.target, mob=MOB, role="worker", **options)
        self.agent.reconnect_s = (0.01, 0.02)
        self.calls: list[mobd.Turn] = []
        self.called = asyncio.Event()
        self.go = asyncio.Event()
        self.agent.turn(self._turn)

    async def _turn(self, ctx: mobd.Turn) -> dict[str, str]:
        self.calls.append(ctx)
        self.called.set()
        await self.go.wait()
        return {"said": ctx.text}

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["asyncio.Task[None]"]:
        task = asyncio.create_task(self.agent.serve())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def hello_of(link: Link) -> agents_pb2.Hello:
    hello: agents_pb2.Hello = await link.hear("hello")
    return hello


async def test_hello_says_who_it_is_and_what_it_wants(peer: Peer) -> None:
    agent = mobd.Agent(
        peer.target, mob=MOB, roles=["worker", "lead"], member="m-9", capacity=4, max_members=9, host_id="box-1"
    )
    agent.turn(lambda ctx: None)
    task = asyncio.create_task(agent.serve())
    hello = await hello_of(await peer.link())
    task.cancel()
    assert (hello.mob_id, hello.host_id, hello.protocol) == (MOB, "box-1", 1)
    assert (hello.capacity, hello.max_members) == (4, 9)
    assert hello.incarnation
    assert [one.member_id or f"role {one.role}" for one in hello.serves] == ["m-9", "role worker", "role lead"]
    assert not hello.HasField("resume")


async def test_a_run_goes_from_start_to_settled(peer: Peer) -> None:
    worker = Worker(peer)
    async with worker.serving():
        link = await peer.attached()
        await link.assign(
            role="worker", profile_json='{"x":1}', instructions="do", context_json="[1]", generation=2, fence_token=3
        )
        await link.run("run-1", "one", "two")
        await asyncio.wait_for(worker.called.wait(), WAIT_S)
        worker.go.set()
        result = await link.hear("run_result")
    assert (result.run_id, result.executor_fence, result.output_json) == ("run-1", 7, '{"said":"one\\ntwo"}')
    assert not result.HasField("expected_message_count")
    turn = worker.calls[0]
    assert (turn.mob_id, turn.member_id, turn.role, turn.instructions) == (MOB, "m-1", "worker", "do")
    assert (turn.profile, turn.context, turn.generation, turn.fence_token) == ({"x": 1}, [1], 2, 3)
    assert (turn.run_id, turn.executor_fence, turn.attempt) == ("run-1", 7, 1)
    assert [(one.input_id, one.canonical_input_id, one.text) for one in turn.inputs] == [
        ("key-1", "in-1", "one"),
        ("key-2", "in-2", "two"),
    ]


async def test_a_run_in_flight_and_a_result_that_was_not_settled_outlive_the_stream(peer: Peer) -> None:
    worker = Worker(peer, capacity=2)
    async with worker.serving():
        link = await peer.attached(attachment_id="att-5")
        await link.assign("m-1", 7)
        await link.assign("m-2", 8)
        await link.run("run-1")
        await asyncio.wait_for(worker.called.wait(), WAIT_S)
        worker.go.set()
        await link.hear("run_result")
        worker.go.clear()
        await link.run("run-2", member_id="m-2", fence=8)
        link.end(refusal(Code.UNAVAILABLE, "DRAINING"))

        second = await peer.link()
        hello = await hello_of(second)
        assert hello.resume.attachment_id == "att-5"
        assert list(hello.resume.run_ids) == ["run-1", "run-2"]
        second.welcome(attachment_id="att-5", resumed=True)
        assert (await second.hear("run_result")).run_id == "run-1"
        await second.assign("m-2", 8)
        second.settle("run-1", agents_pb2.RUN_DISPOSITION_DUPLICATE)
        worker.go.set()
        assert (await second.hear("run_result")).run_id == "run-2"
        second.settle("run-2")
        second.end()

        third = await hello_of(await peer.link())
        assert list(third.resume.run_ids) == []
    assert [turn.run_id for turn in worker.calls] == ["run-1", "run-2"]


async def test_a_result_that_comes_while_there_is_no_stream_is_sent_on_the_next(peer: Peer) -> None:
    worker = Worker(peer)
    async with worker.serving():
        link = await peer.attached()
        await link.assign()
        await link.run("run-1")
        await asyncio.wait_for(worker.called.wait(), WAIT_S)
        await peer.stop()
        worker.go.set()
        await peer.start()
        second = await peer.link()
        assert list((await hello_of(second)).resume.run_ids) == ["run-1"]
        second.welcome(resumed=True)
        assert (await second.hear("run_result")).run_id == "run-1"


async def test_a_run_that_is_started_again_is_acknowledged_again_and_not_run_again(peer: Peer) -> None:
    worker = Worker(peer)
    async with worker.serving():
        link = await peer.attached()
        await link.assign()
        await link.run("run-1")
        await link.run("run-1")
        await asyncio.wait_for(worker.called.wait(), WAIT_S)
        worker.go.set()
        await link.hear("run_result")
        # The result is there: the run is acknowledged and the result sent once more.
        await link.run("run-1")
        assert (await link.hear("run_result")).output_json == '{"said":"hello"}'
        link.settle("run-1")
        link.start("run-1")
        failed = await link.hear("run_failed")
    assert failed.kind == agents_pb2.FAILURE_KIND_RELEASED
    assert len(worker.calls) == 1


async def test_resync_is_answered_with_what_is_held_and_every_result(peer: Peer) -> None:
    worker = Worker(peer)
    async with worker.serving():
        link = await peer.attached()
        await link.assign()
        await link.run("run-1")
        await asyncio.wait_for(worker.called.wait(), WAIT_S)
        worker.go.set()
        first = await link.hear("run_result")
        link.say(resync=agents_pb2.Resync(mob_id=MOB))
        held, *_ = await link.heartbeats(1)
        assert await link.hear("run_result") == first
    assert list(held.run_ids) == ["run-1"]


async def test_a_fenced_result_is_dropped(peer: Peer, said: Said) -> None:
    worker = Worker(peer)
    worker.go.set()
    async with worker.serving():
        link = await peer.attached()
        await link.assign()
        await link.run("run-1")
        await link.hear("run_result")
        link.settle("run-1", FENCED)
        link.end()
        assert list((await hello_of(await peer.link())).resume.run_ids) == []
        assert "not this agent's any more" in await said.saying("run-1")


async def test_an_assignment_ends_with_its_welcome_and_with_its_fence(peer: Peer) -> None:
    worker = Worker(peer)
    worker.go.set()
    async with worker.serving():
        link = await peer.attached()
        await link.assign("m-1", 7)
        await link.assign("m-1", 9)
        link.say(unassign=agents_pb2.Unassign(member_id="m-1", executor_fence=7))
        await link.run("run-1", fence=9)
        await link.hear("run_result")
        link.say(unassign=agents_pb2.Unassign(member_id="m-1", executor_fence=9))
        link.start("run-2", fence=9)
        assert (await link.hear("run_failed")).kind == agents_pb2.FAILURE_KIND_RELEASED
        link.end()
        second = await peer.attached(resumed=True)
        await second.hear("run_result")
        second.start("run-3", fence=9)
        assert (await second.hear("run_failed")).run_id == "run-3"


async def test_heartbeats_name_every_run_that_is_not_settled(peer: Peer) -> None:
    worker = Worker(peer)
    async with worker.serving():
        link = await peer.attached(heartbeat_s=0.02)
        assert list((await link.heartbeats(1))[0].run_ids) == []
        await link.assign()
        await link.run("run-1")
        assert list((await link.heartbeats(2))[-1].run_ids) == ["run-1"]
        worker.go.set()
        await link.hear("run_result")
        assert list((await link.heartbeats(2))[-1].run_ids) == ["run-1"]
        link.settle("run-1")
        await link.assign("m-2", 8)
        assert list((await link.heartbeats(2))[-1].run_ids) == []


async def test_a_server_that_is_silent_is_left(peer: Peer, said: Said) -> None:
    worker = Worker(peer)
    async with worker.serving():
        link = await peer.link()
        await link.hear("hello")
        link.welcome(heartbeat_s=0.02, lease_s=0.1)
        await peer.attached()
        await asyncio.wait_for(link.ended.wait(), WAIT_S)
        await said.saying("was silent for 0.1 s")


async def test_an_agent_waits_for_its_mob_and_says_so_once(peer: Peer, said: Said) -> None:
    worker = Worker(peer)
    worker.go.set()
    async with worker.serving():
        link = await peer.link()
        await link.hear("hello")
        link.welcome(attachment_id="")
        line = await said.saying("does not exist")
        assert line == f"INFO mob '{MOB}' does not exist on {peer.target} yet; waiting"
        link.welcome(attachment_id="att-1")
        await link.assign()
        await link.run("run-1")
        await link.hear("run_result")
    assert said.count("waiting") == 1


async def test_an_unknown_role_ends_the_agent_with_what_the_server_says(peer: Peer) -> None:
    worker = Worker(peer)
    async with worker.serving() as serving:
        link = await peer.link()
        await link.hear("hello")
        link.say(
            reject=agents_pb2.Reject(
                cause=agents_pb2.REJECT_REASON_UNKNOWN_ROLE, message="no role 'worker': the roles are lead"
            )
        )
        with pytest.raises(mobd.AgentStopped, match="the roles are lead") as stopped:
            await asyncio.wait_for(serving, WAIT_S)
    assert stopped.value.reason == "UNKNOWN_ROLE"


async def test_a_rejection_for_now_is_tried_again(peer: Peer) -> None:
    worker = Worker(peer)
    async with worker.serving():
        link = await peer.link()
        await link.hear("hello")
        link.say(
            reject=agents_pb2.Reject(
                cause=agents_pb2.REJECT_REASON_MOB_UNAVAILABLE, message="not now", retry_after=duration(0.001)
            )
        )
        await peer.attached()


async def test_an_agent_that_another_process_superseded_ends_and_names_the_host(peer: Peer) -> None:
    worker = Worker(peer, host_id="box-1")
    others = agents_pb2.ListAgentsResponse(agents=[agents_pb2.Agent(host_id="box-1", incarnation="another")])
    peer.script("ListAgents").will(others)
    async with worker.serving() as serving:
        link = await peer.attached()
        link.goodbye(agents_pb2.GOODBYE_REASON_SUPERSEDED, "another incarnation")
        with pytest.raises(mobd.AgentStopped, match=r"'box-1'.*give each agent a host_id of its own") as stopped:
            await asyncio.wait_for(serving, WAIT_S)
    assert stopped.value.reason == "SUPERSEDED"


async def test_an_agent_that_a_late_stream_of_its_own_superseded_attaches_again(peer: Peer) -> None:
    worker = Worker(peer, host_id="box-1")
    async with worker.serving():
        link = await peer.link()
        hello = await hello_of(link)
        own = agents_pb2.Agent(host_id="box-1", incarnation=hello.incarnation)
        peer.script("ListAgents").will(agents_pb2.ListAgentsResponse(agents=[own]))
        link.welcome()
        link.goodbye(agents_pb2.GOODBYE_REASON_SUPERSEDED)
        await peer.attached()


@pytest.mark.parametrize(
    "reason",
    [agents_pb2.GOODBYE_REASON_DRAINING, agents_pb2.GOODBYE_REASON_SLOW, agents_pb2.GOODBYE_REASON_REVOKED],
)
async def test_an_agent_comes_back_after_a_goodbye(peer: Peer, reason: "agents_pb2.GoodbyeReason.ValueType") -> None:
    worker = Worker(peer)
    async with worker.serving():
        link = await peer.attached(attachment_id="att-1")
        link.goodbye(reason)
        hello = await hello_of(await peer.link())
    assert hello.HasField("resume") is (reason != agents_pb2.GOODBYE_REASON_REVOKED)


async def test_a_breach_of_the_protocol_ends_the_agent(peer: Peer) -> None:
    worker = Worker(peer)
    async with worker.serving() as serving:
        link = await peer.attached()
        link.goodbye(agents_pb2.GOODBYE_REASON_PROTOCOL, "two results for one run")
        with pytest.raises(mobd.AgentStopped, match="two results for one run"):
            await asyncio.wait_for(serving, WAIT_S)


async def test_a_frame_that_the_server_refuses_ends_the_agent(peer: Peer) -> None:
    worker = Worker(peer)
    async with worker.serving() as serving:
        link = await peer.link()
        await link.hear("hello")
        link.end(refusal(Code.INVALID_ARGUMENT, "FIELD_INVALID", "frames[0].hello.capacity: must be at most 256"))
        with pytest.raises(mobd.AgentStopped, match="must be at most 256"):
            await asyncio.wait_for(serving, WAIT_S)


async def test_a_drain_finishes_runs_declines_others_and_detaches(peer: Peer) -> None:
    worker = Worker(peer)
    async with worker.serving() as serving:
        link = await peer.attached()
        await link.assign()
        await link.run("run-1")
        await asyncio.wait_for(worker.called.wait(), WAIT_S)
        worker.agent.drain()
        await link.hear("drain")
        link.say(assign=agents_pb2.Assign(member_id="m-2", executor_fence=8))
        assert (await link.hear("declined")).member_id == "m-2"
        link.start("run-2")
        assert (await link.hear("run_failed")).kind == agents_pb2.FAILURE_KIND_RELEASED
        # A break in between changes nothing: its own member is kept and the drain is said again.
        link.end()
        second = await peer.attached(resumed=True)
        await second.hear("drain")
        await second.assign()
        worker.go.set()
        await second.hear("run_result")
        second.settle("run-1")
        await second.hear("detach")
        await asyncio.wait_for(serving, WAIT_S)


async def test_a_drain_waits_no_longer_than_it_may(peer: Peer) -> None:
    worker = Worker(peer, drain_timeout=0.05)
    async with worker.serving() as serving:
        link = await peer.attached()
        await link.assign()
        await link.run("run-1")
        await asyncio.wait_for(worker.called.wait(), WAIT_S)
        worker.agent.drain()
        await link.hear("drain")
        await link.hear("detach")
        await asyncio.wait_for(serving, WAIT_S)


async def test_running_serves_for_a_block_and_drains_at_its_end(peer: Peer) -> None:
    worker = Worker(peer)
    worker.go.set()

    async def block() -> None:
        async with worker.agent.running():
            await asyncio.wait_for(worker.called.wait(), WAIT_S)

    task = asyncio.create_task(block())
    link = await peer.attached()
    await link.assign()
    await link.run("run-1")
    await link.hear("run_result")
    await link.hear("drain")
    link.settle("run-1")
    await link.hear("detach")
    await asyncio.wait_for(task, WAIT_S)


async def test_a_cancelled_agent_detaches(peer: Peer, said: Said) -> None:
    worker = Worker(peer)
    async with worker.serving() as serving:
        link = await peer.attached()
        await link.assign()
        await link.run("run-1")
        await asyncio.wait_for(worker.called.wait(), WAIT_S)
        serving.cancel()
        await link.hear("detach")
        await said.saying("leaving: 1 run given back")
    assert len(worker.calls) == 1


async def test_what_is_recorded_goes_with_the_result_and_is_counted_on(peer: Peer) -> None:
    agent = mobd.Agent(peer.target, mob=MOB, role="worker")
    sessions = []

    @agent.turn
    async def turn(ctx: mobd.Turn) -> None:
        sessions.append(ctx.session)
        ctx.record("user", ctx.text)
        ctx.record("assistant", {"ok": True})

    task = asyncio.create_task(agent.serve())
    link = await peer.attached()
    await link.assign(session_id="ses-1", message_count=5, digest="abc")
    await link.run("run-1")
    first = await link.hear("run_result")
    link.settle("run-1")
    await link.run("run-2")
    second = await link.hear("run_result")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert list(first.messages_json) == [
        '{"role":"user","content":"hello"}',
        '{"role":"assistant","content":{"ok":true}}',
    ]
    assert first.output_json == "null"
    assert [first.expected_message_count, second.expected_message_count] == [5, 7]
    assert sessions == [mobd.Session("ses-1", 5, "abc"), mobd.Session("ses-1", 7, "")]
