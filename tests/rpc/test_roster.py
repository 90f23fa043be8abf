"""MemberService: retiring, respawning, waiting; the prompt that a member begins with."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from tests.rpc.speaking import DEFINITION, TIMEOUT_S, RawAgent, Speaker

from mobd.v1 import agents_pb2, bridge_pb2, common_pb2, events_pb2, members_pb2, mobs_pb2

pytestmark = pytest.mark.asyncio

KICKOFF = members_pb2.WAIT_UNTIL_KICKOFF_COMPLETE
READY = members_pb2.WAIT_UNTIL_READY
FINAL = members_pb2.WAIT_UNTIL_FINAL


def retire(member_id: str = "a", **more: Any) -> members_pb2.RetireMemberRequest:
    return members_pb2.RetireMemberRequest(mob_id="m", member_id=member_id, **more)


def content(text: str) -> common_pb2.Content:
    return common_pb2.Content(blocks=[common_pb2.Block(text=text)])


async def member(peer: Speaker, member_id: str = "a") -> members_pb2.Member:
    answer = await peer.members.GetMember(members_pb2.GetMemberRequest(mob_id="m", member_id=member_id))
    assert isinstance(answer.member, members_pb2.Member)
    return answer.member


async def roster(peer: Speaker, **more: Any) -> list[str]:
    answer = await peer.members.ListMembers(members_pb2.ListMembersRequest(mob_id="m", **more))
    return [one.member_id for one in answer.members]


async def wait(peer: Speaker, *names: str, until: int, patience_s: float = 0.0) -> tuple[list[str], list[str]]:
    request = members_pb2.WaitMembersRequest(
        mob_id="m",
        member_ids=names,
        until=members_pb2.WaitUntil.ValueType(until),
        timeout=Duration(seconds=int(patience_s), nanos=int(patience_s % 1 * 1e9)),
    )
    answer = await peer.members.WaitMembers(request, timeout=TIMEOUT_S)
    return list(answer.satisfied_member_ids), list(answer.pending_member_ids)


async def test_a_member_leaves_the_roster_when_it_has_drained(peer: Speaker) -> None:
    await peer.create("m", "a", "b")
    async with RawAgent(peer, serves=[agents_pb2.Serve(member_id="a")]) as agent:
        await peer.deliver("a", "i1")
        run = await agent.accept_run()
        await peer.deliver("a", "i2")
        gone = asyncio.create_task(wait(peer, "a", until=FINAL, patience_s=TIMEOUT_S - 1))
        answer = await peer.members.RetireMember(retire())
        assert (answer.inputs_abandoned, answer.inputs_pending_drain, answer.already) == (0, 2, False)
        shown = await member(peer)
        assert (shown.lifecycle, shown.state) == (
            members_pb2.MEMBER_LIFECYCLE_RETIRING,
            common_pb2.MEMBER_STATE_RETIRED,
        )
        assert (shown.is_final, shown.inputs_running, shown.inputs_waiting) == (False, 1, 1)
        assert await roster(peer) == ["b"]
        assert await roster(peer, include_retiring=True) == ["a", "b"]
        again = await peer.members.RetireMember(retire())
        assert (again.already, again.inputs_pending_drain) == (True, 2)
        await agent.succeed(run)
        await agent.succeed(await agent.accept_run())
        assert await gone == (["a"], [])
    assert await roster(peer, include_retiring=True) == ["b"]
    assert (await peer.members.RetireMember(retire())).already


async def test_a_retirement_may_interrupt_the_run_in_flight(peer: Speaker) -> None:
    await peer.create("m", "a")
    async with RawAgent(peer) as agent:
        await peer.deliver("a", "i1")
        run = await agent.accept_run()
        await peer.members.RetireMember(retire(interrupt_first=True))
        assert (await agent.next("cancel_at_boundary")).cancel_at_boundary.run_id == run.run_id


async def test_a_retirement_is_meant_for_one_incarnation(peer: Speaker) -> None:
    await peer.create("m", "a")
    refused = await peer.refused(peer.members.RetireMember, retire(fence=common_pb2.Fence(generation=1)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STALE_FENCE")
    assert (await member(peer)).state == common_pb2.MEMBER_STATE_IDLE


async def test_a_respawned_member_begins_anew(peer: Speaker) -> None:
    await peer.create("m", "a")
    async with RawAgent(peer) as agent:
        await peer.deliver("a", "i1")
        run = await agent.accept_run()
        await agent.succeed(run)
        await peer.deliver("a", "i2")
        run = await agent.accept_run()
        await peer.deliver("a", "i3")
        before = await member(peer)
        request = members_pb2.RespawnMemberRequest(mob_id="m", member_id="a", initial_message=content("begin"))
        answer = await peer.members.RespawnMember(request)
        assert (answer.previous.generation, answer.previous.fence_token) == (0, before.fence_token)
        after = answer.member
        assert (after.generation, after.state, answer.inputs_abandoned) == (1, common_pb2.MEMBER_STATE_IDLE, 2)
        assert after.fence_token > before.fence_token
        assert (after.session.message_count, after.kickoff_complete) == (0, False)
        assert after.session.session_id != before.session.session_id
        assert after.operation_id != before.operation_id
        # Nothing that was delivered to the one before runs again, whoever asks.
        assert (await peer.deliver("a", "i2")).deduplicated.terminal
        stale = common_pb2.Fence(generation=0)
        assert (await peer.deliver("a", "i4", fence=stale)).rejected.cause == bridge_pb2.REJECT_CAUSE_STALE_FENCE
        run = await agent.accept_run()
        (prompt,) = run.inputs
        assert (prompt.kind, prompt.content.blocks[0].text) == ("prompt", "begin")
        assert prompt.canonical_input_id == after.initial_input_id
        await agent.succeed(run)
    assert (await member(peer)).kickoff_complete
    log = await peer.events.PollEvents(
        events_pb2.PollEventsRequest(
            mob_id="m",
            start=events_pb2.EventStart(after_cursor=0),
            filter=events_pb2.EventFilter(kinds=["member_respawned"]),
        )
    )
    (told,) = log.events
    assert (told.member_id, told.member_respawned.generation) == ("a", 1)
    assert told.member_respawned.operation_id == after.operation_id


async def test_everybody_is_retired_and_the_mob_goes_on(peer: Speaker) -> None:
    names = [f"a{number:03}" for number in range(600)]
    await peer.create("m", *names)
    await peer.deliver("a001", "i")
    request = members_pb2.RetireAllMembersRequest(mob_id="m")
    answer = await peer.members.RetireAllMembers(request)
    # More than one decision does: what is not done yet is done by itself.
    assert answer.pending
    assert 0 < answer.report.members < 600
    assert await wait(peer, *names, until=FINAL, patience_s=TIMEOUT_S - 1) == (names, [])
    got = await peer.mobs.GetMob(mobs_pb2.GetMobRequest(mob_id="m"))
    assert (got.mob.phase, got.mob.pending, got.mob.members.total) == (
        mobs_pb2.MOB_PHASE_RUNNING,
        mobs_pb2.MOB_PENDING_UNSPECIFIED,
        0,
    )
    assert (got.report.members, got.report.inputs_abandoned) == (600, 1)
    await peer.members.SpawnMember(
        members_pb2.SpawnMemberRequest(mob_id="m", spec=members_pb2.MemberSpec(member_id="b", role="lead"))
    )


async def test_a_member_begins_with_its_initial_message(peer: Speaker) -> None:
    await peer.mobs.CreateMob(
        mobs_pb2.CreateMobRequest(mob_id="m", definition=mobs_pb2.DefinitionDocument(json=DEFINITION))
    )
    spec = members_pb2.MemberSpec(member_id="a", role="lead", initial_message=content("begin"))
    spawned = (await peer.members.SpawnMember(members_pb2.SpawnMemberRequest(mob_id="m", spec=spec))).member
    assert (spawned.inputs_waiting, spawned.kickoff_complete) == (1, False)
    assert spawned.operation_id
    assert await wait(peer, until=KICKOFF) == ([], ["a"])
    done = asyncio.create_task(wait(peer, "a", until=KICKOFF, patience_s=TIMEOUT_S - 1))
    async with RawAgent(peer) as agent:
        run = await agent.accept_run()
        assert [(one.kind, one.canonical_input_id) for one in run.inputs] == [("prompt", spawned.initial_input_id)]
        assert not done.done()
        await agent.succeed(run)
        assert await done == (["a"], [])
    request = bridge_pb2.GetInputRequest(mob_id="m", member_id="a", input_id=spawned.initial_input_id)
    assert (await peer.bridge.GetInput(request)).input.kind == "prompt"


async def test_who_waits_for_members_learns_of_whom_it_is_true(peer: Speaker) -> None:
    await peer.create("m", "a", "b", "c")
    # Nobody was spawned with a message, and who is not there is awaited by nobody.
    assert await wait(peer, "c", "x", "a", "c", until=KICKOFF) == (["c", "x", "a"], [])
    assert await wait(peer, until=READY) == ([], ["a", "b", "c"])
    assert await wait(peer, until=FINAL, patience_s=0.05) == ([], ["a", "b", "c"])
    waits = [
        asyncio.create_task(wait(peer, "a", "b", until=READY, patience_s=TIMEOUT_S - 1)),
        asyncio.create_task(wait(peer, until=READY, patience_s=TIMEOUT_S - 1)),
    ]
    async with RawAgent(peer, serves=[agents_pb2.Serve(member_id="a")]) as first:
        await first.next("assign")
        assert await wait(peer, "a", until=READY, patience_s=TIMEOUT_S - 1) == (["a"], [])
        assert not any(one.done() for one in waits)
        # Ready, or never to be.
        await peer.bridge.Retire(bridge_pb2.RetireRequest(mob_id="m", member_id="b"))
        assert await waits[0] == (["a", "b"], [])
        await peer.members.RetireMember(retire("c"))
        assert await waits[1] == (["a", "b", "c"], [])
        assert await wait(peer, until=FINAL) == (["b"], ["a"])


async def test_who_waits_for_a_drain_is_told_when_what_is_left_is_given_up(peer: Speaker) -> None:
    await peer.create("m", "a")
    async with RawAgent(peer) as agent:
        await peer.deliver("a", "i1")
        await agent.accept_run()
        await peer.bridge.Retire(bridge_pb2.RetireRequest(mob_id="m", member_id="a"))
        done = asyncio.create_task(wait(peer, "a", until=FINAL, patience_s=TIMEOUT_S - 1))
        assert await wait(peer, "a", until=FINAL) == ([], ["a"])
        await peer.bridge.Destroy(bridge_pb2.DestroyRequest(mob_id="m", member_id="a"))
        assert await done == (["a"], [])


async def test_a_wait_is_about_one_mob_that_exists(peer: Speaker) -> None:
    refused = await peer.refused(peer.members.WaitMembers, members_pb2.WaitMembersRequest(mob_id="m", until=READY))
    assert refused.reason == "MOB_NOT_FOUND"
