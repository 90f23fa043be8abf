"""MobService: completing, resetting, destroying what can't be read, and deleting."""

import asyncio
import sqlite3
from pathlib import Path

import grpc
import pytest
from tests.rpc.conftest import settings, speaking
from tests.rpc.speaking import TIMEOUT_S, RawAgent, Speaker

from mobd.v1 import bridge_pb2, events_pb2, members_pb2, mobs_pb2

pytestmark = pytest.mark.asyncio

COMPLETE = mobs_pb2.CompleteMobRequest(mob_id="m")
RESET = mobs_pb2.ResetMobRequest(mob_id="m")
DESTROY = mobs_pb2.DestroyMobRequest(mob_id="m")
DELETE = mobs_pb2.DeleteMobRequest(mob_id="m")


async def get(peer: Speaker) -> mobs_pb2.GetMobResponse:
    answer = await peer.mobs.GetMob(mobs_pb2.GetMobRequest(mob_id="m"))
    assert isinstance(answer, mobs_pb2.GetMobResponse)
    return answer


async def follow(peer: Speaker, kind: str) -> None:
    """Return when there was an event of a kind."""
    request = events_pb2.WatchEventsRequest(
        mob_id="m",
        start=events_pb2.EventStart(after_cursor=0),
        filter=events_pb2.EventFilter(kinds=[kind]),
    )
    watch = peer.events.WatchEvents(request, timeout=TIMEOUT_S)
    while not (await watch.read()).page.events:
        pass
    watch.cancel()


async def test_a_mob_without_work_completes_at_once(peer: Speaker) -> None:
    await peer.create("m", "a", "b")
    await peer.deliver("a", "i")
    answer = await peer.mobs.CompleteMob(COMPLETE)
    assert (answer.mob.phase, answer.mob.pending) == (
        mobs_pb2.MOB_PHASE_COMPLETED,
        mobs_pb2.MOB_PENDING_UNSPECIFIED,
    )
    outcomes = [(one.member_id, one.inputs_abandoned, one.inputs_pending_drain) for one in answer.report.outcomes]
    assert outcomes == [("a", 1, 0), ("b", 0, 0)]
    assert (answer.report.members, answer.report.inputs_abandoned) == (2, 1)
    assert answer.cursor == answer.mob.head
    assert await get(peer) == mobs_pb2.GetMobResponse(mob=answer.mob, report=answer.report)
    refused = await peer.refused(peer.mobs.CompleteMob, COMPLETE)
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "INVALID_TRANSITION")
    assert refused.details == {"from": "completed", "to": "running", "allowed": "running"}


async def test_a_completion_waits_for_what_drains_and_repeats_join_it(peer: Speaker) -> None:
    await peer.create("m", "a")
    async with RawAgent(peer) as agent:
        await peer.deliver("a", "i")
        run = await agent.accept_run()
        answer = await peer.mobs.CompleteMob(COMPLETE)
        assert (answer.mob.phase, answer.mob.pending) == (mobs_pb2.MOB_PHASE_RUNNING, mobs_pb2.MOB_PENDING_COMPLETE)
        assert answer.report.inputs_pending_drain == 1
        again = await peer.mobs.CompleteMob(COMPLETE)
        assert (again.report, again.cursor) == (answer.report, answer.cursor)
        spec = members_pb2.MemberSpec(member_id="b", role="lead")
        refused = await peer.refused(peer.members.SpawnMember, members_pb2.SpawnMemberRequest(mob_id="m", spec=spec))
        assert (refused.reason, refused.details["pending"]) == ("INVALID_TRANSITION", "complete")
        await agent.succeed(run)
        await follow(peer, "mob_completed")
    assert (await get(peer)).mob.phase == mobs_pb2.MOB_PHASE_COMPLETED


