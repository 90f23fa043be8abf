"""Calls repeat themselves with the same ids; what can't be repeated is raised as what it is."""

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # it has no stubs
from tests.client.peer import MOB, WAIT_S, Code, Peer, Refusal, Said, refusal

import mobd
from mobd import calls
from mobd.v1 import bridge_pb2, common_pb2, mobs_pb2

pytestmark = [pytest.mark.floor, pytest.mark.asyncio]

QUEUED = bridge_pb2.INPUT_STATE_QUEUED
RUNNING = bridge_pb2.INPUT_STATE_RUNNING
CONSUMED = bridge_pb2.INPUT_STATE_CONSUMED
ABANDONED = bridge_pb2.INPUT_STATE_ABANDONED
BUSY = refusal(Code.UNAVAILABLE, "MOB_RELOADING", "the mob is being read anew", retry_after=0.001)


def accepted(request: bridge_pb2.DeliverRequest) -> bridge_pb2.DeliverResponse:
    canonical = f"in-{request.input_id}"
    return bridge_pb2.DeliverResponse(
        accepted=bridge_pb2.DeliveryAccepted(input_id=request.input_id, canonical_input_id=canonical, cursor=9)
    )


def state(**fields: Any) -> bridge_pb2.WatchInputResponse:
    return bridge_pb2.WatchInputResponse(input=bridge_pb2.Input(canonical_input_id="in-1", member_id="lead", **fields))


async def test_a_delivery_keeps_its_id_over_every_repeat(peer: Peer) -> None:
    # More refusals than gRPC repeats by itself.
    script = peer.script("Deliver")
    script.will(*[BUSY] * 9, accepted)
    async with mobd.Client(peer.target) as client:
        delivery = await client.deliver(MOB, "lead", "hello", timeout=WAIT_S)
    ids = {one.input_id for one in script.requests}
    assert len(script.requests) == 10
    assert ids == {delivery.input_id}
    assert (delivery.canonical_input_id, delivery.cursor, delivery.duplicate) == (f"in-{ids.pop()}", 9, False)


async def test_a_mutation_keeps_its_request_id_over_every_repeat(peer: Peer) -> None:
    script = peer.script("CreateMob")
    script.will(*[BUSY] * 6, mobs_pb2.CreateMobResponse(mob=mobs_pb2.Mob(mob_id=MOB)))
    async with mobd.Client(peer.target) as client:
        await client.create_mob(MOB, {"profiles": {}}, timeout=WAIT_S)
    assert len({one.request_id for one in script.requests}) == 1
    assert script.requests[0].request_id


async def test_a_call_outlives_a_restart_of_the_server(peer: Peer) -> None:
    script = peer.script("Deliver")
    entered = asyncio.Event()

    def hang(request: Any) -> Any:
        entered.set()
        return BUSY

    script.will(hang, *[BUSY] * 2, accepted)
    async with mobd.Client(peer.target) as client:
        call = asyncio.create_task(client.deliver(MOB, "lead", "hello", timeout=WAIT_S))
        await asyncio.wait_for(entered.wait(), WAIT_S)
        await peer.stop()
        await peer.start()
        delivery = await call
    assert {one.input_id for one in script.requests} == {delivery.input_id}


async def test_what_is_still_refused_at_the_end_is_raised(peer: Peer) -> None:
    peer.script("Deliver").will(refusal(Code.UNAVAILABLE, "JOURNAL_DOWN", "the store does not answer", retry_after=60))
    async with mobd.Client(peer.target) as client:
        with pytest.raises(mobd.JournalDown, match="the store does not answer") as down:
            await client.deliver(MOB, "lead", "hello", timeout=WAIT_S)
    assert (down.value.retry_after, down.value.code) == (60, Code.UNAVAILABLE)


async def test_no_server_is_said_so(peer: Peer) -> None:
    await peer.stop()
    async with mobd.Client(peer.target) as client:
        with pytest.raises(mobd.DeadlineExceeded, match=f"no answer from {peer.target}") as late:
            await client.get_mob(MOB, timeout=0.05)
    await peer.start()
    assert isinstance(late.value, TimeoutError)


