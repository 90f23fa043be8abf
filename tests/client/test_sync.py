"""The client without asyncio is the same client."""

import asyncio
import inspect
import threading
from collections.abc import Iterator

import pytest
from tests.client.peer import MOB, WAIT_S, Code, Peer, refusal, serve_peer

import mobd
from mobd.v1 import bridge_pb2, events_pb2, mobs_pb2

pytestmark = pytest.mark.floor


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A server on the loop of another thread."""
    ready, done = threading.Event(), threading.Event()
    peers: list[Peer] = []

    async def main() -> None:
        async with serve_peer() as one:
            peers.append(one)
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(WAIT_S)
    yield peers[0]
    done.set()
    thread.join()


def test_both_clients_have_the_same_methods() -> None:
    own = {"close"}
    methods = {name for name, _ in inspect.getmembers(mobd.Client, callable) if not name.startswith("_")} - own
    for name in methods:
        plain, waiting = getattr(mobd.Client, name), getattr(mobd.SyncClient, name)
        assert inspect.signature(waiting) == inspect.signature(plain)
        assert waiting.__doc__ == plain.__doc__
    assert {name for name, _ in inspect.getmembers(mobd.SyncClient, callable) if not name.startswith("_")} - own == (
        methods
    )


def test_it_asks_lists_watches_and_raises(peer: Peer) -> None:
    peer.script("Deliver").will(
        bridge_pb2.DeliverResponse(accepted=bridge_pb2.DeliveryAccepted(canonical_input_id="in-1"))
    )
    answer = bridge_pb2.Input(state=bridge_pb2.INPUT_STATE_CONSUMED, output_json='{"n": 1}')
    peer.script("WatchInput").will([bridge_pb2.WatchInputResponse(input=answer)])
    peer.script("ListMobs").will(mobs_pb2.ListMobsResponse(mobs=[mobs_pb2.MobSummary(mob_id="a")]))
    page = events_pb2.EventPage(events=[events_pb2.Event(seq=1), events_pb2.Event(seq=2)])
    peer.script("WatchEvents").will([events_pb2.WatchEventsResponse(page=page), asyncio.Event()])
    peer.script("GetMob").will(refusal(Code.NOT_FOUND, "MOB_NOT_FOUND", "no mob 'crew'"))
    with mobd.SyncClient(peer.target) as client:
        assert client.ask(MOB, "lead", "how many?", timeout=WAIT_S) == {"n": 1}
        assert [one.mob_id for one in client.list_mobs()] == ["a"]
        events = client.watch_events(MOB)
        assert [next(events).seq, next(events).seq] == [1, 2]
        with pytest.raises(mobd.MobNotFound, match="no mob 'crew'"):
            client.get_mob(MOB)
    with pytest.raises(ValueError, match="closed"):
        client.get_mob(MOB)


def test_threads_may_share_it(peer: Peer) -> None:
    peer.script("GetMob").will(mobs_pb2.GetMobResponse(mob=mobs_pb2.Mob(mob_id=MOB)))
    with mobd.SyncClient(peer.target) as client:
        found: list[str] = []
        threads = [threading.Thread(target=lambda: found.append(client.get_mob(MOB).mob_id)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [MOB] * 8
