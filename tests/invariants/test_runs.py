"""Invariants 1, 2, 7, 8, 9, 10, 11, 12 (its second half) and 18: runs, their results, and kills while they are stored.

Each kill falls into the middle of the transaction that matters, or right behind it and before anybody was answered.
"""

import asyncio
import hashlib
import json
import sqlite3
from contextlib import closing
from typing import Any

import grpc
import psycopg
import pytest
from tests.faults.conftest import World
from tests.faults.ledger import check_consumed_once, check_gap_free, check_order, check_runs, of_kind
from tests.invariants.scripted import (
    ABANDONED,
    CLAIMS_CANCELLED,
    COMMITTED,
    DUPLICATE,
    FENCED,
    REQUEUED,
)
from tests.invariants.stage import ATTACHED, CONSUMED, HELD, QUEUED, RUNNING, Stage, staged
from tests.support.peers import CALL_S, MOB, reason

from mobd.v1 import bridge_pb2, members_pb2, runs_pb2

pytestmark = pytest.mark.asyncio

MESSAGES = ('{"role":"user","text":"one"}', '{"role":"assistant","text":"zwei ü"}')


def digest(*messages: str) -> str:
    """Return the digest of a transcript as anybody can compute it."""
    canonical = json.dumps(
        [json.loads(one) for one in messages], sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


async def test_1_a_member_has_one_run_at_a_time_whatever_comes_and_whoever_attaches(world: World) -> None:
    async with staged(world) as stage:
        agent = await stage.agent()
        await stage.deliver("ada", "first")
        run = await agent.run()
        second = await stage.agent(host_id="second")
        await stage.deliver("ada", "next")
        await stage.crash()
        await asyncio.gather(agent.attach(), second.attach())
        await stage.deliver("ada", "last")
        await asyncio.gather(agent.beat(), second.beat())
        seen, member = await stage.observe("ada"), await stage.member("ada")
        assert (seen.state, seen.current_run_id, member.inputs_running) == (RUNNING, run.run_id, 1)
        assert [one.run_id for one in agent.heard("start_run")] == [run.run_id]
        assert not second.heard("start_run")

        assert await agent.settle(run) == COMMITTED
        both = await agent.run()
        assert [one.input_id for one in both.inputs] == ["next", "last"]
        assert await agent.settle(both) == COMMITTED
        seen = await stage.observe("ada")
        assert (seen.state, seen.current_run_id) == (ATTACHED, "")
        check_runs(await stage.log())


async def test_2_and_8_only_the_run_in_flight_ends_once_and_only_for_the_agent_that_holds_it(world: World) -> None:
    """A second end, a foreign run, another fence, another agent's word: refused, and nothing changes."""
    async with staged(world, ("ada", "bob")) as stage:
        agent = await stage.agent()
        thief = await stage.agent(host_id="thief", serves=[])
        await stage.deliver("ada", "one")
        first = await agent.run()
        assert await agent.settle(first, '{"n":1}', messages=MESSAGES) == COMMITTED
        await stage.deliver("ada", "two")
        second = await agent.run()
        foreign = type(second)(run_id="run-of-nobody", executor_fence=second.executor_fence)
        for killed in (False, True):
            if killed:
                agent.held[second.run_id] = second
                await stage.crash()
                await asyncio.gather(agent.attach(), thief.attach())
            before = await stage.log()
            assert await agent.settle(first, '{"n":1}', messages=MESSAGES) == DUPLICATE
            assert await agent.fail(first) == FENCED
            assert await agent.settle(foreign) == FENCED
            assert await agent.settle(second, fence=second.executor_fence + 7) == FENCED
            assert await thief.settle(second) == FENCED
            assert await thief.fail(second) == FENCED
            assert await stage.log() == before
        assert (await stage.observe("ada")).current_run_id == second.run_id
        assert (await stage.input("ada", "two")).state == HELD

        # Ids that were never steered into the run prove nothing: the receipt names what the run held.
        assert await agent.settle(second, steered=["in-of-nobody", first.inputs[0].canonical_input_id]) == COMMITTED
        receipt = (await stage.run_of(second.run_id)).receipt
        assert list(receipt.contributing_input_ids) == [second.inputs[0].canonical_input_id]
        assert (receipt.message_count, receipt.conversation_digest) == (2, digest(*MESSAGES))
        # Another result for a run that has one is no repetition: the agent is told that it broke the protocol.
        await agent.result(first, '{"n":"other"}')
        await agent.gone()
        assert (await stage.run_of(first.run_id)).output_json == '{"n":1}'
        check_runs(await stage.log())


async def test_7_and_18_inputs_run_in_the_order_of_their_admission_over_kills_and_keep_their_attempts(
    world: World,
) -> None:
    """Also under load: tests/crash/test_soak.py."""
    async with staged(world) as stage:
        agent = await stage.agent()
        names = [f"in-{at:02}" for at in range(12)]
        told = {("ada", name): await stage.deliver("ada", name) for name in names[:4]}
        first = await agent.run()
        await stage.crash()
        told |= {("ada", name): await stage.deliver("ada", name) for name in names[4:8]}
        await agent.attach()
        await agent.beat()
        assert len(agent.heard("start_run")) == 1, "the agent holds the run: it is not started twice"
        assert await agent.settle(first) == COMMITTED
        # The agent comes back without the run that it was sent, as after a kill before StartRun had left.
        second = await agent.run()
        await stage.crash()
        agent.held.clear()
        await agent.attach(held=[])
        again = await agent.run()
        assert (again.run_id, list(again.inputs)) == (second.run_id, list(second.inputs))
        told |= {("ada", name): await stage.deliver("ada", name) for name in names[8:]}
        assert await agent.settle(again) == COMMITTED
        assert await agent.settle(await agent.run()) == COMMITTED
        log = await stage.log()
        assert [one.run_resent.count for one in of_kind(log, "run_resent")] == [1]
        assert {attempt for one in of_kind(log, "run_started") for attempt in one.run_started.attempts} == {1}
        check_gap_free(log)
        check_order(log)
        check_runs(log)
        check_consumed_once(log, told)


async def test_9_a_result_is_stored_with_messages_outcomes_and_receipt_or_not_at_all(world: World) -> None:
    """The kill comes when the events of the transaction are written and its messages are not."""
    async with staged(world) as stage:
        agent = await stage.agent()
        await stage.deliver("ada", "one")
        run = await agent.run()
        async with stage.doomed("messages"):
            await agent.result(run, '{"n":1}', messages=MESSAGES)
            await stage.decided("ada")
            assert not agent.heard("run_settled")
        member, found, now = await stage.member("ada"), await stage.input("ada", "one"), await stage.run_of(run.run_id)
        assert (member.current_run_id, member.session.message_count, member.last_output_preview) == (run.run_id, 0, "")
        assert (found.state, found.attempt, found.output_json) == (HELD, 1, "")
        assert (now.state, now.HasField("receipt")) == (runs_pb2.RUN_STATE_RUNNING, False)
        assert not of_kind(await stage.log(), "run_settled")

        # Stored, and nobody was told: the stream breaks while the commit is under way, and the server dies behind it.
        await agent.attach()
        async with stage.held():
            await agent.result(run, '{"n":1}', messages=MESSAGES)
            await stage.decided("ada")
            await agent.cut()
        await stage.event("run_settled", "ada")
        await stage.crash()
        member, found, now = await stage.member("ada"), await stage.input("ada", "one"), await stage.run_of(run.run_id)
        assert (member.session.message_count, member.session.digest) == (2, digest(*MESSAGES))
        assert (found.state, found.output_json, found.run_id) == (CONSUMED, '{"n":1}', run.run_id)
        assert now.state == runs_pb2.RUN_STATE_COMMITTED
        assert list(now.receipt.contributing_input_ids) == [found.canonical_input_id]
        assert (now.receipt.message_count, now.receipt.conversation_digest) == (2, digest(*MESSAGES))
        await agent.attach()
        assert await agent.settle(run, '{"n":1}', messages=MESSAGES) == DUPLICATE

        await stage.deliver("ada", "two")
        assert await agent.settle(await agent.run(), messages=MESSAGES[:1]) == COMMITTED
        member = await stage.member("ada")
        assert (member.session.message_count, member.session.digest) == (3, digest(*MESSAGES, MESSAGES[0]))
        check_runs(await stage.log())


_POSTGRES_FAILS = """
CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = 'io_error'; END $$;
CREATE CONSTRAINT TRIGGER fails AFTER INSERT ON events DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION fails()
"""
_POSTGRES_MENDED = "DROP FUNCTION fails() CASCADE"
_SQLITE_FAILS = "CREATE TRIGGER fails BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'no space left'); END"
_SQLITE_MENDED = "DROP TRIGGER fails"


def change(stage: Stage, on_sqlite: str, on_postgresql: str) -> None:
    """Change the schema behind the server's back."""
    if stage.world.url is None:
        with closing(sqlite3.connect(stage.served.data / "mobd.db", isolation_level=None, timeout=10)) as connection:
            connection.execute(on_sqlite)
    else:
        with psycopg.connect(str(stage.world.url).replace("+psycopg", ""), autocommit=True) as session:
            session.execute(on_postgresql.encode())


async def test_10_what_can_not_be_stored_did_not_happen_and_nothing_goes_on_from_it(world: World) -> None:
    """PostgreSQL fails at COMMIT, so that nobody knows; SQLite refuses the statement, so that the caller is told."""
    async with staged(world, ("ada", "bob")) as stage:
        agent = await stage.agent()
        await stage.deliver("ada", "one")
        run = await agent.run()
        cursor = (await stage.log())[-1].seq
        change(stage, _SQLITE_FAILS, _POSTGRES_FAILS)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stage.peer.bridge.Deliver(stage.delivery("bob", "two"), timeout=CALL_S)
        if world.url is None:
            assert failed.value.code() == grpc.StatusCode.INTERNAL
        else:
            assert (failed.value.code(), reason(failed.value)) == (grpc.StatusCode.UNAVAILABLE, "COMMIT_UNKNOWN")
        retire = members_pb2.RetireMemberRequest(mob_id=MOB, member_id="ada")
        with pytest.raises(grpc.aio.AioRpcError):
            await stage.peer.members.RetireMember(retire, timeout=CALL_S)
        change(stage, _SQLITE_MENDED, _POSTGRES_MENDED)

        seen = await stage.observe("ada")
        assert (seen.state, seen.current_run_id) == (RUNNING, run.run_id)
        await stage.no_input("bob", "two")
        assert [one.run_id for one in agent.heard("start_run")] == [run.run_id], "a run that the log does not have"
        assert not agent.heard("retire")
        assert (await stage.log())[-1].seq == cursor
        await stage.crash()
        await stage.no_input("bob", "two")
        await agent.attach()
        assert await agent.settle(run) == COMMITTED
        name = await stage.deliver("bob", "two")
        assert await agent.settle(await agent.run(member_id="bob")) == COMMITTED
        log = await stage.log()
        check_gap_free(log)
        check_runs(log)
        check_consumed_once(log, {("bob", "two"): name})


async def test_11_nobody_sees_an_end_before_it_is_durable(world: World) -> None:
    """While the commits of a retirement and a destruction are under way observers wait; a kill then undoes nothing that
    anybody saw.
    """
    async with staged(world, ("ada", "bob", "cleo")) as stage:
        agent = await stage.agent(serves=())
        await stage.event("executor_confirmed", count=3)
        await stage.deliver("cleo", "one")
        run = await agent.run()
        bridge = stage.peer.bridge
        ada: dict[str, Any] = {"mob_id": MOB, "member_id": "ada"}
        bob: dict[str, Any] = {"mob_id": MOB, "member_id": "bob"}
        async with stage.doomed():
            calls = [
                asyncio.ensure_future(bridge.Retire(bridge_pb2.RetireRequest(**ada), timeout=CALL_S)),
                asyncio.ensure_future(bridge.Destroy(bridge_pb2.DestroyRequest(**bob), timeout=CALL_S)),
            ]
            await agent.result(run)
            await stage.decided("ada")
            calls += [
                asyncio.ensure_future(bridge.Observe(bridge_pb2.ObserveRequest(**ada), timeout=CALL_S)),
                asyncio.ensure_future(
                    stage.peer.members.ListMembers(members_pb2.ListMembersRequest(mob_id=MOB), timeout=CALL_S)
                ),
                asyncio.ensure_future(bridge.Deliver(stage.delivery("bob", "late"), timeout=CALL_S)),
            ]
            done, _ = await asyncio.wait(calls, timeout=0.3)
            assert not done, "an answer before its commit"
            assert not agent.heard("run_settled")
            assert not agent.heard("retire")
            assert not agent.heard("unassign")
        await stage.broken(*calls)
        states = [(await stage.observe(name)).state for name in ("ada", "bob", "cleo")]
        assert states == [ATTACHED, ATTACHED, RUNNING]
        assert not of_kind(await stage.log(), "runtime_retired", "member_destroyed", "run_settled")


async def test_12_a_failed_attempt_runs_again_behind_the_others_and_the_third_gives_up(world: World) -> None:
    """Attempts are kept over kills. A claimed cancel that nobody asked for is such a failure."""
    async with staged(world) as stage:
        agent = await stage.agent()
        await stage.deliver("ada", "bad")
        first = await agent.run()
        await stage.deliver("ada", "good")
        assert await agent.fail(first, CLAIMS_CANCELLED) == REQUEUED
        good = await agent.run()
        assert [one.input_id for one in good.inputs] == ["good"]
        assert await agent.settle(good) == COMMITTED
        second = await agent.run()
        assert [(one.input_id, one.attempt) for one in second.inputs] == [("bad", 2)]
        await stage.crash()
        await agent.attach()
        await stage.deliver("ada", "other")
        assert await agent.fail(second) == REQUEUED
        other = await agent.run()
        assert await agent.settle(other) == COMMITTED
        third = await agent.run()
        assert [(one.input_id, one.attempt) for one in third.inputs] == [("bad", 3)]
        await stage.crash()
        await agent.attach()
        watch = asyncio.ensure_future(stage.watched("ada", "bad"))
        assert await agent.fail(third) == ABANDONED
        shown = await watch
        assert (shown[-1].state, shown[-1].attempt) == (bridge_pb2.INPUT_STATE_ABANDONED, 3)
        assert shown[-1].reason.startswith("max_attempts_exhausted: 3 attempts failed")


async def test_12_a_failed_attempt_with_nothing_behind_it_pauses_and_is_no_hot_loop(alone: World) -> None:
    """The pause is a time in the log, a second from the failure on: no store can tell it from another time."""
    async with staged(alone) as stage:
        agent = await stage.agent()
        await stage.deliver("ada", "alone")
        assert await agent.fail(await agent.run()) == REQUEUED
        await stage.crash()
        await agent.attach()
        await agent.beat()
        waits = await stage.input("ada", "alone")
        assert (waits.state, waits.attempt) in ((QUEUED, 1), (HELD, 2))
        again = await agent.run()
        assert [(one.input_id, one.attempt) for one in again.inputs] == [("alone", 2)]
        assert await agent.settle(again) == COMMITTED
        log = await stage.log()
        [due] = of_kind(log, "retry_due")
        [failed] = [e for e in of_kind(log, "run_settled") if e.run_settled.HasField("retry_time")]
        assert due.time.ToNanoseconds() >= failed.run_settled.retry_time.ToNanoseconds()
        check_runs(log)
