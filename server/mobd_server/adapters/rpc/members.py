"""MemberService: convert, ask, convert."""

from typing import cast

from mobd.v1 import members_pb2
from mobd_server.actors.hub import Hub
from mobd_server.actors.links import Call
from mobd_server.adapters.rpc.convert import MEMBER_STATE_NAMES
from mobd_server.adapters.rpc.convert_bridge import connectivity
from mobd_server.adapters.rpc.convert_mobs import member_to, refusal_to, spec_from
from mobd_server.machines.answers import EnsuredMember, MemberView, SpawnedMembers
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
        return members_pb2.SpawnMemberResponse(member=member, cursor=reply.cursor, replayed=reply.replayed)

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
        return members_pb2.SpawnMembersResponse(results=results, cursor=reply.cursor, replayed=reply.replayed)

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
        )

    async def get_member(self, request: members_pb2.GetMemberRequest, _: Call) -> members_pb2.GetMemberResponse:
        view = await self._members.get(request.mob_id, request.member_id)
        return members_pb2.GetMemberResponse(member=self._member(view))

    async def list_members(self, request: members_pb2.ListMembersRequest, _: Call) -> members_pb2.ListMembersResponse:
        wanted = MemberFilter(request.role, MEMBER_STATE_NAMES.get(request.state), dict(request.labels))
        page, token = await self._members.page(request.mob_id, wanted, request.page_size, request.page_token)
        return members_pb2.ListMembersResponse(members=map(self._member, page), next_page_token=token)

    def _member(self, view: MemberView) -> members_pb2.Member:
        return member_to(view, connectivity(self._hub, view.mob_id, view.attachment_id))
