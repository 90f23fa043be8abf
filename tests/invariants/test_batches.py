"""Invariant 6 of the runtime and those beside the twenty: lanes, steering, silent intents and supersession, over kills.

Every table of the policy and every cut of a batch is tried in tests/machines; here is what a client and an agent see.
"""

import asyncio
from collections.abc import Iterable

import pytest
from tests.faults.conftest import World
from tests.faults.ledger import check_gap_free, check_runs, of_kind
from tests.invariants.scripted import COMMITTED, REQUEUED
from tests.invariants.stage import ATTACHED, CONSUMED, QUEUED, STEER, staged
from tests.support.peers import CALL_S, content

from mobd.v1 import agents_pb2, bridge_pb2, common_pb2

pytestmark = pytest.mark.asyncio

SUPERSEDED = bridge_pb2.INPUT_STATE_SUPERSEDED


def texts(inputs: Iterable[agents_pb2.RunInput]) -> list[str]:
    return [one.content.blocks[0].text for one in inputs]


async def test_6_a_batch_is_a_prefix_of_one_lane_the_steer_lane_first_and_its_one_prompt_last(world: World) -> None:
    """What waits when the agent comes is cut the same way by the server that accepted it and by its successor."""
    async with staged(world, ()) as stage:
        say = [common_pb2.Content(blocks=[common_pb2.Block(text=one)]) for one in "abcdefg"]
        await stage.spawn("ada", initial=say[0])
        for at, one in enumerate(say[1:4]):
            await stage.deliver("ada", f"message-{at}", content=one)
        ended = bridge_pb2.PeerResponse(request_id="r", status=bridge_pb2.PEER_RESPONSE_STATUS_COMPLETED)
        await stage.deliver("ada", "terminal", content=say[4], peer_response=ended)
        for at, one in enumerate(say[5:]):
            await stage.deliver("ada", f"steer-{at}", content=one, handling_mode=STEER)
        agent = await stage.agent()
        batches = []
        for at in range(4):
            run = await agent.holds("ada")
            batches.append((run.boundary, run.intent, "".join(texts(run.inputs)), {one.kind for one in run.inputs}))
            if at == 1:
                await stage.crash()
                await agent.attach()
            assert await agent.settle(run) == COMMITTED
        assert batches == [
            ("run_checkpoint", "none", "fg", {"peer_message"}),
            ("run_start", "none", "a", {"prompt"}),
            ("run_start", "none", "bcd", {"peer_message"}),
            ("run_start", "append_context_and_run", "e", {"peer_response_terminal"}),
        ]
        assert (await stage.observe("ada")).state == ATTACHED
        log = await stage.log()
        check_gap_free(log)
        check_runs(log)


