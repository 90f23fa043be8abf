"""BridgeService: delivering, observing, following inputs."""

import asyncio
from typing import Any

import grpc
import pytest
from tests.rpc.speaking import TIMEOUT_S, RawAgent, Speaker, rest_of

from mobd.v1 import bridge_pb2, common_pb2, mobs_pb2

pytestmark = pytest.mark.asyncio


def get(input_id: str, member_id: str = "a") -> bridge_pb2.GetInputRequest:
    return bridge_pb2.GetInputRequest(mob_id="m", member_id=member_id, input_id=input_id)


async def test_an_input_is_accepted_and_known_again(peer: Speaker) -> None:
    await peer.create("m", "a")
    first = (await peer.deliver("a", "i")).accepted
    assert first.input_id == "i"
    assert first.executor == common_pb2.CONNECTIVITY_NONE
    mob = (await peer.mobs.GetMob(mobs_pb2.GetMobRequest(mob_id="m"))).mob
    assert (first.cursor, mob.inputs_waiting) == (mob.head, 1)
    again = (await peer.deliver("a", "i")).deduplicated
    assert (again.canonical_input_id, again.terminal) == (first.canonical_input_id, False)
    other = (await peer.deliver("a", "i", "something else")).rejected
    assert other.cause == bridge_pb2.REJECT_CAUSE_CONTENT_CONFLICT
    assert other.canonical_input_id == first.canonical_input_id
    assert "new input_id" in other.reason


async def test_one_input_that_many_deliver_is_accepted_once(peer: Speaker) -> None:
    await peer.create("m", "a")
    answers = await asyncio.gather(*(peer.deliver("a", "i") for _ in range(50)))
    kinds = sorted(answer.WhichOneof("outcome") or "" for answer in answers)
    assert kinds == ["accepted"] + ["deduplicated"] * 49


async def test_a_fence_that_is_given_is_compared(peer: Speaker) -> None:
    await peer.create("m", "a")
    observed = await peer.bridge.Observe(bridge_pb2.ObserveRequest(mob_id="m", member_id="a"))
    right = common_pb2.Fence(generation=observed.generation, fence_token=observed.fence_token)
    assert (await peer.deliver("a", "i1", fence=right)).HasField("accepted")
    for wrong in (common_pb2.Fence(generation=9), common_pb2.Fence(fence_token=0)):
        rejected = (await peer.deliver("a", "i2", fence=wrong)).rejected
        assert rejected.cause == bridge_pb2.REJECT_CAUSE_STALE_FENCE
        assert rejected.current == right


async def test_a_full_queue_says_when_to_come_again(peer: Speaker) -> None:
    await peer.create("m", "a")
    content = common_pb2.Content(blocks=[common_pb2.Block(text="x")])
    for start in range(0, 1000, 250):
        deliveries = [
            bridge_pb2.Delivery(member_id="a", input_id=f"i{number}", content=content)
            for number in range(start, start + 250)
        ]
        await peer.bridge.DeliverBatch(bridge_pb2.DeliverBatchRequest(mob_id="m", deliveries=deliveries))
    rejected = (await peer.deliver("a", "one-more")).rejected
    assert rejected.cause == bridge_pb2.REJECT_CAUSE_QUEUE_FULL
    assert rejected.retry_after.ToMilliseconds() > 0


@pytest.mark.parametrize(
    ("member_id", "mob_id", "reason"), [("x", "m", "MEMBER_NOT_FOUND"), ("a", "n", "MOB_NOT_FOUND")]
)
async def test_a_delivery_to_nobody_is_a_status(peer: Speaker, member_id: str, mob_id: str, reason: str) -> None:
    await peer.create("m", "a")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await peer.deliver(member_id, "i", mob_id=mob_id)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert reason.encode() in dict(refused.value.trailing_metadata())["grpc-status-details-bin"]


