"""A store that is gone for a while: what health, probes, metrics and callers are told before, during and after it."""

import asyncio
import os
import resource
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from msgspec import Struct
from tests.faults import ledger
from tests.faults.conftest import World
from tests.metrics.scraping import Page, Scrape, fetch
from tests.support.peers import CALL_S, Peer, reason
from tests.support.postgres import Cluster
from tests.support.processes import Process, free_port
from tests.support.served import Served

from mobd_server.adapters.rpc.server import SERVICES

pytestmark = pytest.mark.asyncio

MEMBERS = ("ada", "bob")
# Every name under which gRPC health is asked.
NAMES = ("", *(service.full_name for service in SERVICES))
HEALTHY = health_pb2.HealthCheckResponse.SERVING
UNHEALTHY = health_pb2.HealthCheckResponse.NOT_SERVING
# A file system as small as this is soon full, and large enough for an empty database and its WAL.
SMALL = "8m"


class Outage(Struct):
    """How a store goes and comes back."""

    begin: Callable[[], None]
    end: Callable[[], None]


class Seen(Struct):
    """What a server says of itself at one moment."""

    alive: Page
    ready: Page
    metrics: Scrape
    health: set["health_pb2.HealthCheckResponse.ServingStatus.ValueType"]

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.value(name, **labels)


class Watched:
    """A server whose port for HTTP is known."""

    def __init__(self, served: Served, peer: Peer) -> None:
        self.served = served
        self.peer = peer

    async def seen(self) -> Seen:
        url = f"http://{self.served.settings['MOBD_HTTP_LISTEN']}"
        pages = [await asyncio.to_thread(fetch, url + path) for path in ("/healthz", "/readyz", "/metrics")]
        stub = health_pb2_grpc.HealthStub(self.peer.channel)
        asked = [stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=CALL_S) for name in NAMES]
        return Seen(pages[0], pages[1], Scrape(pages[2].text), {(await one).status for one in asked})

    async def until(self, ready: bool) -> Seen:
        """Return what it says when /readyz and health have come to say the same."""
        await self.served.serving(yes=ready)
        async with asyncio.timeout(CALL_S):
            while True:
                found = await self.seen()
                if len(found.health) == 1 and (found.ready.code == 200) is ready:
                    return found


async def watched(world: World, **settings: str) -> Watched:
    served = await world.serve(MOBD_HTTP_LISTEN=f"127.0.0.1:{free_port()}", **settings)
    peer = await world.peer(served)
    await peer.create(MEMBERS)
    return Watched(served, peer)


async def go_through(world: World, one: Watched, outage: Outage) -> None:
    """Check a whole outage under one sender; what was acknowledged must be there, and the server never ends."""
    peer = one.peer
    names = {("ada", f"before-{n}"): await peer.deliver("ada", f"before-{n}") for n in range(20)}
    before = await one.until(ready=True)
    assert before.alive == before.ready == Page(200, "ok\n")
    assert before.health == {HEALTHY}
    assert (before.value("mobd_ready"), before.value("mobd_journal_down")) == (1, 0)
    assert failed(before) == 0

    outage.begin()
    # It is noticed by whoever wants to have something stored.
    sending = asyncio.create_task(peer.deliver("bob", "during"))
    during = await one.until(ready=False)
    assert during.alive == Page(200, "ok\n")
    assert during.ready == Page(503, "the store does not answer\n")
    assert during.health == {UNHEALTHY}
    assert (during.value("mobd_ready"), during.value("mobd_journal_down")) == (0, 1)
    assert failed(during) > 0
    assert during.value("mobd_loop_answered") == 1
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await peer.bridge.Deliver(peer.delivery("ada", "refused"), timeout=CALL_S)
    assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.UNAVAILABLE, "JOURNAL_DOWN")
    assert not sending.done()

    outage.end()
    after = await one.until(ready=True)
    # The sender has repeated its call with its id all the time.
    names["bob", "during"] = await asyncio.wait_for(sending, CALL_S)
    assert after.alive == after.ready == Page(200, "ok\n")
    assert after.health == {HEALTHY}
    assert (after.value("mobd_ready"), after.value("mobd_journal_down")) == (1, 0)
    assert failed(after) >= failed(during)
    assert after.value("process_start_time_seconds") == before.value("process_start_time_seconds")

    agent = world.agent(one.served, "agent")
    for member_id, input_id in names:
        await peer.end_of(member_id, input_id)
    log = await peer.log()
    ledger.check_gap_free(log)
    ledger.check_runs(log)
    ledger.check_consumed_once(log, names)
    ledger.check_calls(log, agent.calls())
    assert not {"refused"} & {event.input_accepted.input_id for event in log}


def failed(seen: Seen) -> float:
    """Return how many appends a store that failed took with it."""
    return sum(seen.value("mobd_journal_appends_total", fate=fate) for fate in ("unknown", "aborted"))


@pytest_asyncio.fixture
async def own_cluster(tmp_path: Path, postgres: Cluster) -> AsyncIterator[tuple[World, Cluster]]:
    """A world on a cluster that nobody else uses; `postgres` is asked for because it knows whether there may be one."""
    cluster = Cluster()
    try:
        url = cluster.new_database()
        migrate = Process(["-m", "mobd_server", "migrate"], {"MOBD_DATABASE_URL": url}, tmp_path / "migrate.log")
        assert await migrate.ended() == 0, migrate.output()
        async with AsyncExitStack() as stack:
            yield World(tmp_path, url, stack), cluster
    finally:
        cluster.remove()


async def test_a_postgresql_that_is_stopped_and_started_again(own_cluster: tuple[World, Cluster]) -> None:
    world, cluster = own_cluster
    one = await watched(world)
    await go_through(world, one, Outage(lambda: cluster.stop("fast"), cluster.start))


async def test_a_file_that_may_not_grow(alone: World) -> None:
    """As a quota has it: what is there can be read, and nothing can be added."""
    one = await watched(alone)

    def limit(size: int) -> None:
        resource.prlimit(one.served.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def begin() -> None:
        files = [path.stat().st_size for path in one.served.data.iterdir()]
        # Its log is shorter than that.
        assert one.served.log.stat().st_size < max(files) // 2
        limit(max(files) // 2)

    await go_through(alone, one, Outage(begin, lambda: limit(resource.RLIM_INFINITY)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that is soon full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True, timeout=60).returncode:
        pytest.skip("only who may mount file systems can fill one of his own")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=60)


async def test_a_disk_that_is_full(alone: World, small_disk: Path) -> None:
    one = await watched(alone, MOBD_DATA_DIR=str(small_disk / "data"))
    filler = small_disk / "filler"

    def begin() -> None:
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096):
                    pass
            except OSError:
                return

    # What the WAL has room for is taken first: it does not grow while it is written anew from its beginning.
    await go_through(alone, one, Outage(begin, filler.unlink))
