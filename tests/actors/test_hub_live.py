"""What agents say of their runs while these go on: progress, which is stored, and live events, which are not."""

import asyncio
from collections.abc import Sequence

import pytest
from tests.actors.hub_world import AgentPeer, HubWorld, result
from tests.actors.world import soon
from tests.support.loops import ticks

from mobd_server.actors import frames as f
from mobd_server.actors.live import RING_BYTES, RING_EVENTS, Lagged, Live, LiveEvent
from mobd_server.errors import Draining, MobNotFound
from mobd_server.machines import answers as a
from mobd_server.machines import commands as c
from mobd_server.machines.events import OperationProgressed, RunSettled
from mobd_server.services.live import AgentEvents

pytestmark = pytest.mark.asyncio


class Watcher:
    """Somebody who watches, and reads at once what comes."""

    def __init__(self, world: HubWorld, member_id: str | None = None) -> None:
        self.parts: list[Sequence[LiveEvent | Lagged]] = []
        self.error: Exception | None = None
        self._events = AgentEvents(world.registry, world.publisher, world.hub.live)
        self.reading = asyncio.ensure_future(self._read(member_id))

    async def _read(self, member_id: str | None) -> None:
        try:
            async for part in self._events.watch("m", member_id):
                self.parts.append(part)
        except Exception as error:  # noqa: BLE001 the test looks at it
            self.error = error

    def bodies(self) -> list[bytes]:
        return [event.body for part in self.parts for event in part if isinstance(event, LiveEvent)]


async def watching(world: HubWorld, member_id: str | None = None) -> Watcher:
    watcher = Watcher(world, member_id)
    await ticks()
    assert watcher.parts == [[]]
    return watcher


async def running(world: HubWorld, *members: str) -> tuple[AgentPeer, list[a.SendStartRun]]:
    """Return an agent with a run of each member."""
    await world.create(*members)
    agent = await AgentPeer(world).serve()
    for member_id in members:
        await world.deliver(f"for-{member_id}", member_id)
    starts = agent.take(a.SendStartRun)
    await agent.say(*(f.RunAccepted(one.run_id, one.fence) for one in starts))
    return agent, starts


def says(start: a.SendStartRun, *bodies: bytes) -> f.RunEvents:
    return f.RunEvents(start.run_id, start.fence, lambda: list(bodies))


def progress(start: a.SendStartRun, message: str, percent: int | None = None) -> f.RunProgress:
    return f.RunProgress(start.run_id, start.fence, message, percent, lambda: [message.encode()])


async def stored(world: HubWorld) -> list[str]:
    return [one.event.message for one in await world.log() if isinstance(one.event, OperationProgressed)]


async def test_a_watcher_sees_what_runs_put_out_as_it_comes() -> None:
    world = HubWorld()
    agent, (ada, bob) = await running(world, "ada", "bob")
    all_of_them, only_bob = await watching(world), await watching(world, "bob")
    await agent.say(says(ada, b"1", b"2"), says(bob, b"3"))
    assert all_of_them.bodies() == [b"1", b"2", b"3"]
    assert only_bob.bodies() == [b"3"]
    (event,) = [one for part in only_bob.parts for one in part]
    assert event == LiveEvent("bob", bob.run_id, 1, world.clock.now(), b"3")
    for watcher in (all_of_them, only_bob):
        watcher.reading.cancel()


async def test_what_nobody_watches_is_not_even_made() -> None:
    world = HubWorld()
    agent, (ada, _) = await running(world, "ada", "bob")
    watcher = await watching(world, "bob")

    def never() -> list[bytes]:
        raise AssertionError("nobody watches ada")

    await agent.say(f.RunEvents(ada.run_id, ada.fence, never))
    assert watcher.bodies() == []
    watcher.reading.cancel()


@pytest.mark.parametrize("kind", [says, progress])
async def test_what_a_zombie_says_is_dropped(kind: object) -> None:
    world = HubWorld()
    agent, (ada,) = await running(world, "ada")
    watcher = await watching(world)
    stale = a.SendStartRun(ada.attachment_id, ada.run_id, ada.fence - 1, "ada", [], None)
    say = (lambda start: says(start, b"x")) if kind is says else (lambda start: progress(start, "x"))
    await agent.say(say(stale))
    successor = await AgentPeer(world, incarnation="2").serve()
    await agent.say(say(ada))
    await successor.say(say(ada))
    await world.elapse(3)
    assert watcher.bodies() == []
    assert await stored(world) == []
    (again,) = successor.take(a.SendStartRun)
    await successor.say(result(again), say(again))
    assert watcher.bodies() == []
    watcher.reading.cancel()


