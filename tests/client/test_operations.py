"""What the client makes of waits for operations: long ones, large ones, and ones over restarts."""

from typing import Any

import pytest
from tests.client.peer import MOB, WAIT_S, Code, Peer, refusal

import mobd
from mobd.v1 import operations_pb2 as pb

pytestmark = [pytest.mark.floor, pytest.mark.asyncio]

BUSY = refusal(Code.UNAVAILABLE, "MOB_RELOADING", "the mob is being read anew", retry_after=0.001)


def answer(ended: list[str], pending: list[str], *, more: bool = False) -> pb.WaitOperationsResponse:
    return pb.WaitOperationsResponse(
        ended=[pb.Operation(operation_id=name) for name in ended], pending_operation_ids=pending, more=more
    )


def ended_all(request: pb.WaitOperationsRequest) -> pb.WaitOperationsResponse:
    return answer(list(request.operation_ids), [])


def names(operations: Any) -> list[str]:
    return [one.operation_id for one in operations]


async def test_a_wait_goes_on_for_those_that_have_not_ended_over_every_break(peer: Peer) -> None:
    script = peer.script("WaitOperations")
    script.will(answer(["b"], ["a", "c"]), *[BUSY] * 6, answer(["c"], ["a"]), ended_all)
    async with mobd.Client(peer.target) as client:
        waited = await client.wait_operations(MOB, ["a", "b", "c", "a"], timeout=WAIT_S)
    assert (names(waited.ended), list(waited.pending_operation_ids)) == (["a", "b", "c"], [])
    assert list(script.requests[0].operation_ids) == ["a", "b", "c"]
    assert [list(one.operation_ids) for one in script.requests[1:]] == [["a", "c"]] * 7 + [["a"]]
    assert all(0 < one.timeout.ToMilliseconds() <= 20_000 for one in script.requests)


async def test_a_wait_that_is_over_says_who_has_not_ended(peer: Peer) -> None:
    script = peer.script("WaitOperations")
    script.will(answer(["b"], ["a"]))
    async with mobd.Client(peer.target) as client:
        waited = await client.wait_operations(MOB, ["a", "b"], timeout=0.0)
    assert (names(waited.ended), list(waited.pending_operation_ids)) == (["b"], ["a"])
    assert len(script.requests) == 1
    assert script.requests[0].timeout.ToMilliseconds() == 0


async def test_results_that_did_not_fit_are_asked_for_whatever_the_time(peer: Peer) -> None:
    script = peer.script("WaitOperations")
    script.will(answer(["a"], ["b", "c"], more=True), answer(["b"], ["c"]))
    async with mobd.Client(peer.target) as client:
        waited = await client.wait_operations(MOB, ["a", "b", "c"], timeout=0.0)
    assert (names(waited.ended), list(waited.pending_operation_ids)) == (["a", "b"], ["c"])


async def test_more_than_a_question_holds_are_several_questions(peer: Peer) -> None:
    script = peer.script("WaitOperations")
    script.will(ended_all)
    many = [f"op-{number}" for number in range(600)]
    async with mobd.Client(peer.target) as client:
        waited = await client.wait_operations(MOB, many, timeout=WAIT_S)
        nothing = await client.wait_operations(MOB, [], timeout=WAIT_S)
    assert names(waited.ended) == many
    assert [len(one.operation_ids) for one in script.requests] == [256, 256, 88]
    assert len(nothing.ended) == 0


async def test_a_registration_keeps_its_ids_over_every_repeat(peer: Peer) -> None:
    script = peer.script("RegisterOperation")
    script.will(*[BUSY] * 6, pb.RegisterOperationResponse(operation=pb.Operation(operation_id="op")))
    async with mobd.Client(peer.target) as client:
        await client.register_operation(MOB, "a tool", timeout=WAIT_S)
    assert len({(one.operation_id, one.request_id) for one in script.requests}) == 1
    assert script.requests[0].operation_id
    assert not script.requests[0].provisioning


async def test_what_is_not_legal_is_raised_as_what_it_is(peer: Peer) -> None:
    script = peer.script("MarkPeerReady")
    script.will(refusal(Code.FAILED_PRECONDITION, "PEER_NOT_EXPECTED", "no peer"))
    async with mobd.Client(peer.target) as client:
        with pytest.raises(mobd.PeerNotExpected):
            await client.mark_peer_ready(MOB, "op", {"port": 1})
    assert script.requests[0].peer_handle_json == '{"port":1}'