async def test_a_steered_input_is_applied_in_its_run_or_runs_afterwards_and_never_both(world: World) -> None:
    async with staged(world) as stage:
        agent = await stage.agent(steer=True)
        await stage.deliver("ada", "base")
        run = await agent.run()
        names = [await stage.deliver("ada", one, handling_mode=STEER) for one in ("taken", "ignored")]
        for one in names:
            steer = await agent.next("steer_run", run_id=run.run_id)
            assert [each.canonical_input_id for each in steer.inputs] == [one]
        await stage.crash()
        await agent.attach()
        again = await agent.next("steer_run", run_id=run.run_id)
        assert [each.canonical_input_id for each in again.inputs] == names
        # The result is stored, the agent is not told, and the server dies: what was taken in stays taken in.
        async with stage.held():
            await agent.result(run, steered=names[:1])
            await stage.decided("ada")
            await agent.cut()
        await stage.event("run_settled", "ada")
        await stage.crash()
        taken, ignored = await stage.input("ada", "taken"), await stage.input("ada", "ignored")
        assert (taken.state, taken.boundary_sequence, taken.run_id) == (CONSUMED, 1, run.run_id)
        assert ignored.state != CONSUMED
        settled = await stage.run_of(run.run_id)
        assert [list(one.contributing_input_ids) for one in settled.steered_receipts] == [names[:1]]
        assert [one.sequence for one in settled.steered_receipts] == [1]

        await agent.attach()
        after = await agent.holds("ada") if run.run_id not in agent.held else await agent.run()
        assert [(one.canonical_input_id, one.attempt) for one in after.inputs] == [(names[1], 1)]
        # A handler that fails without having looked gives what was steered back as it was.
        late = await stage.deliver("ada", "late", handling_mode=STEER)
        assert (await agent.next("steer_run", run_id=after.run_id)).inputs[0].canonical_input_id == late
        assert await agent.fail(after) == REQUEUED
        last = await agent.run()
        assert [(one.canonical_input_id, one.attempt) for one in last.inputs] == [(late, 1)]
        assert await agent.settle(last) == COMMITTED
        retried = await agent.run()
        assert [(one.canonical_input_id, one.attempt) for one in retried.inputs] == [(names[1], 2)]
        assert await agent.settle(retried) == COMMITTED
        log = await stage.log()
        consumed = [
            one.canonical_input_id
            for event in of_kind(log, "run_settled")
            for one in event.run_settled.outcomes
            if one.outcome == "consumed"
        ]
        assert sorted(consumed) == sorted(set(consumed))
        assert set(consumed) >= {*names, late}
        check_runs(log)


async def test_a_silent_intent_never_starts_a_run_not_even_after_a_kill(alone: World) -> None:
    """That it is silent is stored with the input: no store can tell it from another fact."""
    async with staged(alone, profile={"silent_intents": ["fyi"]}) as stage:
        agent = await stage.agent()
        await stage.event("executor_confirmed", "ada")
        request = bridge_pb2.PeerRequest(request_id="r", intent="fyi")
        await stage.deliver("ada", "silent", peer_request=request)
        await stage.crash()
        await agent.attach()
        await agent.beat()
        assert not agent.heard("start_run")
        found = await stage.input("ada", "silent")
        assert (found.state, found.silent) == (QUEUED, True)
        await stage.deliver("ada", "loud", peer_request=bridge_pb2.PeerRequest(request_id="s", intent="act"))
        run = await agent.run()
        assert [one.input_id for one in run.inputs] == ["silent", "loud"]
        assert await agent.settle(run) == COMMITTED


async def test_a_superseded_input_ends_in_the_commit_that_accepts_its_successor_or_waits_on(world: World) -> None:
    async with staged(world) as stage:
        old = await stage.deliver("ada", "old", supersession_key="k")
        watch = asyncio.ensure_future(stage.end_of("ada", "old"))
        newer = stage.delivery("ada", "new", supersession_key="k")
        async with stage.doomed("events"):
            call = asyncio.ensure_future(stage.peer.bridge.Deliver(newer, timeout=CALL_S))
            await stage.decided("ada")
        await stage.broken(call)
        assert (await stage.input("ada", "old")).state == QUEUED
        await stage.no_input("ada", "new")
        assert not watch.done()

        new = (await stage.ask(stage.peer.bridge.Deliver, newer)).accepted.canonical_input_id
        end = await watch
        assert (end.state, end.replaced_by) == (SUPERSEDED, new)
        await stage.crash()
        assert (await stage.send("ada", "old", supersession_key="k")).deduplicated.terminal
        assert (await stage.input("ada", "old")).replaced_by == new
        assert (await stage.observe("ada")).inputs_waiting == 1
        agent = await stage.agent()
        run = await agent.run()
        # What a run holds is not replaced.
        await stage.deliver("ada", "newest", content=content(n="x"), supersession_key="k")
        assert [one.canonical_input_id for one in run.inputs] == [new]
        assert await agent.settle(run) == COMMITTED
        assert await agent.settle(await agent.run()) == COMMITTED
        log = await stage.log()
        [replaced] = of_kind(log, "input_superseded")
        assert (replaced.input_replaced.canonical_input_id, replaced.input_replaced.replaced_by) == (old, new)
