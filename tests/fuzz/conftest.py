"""A server of its own for each file of hostile peers, with a client that works there all the time."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from tests.fuzz import machine
from tests.fuzz.session import SETTINGS
from tests.fuzz.witness import MEMBERS, MOB, deliveries, p99_s
from tests.fuzz.world import connected
from tests.support.processes import Process, free_port, say, until
from tests.support.served import Served

from mobd.v1 import members_pb2, members_pb2_grpc, mobs_pb2, mobs_pb2_grpc

BUSY = "busy"
# Of the one who works, in each test at least.
DELIVERIES = 100
GROWTH_BYTES = 64 << 20


class Besieged:
    """A server, and a witness of how it serves."""

    def __init__(self, served: Served, http_port: int, witness: Path) -> None:
        self.served = served
        self.http_port = http_port
        self._witness = witness
        self._alone_s = 0.0

    @property
    def pid(self) -> int:
        return self.served.process.pid

    async def begin(self) -> None:
        """See what a delivery takes while nobody else is there."""
        began = time.time()
        await self.witnessed(began)
        self._alone_s = p99_s(deliveries(self._witness, began, time.time()))

    async def witnessed(self, since_s: float, count: int = DELIVERIES) -> None:
        """Return when so many deliveries were begun and ended since then."""
        await until(lambda: len(deliveries(self._witness, since_s, time.time())) >= count, "deliveries")

    @asynccontextmanager
    async def beside(self, what: str, growth_bytes: int = GROWTH_BYTES) -> AsyncIterator[float]:
        """Require that what happens within costs the witness no delivery, and the server no memory.

        Yields when it began. Tells what it costs in time: that depends too much on the machine to be required.
        """
        began, before = time.time(), machine.resident_bytes(self.pid)
        yield began
        await self.witnessed(began)
        grown = machine.resident_bytes(self.pid) - before
        seen = deliveries(self._witness, began, time.time())
        failed = [one.failure for one in seen if one.failure]
        say(
            f"{what}: p99 {self._alone_s * 1e3:.1f} ms alone, {p99_s(seen) * 1e3:.1f} ms beside it, at most"
            f" {max(one.took_s for one in seen) * 1e3:.0f} ms; {len(seen)} deliveries, {grown >> 20} MiB"
        )
        assert not failed, f"{len(failed)} of {len(seen)} deliveries failed: {failed[0]}"
        assert grown < growth_bytes
        assert list(machine.misfortunes(self.served.log)) == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def besieged(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Besieged]:
    folder = tmp_path_factory.mktemp("besieged")
    http_port = free_port()
    async with Served(folder, None, {**SETTINGS, "MOBD_HTTP_LISTEN": f"127.0.0.1:{http_port}"}) as served:
        async with connected(served.target) as world:
            mobs = mobs_pb2_grpc.MobServiceStub(world.channel)
            members = members_pb2_grpc.MemberServiceStub(world.channel)
            definition = mobs_pb2.DefinitionDocument(yaml="profiles: {worker: {instructions: wait}}")
            for mob_id in (MOB, BUSY):
                await mobs.CreateMob(mobs_pb2.CreateMobRequest(mob_id=mob_id, definition=definition))
                specs = [members_pb2.MemberSpec(member_id=name, role="worker") for name in MEMBERS]
                await members.SpawnMembers(members_pb2.SpawnMembersRequest(mob_id=mob_id, specs=specs))
        witness = Process(["tests/fuzz/witness.py", served.target], {}, folder / "witness.log")
        try:
            found = Besieged(served, http_port, witness.log)
            await found.begin()
            yield found
        finally:
            witness.kill()
        assert await served.terminate() == 0
