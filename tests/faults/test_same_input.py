"""One input, delivered a thousand times over many connections, with a kill among the answers."""

import asyncio
from contextlib import AsyncExitStack

import grpc
import pytest
from tests.faults.conftest import World
from tests.faults.ledger import check_calls, check_consumed_once, check_gap_free, check_order, check_runs, of_kind
from tests.support.peers import CALL_S, Peer, answered, canonical
from tests.support.processes import say
from tests.support.served import Served

from mobd.v1 import bridge_pb2

CALLS = 1_000
CONNECTIONS = 16
UNANSWERED = 100


class Volley:
    """One and the same call, made again and again; the first answer kills the server."""

    def __init__(self, served: Served, request: bridge_pb2.DeliverRequest) -> None:
        self.request = request
        self.answers: list[bridge_pb2.DeliverResponse] = []
        self.unanswered_at_kill = 0
        self._served = served

    async def deliver(self, peer: Peer) -> None:
        await answered(lambda: self._once(peer))

    async def _once(self, peer: Peer) -> None:
        self.answers.append(await peer.bridge.Deliver(self.request, wait_for_ready=True, timeout=CALL_S))
        if not self._served.kills:
            self._served.kill9()
            self.unanswered_at_kill = CALLS - len(self.answers)


@pytest.mark.asyncio
async def test_one_input_delivered_a_thousand_times_around_a_kill_is_handled_once(world: World) -> None:
    served = await world.serve()
    admin = await world.peer(served)
    await admin.create(["ada"])
    agent = world.agent(served, "agent")
    volley = Volley(served, admin.delivery("ada", "the-one", n=1))

    async with AsyncExitStack() as stack:
        peers = [await world.peer(served) for _ in range(CONNECTIONS)]
        await asyncio.gather(*(peer.channel.channel_ready() for peer in peers))
        calls = [asyncio.ensure_future(volley.deliver(peers[at % CONNECTIONS])) for at in range(CALLS)]
        stack.callback(lambda: [call.cancel() for call in calls])
        while not served.kills:
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        await served.restart()
        await asyncio.gather(*calls)

    say(f"unanswered at the kill: {volley.unanswered_at_kill} of {CALLS}")
    assert volley.unanswered_at_kill >= UNANSWERED
    ended = await admin.end_of("ada", "the-one")
    log = await admin.log()
    assert len(volley.answers) == CALLS
    assert {canonical(answer) for answer in volley.answers} == {ended.canonical_input_id}
    kinds = [answer.WhichOneof("outcome") for answer in volley.answers]
    assert kinds.count("accepted") <= 1, "one acceptance, and every other answer says that it is a duplicate"
    again = await admin.bridge.Deliver(volley.request, timeout=CALL_S)
    assert again.deduplicated.canonical_input_id == ended.canonical_input_id
    assert again.deduplicated.terminal

    assert len(of_kind(log, "input_accepted")) == 1
    assert [event.run_settled.outcomes[0].outcome for event in of_kind(log, "run_settled")] == ["consumed"]
    assert [call.inputs[0][0] for call in agent.calls()] == ["the-one"]
    check_gap_free(log)
    check_consumed_once(log, {("ada", "the-one"): ended.canonical_input_id})
    check_runs(log)
    check_order(log)
    check_calls(log, agent.calls())


@pytest.mark.asyncio
async def test_the_same_id_with_other_content_is_refused_after_a_kill_as_before(world: World) -> None:
    served = await world.serve()
    peer = await world.peer(served)
    await peer.create(["ada"])
    name = await peer.deliver("ada", "the-one", n=1)
    other = peer.delivery("ada", "the-one", n=2)
    before = await peer.bridge.Deliver(other, timeout=CALL_S)
    served.kill9()
    with pytest.raises(grpc.aio.AioRpcError):
        await peer.bridge.Deliver(other, timeout=CALL_S)
    await served.restart()
    after = await answered(lambda: peer.bridge.Deliver(other, wait_for_ready=True, timeout=CALL_S))
    assert before.rejected.cause == bridge_pb2.REJECT_CAUSE_CONTENT_CONFLICT
    assert before.rejected.canonical_input_id == name
    assert after == before
