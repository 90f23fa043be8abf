"""What is counted when somebody asks: exact numbers of a server in small, and of a whole one."""

import asyncio
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry, generate_latest
from tests.actors.hub_world import AgentPeer, HubWorld
from tests.actors.world import ANYBODY
from tests.metrics.scraping import Scrape, scrape
from tests.rpc.conftest import settings, speaking
from tests.rpc.speaking import RawAgent, Speaker
from tests.support.loops import ticks

from mobd_server.actors import frames as f
from mobd_server.adapters.metrics.gauges import Gauges
from mobd_server.errors import MobFormatNewer, MobQuarantined
from mobd_server.machines import commands as c
from mobd_server.services.census import AT_ONCE, FRESH_S, FRESH_TIMES, Census, Numbers
from mobd_server.services.readiness import Readiness

pytestmark = pytest.mark.asyncio


NO_OPERATIONS = Numbers().operations


@pytest_asyncio.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Speaker]:
    async with speaking(settings(tmp_path, http_listen="127.0.0.1:0", journal_slots=100)) as speaker:
        yield speaker


def census(world: HubWorld) -> Census:
    return Census(world.registry, world.publisher, world.hub, world.journal, world.clock)


async def count(world: HubWorld) -> Numbers:
    """Return the numbers of now."""
    return await census(world).numbers()


async def test_members_with_work_and_without_an_agent_are_counted() -> None:
    world = HubWorld()
    await world.create("ada", "bob", "cid")
    assert (await count(world)) == Numbers(mobs=1, members=3, operations={**NO_OPERATIONS, "provisioning": 3})
    await world.deliver("i1", "ada")
    world.clock.advance(40)
    await world.deliver("i2", "ada")
    await world.deliver("i3", "bob")
    world.clock.advance(2)
    found = await count(world)
    assert (found.members, found.unserved, found.inputs_waiting, found.oldest_input_s) == (3, 2, 3, 42)
    await AgentPeer(world, max_members=1).serve()
    found = await count(world)
    # One run takes both of the inputs that waited for its member.
    assert (found.unserved, found.runs, found.inputs_waiting) == (1, 1, 1)
    assert found.oldest_input_s == 2


async def test_a_stopped_mob_waits_for_nobody() -> None:
    world = HubWorld()
    await world.create("ada")
    await world.deliver("i1")
    world.clock.advance(5)
    assert (await count(world)).oldest_input_s == 5
    await world.ask(c.StopMob())
    found = await count(world)
    assert (found.members, found.unserved, found.inputs_waiting, found.oldest_input_s) == (1, 0, 0, 0)


async def test_operations_are_counted_by_state_until_they_end() -> None:
    world = HubWorld()
    await world.create("ada")
    for number in range(3):
        await world.ask(c.RegisterOperation(f"o{number}", f"name {number}"))
    assert (await count(world)).operations == {"provisioning": 1 + 3, "running": 0, "retiring": 0}
    await world.ask(c.MoveOperation("o0", "provisioning_succeeded"))
    await world.ask(c.MoveOperation("o1", "provisioning_succeeded"))
    await world.ask(c.MoveOperation("o1", "request_retire"))
    assert (await count(world)).operations == {"provisioning": 1 + 1, "running": 1, "retiring": 1}
    await world.ask(c.MoveOperation("o0", "complete"))
    assert (await count(world)).operations == {"provisioning": 1 + 1, "running": 0, "retiring": 1}


async def test_agents_are_counted_by_state_and_their_suspensions_for_ever() -> None:
    world = HubWorld()
    await world.create("ada")
    one, two, three = [await AgentPeer(world, host).serve() for host in ("h1", "h2", "h3")]
    assert (await count(world)).agents_connected == 3
    await two.say(f.Drain())
    three.break_off()
    await ticks()
    found = await count(world)
    assert (found.agents_connected, found.agents_draining, found.agents_suspended) == (1, 1, 1)
    assert (found.suspensions, found.streams) == (1, 2)
    await three.reconnect()
    one.break_off()
    await ticks()
    found = await count(world)
    assert (found.agents_connected, found.agents_draining, found.agents_suspended) == (1, 1, 1)
    assert (found.suspensions, found.streams) == (2, 2)


