"""BridgeService: what an input may be, which take the place of others, and the list of them."""

import json
from typing import Any

import grpc
import pytest
from tests.rpc.speaking import TIMEOUT_S, RawAgent, Speaker, rest_of

from mobd.v1 import bridge_pb2, common_pb2, events_pb2, members_pb2, mobs_pb2

pytestmark = pytest.mark.asyncio

QUEUE, STEER = common_pb2.HANDLING_MODE_QUEUE, common_pb2.HANDLING_MODE_STEER


def response(status: str) -> bridge_pb2.PeerResponse:
    value = bridge_pb2.PeerResponseStatus.Value(f"PEER_RESPONSE_STATUS_{status}")
    return bridge_pb2.PeerResponse(request_id="q", status=value)


async def get(peer: Speaker, input_id: str, member_id: str = "a") -> bridge_pb2.Input:
    request = bridge_pb2.GetInputRequest(mob_id="m", member_id=member_id, input_id=input_id)
    found = (await peer.bridge.GetInput(request)).input
    assert isinstance(found, bridge_pb2.Input)
    return found


async def listed(peer: Speaker, **more: Any) -> list[tuple[str, str]]:
    """Return member and input_id of all inputs that a list shows, page by page."""
    request = bridge_pb2.ListInputsRequest(mob_id="m", **more)
    found = []
    while True:
        answer = await peer.bridge.ListInputs(request, timeout=TIMEOUT_S)
        assert not request.page_size or len(answer.inputs) <= request.page_size
        found += [(one.member_id, one.input_id) for one in answer.inputs]
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


@pytest.mark.parametrize(
    ("form", "kind", "mode", "about"),
    [
        ({}, "peer_message", QUEUE, None),
        (
            {"peer_request": bridge_pb2.PeerRequest(request_id="q", intent="review.start")},
            "peer_request",
            QUEUE,
            {"request_id": "q", "intent": "review.start"},
        ),
        (
            {"external_event": bridge_pb2.ExternalEvent(event_type="build")},
            "external_event",
            QUEUE,
            {"event_type": "build"},
        ),
        *(
            ({"peer_response": response(status)}, kind, mode, {"request_id": "q", "status": status.lower()})
            for kind, mode, statuses in (
                ("peer_response_progress", STEER, ("ACCEPTED", "IN_PROGRESS", "PARTIAL_RESULT")),
                ("peer_response_terminal", QUEUE, ("COMPLETED", "FAILED", "CANCELLED")),
            )
            for status in statuses
        ),
    ],
)
async def test_an_input_is_what_its_form_says(
    peer: Speaker, form: dict[str, Any], kind: str, mode: int, about: object
) -> None:
    await peer.create("m", "a")
    await peer.deliver("a", "i", correlation_id="c", supersession_key="s", **form)
    found = await get(peer, "i")
    assert (found.kind, found.handling_mode, found.correlation_id, found.supersession_key) == (kind, mode, "c", "s")
    assert (json.loads(found.about_json) if found.about_json else None) == about
    assert found.silent == (kind == "peer_response_progress")
    log = await peer.events.PollEvents(
        events_pb2.PollEventsRequest(
            mob_id="m",
            start=events_pb2.EventStart(after_cursor=0),
            filter=events_pb2.EventFilter(kinds=["input_accepted"]),
        )
    )
    told = log.events[0].input_accepted
    assert (told.input_kind, told.handling_mode, told.correlation_id) == (kind, mode, "c")
    assert (told.about_json, told.silent) == (found.about_json, found.silent)


async def test_an_input_that_steers_or_wakes_nobody_says_so(peer: Speaker) -> None:
    await peer.create("m", "a")
    await peer.deliver("a", "steers", handling_mode=STEER)
    await peer.deliver("a", "silent", wake=False)
    await peer.deliver("a", "wakes", wake=True)
    shown = [await get(peer, name) for name in ("steers", "silent", "wakes")]
    assert [(one.handling_mode, one.silent) for one in shown] == [(STEER, False), (QUEUE, True), (QUEUE, False)]
    seen = await peer.bridge.Observe(bridge_pb2.ObserveRequest(mob_id="m", member_id="a"))
    assert (seen.inputs_waiting, seen.inputs_steering) == (3, 1)


