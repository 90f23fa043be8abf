"""The one wrapper around every method, with servicers of the test's own behind a real server."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # it has no stubs

from mobd.v1 import events_pb2, mobs_pb2, runs_pb2, server_pb2
from mobd_server.actors.links import Call
from mobd_server.adapters.rpc.handlers import Gate, Methods, OneLookUp, method_name, service_handler
from mobd_server.errors import Draining, Internal, MobNotFound

pytestmark = pytest.mark.asyncio

INFO = server_pb2.DESCRIPTOR.services_by_name["ServerService"]
RUNS = runs_pb2.DESCRIPTOR.services_by_name["RunService"]
MOBS = mobs_pb2.DESCRIPTOR.services_by_name["MobService"]
EVENTS = events_pb2.DESCRIPTOR.services_by_name["EventService"]
INFO_PATH = "/mobd.v1.ServerService/GetServerInfo"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Info:
    """GetServerInfo as a test wants it."""

    def __init__(self, answer: Callable[[Any, Call], Awaitable[Any]]) -> None:
        self.get_server_info = answer


@asynccontextmanager
async def serving(methods: Methods) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers([OneLookUp([methods])])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(None)


async def ask(channel: grpc.aio.Channel, path: str, raw: bytes = b"", **options: Any) -> bytes:
    method: Any = channel.unary_unary(path)
    return bytes(await method(raw, timeout=10, **options))


def info_of(error: grpc.aio.AioRpcError) -> tuple[str, dict[str, str]]:
    raw = dict(error.trailing_metadata())["grpc-status-details-bin"]
    for detail in status_pb2.Status.FromString(raw).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            assert info.domain == "mobd"
            return info.reason, dict(info.metadata)
    raise AssertionError("no ErrorInfo")


async def test_the_answer_is_the_servicer_s() -> None:
    async def answer(_: object, __: Call) -> server_pb2.GetServerInfoResponse:
        return server_pb2.GetServerInfoResponse(version="1")

    async with serving(service_handler(INFO, [Info(answer)], Gate())) as channel:
        raw = await ask(channel, INFO_PATH)
    assert server_pb2.GetServerInfoResponse.FromString(raw).version == "1"


async def test_bytes_pass_as_they_are() -> None:
    async def answer(_: object, __: Call) -> bytes:
        return b"\x0a\x012"

    async with serving(service_handler(INFO, [Info(answer)], Gate())) as channel:
        assert await ask(channel, INFO_PATH) == b"\x0a\x012"


async def test_a_refusal_becomes_its_status() -> None:
    async def answer(_: object, __: Call) -> bytes:
        raise MobNotFound("mob 'm' does not exist", {"mob_id": "m"})

    async with serving(service_handler(INFO, [Info(answer)], Gate())) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(channel, INFO_PATH)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert refused.value.details() == "mob 'm' does not exist"
    assert info_of(refused.value) == ("MOB_NOT_FOUND", {"mob_id": "m"})


async def test_a_bug_shows_an_error_id_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(_: object, __: Call) -> bytes:
        raise KeyError("secret")

    with caplog.at_level(logging.ERROR):
        async with serving(service_handler(INFO, [Info(answer)], Gate())) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(channel, INFO_PATH)
    assert refused.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(refused.value)
    reason, metadata = info_of(refused.value)
    assert (reason, list(metadata)) == ("INTERNAL", ["error_id"])
    (record,) = [one for one in caplog.records if one.name.startswith("mobd_server")]
    assert vars(record)["error_id"] == metadata["error_id"]
    assert record.exc_info


async def test_what_the_server_finds_wrong_with_itself_has_an_error_id_too(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(_: object, __: Call) -> bytes:
        raise Internal("the log of mob 'm' has a gap")

    with caplog.at_level(logging.ERROR):
        async with serving(service_handler(INFO, [Info(answer)], Gate())) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(channel, INFO_PATH)
    reason, metadata = info_of(refused.value)
    assert (reason, list(metadata)) == ("INTERNAL", ["error_id"])
    (record,) = [one for one in caplog.records if one.name.startswith("mobd_server")]
    assert vars(record)["error_id"] == metadata["error_id"]
    assert vars(record)["error"] == refused.value.details() == "the log of mob 'm' has a gap"


@pytest.mark.parametrize("raw", [b"\x0a", b"\x0a\x05a", b"\x0a\x02\xff\xfe", b"\xff" * 12])
async def test_what_is_no_message_is_said_to_be_undecodable(raw: bytes) -> None:
    class Reads:
        async def get_run(self, _: object, __: Call) -> bytes:
            raise AssertionError

        async def list_runs(self, _: object, __: Call) -> bytes:
            raise AssertionError

    async with serving(service_handler(RUNS, [Reads()], Gate())) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(channel, "/mobd.v1.RunService/GetRun", raw)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info_of(refused.value)[0] == "UNDECODABLE"


async def test_the_trace_of_the_caller_is_known_if_it_is_one() -> None:
    calls: list[Call] = []

    async def answer(_: object, call: Call) -> bytes:
        calls.append(call)
        return b""

    async with serving(service_handler(INFO, [Info(answer)], Gate())) as channel:
        await ask(channel, INFO_PATH, metadata=(("traceparent", TRACE),))
        await ask(channel, INFO_PATH, metadata=(("traceparent", "nonsense"),))
        await ask(channel, INFO_PATH)
    assert [call.traceparent for call in calls] == [TRACE, None, None]
    assert {call.principal for call in calls} == {"anonymous"}


async def test_a_request_is_known_again_by_its_content_without_its_id() -> None:
    calls: list[Call] = []

    class Starts:
        def __getattr__(self, name: str) -> Any:
            async def answer(_: object, call: Call) -> bytes:
                calls.append(call)
                return b""

            return answer

    async with serving(service_handler(MOBS, [Starts()], Gate())) as channel:
        for path, mob_id, request_id in [
            ("StartMob", "m", "a"),
            ("StartMob", "m", "b"),
            ("StartMob", "n", "a"),
            ("StopMob", "m", "a"),
            ("StartMob", "m", ""),
        ]:
            request = mobs_pb2.StartMobRequest(mob_id=mob_id, request_id=request_id)
            await ask(channel, f"/mobd.v1.MobService/{path}", request.SerializeToString())
    first, same, other_mob, other_method, without = [call.request_hash for call in calls]
    assert first == same
    assert len({first, other_mob, other_method, without}) == 4
    assert without is None
    assert [call.request_id for call in calls] == ["a", "b", "a", "a", None]
    assert len(first or "") == 64


async def test_a_caller_who_leaves_cancels_the_servicer() -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def answer(_: object, __: Call) -> bytes:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return b""

    gate = Gate()
    async with serving(service_handler(INFO, [Info(answer)], gate)) as channel:
        method: Any = channel.unary_unary(INFO_PATH)
        call = method(b"", timeout=10)
        asking = asyncio.ensure_future(call.wait_for_connection())
        async with asyncio.timeout(10):
            await begun.wait()
            call.cancel()
            await cancelled.wait()
            await gate.empty()
        await asyncio.gather(asking, return_exceptions=True)


async def test_who_comes_too_late_is_told_when_the_gate_is_left() -> None:
    async def answer(_: object, __: Call) -> bytes:
        return b""

    gate = Gate()
    async with serving(service_handler(INFO, [Info(answer)], gate)) as channel:
        await ask(channel, INFO_PATH)
        gate.close()
        late = asyncio.ensure_future(ask(channel, INFO_PATH))
        async with asyncio.timeout(10):
            await gate.empty()
        done, _ = await asyncio.wait([late], timeout=0.05)
        assert not done
        gate.release()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await late
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert info_of(refused.value)[0] == "DRAINING"


async def test_a_stream_ends_with_the_status_of_what_ended_it() -> None:
    class Watches:
        poll_events = get_state = watch_agent_events = None

        async def watch_events(self, _: object, __: Call) -> AsyncIterator[bytes]:
            yield b"\x0a\x00"
            raise Draining("the server shuts down", {"cursor": "7"})

    request = events_pb2.WatchEventsRequest(mob_id="m", start=events_pb2.EventStart(latest=True))
    gate = Gate()
    async with serving(service_handler(EVENTS, [Watches()], gate)) as channel:
        method: Any = channel.unary_stream("/mobd.v1.EventService/WatchEvents")
        call = method(request.SerializeToString(), timeout=10)
        assert await call.read() == b"\x0a\x00"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        async with asyncio.timeout(10):
            await gate.empty()
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert info_of(refused.value) == ("DRAINING", {"cursor": "7"})


async def test_every_method_has_one_servicer() -> None:
    async def answer(_: object, __: Call) -> bytes:
        return b""

    for servicers in ([], [object()], [Info(answer), Info(answer)]):
        with pytest.raises(TypeError, match="GetServerInfo"):
            service_handler(INFO, servicers, Gate())


async def test_a_servicer_s_methods_are_named_as_python_names_things() -> None:
    assert method_name("GetServerInfo") == "get_server_info"