async def test_followers_are_counted_with_how_far_they_are_behind() -> None:
    world = HubWorld()
    actor = await world.create("ada")
    watch = world.publisher.watch("m", "ada")
    head = actor.mob.head
    with world.publisher.subscribe("m", head) as near, world.publisher.subscribe("m", 1):
        for number in range(5):
            await world.deliver(f"i{number}")
        found = await count(world)
        assert (found.followers, found.waiters, found.lag) == (2, 1, head + 5 - 1)
        await near.next()
        assert (await count(world)).lag == head + 5 - 1
    watch.close()
    found = await count(world)
    assert (found.followers, found.waiters, found.lag) == (0, 0, 0)


async def test_a_journal_that_is_down_or_late_is_seen() -> None:
    world = HubWorld()
    actor = await world.create("ada")
    world.writer.open = False
    actor.submit(c.SpawnMember(c.MemberSpec("bob", "analyst")), ANYBODY)
    await ticks()
    world.clock.advance(3)
    found = await count(world)
    assert (found.appends_waiting, found.append_age_s, found.down) == (1, 3, False)
    world.writer.fail("aborted")
    await ticks()
    found = await count(world)
    assert (found.appends_waiting, found.append_age_s, found.down) == (0, 0, True)


async def test_mobs_that_cannot_be_loaded_are_counted_by_reason() -> None:
    world = HubWorld()
    world.registry.quarantined["x"] = MobQuarantined("broken", {})
    world.registry.newer["y"] = world.registry.newer["z"] = MobFormatNewer("newer", {})
    found = await count(world)
    assert (found.unreadable, found.newer) == (1, 2)


async def test_the_journal_is_never_seen_as_it_was() -> None:
    world = HubWorld()
    await world.create("ada")
    asked = census(world)
    assert not (await asked.numbers()).down
    world.journal.down = True
    assert (await asked.numbers()).down


async def test_a_count_is_good_for_a_while() -> None:
    world = HubWorld()
    await world.create("ada")
    asked = census(world)
    assert (await asked.numbers()).members == 1
    await world.ask(c.SpawnMember(c.MemberSpec("bob", "analyst")))
    world.clock.advance(FRESH_S / 2)
    assert (await asked.numbers()).members == 1
    world.clock.advance(FRESH_S / 2)
    assert (await asked.numbers()).members == 2


async def test_a_large_mob_is_counted_in_several_ticks() -> None:
    world = HubWorld()
    await world.create()
    members = 3 * AT_ONCE + 1
    await world.ask(c.SpawnMember(c.MemberSpec("ada", "analyst")))
    template = world.member()
    # What is counted is how many there are; that they are one and the same does not matter.
    world.actor.mob.members.update({f"m{number}": template for number in range(members - 1)})
    counting = count(world)
    turns, found = 0, None
    while found is None:
        try:
            counting.send(None)
            turns += 1
        except StopIteration as done:
            found = done.value
    assert turns == 3
    assert found.members == members


async def test_a_count_that_takes_long_is_good_for_longer() -> None:
    world = HubWorld()
    await world.create("ada")
    world.actor.mob.members.update({f"m{number}": world.member() for number in range(8 * AT_ONCE)})
    asked = census(world)
    counting = asyncio.ensure_future(asked.numbers())
    await ticks(1)
    world.clock.advance(2)
    before = (await counting).members
    del world.actor.mob.members["m0"]
    world.clock.advance(2 * FRESH_TIMES - 1)
    assert (await asked.numbers()).members == before
    world.clock.advance(1)
    assert (await asked.numbers()).members == before - 1


async def test_a_scrape_shows_what_was_counted(peer: Speaker) -> None:
    await peer.create("m", "a", "b")
    await peer.deliver("a", "i1")
    async with RawAgent(peer, max_members=1) as agent:
        await agent.accept_run()
        await peer.deliver("a", "i2")
        await peer.deliver("b", "i3")
        found = await scrape(peer)
    assert found.value("mobd_loop_answered") == 1
    assert 0 <= found.value("mobd_loop_lag_seconds") < 5
    assert found.value("mobd_ready") == 1
    assert found.value("mobd_build_info", version=version("mobd"), store="sqlite") == 1
    expected = {
        "mobd_mobs_loaded": 1,
        "mobd_members": 2,
        "mobd_members_without_executor": 1,
        "mobd_runs_in_flight": 1,
        "mobd_inputs_waiting": 2,
        "mobd_agent_streams": 1,
        "mobd_journal_slots": 100,
        "mobd_journal_appends_waiting": 0,
        "mobd_journal_queue_age_seconds": 0,
        "mobd_journal_down": 0,
        "mobd_watch_lag_events": 0,
        "mobd_agent_suspensions_total": 0,
    }
    assert {name: found.value(name) for name in expected} == expected
    assert 0 < found.value("mobd_oldest_input_seconds") < 10
    agents = {state: found.value("mobd_agents", state=state) for state in ("connected", "suspended", "draining")}
    assert agents == {"connected": 1, "suspended": 0, "draining": 0}
    assert found.value("mobd_mobs_quarantined", reason="unreadable") == 0
    assert found.value("mobd_mobs_quarantined", reason="format_newer") == 0
    assert found.value("mobd_watches", kind="events") == found.value("mobd_watches", kind="condition") == 0
    operations = [found.value("mobd_operations", state=state) for state in ("provisioning", "running", "retiring")]
    assert sum(operations) == 2
    assert found.value("process_resident_memory_bytes") > 1 << 20


