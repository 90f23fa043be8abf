"""MemberService: convert, ask, convert."""

from typing import cast

from mobd.v1 import common_pb2, members_pb2
from mobd_server.actors.hub import Hub
from mobd_server.actors.links import Call
from mobd_server.adapters.rpc.convert import MEMBER_STATE_NAMES, content_from, fence_from
from mobd_server.adapters.rpc.convert_bridge import connectivity
from mobd_server.adapters.rpc.convert_mobs import UNTILS, member_to, refusal_to, report_to, spec_from
from mobd_server.adapters.rpc.convert_would import would_append
from mobd_server.machines.answers import EnsuredMember, MemberView, MobReport, Respawned, Retired, SpawnedMembers
from mobd_server.machines.commands import RespawnMember, RetireMember
from mobd_server.services.members import MemberFilter, Members


class MemberServicer:
    """Its methods are those of MemberService; see members.proto."""

    def __init__(self, members: Members, hub: Hub) -> None:
        self._members = members
        self._hub = hub

    async def spawn_member(
        self, request: members_pb2.SpawnMemberRequest, call: Call
    ) -> members_pb2.SpawnMemberResponse:
        reply = await self._members.spawn(request.mob_id, spec_from(request.spec), call)
        member = self._member(cast("MemberView", reply.answer))
        return members_pb2.SpawnMemberResponse(
            member=member, cursor=reply.cursor, replayed=reply.replayed, would_append=would_append(reply.would)
        )

    async def spawn_members(
        self, request: members_pb2.SpawnMembersRequest, call: Call
    ) -> members_pb2.SpawnMembersResponse:
        reply = await self._members.spawn_several(request.mob_id, list(map(spec_from, request.specs)), call)
        results = [
            members_pb2.SpawnResult(member=self._member(result))
            if isinstance(result, MemberView)
            else members_pb2.SpawnResult(refused=refusal_to(result))
            for result in cast("SpawnedMembers", reply.answer).results
        ]
        return members_pb2.SpawnMembersResponse(
            results=results, cursor=reply.cursor, replayed=reply.replayed, would_append=would_append(reply.would)
        )

    async def ensure_member(
        self, request: members_pb2.EnsureMemberRequest, call: Call
    ) -> members_pb2.EnsureMemberResponse:
        reply = await self._members.ensure(request.mob_id, spec_from(request.spec), call)
        ensured = cast("EnsuredMember", reply.answer)
        return members_pb2.EnsureMemberResponse(
            member=self._member(ensured.member),
            spawned=ensured.spawned,
            cursor=reply.cursor,
            replayed=reply.replayed,
            would_append=would_append(reply.would),
        )

    async def retire_member(
        self, request: members_pb2.RetireMemberRequest, call: Call
    ) -> members_pb2.RetireMemberResponse:
        command = RetireMember(request.member_id, *fence_from(request), request.interrupt_first)
        reply = await self._members.retire(request.mob_id, command, call)
        answer = cast("Retired", reply.answer)
        return members_pb2.RetireMemberResponse(
            inputs_abandoned=answer.inputs_abandoned,
            inputs_pending_drain=answer.inputs_pending_drain,
            already=answer.already,
            cursor=reply.cursor,
            replayed=reply.replayed,
            would_append=would_append(reply.would),
        )

    async def respawn_member(
        self, request: members_pb2.RespawnMemberRequest, call: Call
    ) -> members_pb2.RespawnMemberResponse:
        initial = content_from(request.initial_message) if request.HasField("initial_message") else None
        command = RespawnMember(request.member_id, *fence_from(request), initial)
        reply = await self._members.respawn(request.mob_id, command, call)
        answer = cast("Respawned", reply.answer)
        return members_pb2.RespawnMemberResponse(
            previous=common_pb2.Fence(generation=answer.previous_generation, fence_token=answer.previous_fence_token),
            member=self._member(answer.member),
            inputs_abandoned=answer.inputs_abandoned,
            cursor=reply.cursor,
            replayed=reply.replayed,
            would_append=would_append(reply.would),
        )

    async def retire_all_members(
        self, request: members_pb2.RetireAllMembersRequest, call: Call
    ) -> members_pb2.RetireAllMembersResponse:
        reply = await self._members.retire_all(request.mob_id, call)
        answer = cast("MobReport", reply.answer)
        return members_pb2.RetireAllMembersResponse(
            report=report_to(answer),
            pending=answer.mob.pending == "retire_all",
            cursor=reply.cursor,
            replayed=reply.replayed,
            would_append=would_append(reply.would),
        )

    async def wait_members(self, request: members_pb2.WaitMembersRequest, _: Call) -> members_pb2.WaitMembersResponse:
        satisfied, pending = await self._members.wait(
            request.mob_id, request.member_ids, UNTILS[request.until], request.timeout.ToMicroseconds() / 1_000_000
        )
        return members_pb2.WaitMembersResponse(satisfied_member_ids=satisfied, pending_member_ids=pending)

    async def get_member(self, request: members_pb2.GetMemberRequest, _: Call) -> members_pb2.GetMemberResponse:
        view = await self._members.get(request.mob_id, request.member_id)
        return members_pb2.GetMemberResponse(member=self._member(view))

    async def list_members(self, request: members_pb2.ListMembersRequest, _: Call) -> members_pb2.ListMembersResponse:
        wanted = MemberFilter(
            request.role, MEMBER_STATE_NAMES.get(request.state), dict(request.labels), request.include_retiring
        )
        page, token = await self._members.page(request.mob_id, wanted, request.page_size, request.page_token)
        return members_pb2.ListMembersResponse(members=map(self._member, page), next_page_token=token)

    def _member(self, view: MemberView) -> members_pb2.Member:
        return member_to(view, connectivity(self._hub, view.mob_id, view.attachment_id))
