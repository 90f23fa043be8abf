"""Calls and streams that are of no use to anybody: each ends as the protocol says, in bounded memory."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from tests.fuzz import http2, machine
from tests.fuzz.conftest import BUSY, Besieged
from tests.fuzz.witness import MEMBERS
from tests.fuzz.world import CALL_S, World, connected
from tests.rpc.speaking import refusal_of
from tests.support.processes import until

from mobd.v1 import (
    agents_pb2,
    agents_pb2_grpc,
    bridge_pb2,
    bridge_pb2_grpc,
    common_pb2,
    events_pb2,
    mobs_pb2,
    mobs_pb2_grpc,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("streams")]

MIB = 1 << 20
STREAMS = 1_000
DELIVER = "/mobd.v1.BridgeService/Deliver"
WATCH = "/mobd.v1.EventService/WatchEvents"
ATTACH = "/mobd.v1.AgentService/Attach"
WINDOW = (1 << 26).to_bytes(4, "big")


def opened(stream: int, path: str, *messages: bytes, end: bool = True) -> bytes:
    """Return a call, complete or with its side left open."""
    body = b"".join(messages)
    flags = http2.END_STREAM if end else 0
    return http2.frame(http2.HEADERS, http2.END_HEADERS, stream, http2.request(path)) + http2.frame(
        http2.DATA, flags, stream, body
    )


def delivery(number: int, size: int) -> bridge_pb2.DeliverRequest:
    content = common_pb2.Content(blocks=[common_pb2.Block(text="x" * size)])
    return bridge_pb2.DeliverRequest(
        mob_id=BUSY,
        member_id=MEMBERS[number % 2],
        input_id=f"i-{number}",
        content=content,
        supersession_key="same",
        external_event=bridge_pb2.ExternalEvent(event_type="tick"),
    )


def hello(mob_id: str, host_id: str) -> agents_pb2.AttachRequest:
    serves = [agents_pb2.Serve(role="norole" if mob_id != BUSY else "worker")]
    said = agents_pb2.Hello(
        mob_id=mob_id, host_id=host_id, incarnation="1", protocol=1, serves=serves, capacity=1, max_members=1
    )
    return agents_pb2.AttachRequest(frames=[agents_pb2.AgentFrame(hello=said)])


@asynccontextmanager
async def raw(besieged: Besieged) -> AsyncIterator[http2.Connection]:
    connection = await http2.connect(besieged.served.port)
    try:
        await connection.begin()
        yield connection
    finally:
        await connection.close()


async def test_a_thousand_streams_that_never_say_hello_are_told_so(besieged: Besieged) -> None:
    async def wait(world: World) -> str:
        made: Any = agents_pb2_grpc.AgentServiceStub(world.channel).Attach(timeout=CALL_S)
        try:
            await made.read()
        except grpc.aio.AioRpcError as error:
            found = refusal_of(error)
            return f"{found.reason} {list(found.fields)}"
        return "no error"

    async with besieged.beside(f"{STREAMS} streams without Hello"), connected(besieged.served.target) as world:
        ends = await asyncio.gather(*(wait(world) for _ in range(STREAMS)))
    assert set(ends) == {"FIELD_INVALID ['frames[0].hello']"}


async def test_a_flood_of_calls_on_one_connection_drowns_nobody_else(besieged: Besieged) -> None:
    headers = http2.request(DELIVER)
    async with besieged.beside("8,000 calls at once that say nothing") as began, raw(besieged) as flood:
        reading = asyncio.ensure_future(flood.ended_by_peer())
        for number in range(8_000):
            await flood.send(http2.frame(http2.HEADERS, http2.END_HEADERS, 2 * number + 1, headers))
        await besieged.witnessed(began)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def test_agents_of_mobs_that_nobody_made_are_forgotten_when_they_leave(besieged: Besieged) -> None:
    async def come_and_go(world: World, number: int) -> None:
        made: Any = agents_pb2_grpc.AgentServiceStub(world.channel).Attach(timeout=CALL_S)
        await made.write(hello(f"unmade-{number}", f"host-{number}"))
        [welcome] = (await made.read()).frames
        assert welcome.welcome.serves[0].waiting
        if number % 2:
            await made.done_writing()
            assert await made.code() is grpc.StatusCode.OK
        made.cancel()

    async with besieged.beside("2,000 agents of mobs that nobody made"), connected(besieged.served.target) as world:
        for begin in range(0, 2_000, 100):
            await asyncio.gather(*(come_and_go(world, begin + number) for number in range(100)))


async def test_watchers_that_never_read_are_left_behind_in_bounded_memory(besieged: Besieged) -> None:
    start = events_pb2.EventStart(latest=True)
    request = events_pb2.WatchEventsRequest(mob_id=BUSY, start=start).SerializeToString()
    streams = range(1, 101, 2)
    told = f"{len(streams)} watchers that never read"
    async with besieged.beside(told), raw(besieged) as silent, connected(besieged.served.target) as world:
        for stream in streams:
            await silent.send(opened(stream, WATCH, http2.message(request)))
        # A bookmark says that they have caught up: from here on they are slow.
        caught_up: set[int] = set()
        while len(caught_up) < len(streams):
            caught_up.add(frame_of(await silent.until(http2.DATA)).stream)
        deliver = bridge_pb2_grpc.BridgeServiceStub(world.channel).Deliver
        # Several times what is kept for those who read slowly.
        for number in range(40):
            await deliver(delivery(number, 160_000), timeout=CALL_S)
        # Now they read, and learn where to go on.
        await silent.send(*(http2.frame(http2.WINDOW_UPDATE, 0, stream, WINDOW) for stream in (0, *streams)))
        ends: dict[int, bytes] = {}
        while len(ends) < len(streams):
            headers = frame_of(await silent.until(http2.HEADERS))
            if headers.flags & http2.END_STREAM:
                ends[headers.stream] = headers.payload
    # The message of a status is plain, beside its details.
    assert all(b"behind" in end for end in ends.values()), next(iter(ends.values()))


def frame_of(received: http2.Frame | None) -> http2.Frame:
    assert received is not None, "the connection ended"
    return received


async def test_agents_that_never_stop_talking_take_no_one_s_turn(besieged: Besieged) -> None:
    beats = agents_pb2.AttachRequest(frames=[agents_pb2.AgentFrame(heartbeat=agents_pb2.Heartbeat())] * 1_000)
    results = agents_pb2.AttachRequest(
        frames=[
            agents_pb2.AgentFrame(run_result=agents_pb2.RunResult(run_id=f"r{n}", executor_fence=1, output_json="1"))
            for n in range(200)
        ]
    )

    async def talk(world: World, number: int, what: agents_pb2.AttachRequest) -> None:
        made: Any = agents_pb2_grpc.AgentServiceStub(world.channel).Attach()
        await made.write(hello(BUSY, f"talks-{number}"))
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await made.write(what)

    told = "4 agents that never stop talking"
    async with besieged.beside(told) as began, connected(besieged.served.target) as world:
        talkers = [asyncio.ensure_future(talk(world, n, (beats, results)[n % 2])) for n in range(4)]
        await besieged.witnessed(began)
        for talker in talkers:
            talker.cancel()
        await asyncio.gather(*talkers, return_exceptions=True)


async def test_a_message_that_is_a_byte_too_long_is_refused(besieged: Besieged) -> None:
    async with connected(besieged.served.target) as world:
        asked: Any = world.channel.unary_unary(DELIVER)
        for size, reason in ((4 * MIB + 1, "FIELD_INVALID"), (4 * MIB + (64 << 10) + 1, ""), (64 * MIB, "")):
            text = delivery(1, size - 8).SerializeToString()
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await asked(text, timeout=CALL_S)
            found = refusal_of(refused.value)
            code = grpc.StatusCode.RESOURCE_EXHAUSTED if not reason else grpc.StatusCode.INVALID_ARGUMENT
            assert (found.code, found.reason) == (code, reason)
    assert list(machine.misfortunes(besieged.served.log)) == []


async def test_what_is_small_and_becomes_large_is_refused(besieged: Besieged) -> None:
    bomb = gzip.compress(b"\x0a" + b"\0" * (256 * MIB), 9)
    assert len(bomb) < MIB
    before = machine.peak_bytes(besieged.pid)
    async with raw(besieged) as connection:
        headers = http2.request(DELIVER, (b"grpc-encoding", b"gzip"))
        for stream in (1, 3, 5):
            await connection.send(
                http2.frame(http2.HEADERS, http2.END_HEADERS, stream, headers),
                *(
                    http2.frame(http2.DATA, 0, stream, part)
                    for part in _parts(http2.message(bomb, compressed=True), 16_384)
                ),
                http2.frame(http2.DATA, http2.END_STREAM, stream),
            )
            ended = await connection.until(http2.HEADERS, http2.RST_STREAM)
            assert ended is not None
    assert machine.peak_bytes(besieged.pid) - before < 64 * MIB
    assert list(machine.misfortunes(besieged.served.log)) == []


def _parts(raw: bytes, size: int) -> list[bytes]:
    return [raw[begin : begin + size] for begin in range(0, len(raw), size)]


@pytest.mark.parametrize(
    "metadata",
    [[("x-long", "y" * MIB)], [(f"x-{number}", "y") for number in range(20_000)], [("x-bin", b"\0" * MIB)]],
    ids=["long", "many", "binary"],
)
async def test_metadata_beyond_all_measure_is_refused(besieged: Besieged, metadata: list[tuple[str, Any]]) -> None:
    async with besieged.beside(f"{len(metadata)} entries of metadata"), connected(besieged.served.target) as world:
        asked: Any = world.channel.unary_unary(DELIVER)
        for _ in range(20):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await asked(b"", timeout=CALL_S, metadata=metadata)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# Without any message gRPC waits for one, for as long as the caller does.
@pytest.mark.parametrize("count", [2, 100])
async def test_a_unary_call_with_another_number_of_messages_ends(besieged: Besieged, count: int) -> None:
    async with connected(besieged.served.target) as world:
        asked: Any = world.channel.stream_stream(DELIVER)
        made = asked(timeout=CALL_S)
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for _ in range(count):
                await made.write(b"")
            await made.done_writing()
        assert await made.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNKNOWN)
    assert list(machine.misfortunes(besieged.served.log)) == []


LARGE = {
    "json": '{"profiles":{"a":{"context":[' + "[[]]," * (MIB // 6) + "1]}}}",
    "yaml": "- [[]]\n" * (MIB // 8),
    "yaml of few values": "profiles: {a: {context: [" + f'"{"x" * 100}",' * 5_000 + "1]}}",
    "toml": "".join(f"[a{number}]\nb=1\n" for number in range(15_000)),
}


@pytest.mark.parametrize("what", LARGE)
async def test_large_definitions_from_many_leave_time_for_others(besieged: Besieged, what: str) -> None:
    document = mobs_pb2.DefinitionDocument(**{what.partition(" ")[0]: LARGE[what]})
    request = mobs_pb2.ValidateDefinitionRequest(definition=document)
    told = f"8 large definitions at a time, {what}"
    async with besieged.beside(told, 256 * MIB), connected(besieged.served.target) as world:
        validate = mobs_pb2_grpc.MobServiceStub(world.channel).ValidateDefinition
        await asyncio.gather(*(validate(request, timeout=100) for _ in range(8)))


async def test_what_is_left_over_is_given_back(besieged: Besieged) -> None:
    """After all of the above: no stream is open any more."""
    await until(lambda: machine.descriptors(besieged.pid) < 60, "the end of all connections")
    async with connected(besieged.served.target) as world:
        assert set(await world.names()) == {BUSY, "witness"}
