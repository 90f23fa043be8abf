"""A channel within the process does what one over the network does: each test runs on both."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from tests.rpc.speaking import refusal_of, rest_of
from tests.support.loops import ticks

from mobd.v1 import agents_pb2, agents_pb2_grpc, events_pb2, mobs_pb2
from mobd.v1.events_pb2_grpc import EventServiceStub
from mobd.v1.mobs_pb2_grpc import MobServiceStub

pytestmark = pytest.mark.asyncio

Code = grpc.StatusCode
HELLO = agents_pb2.Hello(
    mob_id="m",
    host_id="h",
    incarnation="1",
    protocol=1,
    serves=[agents_pb2.Serve(role="lead")],
    capacity=1,
    max_members=1,
)


async def create(channel: grpc.aio.Channel) -> None:
    definition = mobs_pb2.DefinitionDocument(json='{"profiles": {"lead": {}}}')
    await MobServiceStub(channel).CreateMob(mobs_pb2.CreateMobRequest(mob_id="m", definition=definition))


def watching(channel: grpc.aio.Channel, **how: Any) -> Any:
    start = events_pb2.EventStart(after_cursor=0)
    return EventServiceStub(channel).WatchEvents(events_pb2.WatchEventsRequest(mob_id="m", start=start), **how)


def attach(channel: grpc.aio.Channel, *arguments: Any) -> Any:
    return agents_pb2_grpc.AgentServiceStub(channel).Attach(*arguments)


def frames(**frame: Any) -> agents_pb2.AttachRequest:
    return agents_pb2.AttachRequest(frames=[agents_pb2.AgentFrame(**frame)])


def raw(channel: grpc.aio.Channel, path: str) -> Any:
    """A method without a codec."""
    return channel.unary_unary(path)


async def status(awaitable: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    error = caught.value
    assert isinstance(error, grpc.aio.AioRpcError)
    return error


async def test_a_call_is_answered_and_a_refusal_carries_its_details(channel: grpc.aio.Channel) -> None:
    await create(channel)
    stub = MobServiceStub(channel)
    call = stub.GetMob(mobs_pb2.GetMobRequest(mob_id="m"), timeout=10)
    assert (await call).mob.mob_id == "m"
    assert await call.code() is Code.OK
    error = await status(stub.GetMob(mobs_pb2.GetMobRequest(mob_id="other")))
    assert error.code() is Code.NOT_FOUND
    assert refusal_of(error).reason == "MOB_NOT_FOUND"


async def test_bytes_that_are_no_request_and_methods_that_are_none(channel: grpc.aio.Channel) -> None:
    error = await status(raw(channel, "/mobd.v1.MobService/GetMob")(b"\xff\xff"))
    assert (error.code(), refusal_of(error).reason) == (Code.INVALID_ARGUMENT, "UNDECODABLE")
    error = await status(raw(channel, "/mobd.v1.MobService/Nothing")(b""))
    assert error.code() is Code.UNIMPLEMENTED


async def test_a_message_beyond_the_limit_is_refused(channel: grpc.aio.Channel) -> None:
    error = await status(raw(channel, "/mobd.v1.MobService/GetMob")(b"\0" * (5 << 20)))
    assert error.code() is Code.RESOURCE_EXHAUSTED


async def test_a_deadline_ends_a_stream_and_says_so(channel: grpc.aio.Channel) -> None:
    await create(channel)
    call = watching(channel, timeout=0.3)
    error = await status(rest_of(call))
    assert error.code() is Code.DEADLINE_EXCEEDED
    assert await call.code() is Code.DEADLINE_EXCEEDED
    assert call.done()


async def test_to_cancel_a_stream_ends_its_reading(channel: grpc.aio.Channel) -> None:
    await create(channel)
    call = watching(channel)
    assert (await call.read()).WhichOneof("part") == "bookmark"
    assert call.cancel()
    assert not call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.read()
    assert call.cancelled()
    assert await call.code() is Code.CANCELLED


async def test_to_cancel_the_reader_cancels_the_call(channel: grpc.aio.Channel) -> None:
    await create(channel)
    call = watching(channel)
    await call.read()
    reading = asyncio.create_task(rest_of(call))
    await ticks()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert await call.code() is Code.CANCELLED


async def test_streams_are_iterated(channel: grpc.aio.Channel) -> None:
    await create(channel)
    kinds = []
    async for answer in watching(channel):
        kinds += [event.kind for event in answer.page.events]
        if len(kinds) == 2:
            break
    assert kinds == ["mob_created", "mob_started"]


async def test_what_the_server_refuses_ends_both_directions(channel: grpc.aio.Channel) -> None:
    call = attach(channel)
    await call.write(frames(heartbeat=agents_pb2.Heartbeat()))
    error = await status(call.read())
    assert (error.code(), refusal_of(error).reason) == (Code.INVALID_ARGUMENT, "FIELD_INVALID")
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(frames(hello=HELLO))


async def test_one_side_ends_before_the_other(channel: grpc.aio.Channel) -> None:
    await create(channel)
    call = attach(channel)
    await call.write(frames(hello=HELLO))
    assert (await call.read()).frames[0].HasField("welcome")
    await call.write(frames(detach=agents_pb2.Detach()))
    await call.done_writing()
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(frames(hello=HELLO))
    assert await rest_of(call) == []
    assert await call.code() is Code.OK


async def test_requests_may_come_from_an_iterator(channel: grpc.aio.Channel) -> None:
    await create(channel)

    async def requests() -> AsyncIterator[agents_pb2.AttachRequest]:
        yield frames(hello=HELLO)
        yield frames(detach=agents_pb2.Detach())

    answers = await rest_of(attach(channel, requests()))
    assert answers[0].frames[0].HasField("welcome")


async def test_a_closed_channel_ends_its_calls(channel: grpc.aio.Channel) -> None:
    await create(channel)
    call = watching(channel)
    await call.read()
    await channel.close()
    with pytest.raises(asyncio.CancelledError):
        await rest_of(call)
    assert await call.code() is Code.CANCELLED


async def test_metadata_reach_the_door(channel: grpc.aio.Channel) -> None:
    await create(channel)
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    request = mobs_pb2.StopMobRequest(mob_id="m")
    await MobServiceStub(channel).StopMob(request, metadata=(("traceparent", trace),))
    start = events_pb2.EventStart(after_cursor=0)
    page = await EventServiceStub(channel).PollEvents(events_pb2.PollEventsRequest(mob_id="m", start=start))
    assert page.events[-1].traceparent == trace
