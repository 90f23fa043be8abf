"""The server as a whole: what it says of itself, its health, its end."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.rpc.conftest import settings, speaking
from tests.rpc.speaking import TIMEOUT_S, Speaker, refusal_of

from mobd.v1 import mobs_pb2, server_pb2
from mobd_server import compose
from mobd_server.adapters.rpc.server import SERVICES

pytestmark = pytest.mark.asyncio

# A connection of its own for each channel.
OWN = (("grpc.use_local_subchannel_pool", 1),)


async def health(peer: Speaker) -> int:
    answer = await health_pb2_grpc.HealthStub(peer.channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    return int(answer.status)


async def test_a_server_says_what_it_is(peer: Speaker) -> None:
    info = await peer.info.GetServerInfo(server_pb2.GetServerInfoRequest())
    assert (info.store, info.auth_mode, info.protocol_min, info.protocol_max) == ("sqlite", "none", 1, 1)
    assert info.version
    assert info.node
    limits = {limit.name: limit.value for limit in info.limits}
    assert limits["input_bytes"] == 256 << 10
    assert limits["message_bytes"] == 4 << 20
    assert limits["inbox_inputs"] == 1_000


async def test_reflection_names_every_service(peer: Speaker) -> None:
    call = reflection_pb2_grpc.ServerReflectionStub(peer.channel).ServerReflectionInfo(timeout=TIMEOUT_S)
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    answer = await call.read()
    names = {service.name for service in answer.list_services_response.service}
    assert names >= {service.full_name for service in SERVICES} | {"grpc.health.v1.Health"}
    call.cancel()


async def test_health_follows_the_journal(peer: Speaker) -> None:
    assert await health(peer) == health_pb2.HealthCheckResponse.SERVING
    watch = health_pb2_grpc.HealthStub(peer.channel).Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    peer.server.rpc.set_serving(False)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    peer.server.rpc.set_serving(True)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


async def test_a_draining_server_does_not_wait_for_those_who_watch_its_health(tmp_path: Path) -> None:
    config = settings(tmp_path).model_copy(update={"drain_s": 60.0})
    async with compose.serving(config) as server:
        channel = grpc.aio.insecure_channel(server.address)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    # Had it waited, the test would have run into its timeout.
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await channel.close()


async def test_a_draining_server_answers_or_says_so(tmp_path: Path) -> None:
    reasons: list[str] = []
    answered: list[str] = []
    flowing = asyncio.Event()

    async def send(channel: grpc.aio.Channel, server: compose.Server, name: int) -> None:
        speaker = Speaker(channel, server)
        for number in range(1_000_000):
            try:
                accepted = (await speaker.deliver("a", f"{name}-{number}")).accepted
            except grpc.aio.AioRpcError as error:
                reasons.append(refusal_of(error).reason)
                return
            answered.append(accepted.canonical_input_id)
            if len(answered) == 200:
                flowing.set()

    async with AsyncExitStack() as channels:
        async with compose.serving(settings(tmp_path)) as server:
            opened = [grpc.aio.insecure_channel(server.address, options=OWN) for _ in range(4)]
            for channel in opened:
                await channels.enter_async_context(channel)
            await Speaker(opened[0], server).create("m", "a")
            sending = [asyncio.ensure_future(send(opened[name % 4], server, name)) for name in range(40)]
            async with asyncio.timeout(TIMEOUT_S):
                await flowing.wait()
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*sending)
    assert set(reasons) == {"DRAINING"}
    assert len(reasons) == 40
    async with speaking(settings(tmp_path)) as peer:
        mob = (await peer.mobs.GetMob(mobs_pb2.GetMobRequest(mob_id="m"))).mob
        assert mob.inputs_waiting >= len(set(answered)) == len(answered)


async def test_what_was_answered_is_there_after_a_restart(tmp_path: Path) -> None:
    async with speaking(settings(tmp_path)) as peer:
        mob = (await peer.create("m", "a")).mob
        accepted = (await peer.deliver("a", "i")).accepted
    async with speaking(settings(tmp_path)) as peer:
        again = (await peer.mobs.GetMob(mobs_pb2.GetMobRequest(mob_id="m"))).mob
        assert (again.log_id, again.definition_json, again.head) == (mob.log_id, mob.definition_json, accepted.cursor)
        assert (await peer.deliver("a", "i")).deduplicated.canonical_input_id == accepted.canonical_input_id


async def test_a_second_server_on_a_port_or_a_file_is_refused(tmp_path: Path, peer: Speaker) -> None:
    taken = settings(tmp_path / "other").model_copy(update={"listen": peer.server.address})
    with pytest.raises(compose.CannotStart, match=peer.server.address):
        async with compose.serving(taken):
            pass
    with pytest.raises(compose.CannotStart, match=r"mobd\.db is in use by another mobd"):
        async with compose.serving(peer.server.config):
            pass
