"""MemberService: spawning, and the roster."""

from typing import Any

import grpc
import pytest
from tests.rpc.speaking import RawAgent, Speaker

from mobd.v1 import common_pb2, members_pb2, mobs_pb2

pytestmark = pytest.mark.asyncio


def spec(member_id: str = "a", role: str = "lead", **more: Any) -> members_pb2.MemberSpec:
    return members_pb2.MemberSpec(member_id=member_id, role=role, **more)


def spawn(**more: Any) -> members_pb2.SpawnMemberRequest:
    return members_pb2.SpawnMemberRequest(**{"mob_id": "m", "spec": spec(), **more})


async def test_a_member_is_spawned_as_it_was_asked_for(peer: Speaker) -> None:
    await peer.create()
    answer = await peer.members.SpawnMember(
        spawn(spec=spec(labels={"k": "v"}, context_json='{"b": 1,  "a": 12345678901234567890123}'))
    )
    member = answer.member
    assert (member.mob_id, member.member_id, member.role, member.generation) == ("m", "a", "lead", 0)
    assert member.fence_token > 0
    assert dict(member.labels) == {"k": "v"}
    assert member.context_json == '{"b": 1,  "a": 12345678901234567890123}'
    assert member.lifecycle == members_pb2.MEMBER_LIFECYCLE_ACTIVE
    assert member.state == common_pb2.MEMBER_STATE_IDLE
    assert member.executor == common_pb2.CONNECTIVITY_NONE
    assert member.session.session_id
    assert (await peer.members.GetMember(members_pb2.GetMemberRequest(mob_id="m", member_id="a"))).member == member
    events = (await peer.mobs.GetMob(mobs_pb2.GetMobRequest(mob_id="m"))).mob.head
    assert answer.cursor == events


@pytest.mark.parametrize(
    ("request_", "code", "reason"),
    [
        (spawn(), grpc.StatusCode.ALREADY_EXISTS, "MEMBER_EXISTS"),
        (spawn(spec=spec("b", "nobody")), grpc.StatusCode.NOT_FOUND, "PROFILE_NOT_FOUND"),
        (spawn(mob_id="n"), grpc.StatusCode.NOT_FOUND, "MOB_NOT_FOUND"),
    ],
    ids=["exists", "no role", "no mob"],
)
async def test_a_member_that_can_not_be_spawned(
    peer: Speaker, request_: Any, code: grpc.StatusCode, reason: str
) -> None:
    await peer.create("m", "a")
    refused = await peer.refused(peer.members.SpawnMember, request_)
    assert (refused.code, refused.reason) == (code, reason)


async def test_nobody_is_spawned_in_a_mob_that_does_not_run(peer: Speaker) -> None:
    await peer.create(start=False)
    refused = await peer.refused(peer.members.SpawnMember, spawn())
    assert (refused.reason, refused.details["from"]) == ("INVALID_TRANSITION", "creating")
    assert "running" in refused.details["allowed"].split(",")


async def test_several_are_spawned_each_for_itself(peer: Speaker) -> None:
    await peer.create("m", "a")
    specs = [spec("b"), spec("a"), spec("c", "nobody"), spec("b"), spec("d", "analyst")]
    request = members_pb2.SpawnMembersRequest(mob_id="m", specs=specs, request_id="r")
    answer = await peer.members.SpawnMembers(request)
    assert [one.WhichOneof("outcome") for one in answer.results] == [
        "member",
        "refused",
        "refused",
        "refused",
        "member",
    ]
    assert [one.refused.reason for one in answer.results if one.HasField("refused")] == [
        "MEMBER_EXISTS",
        "PROFILE_NOT_FOUND",
        "MEMBER_EXISTS",
    ]
    again = await peer.members.SpawnMembers(request)
    assert again.replayed
    assert list(again.results) == list(answer.results)