async def test_a_refusal_is_raised_at_once_as_its_reason(peer: Peer) -> None:
    script = peer.script("GetMob")
    script.will(refusal(Code.FAILED_PRECONDITION, "INVALID_TRANSITION", "not now", to="running", allowed="stopped"))
    async with mobd.Client(peer.target) as client:
        with pytest.raises(mobd.InvalidTransition, match="not now") as refused:
            await client.get_mob(MOB)
    assert refused.value.details == {"to": "running", "allowed": "stopped"}
    assert isinstance(refused.value, mobd.FailedPrecondition)
    assert len(script.requests) == 1


async def test_broken_rules_are_listed(peer: Peer) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="profiles.x", description="unknown")
    # The oldest googleapis-common-protos that will do has no name for the rule.
    code = "KEY" if hasattr(violation, "reason") else ""
    if code:
        violation.reason = code
    info = error_details_pb2.ErrorInfo(reason="DEFINITION_INVALID", domain="mobd")
    bad = error_details_pb2.BadRequest(field_violations=[violation])
    peer.script("CreateMob").will(Refusal(Code.INVALID_ARGUMENT, "profiles.x: unknown", info, bad))
    async with mobd.Client(peer.target) as client:
        with pytest.raises(mobd.DefinitionInvalid) as invalid:
            await client.create_mob(MOB, "profiles: {}\n")
    assert invalid.value.violations == (mobd.Violation("profiles.x", "unknown", code),)
    assert isinstance(invalid.value, mobd.FieldInvalid)


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (refusal(Code.NOT_FOUND, "A_NEW_ONE_NOT_FOUND"), mobd.NotFound),
        (refusal(Code.FAILED_PRECONDITION, "A_NEW_ONE"), mobd.FailedPrecondition),
        (Refusal(Code.PERMISSION_DENIED), mobd.PermissionDenied),
        (Refusal(Code.INTERNAL), mobd.Internal),
        (Refusal(Code.ABORTED), mobd.Error),
    ],
)
async def test_what_this_version_does_not_know_is_raised_as_its_status(
    peer: Peer, end: Refusal, kind: type[mobd.Error]
) -> None:
    peer.script("GetMob").will(end)
    async with mobd.Client(peer.target) as client:
        with pytest.raises(mobd.Error) as raised:
            await client.get_mob(MOB)
    assert type(raised.value) is kind


async def test_ensure_mob_returns_what_is_there(peer: Peer) -> None:
    peer.script("CreateMob").will(refusal(Code.ALREADY_EXISTS, "MOB_EXISTS"))
    peer.script("GetMob").will(mobs_pb2.GetMobResponse(mob=mobs_pb2.Mob(mob_id=MOB, head=3)))
    async with mobd.Client(peer.target) as client:
        assert (await client.ensure_mob(MOB, "profiles: {}\n")).head == 3


async def test_lists_go_on_over_pages(peer: Peer) -> None:
    script = peer.script("ListMobs")
    script.will(
        mobs_pb2.ListMobsResponse(mobs=[mobs_pb2.MobSummary(mob_id="a")], next_page_token="t"),
        mobs_pb2.ListMobsResponse(),
    )
    async with mobd.Client(peer.target) as client:
        assert [one.mob_id async for one in client.list_mobs()] == ["a"]
        script.will(mobs_pb2.ListMobsResponse(mobs=[mobs_pb2.MobSummary(mob_id="b")]))
    assert [one.page_token for one in script.requests] == ["", "t"]


async def test_definitions_are_sent_as_they_are_written(peer: Peer, tmp_path: Path) -> None:
    script = peer.script("CreateMob")
    script.will(mobs_pb2.CreateMobResponse())
    (tmp_path / "crew.toml").write_text("id = 'crew'")
    (tmp_path / "crew.yaml").write_text("id: crew")
    async with mobd.Client(peer.target) as client:
        for one in ({"id": "crew"}, '{"id": 1}', "id: crew\n", tmp_path / "crew.toml", str(tmp_path / "crew.yaml")):
            await client.create_mob(MOB, one)
    documents = [one.definition for one in script.requests]
    assert [(one.WhichOneof("document"), getattr(one, one.WhichOneof("document"))) for one in documents] == [
        ("json", '{"id":"crew"}'),
        ("json", '{"id": 1}'),
        ("yaml", "id: crew\n"),
        ("toml", "id = 'crew'"),
        ("yaml", "id: crew"),
    ]