async def test_a_stopped_mob_knows_inputs_again_and_takes_no_new_ones(peer: Speaker) -> None:
    await peer.create("m", "a")
    await peer.deliver("a", "i")
    await peer.mobs.StopMob(mobs_pb2.StopMobRequest(mob_id="m"))
    assert (await peer.deliver("a", "i")).HasField("deduplicated")
    content = common_pb2.Content(blocks=[common_pb2.Block(text="x")])
    request = bridge_pb2.DeliverRequest(mob_id="m", member_id="a", input_id="new", content=content)
    refused = await peer.refused(peer.bridge.Deliver, request)
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "INVALID_TRANSITION")
    assert refused.details == {"from": "stopped", "to": "running", "allowed": "running"}


async def test_a_batch_is_decided_in_order_each_for_itself(peer: Speaker) -> None:
    await peer.create("m", "a", "b")

    def delivery(member_id: str, input_id: str, text: str = "hi", **more: Any) -> bridge_pb2.Delivery:
        content = common_pb2.Content(blocks=[common_pb2.Block(text=text)])
        return bridge_pb2.Delivery(member_id=member_id, input_id=input_id, content=content, **more)

    answer = await peer.bridge.DeliverBatch(
        bridge_pb2.DeliverBatchRequest(
            mob_id="m",
            deliveries=[
                delivery("a", "i"),
                delivery("a", "i"),
                delivery("a", "i", "other"),
                delivery("x", "i"),
                delivery("b", "i", fence=common_pb2.Fence(generation=7)),
                delivery("b", "i"),
            ],
        )
    )
    assert [one.WhichOneof("outcome") for one in answer.outcomes] == [
        "accepted",
        "deduplicated",
        "rejected",
        "member_not_found",
        "rejected",
        "accepted",
    ]
    assert answer.outcomes[0].accepted.canonical_input_id == answer.outcomes[1].deduplicated.canonical_input_id
    assert answer.outcomes[3].member_not_found.member_id == "x"


async def test_content_comes_back_as_it_was_given(peer: Speaker) -> None:
    await peer.create("m", "a")
    content = common_pb2.Content(
        blocks=[
            common_pb2.Block(text='é "\u2028\U0001f600 \\'),
            common_pb2.Block(value_json='{"b": 1.0,  "a": 12345678901234567890123}'),
            common_pb2.Block(image=common_pb2.Image(media_type="image/png", data=bytes(range(256)))),
        ]
    )
    await peer.bridge.Deliver(bridge_pb2.DeliverRequest(mob_id="m", member_id="a", input_id="i", content=content))
    assert (await peer.bridge.GetInput(get("i"))).input.content == content


