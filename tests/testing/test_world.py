"""A server within the test: hours pass at once, and everything else is as it is outside."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import mobd
import mobd.sync
from mobd import system
from mobd.v1 import agents_pb2, agents_pb2_grpc
from mobd_server import testing
from mobd_server.testing import World

HOUR = 3600
DEFINITION: dict[str, Any] = {"profiles": {"analyst": {}}}


def counting(takes_s: float = 0.0, **more: Any) -> mobd.Agent:
    """An agent that counts lines, and takes its time."""
    agent = mobd.Agent(mob="triage", role="analyst", **more)

    @agent.turn
    async def turn(ctx: mobd.Turn) -> dict[str, int]:
        await pause(takes_s)
        return {"lines": len(ctx.text.splitlines())}

    return agent


async def pause(seconds: float) -> None:
    await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=seconds)


async def set_up(world: World) -> None:
    await world.client.create_mob("triage", DEFINITION)
    await world.client.spawn("triage", "ada", "analyst")


async def kinds(world: World) -> list[str]:
    found: list[str] = []
    while True:
        page = await world.client.poll_events("triage", after=len(found))
        found += [event.kind for event in page.events]
        if page.next_cursor == page.head:
            return found


@pytest.mark.asyncio
@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_turn_of_an_hour_takes_no_time(store: Any) -> None:
    async with testing.server(store=store) as world:
        world.serve(counting(takes_s=HOUR))
        await set_up(world)
        began = world.now
        assert await world.client.ask("triage", "ada", "a\nb", timeout=2 * HOUR) == {"lines": 2}
        assert timedelta(hours=1) <= world.now - began < timedelta(hours=1, minutes=1)


@pytest.mark.asyncio
async def test_the_fixture_gives_a_world(mobd_world: World) -> None:
    mobd_world.serve(counting())
    await set_up(mobd_world)
    assert await mobd_world.client.ask("triage", "ada", "a") == {"lines": 1}


def test_without_asyncio() -> None:
    async def test(world: World) -> Any:
        world.serve(counting())
        await set_up(world)
        return await world.client.ask("triage", "ada", "a\nb\nc")

    assert testing.run(test) == {"lines": 3}


@pytest.mark.asyncio
async def test_every_client_and_agent_of_the_process_is_in_the_world() -> None:
    async with testing.server() as world, mobd.Client("elsewhere:1") as client:
        agent = counting()
        await set_up(world)
        async with agent.running():
            assert await client.ask("triage", "ada", "a") == {"lines": 1}


@pytest.mark.asyncio
async def test_a_plain_turn_runs_in_a_thread() -> None:
    async with testing.server() as world:
        agent = mobd.Agent(mob="triage", role="analyst")

        @agent.turn
        def turn(ctx: mobd.Turn) -> int:
            return len(ctx.text)

        world.serve(agent)
        await set_up(world)
        assert await world.client.ask("triage", "ada", "four") == 4


@pytest.mark.asyncio
async def test_an_agent_that_is_ended_gives_back_what_it_has() -> None:
    async with testing.server() as world:
        agent = world.serve(counting(takes_s=HOUR))
        await set_up(world)
        await world.client.deliver("triage", "ada", "x", input_id="i")
        await world.advance(seconds=5)
        await agent.leave()
        world.serve(counting())
        # It left in order: its run was given back at once, and what waited together runs together.
        assert await world.client.ask("triage", "ada", "y", timeout=60) == {"lines": 2}
        assert "attachment_closed" in await kinds(world)


@pytest.mark.asyncio
async def test_a_silent_agent_is_given_up_after_its_lease_and_its_grace() -> None:
    async with testing.server(lease_s=30, grace_s=600) as world:
        await set_up(world)
        stub = agents_pb2_grpc.AgentServiceStub(system.current().open_channel("", []))
        hello = agents_pb2.Hello(mob_id="triage", host_id="h", incarnation="1", protocol=1, capacity=1, max_members=1)
        hello.serves.add(role="analyst")
        silent = stub.Attach()
        await silent.write(agents_pb2.AttachRequest(frames=[agents_pb2.AgentFrame(hello=hello)]))
        await world.advance(minutes=10)
        assert "attachment_closed" not in await kinds(world)
        await world.advance(minutes=1)
        assert "attachment_closed" in await kinds(world)


@pytest.mark.asyncio
async def test_failed_attempts_are_repeated_after_their_pauses(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "mobd.agent")
    async with testing.server() as world:
        agent, attempts = mobd.Agent(mob="triage", role="analyst"), []

        @agent.turn
        async def turn(ctx: mobd.Turn) -> None:
            attempts.append(world.now)
            raise RuntimeError("no")

        world.serve(agent)
        await set_up(world)
        with pytest.raises(mobd.InputAbandoned):
            await world.client.ask("triage", "ada", "x", timeout=HOUR)
        assert len(attempts) == 3
        assert attempts == sorted(set(attempts))


@pytest.mark.asyncio
@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_run_survives_a_restart_of_the_server(store: Any) -> None:
    async with testing.server(store=store) as world:
        world.serve(counting(takes_s=HOUR))
        await set_up(world)
        asking = asyncio.ensure_future(world.client.ask("triage", "ada", "x", timeout=3 * HOUR))
        await world.advance(minutes=10)
        await world.restart()
        assert await asking == {"lines": 1}
        assert (await kinds(world)).count("run_started") == 1


@pytest.mark.asyncio
async def test_clients_wait_for_a_server_that_is_away() -> None:
    async with testing.server() as world:
        world.serve(counting())
        await set_up(world)
        await world.stop()
        asking = asyncio.ensure_future(world.client.ask("triage", "ada", "x", timeout=HOUR))
        with pytest.raises(mobd.DeadlineExceeded):
            await world.client.get_mob("triage", timeout=60)
        await world.start()
        assert await asking == {"lines": 1}


@pytest.mark.asyncio
async def test_streams_go_on_after_a_break() -> None:
    async with testing.server() as world:
        world.serve(counting())
        await set_up(world)
        seen = []
        async with world.client.watch_events("triage") as events:
            async for event in events:
                seen.append(event.seq)
                world.disconnect()
                if event.kind == "executor_confirmed":
                    break
        assert seen == list(range(1, len(seen) + 1))


def test_an_agent_that_is_refused_for_good_is_told_at_the_end() -> None:
    agent = mobd.Agent(mob="triage", role="nobody")

    @agent.turn
    async def turn(ctx: mobd.Turn) -> None:
        raise AssertionError

    async def test(world: World) -> None:
        await world.client.create_mob("triage", DEFINITION)
        serving = world.serve(agent)
        await world.advance(minutes=1)
        assert serving.ended()

    with pytest.raises(mobd.AgentStopped):
        testing.run(test)


@pytest.mark.asyncio
async def test_ids_are_of_the_time_and_the_seed_of_the_world() -> None:
    async def ids(seed: int) -> list[str]:
        async with testing.server(seed=seed, start=datetime(2030, 1, 1, tzinfo=UTC)) as world:
            world.serve(counting())
            await set_up(world)
            await world.advance(hours=1)
            answer = await world.client.deliver("triage", "ada", "x")
            return [mobd.uuid7(), answer.canonical_input_id, mobd.Agent(mob="m", role="r").host_id]

    first, again, other = await ids(1), await ids(1), await ids(2)
    assert first == again
    assert not set(first) & set(other)
    made_ms = int(first[0].replace("-", "")[:12], 16)
    assert datetime.fromtimestamp(made_ms / 1000, UTC) >= datetime(2030, 1, 1, 1, tzinfo=UTC)


@pytest.mark.asyncio
async def test_a_client_with_a_thread_of_its_own_is_refused_by_name() -> None:
    def call() -> None:
        with mobd.sync.SyncClient("anywhere") as client:
            client.get_mob("triage")

    async with testing.server():
        with pytest.raises(RuntimeError, match=r"use mobd\.Client"):
            await asyncio.to_thread(call)


@pytest.mark.asyncio
async def test_settings_come_from_the_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBD_GRACE_S", "1")
    async with testing.server(lease_s=40) as world:
        assert (world.config.grace_s, world.config.lease_s) == (60.0, 40.0)
    with pytest.raises(ValueError, match="no_such"):
        async with testing.server(no_such=1):
            raise AssertionError
