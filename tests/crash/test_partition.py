"""PostgreSQL vanishes from the network without a word, as when its machine loses power: nobody resets anything."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.crash.load import insist
from tests.crash.stage import RECOVERY_S
from tests.faults.ledger import check_gap_free, of_kind
from tests.support.peers import Peer, canonical
from tests.support.postgres import Cluster
from tests.support.processes import Process
from tests.support.served import Served

# Addresses for documentation: nobody has them.
HERE, THERE = "198.51.100.1", "198.51.100.2"


def ip(*arguments: str, check: bool = True) -> bool:
    """Change the network; return whether that was done."""
    return subprocess.run(["ip", *arguments], check=check, capture_output=True).returncode == 0


class Elsewhere:
    """A network of its own, and a wire to it that can be cut without anyone being told."""

    def __init__(self) -> None:
        self.name = f"mobd-{os.getpid()}"
        self._near, self._far = f"mn{os.getpid()}", f"mf{os.getpid()}"

    def make(self) -> bool:
        """Make it; return False if that is not permitted here."""
        if not ip("netns", "add", self.name, check=False):
            return False
        if not ip(
            "link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self.name, check=False
        ):
            self.remove()
            return False
        ip("address", "add", f"{HERE}/30", "dev", self._near)
        ip("link", "set", self._near, "up")
        ip("-netns", self.name, "address", "add", f"{THERE}/30", "dev", self._far)
        ip("-netns", self.name, "link", "set", "lo", "up")
        self.connect(yes=True)
        return True

    def connect(self, *, yes: bool) -> None:
        """Let packets through, or drop them."""
        ip("-netns", self.name, "link", "set", self._far, "up" if yes else "down")

    def remove(self) -> None:
        """Take it away, with its end of the wire, and thereby the other."""
        ip("netns", "delete", self.name)
        ip("link", "delete", self._near, check=False)


class RemoteCluster(Cluster):
    """A cluster in another network."""

    host = THERE

    def __init__(self, elsewhere: Elsewhere) -> None:
        self.prefix = ["ip", "netns", "exec", elsewhere.name]
        super().__init__()

    def _made(self) -> None:
        with (self.data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {HERE}/32 trust\n")


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    elsewhere = Elsewhere()
    if os.geteuid() != 0 or not elsewhere.make():
        pytest.skip("to make a network is not permitted here: nothing is known of a database that vanishes")
    yield elsewhere
    elsewhere.remove()


@pytest.mark.asyncio
async def test_a_database_that_vanishes_is_noticed_and_nothing_is_lost_when_it_is_back(
    postgres: Cluster, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    cluster = RemoteCluster(elsewhere)
    try:
        url = cluster.new_database()
        migrate = Process(["-m", "mobd_server", "migrate"], {"MOBD_DATABASE_URL": url}, tmp_path / "migrate.log")
        assert await migrate.ended() == 0, migrate.output()
        async with Served(tmp_path, url) as served, Peer(served.target) as peer:
            await peer.create(["ada"])
            first = await peer.deliver("ada", "first")
            elsewhere.connect(yes=False)
            request = peer.delivery("ada", "second")
            second = asyncio.ensure_future(insist(lambda: peer.bridge.Deliver(request, timeout=RECOVERY_S)))
            await served.serving(RECOVERY_S, yes=False)
            elsewhere.connect(yes=True)
            await served.serving(RECOVERY_S)
            told = canonical(await second)
            log = await peer.log()
            assert "store_failed" in served.process.output()
        check_gap_free(log)
        accepted = {
            one.input_accepted.input_id: one.input_accepted.canonical_input_id for one in of_kind(log, "input_accepted")
        }
        assert accepted == {"first": first, "second": told}
    finally:
        elsewhere.connect(yes=True)
        cluster.remove()
