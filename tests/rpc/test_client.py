"""The client's methods for members, runtimes and mobs, against a whole server."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.rpc.speaking import RawAgent, Speaker

import mobd
from mobd.v1 import agents_pb2, bridge_pb2, common_pb2, members_pb2, mobs_pb2

pytestmark = pytest.mark.asyncio

DEFINITION = {"profiles": {"lead": {"instructions": "merge"}}}


@pytest_asyncio.fixture
async def client(peer: Speaker) -> AsyncIterator[mobd.Client]:
    async with mobd.Client(peer.server.address, timeout=10.0) as client:
        await client.create_mob("m", DEFINITION)
        yield client


async def test_a_delivery_says_what_it_is_and_how_it_is_handled(client: mobd.Client) -> None:
    await client.spawn("m", "a", "lead")
    asked = mobd.PeerRequest(request_id="q", intent="review")
    await client.deliver("m", "a", "x", input_id="i1", form=asked, wake=False, correlation_id="c")
    await client.deliver("m", "a", "x", input_id="i2", steer=True, supersession_key="s")
    drafts = [
        mobd.Draft("a", "x", "i3", steer=True, supersession_key="s"),
        mobd.Draft("a", "x", "i4", form=mobd.ExternalEvent(event_type="build"), steer=False),
    ]
    assert not any(isinstance(one, mobd.Error) for one in await client.deliver_batch("m", drafts))
    found = {one.input_id: one async for one in client.list_inputs("m", member_id="a")}
    assert {name: (one.kind, one.handling_mode, one.silent) for name, one in found.items()} == {
        "i1": ("peer_request", common_pb2.HANDLING_MODE_QUEUE, True),
        "i2": ("peer_message", common_pb2.HANDLING_MODE_STEER, False),
        "i3": ("peer_message", common_pb2.HANDLING_MODE_STEER, False),
        "i4": ("external_event", common_pb2.HANDLING_MODE_QUEUE, False),
    }
    assert found["i1"].correlation_id == "c"
    assert found["i2"].replaced_by == found["i3"].canonical_input_id
    progress = mobd.PeerResponse(request_id="q", status=bridge_pb2.PEER_RESPONSE_STATUS_IN_PROGRESS)
    with pytest.raises(mobd.HandlingModeInvalid):
        await client.deliver("m", "a", "x", form=progress, steer=True)
    superseded = client.list_inputs("m", state=bridge_pb2.INPUT_STATE_SUPERSEDED)
    assert [one.input_id async for one in superseded] == ["i2"]


async def test_who_asks_learns_that_another_input_took_the_place(client: mobd.Client) -> None:
    await client.spawn("m", "a", "lead")
    old = mobd.Draft("a", "x", "old", supersession_key="s")
    await client.deliver_batch("m", [old])
    asking = asyncio.create_task(client.ask("m", "a", "x", input_id="old", timeout=10.0))
    async for state in client.watch_input("m", "a", "old"):
        assert state.state == bridge_pb2.INPUT_STATE_QUEUED
        break
    await client.deliver("m", "a", "y", input_id="new", supersession_key="s")
    with pytest.raises(mobd.InputReplaced) as replaced:
        await asking
    assert replaced.value.input.replaced_by == (await client.get_input("m", "a", "new")).canonical_input_id


async def test_runs_and_runtimes_are_ended(peer: Speaker, client: mobd.Client) -> None:
    await client.spawn("m", "a", "lead")
    assert (await client.interrupt("m", "a")).HasField("nothing_to_interrupt")
    async with RawAgent(peer, capacity=2) as agent:
        await client.deliver("m", "a", "x")
        run = await agent.accept_run()
        asked = await client.interrupt("m", "a", run_id=run.run_id, reason="no", validate_only=True)
        assert [one.kind for one in asked.would_append] == ["run_cancel_requested"]
        assert (await client.interrupt("m", "a", run_id=run.run_id)).requested.run_id == run.run_id
        assert (await client.hard_cancel("m", "a", run.run_id)).requested.run_id == run.run_id
        member = await client.get_member("m", "a")
        fence = mobd.Fence(generation=member.generation, fence_token=member.fence_token)
        held: dict[str, Any] = {"run_id": run.run_id, "executor_fence": run.executor_fence}
        assert (await client.check_fence("m", "a", fence, **held)).current
        acting = mobd.Acting(run_id=run.run_id, executor_fence=run.executor_fence)
        assert (await client.retire_runtime("m", "a", fence=fence, acting=acting)).inputs_pending_drain == 1
        assert (await client.destroy_runtime("m", "a", fence=fence)).inputs_abandoned == 1
        assert not (await client.check_fence("m", "a", fence)).current
        with pytest.raises(mobd.StaleFence):
            await client.destroy_runtime("m", "a", acting=acting)
        with pytest.raises(mobd.StaleFence):
            await client.observe("m", "a", fence=mobd.Fence(generation=9))
        with pytest.raises(mobd.RunNotFound):
            await client.hard_cancel("m", "a", "run-x")


async def test_members_come_and_go(peer: Speaker, client: mobd.Client) -> None:
    spawned = await client.spawn("m", "a", "lead", initial_message="begin")
    assert not spawned.member.kickoff_complete
    await client.spawn_members("m", [mobd.member_spec("b", "lead", initial_message={"n": 1})])
    assert await client.wait_members("m", until="kickoff_complete", timeout=0.0) == mobd.Waited([], ["a", "b"])
    async with RawAgent(peer, serves=[agents_pb2.Serve(member_id="a")]) as agent:
        await agent.succeed(await agent.accept_run())
        waited = await client.wait_members("m", ["b", "a"], until="kickoff_complete", timeout=0.0)
        assert waited == mobd.Waited(["a"], ["b"])
        assert await client.wait_members("m", ["a"], until="ready") == mobd.Waited(["a"], [])
        again = await client.respawn_member("m", "a", initial_message="again")
        assert (again.member.generation, again.previous.generation) == (1, 0)
        run = await agent.accept_run()
        retired = await client.retire_member("m", "a", interrupt_first=True)
        assert retired.inputs_pending_drain == 1
        assert [one.member_id async for one in client.list_members("m")] == ["b"]
        retiring = [one async for one in client.list_members("m", include_retiring=True)]
        assert [one.lifecycle for one in retiring] == [
            members_pb2.MEMBER_LIFECYCLE_RETIRING,
            members_pb2.MEMBER_LIFECYCLE_ACTIVE,
        ]
        await agent.succeed(run)
        assert await client.wait_members("m", ["a"]) == mobd.Waited(["a"], [])
    answer = await client.retire_all_members("m")
    assert [(one.member_id, one.inputs_abandoned) for one in answer.report.outcomes] == [("b", 1)]
    assert await client.wait_members("m") == mobd.Waited([], [])


async def test_a_wait_of_the_client_is_as_long_as_it_was_asked_for(
    client: mobd.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobd.members.WAIT_S", 0.02)
    monkeypatch.setattr("mobd.members.WAIT_MEMBERS", 1)
    await client.spawn_members("m", [mobd.member_spec(name, "lead") for name in ("a", "b")])
    waiting = asyncio.create_task(client.wait_members("m", ["a", "b"], until="final", timeout=8.0))
    await client.retire_runtime("m", "b")
    await client.retire_runtime("m", "a")
    assert await waiting == mobd.Waited(["a", "b"], [])


async def test_mobs_end(client: mobd.Client) -> None:
    await client.spawn("m", "a", "lead")
    reset = await client.reset_mob("m", request_id="r")
    assert (reset.report.members, reset.mob.members.total) == (1, 0)
    assert (await client.reset_mob("m", request_id="r")).replayed
    asked = await client.complete_mob("m", validate_only=True)
    assert [one.kind for one in asked.would_append] == ["mob_completing", "mob_completed"]
    assert (await client.complete_mob("m")).mob.phase == mobs_pb2.MOB_PHASE_COMPLETED
    with pytest.raises(mobd.InvalidTransition):
        await client.delete_mob("m")
    await client.destroy_mob("m", force=True)
    assert (await client.delete_mob("m")).cursor
    with pytest.raises(mobd.MobNotFound):
        await client.delete_mob("m")
    asked_for = await client.create_mob("m", DEFINITION, validate_only=True)
    assert asked_for.would_append
    with pytest.raises(mobd.MobNotFound):
        await client.get_mob("m")