async def test_every_number_is_shown_under_its_own_name() -> None:
    world = HubWorld()
    actor = await world.create("ada")
    asked = census(world)
    asked._numbers = Numbers(
        mobs=11,
        unreadable=12,
        newer=13,
        members=14,
        unserved=15,
        runs=16,
        operations={"provisioning": 17, "running": 18, "retiring": 19},
        inputs_waiting=20,
        oldest_input_s=21,
        agents_connected=22,
        agents_suspended=23,
        agents_draining=24,
        suspensions=25,
        streams=26,
        followers=27,
        waiters=28,
        lag=29,
    )
    asked._fresh_until = float("inf")
    world.writer.open = False
    actor.submit(c.SpawnMember(c.MemberSpec("bob", "analyst")), ANYBODY)
    await ticks()
    world.clock.advance(30)
    readiness = Readiness(world.journal, world.registry)
    registry = CollectorRegistry()
    registry.register(Gauges(asked, readiness, 31, {"version": "32"}, asyncio.get_running_loop()))
    found = Scrape((await asyncio.to_thread(generate_latest, registry)).decode())
    lag = found.samples.pop(("mobd_loop_lag_seconds", frozenset()))
    assert 0 <= lag < 10
    assert {(name, *dict(labels).values()): value for (name, labels), value in found.samples.items()} == {
        ("mobd_build_info", "32"): 1,
        ("mobd_loop_answered",): 1,
        ("mobd_ready",): 0,
        ("mobd_journal_down",): 0,
        ("mobd_journal_slots",): 31,
        ("mobd_journal_appends_waiting",): 1,
        ("mobd_journal_queue_age_seconds",): 30,
        ("mobd_mobs_loaded",): 11,
        ("mobd_mobs_quarantined", "unreadable"): 12,
        ("mobd_mobs_quarantined", "format_newer"): 13,
        ("mobd_members",): 14,
        ("mobd_members_without_executor",): 15,
        ("mobd_runs_in_flight",): 16,
        ("mobd_operations", "provisioning"): 17,
        ("mobd_operations", "running"): 18,
        ("mobd_operations", "retiring"): 19,
        ("mobd_inputs_waiting",): 20,
        ("mobd_oldest_input_seconds",): 21,
        ("mobd_agents", "connected"): 22,
        ("mobd_agents", "suspended"): 23,
        ("mobd_agents", "draining"): 24,
        ("mobd_agent_suspensions_total",): 25,
        ("mobd_agent_streams",): 26,
        ("mobd_watches", "events"): 27,
        ("mobd_watches", "condition"): 28,
        ("mobd_watch_lag_events",): 29,
    }
    readiness.recovered = True
    found = Scrape((await asyncio.to_thread(generate_latest, registry)).decode())
    assert found.value("mobd_ready") == 1
    world.writer.open = True
    world.writer.commit()


async def test_a_scrape_shows_what_is_wrong(peer: Speaker) -> None:
    await peer.create("m", "a")
    peer.server.registry.quarantined["x"] = MobQuarantined("broken", {})
    peer.server.registry.newer["y"] = MobFormatNewer("newer", {})
    peer.server.journal.down = True
    with peer.server.publisher.subscribe("m", 1), peer.server.publisher.subscribe("m", 2):
        watch = peer.server.publisher.watch("m")
        found = await scrape(peer)
        watch.close()
    peer.server.journal.down = False
    assert (found.value("mobd_ready"), found.value("mobd_journal_down")) == (0, 1)
    assert found.value("mobd_mobs_quarantined", reason="unreadable") == 1
    assert found.value("mobd_mobs_quarantined", reason="format_newer") == 1
    assert (found.value("mobd_watches", kind="events"), found.value("mobd_watches", kind="condition")) == (2, 1)
    assert found.value("mobd_watch_lag_events") == 3 - 1