async def test_an_input_is_found_by_either_name(peer: Speaker) -> None:
    await peer.create("m", "a")
    accepted = (await peer.deliver("a", "i")).accepted
    found = (await peer.bridge.GetInput(get("i"))).input
    assert found == (await peer.bridge.GetInput(get(accepted.canonical_input_id))).input
    assert (found.mob_id, found.member_id, found.input_id, found.cursor) == ("m", "a", "i", accepted.cursor)
    assert (found.state, found.sender) == (bridge_pb2.INPUT_STATE_QUEUED, "anonymous")
    assert found.waiting_reason == "no agent serves role lead"
    refused = await peer.refused(peer.bridge.GetInput, get("other"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "INPUT_NOT_FOUND")
    refused = await peer.refused(peer.bridge.GetInput, get("i", "x"))
    assert refused.reason == "MEMBER_NOT_FOUND"


async def test_an_input_is_followed_to_its_end(peer: Speaker) -> None:
    await peer.create("m", "a")
    await peer.deliver("a", "i")
    watch = peer.bridge.WatchInput(
        bridge_pb2.WatchInputRequest(mob_id="m", member_id="a", input_id="i"), timeout=TIMEOUT_S
    )
    assert (await watch.read()).input.waiting_reason == "no agent serves role lead"
    async with RawAgent(peer) as agent:
        run = await agent.accept_run()
        seen = [(await watch.read()).input]
        while seen[-1].state != bridge_pb2.INPUT_STATE_RUNNING:
            seen.append((await watch.read()).input)
        assert (seen[-1].run_id, seen[-1].attempt) == (run.run_id, 1)
        await agent.succeed(run, '{"n": 7}')
    last = (await watch.read()).input
    assert last.state == bridge_pb2.INPUT_STATE_CONSUMED
    assert (last.run_id, last.output_json, last.attempt) == (run.run_id, '{"n": 7}', 1)
    assert (last.usage.input_tokens, last.usage.detail_json) == (3, '{"k": 1}')
    assert last.HasField("end_time")
    assert await watch.read() is grpc.aio.EOF
    # Asked for later it is the same, read from the log.
    assert (await peer.bridge.GetInput(get("i"))).input == last
    late = peer.bridge.WatchInput(bridge_pb2.WatchInputRequest(mob_id="m", member_id="a", input_id="i"))
    assert [answer.input async for answer in late] == [last]
    assert (await peer.deliver("a", "i")).deduplicated.terminal


async def test_an_input_that_is_given_up_says_why(peer: Speaker) -> None:
    await peer.create("m", "a")
    await peer.deliver("a", "i1")
    async with RawAgent(peer) as agent:
        run = await agent.accept_run()
        await peer.deliver("a", "i2")
        await agent.fail(run, retryable=False)
        given_up = (await peer.bridge.GetInput(get("i1"))).input
        assert (given_up.state, given_up.run_id) == (bridge_pb2.INPUT_STATE_ABANDONED, run.run_id)
        assert given_up.reason
    await peer.mobs.DestroyMob(mobs_pb2.DestroyMobRequest(mob_id="m"))
    given_up = (await peer.bridge.GetInput(get("i2"))).input
    assert (given_up.state, given_up.reason) == (bridge_pb2.INPUT_STATE_ABANDONED, "destroyed")


async def test_what_an_input_waits_for_is_said_when_it_changes(peer: Speaker) -> None:
    await peer.create("m", "a")
    await peer.deliver("a", "i")
    watch = peer.bridge.WatchInput(
        bridge_pb2.WatchInputRequest(mob_id="m", member_id="a", input_id="i"), timeout=TIMEOUT_S
    )
    await watch.read()
    await peer.mobs.StopMob(mobs_pb2.StopMobRequest(mob_id="m"))
    assert (await watch.read()).input.waiting_reason == "the mob is stopped"
    await peer.mobs.DestroyMob(mobs_pb2.DestroyMobRequest(mob_id="m"))
    seen = await rest_of(watch)
    assert seen[-1].input.state == bridge_pb2.INPUT_STATE_ABANDONED


async def test_a_member_is_observed(peer: Speaker) -> None:
    await peer.create("m", "a")
    request = bridge_pb2.ObserveRequest(mob_id="m", member_id="a")
    seen = await peer.bridge.Observe(request)
    assert (seen.state, seen.accepting_inputs, seen.bridge_terminal) == (common_pb2.MEMBER_STATE_IDLE, True, False)
    async with RawAgent(peer) as agent:
        await peer.deliver("a", "i1")
        run = await agent.accept_run()
        await peer.deliver("a", "i2")
        seen = await peer.bridge.Observe(request)
        assert (seen.current_run_id, seen.inputs_running, seen.inputs_waiting) == (run.run_id, 1, 1)
        assert seen.connectivity == common_pb2.CONNECTIVITY_CONNECTED
        assert seen.HasField("observe_time")
    await peer.mobs.DestroyMob(mobs_pb2.DestroyMobRequest(mob_id="m"))
    seen = await peer.bridge.Observe(request)
    assert (seen.state, seen.accepting_inputs, seen.bridge_terminal) == (
        common_pb2.MEMBER_STATE_DESTROYED,
        False,
        True,
    )
    refused = await peer.refused(peer.bridge.Observe, bridge_pb2.ObserveRequest(mob_id="m", member_id="x"))
    assert refused.reason == "MEMBER_NOT_FOUND"