async def test_a_reset_empties_the_mob_and_starts_it_anew(peer: Speaker) -> None:
    await peer.create("m", *(f"a{number:03}" for number in range(600)))
    async with RawAgent(peer, max_members=1_000) as agent:
        await peer.deliver("a001", "i1")
        await agent.accept_run()
        await peer.deliver("a001", "i2")
        before = (await get(peer)).mob
        first, second = await asyncio.gather(peer.mobs.ResetMob(RESET), peer.mobs.ResetMob(RESET))
        for answer in (first, second):
            assert (answer.mob.phase, answer.mob.pending, answer.mob.members.total) == (
                mobs_pb2.MOB_PHASE_RUNNING,
                mobs_pb2.MOB_PENDING_UNSPECIFIED,
                0,
            )
            assert (answer.report.members, answer.report.inputs_abandoned) == (600, 2)
        assert first.mob.head > before.head
        assert (first.mob.log_id, first.mob.cleanup_pending) == (before.log_id, False)
        request = bridge_pb2.GetInputRequest(mob_id="m", member_id="a001", input_id="i2")
        given_up = (await peer.bridge.GetInput(request)).input
        assert (given_up.state, given_up.reason) == (bridge_pb2.INPUT_STATE_ABANDONED, "reset")
        # The agent stays, and serves those who come.
        spec = members_pb2.MemberSpec(member_id="a001", role="lead")
        spawned = await peer.members.SpawnMember(members_pb2.SpawnMemberRequest(mob_id="m", spec=spec))
        assert spawned.member.generation == 1
        await peer.deliver("a001", "i3")
        await agent.succeed(await agent.accept_run())


async def test_a_reset_that_is_repeated_by_its_key_is_done_once(peer: Speaker) -> None:
    await peer.create("m", *(f"a{number:03}" for number in range(600)))
    request = mobs_pb2.ResetMobRequest(mob_id="m", request_id="r")
    first, second = await peer.mobs.ResetMob(request), await peer.mobs.ResetMob(request)
    assert (first.replayed, second.replayed) == (False, True)
    assert (second.report, second.cursor) == (first.report, first.cursor)


async def test_only_a_destroyed_mob_is_deleted_and_its_name_is_free_again(peer: Speaker) -> None:
    first = (await peer.create("m", "a")).mob
    refused = await peer.refused(peer.mobs.DeleteMob, DELETE)
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "INVALID_TRANSITION")
    destroyed = await peer.mobs.DestroyMob(DESTROY)
    assert (await peer.mobs.DeleteMob(DELETE)).cursor == destroyed.cursor
    for method, request in (
        (peer.mobs.DeleteMob, DELETE),
        (peer.mobs.GetMob, mobs_pb2.GetMobRequest(mob_id="m")),
        (peer.mobs.DestroyMob, DESTROY),
    ):
        refused = await peer.refused(method, request)
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "MOB_NOT_FOUND")
    again = (await peer.create("m")).mob
    assert (again.log_id != first.log_id, again.head) == (True, 2)


async def test_a_mob_that_can_not_be_read_is_destroyed_by_force_and_deleted(tmp_path: Path) -> None:
    async with speaking(settings(tmp_path)) as peer:
        await peer.create("m", "a")
        head = (await get(peer)).mob.head
    with sqlite3.connect(next((tmp_path / "data").glob("*.db"))) as database:
        database.execute("UPDATE events SET payload = '{' WHERE seq = 3")
        database.execute("DELETE FROM snapshots")
    async with speaking(settings(tmp_path)) as peer:
        for request in (DESTROY, mobs_pb2.DestroyMobRequest(mob_id="m", validate_only=True)):
            refused = await peer.refused(peer.mobs.DestroyMob, request)
            assert (refused.code, refused.reason) == (grpc.StatusCode.DATA_LOSS, "MOB_QUARANTINED")
        refused = await peer.refused(peer.mobs.DeleteMob, DELETE)
        assert refused.reason == "INVALID_TRANSITION"
        asked = mobs_pb2.DestroyMobRequest(mob_id="m", force=True, validate_only=True)
        assert (await peer.mobs.DestroyMob(asked)).mob.phase == mobs_pb2.MOB_PHASE_DESTROYED
        refused = await peer.refused(peer.mobs.DeleteMob, DELETE)
        assert refused.reason == "INVALID_TRANSITION"
        for _ in range(2):
            answer = await peer.mobs.DestroyMob(mobs_pb2.DestroyMobRequest(mob_id="m", force=True))
            assert (answer.mob.mob_id, answer.mob.phase) == ("m", mobs_pb2.MOB_PHASE_DESTROYED)
            assert (answer.mob.head, answer.cursor) == (head, head)
        assert (await peer.mobs.DeleteMob(DELETE)).cursor == head
        await peer.create("m")


async def test_force_changes_nothing_for_a_mob_that_can_be_read(peer: Speaker) -> None:
    await peer.create("m", "a")
    await peer.deliver("a", "i")
    answer = await peer.mobs.DestroyMob(mobs_pb2.DestroyMobRequest(mob_id="m", force=True))
    assert (answer.report.members, answer.report.inputs_abandoned) == (1, 1)
    assert (await get(peer)).report == answer.report
