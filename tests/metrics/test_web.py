"""The HTTP endpoint: whether a server is alive, whether it takes work, and that both agree with gRPC health."""

import asyncio
import http.client
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.metrics.scraping import get
from tests.rpc.conftest import settings, speaking
from tests.rpc.speaking import TIMEOUT_S, Speaker
from tests.support.processes import until

from mobd_server import compose
from mobd_server.adapters import web

pytestmark = pytest.mark.asyncio

# The most threads that the test's own loop starts for what it waits for.
EXECUTOR = 32


async def healthy(peer: Speaker) -> bool:
    answer = await health_pb2_grpc.HealthStub(peer.channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def test_a_server_that_serves_is_alive_and_ready(tmp_path: Path) -> None:
    async with speaking(settings(tmp_path, http_listen="127.0.0.1:0")) as peer:
        assert (await get(peer.server, "/healthz")) == (await get(peer.server, "/readyz"))
        page = await get(peer.server, "/readyz")
        assert (page.code, page.text) == (200, "ok\n")
        assert await healthy(peer)


async def test_other_paths_and_methods_are_refused_in_a_line(tmp_path: Path) -> None:
    async with speaking(settings(tmp_path, http_listen="127.0.0.1:0")) as peer:
        page = await get(peer.server, "/metrics/../etc/passwd")
        assert (page.code, page.text) == (404, "there are /metrics, /healthz and /readyz\n")
        assert peer.server.web is not None
        address = peer.server.web.address

        def post() -> int:
            connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
            try:
                connection.request("POST", "/metrics", b"x")
                return connection.getresponse().status
            finally:
                connection.close()

        assert await asyncio.to_thread(post) == 405


async def test_a_server_that_leaves_is_alive_and_not_ready(tmp_path: Path) -> None:
    async with speaking(settings(tmp_path, http_listen="127.0.0.1:0")) as peer:
        peer.server.readiness.leaving = True
        page = await get(peer.server, "/readyz")
        assert (page.code, page.text) == (503, "the server shuts down\n")
        assert (await get(peer.server, "/healthz")).code == 200


async def test_a_server_without_its_store_is_alive_and_not_ready(tmp_path: Path) -> None:
    async with speaking(settings(tmp_path, http_listen="127.0.0.1:0")) as peer:
        peer.server.journal.down = True
        page = await get(peer.server, "/readyz")
        assert (page.code, page.text) == (503, "the store does not answer\n")
        peer.server.journal.down = False
        assert (await get(peer.server, "/readyz")).code == 200


async def test_a_server_is_not_ready_before_it_has_read_what_is_owed(tmp_path: Path) -> None:
    async with speaking(settings(tmp_path, http_listen="127.0.0.1:0")) as peer:
        peer.server.readiness.recovered = False
        page = await get(peer.server, "/readyz")
        assert (page.code, page.text) == (503, "the mobs that owe something are being read\n")


async def test_health_on_grpc_says_what_readiness_says(tmp_path: Path) -> None:
    async with speaking(settings(tmp_path, http_listen="127.0.0.1:0")) as peer:
        watch = health_pb2_grpc.HealthStub(peer.channel).Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        peer.server.readiness.recovered = False
        # As the journal does when its store answers again: what else hinders the server still does.
        peer.server.journal._tell_change()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        peer.server.readiness.recovered = True
        peer.server.journal._tell_change()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


async def test_it_can_be_turned_off_and_gives_its_port_back(tmp_path: Path) -> None:
    async with compose.serving(settings(tmp_path / "a")) as server:
        assert server.web is None
    async with compose.serving(settings(tmp_path / "b", http_listen="127.0.0.1:0")) as server:
        assert server.web is not None
        address = server.web.address
    assert "mobd-web" not in {thread.name for thread in threading.enumerate()}
    async with compose.serving(settings(tmp_path / "c", http_listen=address)) as server:
        assert (await get(server, "/healthz")).code == 200


async def test_a_taken_port_is_named_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with compose.serving(settings(tmp_path / "a", http_listen="127.0.0.1:0")) as server:
        assert server.web is not None
        taken = settings(tmp_path / "b", http_listen=server.web.address)
        with pytest.raises(compose.CannotStart, match=rf"{server.web.address} .* set MOBD_HTTP_LISTEN to a free one"):
            async with compose.serving(taken):
                pass
    # The other way round, what already listens is closed again.
    async with compose.serving(settings(tmp_path / "a")) as server:
        clash = settings(tmp_path / "b", http_listen="127.0.0.1:0", listen=server.address)
        with pytest.raises(compose.CannotStart, match="set MOBD_LISTEN to a free one"):
            async with compose.serving(clash):
                pass
    assert "mobd-web" not in {thread.name for thread in threading.enumerate()}


async def test_six_is_listened_on_too(tmp_path: Path) -> None:
    try:
        async with compose.serving(settings(tmp_path, http_listen="[::1]:0")) as server:
            assert (await get(server, "/healthz")).code == 200
    except compose.CannotStart:
        pytest.skip("this machine has no IPv6")


async def test_grpc_goes_on_while_http_is_asked(tmp_path: Path) -> None:
    async with speaking(settings(tmp_path, http_listen="127.0.0.1:0")) as peer:
        await peer.create("m", "a")
        asked = [get(peer.server, "/metrics") for _ in range(8)]
        delivered = [peer.deliver("a", str(number)) for number in range(8)]
        pages, answers = await asyncio.gather(asyncio.gather(*asked), asyncio.gather(*delivered))
        assert [page.code for page in pages] == [200] * 8
        assert all(answer.HasField("accepted") for answer in answers)
        assert peer.channel.get_state() is grpc.ChannelConnectivity.READY


async def test_whoever_only_connects_keeps_nobody_from_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # So that nobody is sent away for being silent.
    monkeypatch.setattr(web._Quiet, "timeout", 10 * TIMEOUT_S)
    async with speaking(settings(tmp_path, http_listen="127.0.0.1:0")) as peer:
        assert peer.server.web is not None
        host, _, port = peer.server.web.address.rpartition(":")
        before = threading.active_count()
        with ExitStack() as silent:
            sockets = [silent.enter_context(socket.create_connection((host, int(port)))) for _ in range(3 * web.MOST)]
            assert (await get(peer.server, "/readyz")).code == 200
            # The oldest were closed, and nothing was said to them.
            for one in sockets[: 2 * web.MOST]:
                one.settimeout(TIMEOUT_S)
                assert await asyncio.to_thread(one.recv, 1) == b""
            most = before + web.MOST + EXECUTOR
            await until(lambda: threading.active_count() <= most, "the threads of the closed to end")
            assert (await get(peer.server, "/metrics")).code == 200
