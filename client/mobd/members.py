"""The client's calls about members."""

# ruff: noqa: ASYNC109  the timeout of a call is over all of its repeats, and is told to the server

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Unpack

from google.protobuf.duration_pb2 import Duration

from mobd import errors, statuses
from mobd.base import PAGE, Base, How
from mobd.content import content_of
from mobd.deliveries import member_spec
from mobd.ids import uuid7
from mobd.v1 import common_pb2, members_pb2

UNTIL: Final[dict[str, "members_pb2.WaitUntil.ValueType"]] = {
    "kickoff_complete": members_pb2.WAIT_UNTIL_KICKOFF_COMPLETE,
    "ready": members_pb2.WAIT_UNTIL_READY,
    "final": members_pb2.WAIT_UNTIL_FINAL,
}
# One question waits this long at most, so that a connection that is cut off is noticed.
WAIT_S: Final = 20.0
# A question may name as many members.
WAIT_MEMBERS: Final = 1_000


@dataclass(frozen=True)
class Waited:
    """Of whom it is true what was waited for, and of whom it is not yet."""

    satisfied: list[str]
    pending: list[str]


class MemberCalls(Base):
    """Spawning, retiring and respawning members, and waiting for them."""

    async def spawn(
        self,
        mob_id: str,
        member_id: str,
        role: str,
        *,
        labels: Mapping[str, str] | None = None,
        context: Any = None,
        initial_message: Any = None,
        request_id: str | None = None,
        timeout: float | None = None,
        **how: Unpack[How],
    ) -> members_pb2.SpawnMemberResponse:
        """Spawn a member; raise MemberExists if there is one of that name.

        `context` is JSON for its agent; `initial_message`, as the content of `deliver`, is its first input: a prompt.
        """
        request = members_pb2.SpawnMemberRequest(
            mob_id=mob_id,
            spec=member_spec(member_id, role, labels=labels, context=context, initial_message=initial_message),
            request_id=request_id or uuid7(),
            **how,
        )
        return await self._call(self._stubs.members.SpawnMember, request, timeout)

    async def spawn_members(
        self,
        mob_id: str,
        specs: Iterable[members_pb2.MemberSpec],
        *,
        request_id: str | None = None,
        timeout: float | None = None,
        **how: Unpack[How],
    ) -> list[members_pb2.Member | errors.Error]:
        """Spawn up to 1,000 members in one decision; return each member, or the error that it was refused with."""
        request = members_pb2.SpawnMembersRequest(mob_id=mob_id, specs=specs, request_id=request_id or uuid7(), **how)
        answer: members_pb2.SpawnMembersResponse = await self._call(self._stubs.members.SpawnMembers, request, timeout)
        return [
            one.member if one.HasField("member") else statuses.of_reason(one.refused.reason, one.refused.message)
            for one in answer.results
        ]

    async def ensure_member(
        self,
        mob_id: str,
        member_id: str,
        role: str,
        *,
        labels: Mapping[str, str] | None = None,
        context: Any = None,
        initial_message: Any = None,
        request_id: str | None = None,
        timeout: float | None = None,
        **how: Unpack[How],
    ) -> members_pb2.EnsureMemberResponse:
        """Spawn a member unless one of that name and role is there."""
        request = members_pb2.EnsureMemberRequest(
            mob_id=mob_id,
            spec=member_spec(member_id, role, labels=labels, context=context, initial_message=initial_message),
            request_id=request_id or uuid7(),
            **how,
        )
        return await self._call(self._stubs.members.EnsureMember, request, timeout)

    async def retire_member(
        self,
        mob_id: str,
        member_id: str,
        *,
        interrupt_first: bool = False,
        fence: common_pb2.Fence | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
        **how: Unpack[How],
    ) -> members_pb2.RetireMemberResponse:
        """Retire a member and take it off the roster once it has drained; one that is not there is no error."""
        request = members_pb2.RetireMemberRequest(
            mob_id=mob_id,
            member_id=member_id,
            fence=fence,
            interrupt_first=interrupt_first,
            request_id=request_id or uuid7(),
            **how,
        )
        return await self._call(self._stubs.members.RetireMember, request, timeout)

    async def respawn_member(
        self,
        mob_id: str,
        member_id: str,
        *,
        initial_message: Any = None,
        fence: common_pb2.Fence | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
        **how: Unpack[How],
    ) -> members_pb2.RespawnMemberResponse:
        """Replace a member's incarnation: what the old one had is abandoned. `initial_message` is its first input."""
        request = members_pb2.RespawnMemberRequest(
            mob_id=mob_id,
            member_id=member_id,
            fence=fence,
            initial_message=None if initial_message is None else content_of(initial_message),
            request_id=request_id or uuid7(),
            **how,
        )
        return await self._call(self._stubs.members.RespawnMember, request, timeout)

    async def retire_all_members(
        self, mob_id: str, *, request_id: str | None = None, timeout: float | None = None, **how: Unpack[How]
    ) -> members_pb2.RetireAllMembersResponse:
        """Retire every member; `pending` says whether that goes on."""
        request = members_pb2.RetireAllMembersRequest(mob_id=mob_id, request_id=request_id or uuid7(), **how)
        return await self._call(self._stubs.members.RetireAllMembers, request, timeout)

    async def wait_members(
        self,
        mob_id: str,
        members: Iterable[str] = (),
        *,
        until: Literal["kickoff_complete", "ready", "final"] = "final",
        timeout: float = 60.0,
    ) -> Waited:
        """Wait until it is true of all members, or `timeout` seconds are over; nothing is raised for the latter.

        Without names: of all who are on the roster at the beginning. A member that is not there counts as satisfied.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        names = asked = list(dict.fromkeys(members))
        done: set[str] = set()
        while True:
            left = end - loop.time()
            patience = Duration()
            patience.FromMicroseconds(round(max(0.0, min(WAIT_S, left)) * 1_000_000))
            request = members_pb2.WaitMembersRequest(
                mob_id=mob_id, member_ids=asked[:WAIT_MEMBERS], until=UNTIL[until], timeout=patience
            )
            answer: members_pb2.WaitMembersResponse = await self._call(
                self._stubs.members.WaitMembers, request, max(left, 0.0) + self._timeout
            )
            done.update(answer.satisfied_member_ids)
            names = names or [*answer.satisfied_member_ids, *answer.pending_member_ids]
            asked = [name for name in names if name not in done]
            if not asked or end <= loop.time():
                return Waited([name for name in names if name in done], asked)

    async def get_member(self, mob_id: str, member_id: str, *, timeout: float | None = None) -> members_pb2.Member:
        """Return a member as it stands."""
        request = members_pb2.GetMemberRequest(mob_id=mob_id, member_id=member_id)
        answer: members_pb2.GetMemberResponse = await self._call(self._stubs.members.GetMember, request, timeout)
        return answer.member

    def list_members(
        self,
        mob_id: str,
        *,
        role: str = "",
        state: "common_pb2.MemberState.ValueType" = common_pb2.MEMBER_STATE_UNSPECIFIED,
        labels: Mapping[str, str] | None = None,
        include_retiring: bool = False,
        timeout: float | None = None,
    ) -> AsyncIterator[members_pb2.Member]:
        """Yield the members in the order of their ids; those about to leave the roster only if they are asked for."""
        request = members_pb2.ListMembersRequest(
            mob_id=mob_id,
            role=role,
            state=state,
            labels=labels,
            include_retiring=include_retiring,
            page_size=PAGE,
        )
        return self._pages(lambda: self._stubs.members.ListMembers, request, lambda answer: answer.members, timeout)