async def test_a_silent_intent_starts_no_run_and_is_carried_along(peer: Speaker) -> None:
    definition = mobs_pb2.DefinitionDocument(
        json='{"profiles": {"lead": {"instructions": "merge", "silent_intents": ["ping"]}}}'
    )
    await peer.mobs.CreateMob(mobs_pb2.CreateMobRequest(mob_id="m", definition=definition))
    await peer.members.SpawnMember(
        members_pb2.SpawnMemberRequest(mob_id="m", spec=members_pb2.MemberSpec(member_id="a", role="lead"))
    )
    async with RawAgent(peer) as agent:
        await peer.deliver("a", "i1", peer_request=bridge_pb2.PeerRequest(request_id="q", intent="ping"))
        assert (await get(peer, "i1")).silent
        await peer.deliver("a", "i2")
        run = await agent.accept_run()
        assert [one.input_id for one in run.inputs] == ["i1", "i2"]
        assert run.inputs[0].kind == "peer_request"


async def test_progress_takes_no_handling_mode(peer: Speaker) -> None:
    await peer.create("m", "a")
    answer = await peer.deliver("a", "i", peer_response=response("IN_PROGRESS"), handling_mode=STEER)
    assert answer.rejected.cause == bridge_pb2.REJECT_CAUSE_HANDLING_MODE_INVALID
    assert "peer_response_progress" in answer.rejected.reason
    assert (await peer.deliver("a", "i", peer_response=response("COMPLETED"), handling_mode=STEER)).HasField("accepted")


@pytest.mark.parametrize(
    ("form", "state"),
    [
        ({}, bridge_pb2.INPUT_STATE_SUPERSEDED),
        ({"peer_response": response("ACCEPTED")}, bridge_pb2.INPUT_STATE_COALESCED),
    ],
)
async def test_a_newer_input_takes_the_place_of_a_waiting_one(peer: Speaker, form: dict[str, Any], state: int) -> None:
    await peer.create("m", "a")
    await peer.deliver("a", "old", supersession_key="s", **form)
    watch = peer.bridge.WatchInput(
        bridge_pb2.WatchInputRequest(mob_id="m", member_id="a", input_id="old"), timeout=TIMEOUT_S
    )
    assert (await watch.read()).input.state == bridge_pb2.INPUT_STATE_QUEUED
    new = (await peer.deliver("a", "new", supersession_key="s", **form)).accepted.canonical_input_id
    last = (await rest_of(watch))[-1].input
    assert (last.state, last.replaced_by, last.HasField("end_time")) == (state, new, True)
    # Asked for later it is the same, read from the log.
    assert await get(peer, "old") == last
    assert (await peer.deliver("a", "old", supersession_key="s", **form)).deduplicated.terminal
    log = await peer.events.PollEvents(
        events_pb2.PollEventsRequest(mob_id="m", start=events_pb2.EventStart(after_cursor=0))
    )
    (told,) = [event for event in log.events if event.HasField("input_replaced")]
    assert told.kind == ("input_coalesced" if form else "input_superseded")
    assert (told.input_replaced.canonical_input_id, told.input_replaced.replaced_by) == (last.canonical_input_id, new)


@pytest.mark.parametrize("state", ["SUPERSEDED", "ABANDONED"])
async def test_an_input_that_ends_while_it_waits_keeps_the_attempts_that_failed(peer: Speaker, state: str) -> None:
    await peer.create("m", "a")
    await peer.deliver("a", "old", supersession_key="s")
    watch = peer.bridge.WatchInput(
        bridge_pb2.WatchInputRequest(mob_id="m", member_id="a", input_id="old"), timeout=TIMEOUT_S
    )
    async with RawAgent(peer) as agent:
        await agent.fail(await agent.accept_run(), retryable=True)
        while (seen := (await watch.read()).input).state != bridge_pb2.INPUT_STATE_QUEUED or not seen.attempt:
            pass
        if state == "SUPERSEDED":
            await peer.deliver("a", "new", supersession_key="s")
        else:
            await peer.members.RespawnMember(members_pb2.RespawnMemberRequest(mob_id="m", member_id="a"))
    last = (await rest_of(watch))[-1].input
    assert (last.state, last.attempt) == (bridge_pb2.InputState.Value(f"INPUT_STATE_{state}"), 1)
    assert await get(peer, "old") == last