async def test_ensuring_spawns_once(peer: Speaker) -> None:
    await peer.create()
    request = members_pb2.EnsureMemberRequest(mob_id="m", spec=spec())
    first, second = await peer.members.EnsureMember(request), await peer.members.EnsureMember(request)
    assert (first.spawned, second.spawned) == (True, False)
    assert first.member == second.member
    other = members_pb2.EnsureMemberRequest(mob_id="m", spec=spec(role="analyst"))
    assert (await peer.refused(peer.members.EnsureMember, other)).reason == "MEMBER_EXISTS"


async def test_an_unknown_member_is_not_found(peer: Speaker) -> None:
    await peer.create()
    refused = await peer.refused(peer.members.GetMember, members_pb2.GetMemberRequest(mob_id="m", member_id="x"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "MEMBER_NOT_FOUND")
    assert refused.details == {"mob_id": "m", "member_id": "x"}


async def test_members_are_listed_by_pages_and_filters(peer: Speaker) -> None:
    await peer.create()
    specs = [spec(f"a{i}", ["lead", "analyst"][i % 2], labels={"third": str(i % 3)}) for i in range(7)]
    await peer.members.SpawnMembers(members_pb2.SpawnMembersRequest(mob_id="m", specs=specs))

    async def all_of(**more: Any) -> list[list[str]]:
        pages, token = [], ""
        while True:
            request = members_pb2.ListMembersRequest(mob_id="m", page_size=3, page_token=token, **more)
            answer = await peer.members.ListMembers(request)
            pages.append([member.member_id for member in answer.members])
            token = answer.next_page_token
            if not token:
                return pages

    assert await all_of() == [["a0", "a1", "a2"], ["a3", "a4", "a5"], ["a6"]]
    assert await all_of(role="analyst") == [["a1", "a3", "a5"]]
    assert await all_of(labels={"third": "0"}) == [["a0", "a3", "a6"]]
    assert await all_of(state=common_pb2.MEMBER_STATE_RUNNING) == [[]]


async def test_a_page_of_members_with_much_to_show_is_short(peer: Speaker) -> None:
    await peer.create()
    context = '"' + "x" * 65_000 + '"'
    for start in (0, 20):
        specs = [spec(f"a{i:02}", context_json=context) for i in range(start, start + 20)]
        await peer.members.SpawnMembers(members_pb2.SpawnMembersRequest(mob_id="m", specs=specs))
    answer = await peer.members.ListMembers(members_pb2.ListMembersRequest(mob_id="m", page_size=1000))
    assert answer.ByteSize() < 2 << 20
    assert answer.next_page_token
    request = members_pb2.ListMembersRequest(mob_id="m", page_size=1000, page_token=answer.next_page_token)
    rest = await peer.members.ListMembers(request)
    found = [member.member_id for member in [*answer.members, *rest.members]]
    assert found == [f"a{i:02}" for i in range(len(found))]


async def test_a_member_shows_who_serves_it_and_what_it_did(peer: Speaker) -> None:
    await peer.create("m", "a")
    request = members_pb2.GetMemberRequest(mob_id="m", member_id="a")
    async with RawAgent(peer, host_id="kitchen") as agent:
        await peer.deliver("a", "i1")
        run = await agent.accept_run()
        await peer.deliver("a", "i2")
        seen = (await peer.members.GetMember(request)).member
        assert (seen.host_id, seen.executor) == ("kitchen", common_pb2.CONNECTIVITY_CONNECTED)
        assert (seen.state, seen.current_run_id) == (common_pb2.MEMBER_STATE_RUNNING, run.run_id)
        assert seen.inputs_waiting == 1
        assert seen.HasField("oldest_waiting_time")
        await agent.succeed(run, '{"answer": 42}')
        seen = (await peer.members.GetMember(request)).member
        assert seen.last_output_preview == '{"answer": 42}'
        run = await agent.accept_run()
        await agent.fail(run, retryable=True)
        seen = (await peer.members.GetMember(request)).member
        assert "boom" in seen.last_error
        assert seen.HasField("retry_time")
