"""The mobs that requests are about: made, looked after so that there is something to hit, and compared at the end."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
from tests.fuzz.words import INTENTS, MEMBERS, MOBS, ROLES, UNTOUCHED
from tests.support.peers import reason

from mobd.v1 import (
    bridge_pb2,
    bridge_pb2_grpc,
    common_pb2,
    events_pb2,
    events_pb2_grpc,
    members_pb2,
    members_pb2_grpc,
    mobs_pb2,
    mobs_pb2_grpc,
)

DEFINITION: Final = mobs_pb2.DefinitionDocument(
    yaml="".join(
        ["profiles:\n", *(f"  {role}: {{silent_intents: [{INTENTS[1]}], run_timeout_s: 2}}\n" for role in ROLES)]
    )
)
CALL_S: Final = 20.0
# Of a client with other options: answers that are too long for a client without any are refused by it.
OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.enable_retries", 0),
)
State = tuple[int, str, tuple[tuple[str, str, str], ...]]


class World:
    """The server's mobs, as a client with good manners sees them."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self._mobs = mobs_pb2_grpc.MobServiceStub(channel)
        self._members = members_pb2_grpc.MemberServiceStub(channel)
        self._bridge = bridge_pb2_grpc.BridgeServiceStub(channel)
        self._events = events_pb2_grpc.EventServiceStub(channel)

    async def begin(self) -> None:
        """Make the mobs."""
        for mob_id in (UNTOUCHED, *MOBS):
            await self._create(mob_id)
            for number in range(3):
                await self.deliver(mob_id, MEMBERS[number], f"first-{number}")

    async def tend(self) -> None:
        """Bring back those mobs that were brought down, so that there are runs and members again."""
        for mob_id in MOBS:
            try:
                await self._tend(mob_id)
            except grpc.aio.AioRpcError as error:
                # Others do things to the mob at the same time.
                if error.code() in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL):
                    raise

    async def _tend(self, mob_id: str) -> None:
        mob = await self.mob(mob_id)
        if mob is None:
            await self._create(mob_id)
        elif mob.phase == mobs_pb2.MOB_PHASE_CREATING:
            await self._mobs.StartMob(mobs_pb2.StartMobRequest(mob_id=mob_id), timeout=CALL_S)
        elif mob.phase == mobs_pb2.MOB_PHASE_STOPPED:
            await self._mobs.ResumeMob(mobs_pb2.ResumeMobRequest(mob_id=mob_id), timeout=CALL_S)
        elif mob.phase == mobs_pb2.MOB_PHASE_COMPLETED:
            await self._mobs.DestroyMob(mobs_pb2.DestroyMobRequest(mob_id=mob_id, force=True), timeout=CALL_S)
        elif mob.phase == mobs_pb2.MOB_PHASE_DESTROYED:
            await self._mobs.DeleteMob(mobs_pb2.DeleteMobRequest(mob_id=mob_id), timeout=CALL_S)
            await self._create(mob_id)
        elif mob.members.idle + mob.members.attached + mob.members.running < 2:
            await self._spawn(mob_id)

    async def _create(self, mob_id: str) -> None:
        await self._mobs.CreateMob(
            mobs_pb2.CreateMobRequest(mob_id=mob_id, definition=DEFINITION), timeout=CALL_S, wait_for_ready=True
        )
        await self._spawn(mob_id)

    async def _spawn(self, mob_id: str) -> None:
        for number, member_id in enumerate(MEMBERS[:4]):
            spec = members_pb2.MemberSpec(member_id=member_id, role=ROLES[number % 2])
            request = members_pb2.EnsureMemberRequest(mob_id=mob_id, spec=spec)
            await self._members.EnsureMember(request, timeout=CALL_S)

    async def deliver(self, mob_id: str, member_id: str, input_id: str) -> bridge_pb2.DeliverResponse:
        """Deliver a word."""
        content = common_pb2.Content(blocks=[common_pb2.Block(text="hi")])
        request = bridge_pb2.DeliverRequest(mob_id=mob_id, member_id=member_id, input_id=input_id, content=content)
        answer: bridge_pb2.DeliverResponse = await self._bridge.Deliver(request, timeout=CALL_S)
        return answer

    async def mob(self, mob_id: str) -> mobs_pb2.Mob | None:
        """Return a mob, loaded; None if there is none."""
        try:
            answer = await self._mobs.GetMob(mobs_pb2.GetMobRequest(mob_id=mob_id), timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            if reason(error) != "MOB_NOT_FOUND":
                raise
            return None
        found: mobs_pb2.Mob = answer.mob
        return found

    async def names(self) -> list[str]:
        """Return the names of all mobs."""
        found: list[str] = []
        token = ""
        while True:
            request = mobs_pb2.ListMobsRequest(page_size=1_000, page_token=token)
            page = await self._mobs.ListMobs(request, timeout=CALL_S)
            found += [mob.mob_id for mob in page.mobs]
            token = page.next_page_token
            if not token:
                return found

    async def state(self, mob_id: str, at: int | None = None) -> State:
        """Return the whole state of a mob, now or as it was: cursor, log and sections."""
        cursor, log_id = 0, ""
        sections: list[tuple[str, str, str]] = []
        request = events_pb2.GetStateRequest(mob_id=mob_id, at_cursor=at)
        async for part in self._events.GetState(request, timeout=CALL_S):
            if part.HasField("header"):
                cursor, log_id = part.header.cursor, part.header.log_id
            sections += [(one.kind, one.id, one.value_json) for one in part.sections.sections]
        return cursor, log_id, tuple(sections)


@asynccontextmanager
async def connected(target: str) -> AsyncIterator[World]:
    """A world on a connection of its own."""
    options: Any = OPTIONS
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        yield World(channel)