async def test_inputs_are_listed_by_member_and_state(peer: Speaker) -> None:
    await peer.create("m", "a", "b")
    await peer.deliver("b", "b1")
    for name in ("a1", "a2", "a3"):
        await peer.deliver("a", name, supersession_key="s" if name != "a3" else "")
    everything = [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1")]
    for size in (0, 1, 2, 3, 4):
        assert await listed(peer, page_size=size) == everything
    assert await listed(peer, member_id="b") == [("b", "b1")]
    assert await listed(peer, state=bridge_pb2.INPUT_STATE_QUEUED, page_size=1) == everything[1:]
    assert await listed(peer, state=bridge_pb2.INPUT_STATE_SUPERSEDED) == [("a", "a1")]
    assert await listed(peer, state=bridge_pb2.INPUT_STATE_RUNNING) == []
    refused = await peer.refused(peer.bridge.ListInputs, bridge_pb2.ListInputsRequest(mob_id="m", member_id="x"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "MEMBER_NOT_FOUND")
    page = await peer.bridge.ListInputs(bridge_pb2.ListInputsRequest(mob_id="m", page_size=1))
    refused = await peer.refused(
        peer.bridge.ListInputs, bridge_pb2.ListInputsRequest(mob_id="m", member_id="a", page_token=page.next_page_token)
    )
    assert list(refused.fields) == ["page_token"]


async def test_a_page_of_inputs_is_what_each_of_them_shows_alone(peer: Speaker) -> None:
    await peer.create("m", "a")
    async with RawAgent(peer) as agent:
        await peer.deliver("a", "consumed")
        await agent.succeed(await agent.accept_run())
        await peer.deliver("a", "running")
        run = await agent.accept_run()
        await peer.deliver("a", "queued")
        page = await peer.bridge.ListInputs(bridge_pb2.ListInputsRequest(mob_id="m"))
        assert [one.input_id for one in page.inputs] == ["consumed", "running", "queued"]
        assert list(page.inputs) == [await get(peer, one.input_id) for one in page.inputs]
        assert await listed(peer, state=bridge_pb2.INPUT_STATE_RUNNING) == [("a", "running")]
        await agent.succeed(run)


async def test_a_page_of_inputs_with_much_content_is_short(peer: Speaker) -> None:
    await peer.create("m", "a")
    for number in range(12):
        await peer.deliver("a", f"i{number:02}", "x" * 250_000)
    page = await peer.bridge.ListInputs(bridge_pb2.ListInputsRequest(mob_id="m"))
    assert 1 < len(page.inputs) < 12
    assert await listed(peer) == [("a", f"i{number:02}") for number in range(12)]


async def test_inputs_of_a_member_that_left_stay_readable_and_known(peer: Speaker) -> None:
    await peer.create("m", "a")
    async with RawAgent(peer) as agent:
        await peer.deliver("a", "consumed")
        await agent.succeed(await agent.accept_run(), '"done"')
    await peer.members.RetireMember(members_pb2.RetireMemberRequest(mob_id="m", member_id="a"))
    refused = await peer.refused(peer.members.GetMember, members_pb2.GetMemberRequest(mob_id="m", member_id="a"))
    assert refused.reason == "MEMBER_NOT_FOUND"
    assert (await get(peer, "consumed")).output_json == '"done"'
    watch = peer.bridge.WatchInput(bridge_pb2.WatchInputRequest(mob_id="m", member_id="a", input_id="consumed"))
    assert [answer.input.state for answer in await rest_of(watch)] == [bridge_pb2.INPUT_STATE_CONSUMED]
    assert await listed(peer) == [("a", "consumed")]
    assert (await peer.deliver("a", "consumed")).deduplicated.terminal
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await peer.deliver("a", "new")
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