async def test_content_is_what_the_value_is(peer: Peer) -> None:
    script = peer.script("Deliver")
    script.will(accepted)
    gif = mobd.Image(b"GIF89a")
    async with mobd.Client(peer.target) as client:
        for one in ("text", {"a": [1]}, [1, 2], None, gif, mobd.blocks("a", 1), common_pb2.Content()):
            await client.deliver(MOB, "lead", one)
        with pytest.raises(TypeError, match=r"mobd\.Image"):
            await client.deliver(MOB, "lead", b"raw")
        with pytest.raises(ValueError, match="not JSON serializable"):
            await client.deliver(MOB, "lead", {"x": object()})
    block = common_pb2.Block
    assert [list(one.content.blocks) for one in script.requests] == [
        [block(text="text")],
        [block(value_json='{"a":[1]}')],
        [block(value_json="[1,2]")],
        [block(value_json="null")],
        [block(image=common_pb2.Image(media_type="image/gif", data=b"GIF89a"))],
        [block(text="a"), block(value_json="1")],
        [],
    ]


async def test_a_rejected_delivery_is_raised_as_its_cause(peer: Peer) -> None:
    full = bridge_pb2.DeliveryRejected(cause=bridge_pb2.REJECT_CAUSE_QUEUE_FULL, reason="1000 inputs wait")
    full.retry_after.FromMilliseconds(250)
    conflict = bridge_pb2.DeliveryRejected(
        cause=bridge_pb2.REJECT_CAUSE_CONTENT_CONFLICT, reason="other content", canonical_input_id="in-7"
    )
    stale = bridge_pb2.DeliveryRejected(cause=bridge_pb2.REJECT_CAUSE_STALE_FENCE, reason="generation 2")
    stale.current.generation = 2
    peer.script("Deliver").will(*(bridge_pb2.DeliverResponse(rejected=one) for one in (full, conflict, stale)))
    async with mobd.Client(peer.target) as client:
        with pytest.raises(mobd.QueueFull, match="1000 inputs wait") as queue_full:
            await client.deliver(MOB, "lead", "a")
        with pytest.raises(mobd.ContentConflict) as content_conflict:
            await client.deliver(MOB, "lead", "a")
        with pytest.raises(mobd.StaleFence) as stale_fence:
            await client.deliver(MOB, "lead", "a")
    assert queue_full.value.retry_after == 0.25
    assert content_conflict.value.canonical_input_id == "in-7"
    assert isinstance(stale_fence.value, mobd.DeliveryRejected)
    assert stale_fence.value.current == mobd.Fence(generation=2)


async def test_a_batch_returns_what_became_of_each(peer: Peer) -> None:
    outcome = bridge_pb2.DeliveryOutcome
    script = peer.script("DeliverBatch")
    script.will(
        bridge_pb2.DeliverBatchResponse(
            outcomes=[
                outcome(accepted=bridge_pb2.DeliveryAccepted(canonical_input_id="in-1")),
                outcome(deduplicated=bridge_pb2.DeliveryDeduplicated(canonical_input_id="in-2", terminal=True)),
                outcome(rejected=bridge_pb2.DeliveryRejected(cause=bridge_pb2.REJECT_CAUSE_NOT_READY, reason="gone")),
                outcome(member_not_found=bridge_pb2.MemberNotFound(member_id="x")),
            ]
        )
    )
    drafts = [mobd.Draft("lead", "a"), mobd.Draft("lead", "b", "key-2"), mobd.Draft("w", 1), mobd.Draft("x", 2)]
    async with mobd.Client(peer.target) as client:
        first, second, third, fourth = await client.deliver_batch(MOB, drafts)
    sent = script.requests[0].deliveries
    assert first == mobd.Delivery(sent[0].input_id, "in-1")
    assert second == mobd.Delivery("key-2", "in-2", duplicate=True, terminal=True)
    assert isinstance(third, mobd.NotReady)
    assert isinstance(fourth, mobd.MemberNotFound)