async def test_the_stream_ends_when_the_mob_is_destroyed_and_not_before() -> None:
    world = HubWorld()
    await world.create()
    watcher = await watching(world)
    await world.elapse(60)
    assert not watcher.reading.done()
    await world.ask(c.DestroyMob())
    await ticks()
    await soon(watcher.reading)
    assert watcher.error is None
    late = Watcher(world)
    await soon(late.reading)
    assert (late.parts, late.error) == ([[]], None)


async def test_the_stream_ends_with_the_server_and_with_a_mob_that_is_not_there() -> None:
    world = HubWorld()
    nobody = Watcher(world)
    await soon(nobody.reading)
    assert isinstance(nobody.error, MobNotFound)
    await world.create()
    watcher = await watching(world)
    world.publisher.close()
    await soon(watcher.reading)
    assert isinstance(watcher.error, Draining)
    assert not world.hub.live.heard("m", "ada")


async def test_what_a_slow_reader_misses_is_counted_in_its_place_and_holds_nobody_up() -> None:
    rung: list[None] = []
    live = Live()
    slow, quick = (live.listen("m", None, lambda: rung.append(None)) for _ in range(2))
    events = [LiveEvent("ada", "run", 1, 0, b"%d" % number) for number in range(RING_EVENTS + 10)]
    for event in events:
        live.publish("m", [event])
        assert quick.take() == [event]
    assert len(rung) == 2 * len(events)
    assert slow.take() == [Lagged(10), *events[10:]]
    assert slow.take() == []
    large = LiveEvent("ada", "run", 1, 0, b"x" * (RING_BYTES // 2))
    live.publish("m", [large, large, events[0]])
    assert slow.take() == [Lagged(1), large, events[0]]
    slow.close()
    slow.close()
    live.publish("m", events[:1])
    assert (slow.take(), quick.take()[-1]) == ([], events[0])
    quick.close()
    assert not live.heard("m", "ada")


async def test_progress_is_shown_at_once_and_stored_at_most_once_a_second() -> None:
    world = HubWorld()
    agent, (ada, bob) = await running(world, "ada", "bob")
    watcher = await watching(world)
    await agent.say(*(progress(ada, f"a{number}", number) for number in range(5)), progress(bob, "b0"))
    assert await stored(world) == ["a0", "b0"]
    assert watcher.bodies() == [b"a0", b"a1", b"a2", b"a3", b"a4", b"b0"]
    await world.elapse(3)
    assert await stored(world) == ["a0", "b0", "a4"]
    await world.elapse(3)
    await agent.say(progress(ada, "a5"), progress(ada, "a6"))
    assert await stored(world) == ["a0", "b0", "a4", "a5"]
    operation = world.actor.mob.operations[world.member().operation_id]
    assert (operation.progress_message, operation.progress_count) == ("a5", 3)
    watcher.reading.cancel()


async def test_the_newest_progress_is_stored_before_the_run_settles() -> None:
    world = HubWorld()
    agent, (ada, bob) = await running(world, "ada", "bob")
    await agent.say(*(progress(ada, f"a{number}") for number in range(3)), result(ada))
    await agent.say(*(progress(bob, f"b{number}") for number in range(3)), f.RunFailed(bob.run_id, bob.fence, "error"))
    assert await stored(world) == ["a0", "a2", "b0", "b2"]
    kinds = [one.event for one in await world.log()]
    last = max(place for place, one in enumerate(kinds) if isinstance(one, OperationProgressed))
    assert isinstance(kinds[last + 1], RunSettled)
    await world.elapse(3)
    assert len(await stored(world)) == 4


async def test_progress_that_can_not_be_stored_now_holds_nobody_up_and_is_stored_later() -> None:
    world = HubWorld()
    agent, (ada,) = await running(world, "ada")
    watcher = await watching(world)
    await world.fail_store()
    await agent.say(progress(ada, "a0"))
    await world.mend_store()
    await world.registry.load("m")
    await ticks()
    await agent.say(f.Heartbeat([ada.run_id]))
    await agent.say(progress(ada, "a1"), progress(ada, "a2"))
    assert watcher.bodies()[-2:] == [b"a1", b"a2"]
    # What waits outlives another reading of the log.
    await world.fail_store()
    await world.mend_store()
    await world.registry.load("m")
    await ticks()
    await agent.say(f.Heartbeat([ada.run_id]))
    await world.elapse(3)
    assert await stored(world) == ["a1", "a2"]
    watcher.reading.cancel()
