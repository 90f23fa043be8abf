"""Connections that are of no use to anybody: none costs another client its deliveries, or the server its mind."""

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
from tests.fuzz import http2, machine
from tests.fuzz.conftest import Besieged
from tests.fuzz.session import SETTINGS
from tests.fuzz.world import connected
from tests.support.peers import reason
from tests.support.processes import until
from tests.support.served import Served

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("connections")]

CONNECTIONS = 1_000
DELIVER = "/mobd.v1.BridgeService/Deliver"
TLS_HELLO = bytes.fromhex("16030100510100004d0303") + bytes(32) + bytes.fromhex("00000813011302130300ff0100001c")

IDLE = {
    "mute": (),
    "half a greeting": (http2.PREFACE[:10],),
    "idle": (http2.PREFACE, http2.frame(4, 0, 0)),
}
SAID = {
    "HTTP/1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": TLS_HELLO,
    "noise": bytes(range(256)) * 64,
    "a frame that is too long": http2.PREFACE + b"\xff\xff\xff\x00\x00\x00\x00\x00\x00",
    "data of no stream": http2.PREFACE + http2.frame(4, 0, 0) + http2.frame(0, 0, 7, b"x"),
    "headers that are none": http2.PREFACE + http2.frame(4, 0, 0) + http2.frame(1, 4, 1, b"\xff" * 100),
    "an endless header": http2.PREFACE + http2.frame(4, 0, 0) + http2.frame(1, 0, 1, b"\0\x7f\xff\xff\xff\x7f"),
    "settings that are none": http2.PREFACE + http2.frame(4, 0, 0, b"\0\4\xff\xff\xff\xff"),
    "a window of nothing": http2.PREFACE + http2.frame(4, 0, 0) + http2.frame(8, 0, 0, bytes(4)),
}


@asynccontextmanager
async def crowd(port: int, count: int, *first: bytes) -> AsyncIterator[list[http2.Connection]]:
    """Open connections and say the same on each of them."""
    connections: list[http2.Connection] = []
    try:
        for begin in range(0, count, 100):
            some = await asyncio.gather(*(http2.connect(port) for _ in range(min(100, count - begin))))
            connections += some
            for connection in some:
                with suppress(ConnectionError):
                    await connection.send(*first)
        yield connections
    finally:
        for connection in connections:
            await connection.close()


@pytest.mark.parametrize("what", IDLE)
async def test_a_thousand_idle_connections_cost_nobody_anything(besieged: Besieged, what: str) -> None:
    descriptors = machine.descriptors(besieged.pid)
    told = f"{CONNECTIONS} connections, {what}"
    async with besieged.beside(told) as began, crowd(besieged.served.port, CONNECTIONS, *IDLE[what]):
        await besieged.witnessed(began)
    await until(lambda: machine.descriptors(besieged.pid) < descriptors + 20, "the end of all connections")


@pytest.mark.parametrize("what", SAID)
async def test_what_is_no_http2_is_ended_and_harms_nobody(besieged: Besieged, what: str) -> None:
    async with besieged.beside(what):
        for _ in range(50):
            connection = await http2.connect(besieged.served.port)
            await connection.send(SAID[what])
            await connection.ended()
            await connection.close()


@pytest.mark.parametrize("what", ["mute", "half a request", "noise", "a header without end"])
async def test_the_port_for_probes_answers_beside_those_who_say_nothing_of_use(besieged: Besieged, what: str) -> None:
    said = {
        "mute": b"",
        "half a request": b"GET /metr",
        "noise": bytes(range(256)) * 256,
        "a header without end": b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 70_000,
    }
    threads = machine.threads(besieged.pid)
    async with besieged.beside(f"500 on the port for probes, {what}"), crowd(besieged.http_port, 500, said[what]):
        for path in (b"/healthz", b"/readyz", b"/metrics"):
            probe = await http2.connect(besieged.http_port)
            await probe.send(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await asyncio.wait_for(probe.reader.readline(), 5)).split()[1] == b"200"
            await probe.close()
    await until(lambda: machine.threads(besieged.pid) <= threads + 5, "the end of all threads")


async def test_connections_that_come_and_go_leave_nothing(besieged: Besieged) -> None:
    descriptors = machine.descriptors(besieged.pid)
    call = http2.frame(http2.HEADERS, http2.END_HEADERS, 1, http2.request(DELIVER))
    half = http2.frame(http2.DATA, 0, 1, http2.message(b"x" * 1_000)[:500])
    async with besieged.beside("connections that come and go"):
        for number in range(1_500):
            connection = await http2.connect(besieged.served.port)
            if number % 3:
                await connection.begin()
                await connection.send(call, half)
            if number % 2:
                await connection.reset()
            else:
                await connection.close()
    await until(lambda: machine.descriptors(besieged.pid) < descriptors + 20, "the end of all connections")


async def test_streams_that_are_half_open_or_reset_leave_nothing(besieged: Besieged) -> None:
    paths = (DELIVER, "/mobd.v1.EventService/WatchEvents", "/mobd.v1.AgentService/Attach", "/mobd.v1.X/Y", "/", "")
    async with besieged.beside("half-open streams") as began:
        connection = await http2.connect(besieged.served.port)
        await connection.begin()
        for number in range(1_200):
            stream = 2 * number + 1
            headers = http2.request(paths[number % len(paths)])
            await connection.send(
                http2.frame(http2.HEADERS, http2.END_HEADERS, stream, headers),
                http2.frame(http2.DATA, 0, stream, http2.message(b"\x0a\x01m")[: number % 8]),
            )
            if number % 2:
                await connection.send(http2.frame(http2.RST_STREAM, 0, stream, bytes(4)))
        await besieged.witnessed(began)
        await connection.reset()


async def test_a_server_without_descriptors_goes_on_with_those_whom_it_knows(tmp_path: Path) -> None:
    async with Served(tmp_path, None, SETTINGS) as served, connected(served.target) as world:
        await world.begin()
        pid = served.process.pid
        limit = machine.descriptors(pid) + 40
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
        cpu = machine.cpu_s(pid)
        async with crowd(served.port, 300, http2.PREFACE, http2.frame(http2.SETTINGS, 0, 0)):
            for number in range(100):
                answer = await world.deliver("alpha", "ada", f"i-{number}")
                assert answer.HasField("accepted")
            # What needs a descriptor says that it must be asked again.
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await world.state("alpha", 3)
            assert reason(refused.value) == "UNAVAILABLE"
            assert machine.descriptors(pid) <= limit
        used = machine.cpu_s(pid) - cpu
        assert used < 5, f"{used:.1f} s of a core"
        async with connected(served.target) as other:
            assert (await other.deliver("alpha", "ada", "later")).HasField("accepted")
        assert await world.state("alpha", 3)
        assert served.process.code is None