async def test_ask_returns_the_output_over_a_break(peer: Peer) -> None:
    peer.script("Deliver").will(accepted)
    watch = peer.script("WatchInput")
    watch.will([state(state=QUEUED), BUSY], [state(state=QUEUED), state(state=CONSUMED, output_json='{"n": 1}')])
    async with mobd.Client(peer.target) as client:
        assert await client.ask(MOB, "lead", "how many?", timeout=WAIT_S) == {"n": 1}
    assert len({one.input_id for one in (*peer.script("Deliver").requests, *watch.requests)}) == 1


async def test_watch_input_says_nothing_twice(peer: Peer) -> None:
    watch = peer.script("WatchInput")
    watch.will(
        [state(state=QUEUED), state(state=RUNNING), BUSY],
        [state(state=RUNNING)],
        [state(state=RUNNING), state(state=CONSUMED)],
    )
    async with mobd.Client(peer.target) as client:
        states = [one.state async for one in client.watch_input(MOB, "lead", "key")]
    assert states == [QUEUED, RUNNING, CONSUMED]


async def test_ask_raises_why_an_input_was_given_up(peer: Peer) -> None:
    peer.script("Deliver").will(accepted)
    peer.script("WatchInput").will([state(state=ABANDONED, reason="max_attempts_exhausted", input_id="key")])
    async with mobd.Client(peer.target) as client:
        with pytest.raises(mobd.InputAbandoned, match="max_attempts_exhausted") as abandoned:
            await client.ask(MOB, "lead", "x", input_id="key")
    assert abandoned.value.input.input_id == "key"


async def test_an_ask_that_takes_too_long_says_what_it_waits_for_and_how_to_join_it(peer: Peer) -> None:
    peer.script("Deliver").will(accepted)
    waits = state(state=QUEUED, waiting_reason="no agent serves role analyst")
    peer.script("WatchInput").will([waits, asyncio.Event()])
    async with mobd.Client(peer.target) as client:
        with pytest.raises(mobd.AskTimeout) as late:
            await client.ask(MOB, "lead", "x", input_id="key-1", timeout=1)
    assert "no agent serves role analyst" in str(late.value)
    assert "input_id='key-1' joins this input" in str(late.value)
    assert (late.value.input_id, late.value.waiting_reason) == ("key-1", "no agent serves role analyst")
    assert isinstance(late.value, TimeoutError)


async def test_an_ask_that_nobody_acknowledged_says_so(peer: Peer) -> None:
    peer.script("Deliver").will(refusal(Code.UNAVAILABLE, "JOURNAL_DOWN", "down", retry_after=60))
    async with mobd.Client(peer.target) as client:
        with pytest.raises(mobd.AskTimeout, match="has not said that it holds it"):
            await client.ask(MOB, "lead", "x", timeout=1)


async def test_the_service_config_names_methods_that_exist(peer: Peer, said: Said) -> None:
    from google.protobuf import descriptor_pool  # noqa: PLC0415 not with the oldest client

    entries = json.loads(calls.service_config())["methodConfig"]
    for name in [name for entry in entries for name in entry["name"]]:
        service = descriptor_pool.Default().FindServiceByName(name["service"])
        assert "method" not in name or name["method"] in service.methods_by_name
    assert all(entry["waitForReady"] for entry in entries)
    retries = [entry["retryPolicy"] for entry in entries if "retryPolicy" in entry]
    assert all(one["retryableStatusCodes"] == ["UNAVAILABLE"] and one["maxAttempts"] == 4 for one in retries)
    assert grpc.StatusCode.UNAVAILABLE.name == "UNAVAILABLE"


async def test_the_target_comes_from_the_argument_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOBD_TARGET", raising=False)
    assert mobd.Client().target == "localhost:7780"
    monkeypatch.setenv("MOBD_TARGET", "there:1")
    assert mobd.Client().target == "there:1"
    assert mobd.Client("here:2").target == "here:2"
