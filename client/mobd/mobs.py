"""The client's calls about mobs."""

# ruff: noqa: ASYNC109  the timeout of a call is over all of its repeats, and is told to the server

from collections.abc import AsyncIterator, Mapping
from typing import Unpack

from mobd import errors
from mobd.base import PAGE, Base, How
from mobd.definitions import Definition, document_of
from mobd.ids import uuid7
from mobd.v1 import mobs_pb2


class MobCalls(Base):
    """Creating mobs, and moving them through their life."""

    async def create_mob(
        self,
        mob_id: str,
        definition: Definition,
        *,
        labels: Mapping[str, str] | None = None,
        start: bool = True,
        validate_only: bool = False,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> mobs_pb2.CreateMobResponse:
        """Create a mob; raise MobExists if there is one of that name, DefinitionInvalid with every finding."""
        request = mobs_pb2.CreateMobRequest(
            mob_id=mob_id,
            definition=document_of(definition),
            labels=labels,
            start=start,
            validate_only=validate_only,
            request_id=request_id or uuid7(),
        )
        return await self._call(self._stubs.mobs.CreateMob, request, timeout)

    async def ensure_mob(
        self,
        mob_id: str,
        definition: Definition,
        *,
        labels: Mapping[str, str] | None = None,
        start: bool = True,
        timeout: float | None = None,
    ) -> mobs_pb2.Mob:
        """Return the mob of that name, created now if there was none. One that exists is returned as it is."""
        try:
            answer = await self.create_mob(mob_id, definition, labels=labels, start=start, timeout=timeout)
        except errors.MobExists:
            return await self.get_mob(mob_id, timeout=timeout)
        return answer.mob

    async def start_mob(
        self, mob_id: str, *, request_id: str | None = None, timeout: float | None = None, **how: Unpack[How]
    ) -> mobs_pb2.StartMobResponse:
        """Start a mob that was created without a start, or a stopped one."""
        request = mobs_pb2.StartMobRequest(mob_id=mob_id, request_id=request_id or uuid7(), **how)
        return await self._call(self._stubs.mobs.StartMob, request, timeout)

    async def stop_mob(
        self, mob_id: str, *, request_id: str | None = None, timeout: float | None = None, **how: Unpack[How]
    ) -> mobs_pb2.StopMobResponse:
        """Stop a mob: runs in flight settle, nothing new is dispatched, queues stay."""
        request = mobs_pb2.StopMobRequest(mob_id=mob_id, request_id=request_id or uuid7(), **how)
        return await self._call(self._stubs.mobs.StopMob, request, timeout)

    async def resume_mob(
        self, mob_id: str, *, request_id: str | None = None, timeout: float | None = None, **how: Unpack[How]
    ) -> mobs_pb2.ResumeMobResponse:
        """Resume a stopped mob and dispatch what waits."""
        request = mobs_pb2.ResumeMobRequest(mob_id=mob_id, request_id=request_id or uuid7(), **how)
        return await self._call(self._stubs.mobs.ResumeMob, request, timeout)

    async def complete_mob(
        self, mob_id: str, *, request_id: str | None = None, timeout: float | None = None, **how: Unpack[How]
    ) -> mobs_pb2.CompleteMobResponse:
        """Retire every member and complete the mob when the last one has drained; its `pending` says whether it has."""
        request = mobs_pb2.CompleteMobRequest(mob_id=mob_id, request_id=request_id or uuid7(), **how)
        return await self._call(self._stubs.mobs.CompleteMob, request, timeout)

    async def reset_mob(
        self, mob_id: str, *, request_id: str | None = None, timeout: float | None = None, **how: Unpack[How]
    ) -> mobs_pb2.ResetMobResponse:
        """Abandon all inputs, empty the roster and start the mob anew; return when all of it is durable."""
        request = mobs_pb2.ResetMobRequest(mob_id=mob_id, request_id=request_id or uuid7(), **how)
        return await self._call(self._stubs.mobs.ResetMob, request, timeout)

    async def destroy_mob(
        self,
        mob_id: str,
        *,
        force: bool = False,
        request_id: str | None = None,
        timeout: float | None = None,
        **how: Unpack[How],
    ) -> mobs_pb2.DestroyMobResponse:
        """Destroy a mob; return when all of it is durable. Repeating it returns the same report, with `already`.

        With `force` also a mob whose log can't be read, which else raises MobQuarantined.
        """
        request = mobs_pb2.DestroyMobRequest(mob_id=mob_id, force=force, request_id=request_id or uuid7(), **how)
        return await self._call(self._stubs.mobs.DestroyMob, request, timeout)

    async def delete_mob(self, mob_id: str, *, timeout: float | None = None) -> mobs_pb2.DeleteMobResponse:
        """Remove everything that is stored of a destroyed mob, for good; raise MobNotFound if it is gone already."""
        request = mobs_pb2.DeleteMobRequest(mob_id=mob_id)
        return await self._call(self._stubs.mobs.DeleteMob, request, timeout)

    async def get_mob(self, mob_id: str, *, timeout: float | None = None) -> mobs_pb2.Mob:
        """Return a mob as it stands."""
        request = mobs_pb2.GetMobRequest(mob_id=mob_id)
        answer: mobs_pb2.GetMobResponse = await self._call(self._stubs.mobs.GetMob, request, timeout)
        return answer.mob

    def list_mobs(
        self,
        *,
        phase: "mobs_pb2.MobPhase.ValueType" = mobs_pb2.MOB_PHASE_UNSPECIFIED,
        labels: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[mobs_pb2.MobSummary]:
        """Yield the mobs in the order of their ids."""
        request = mobs_pb2.ListMobsRequest(phase=phase, labels=labels, page_size=PAGE)
        return self._pages(lambda: self._stubs.mobs.ListMobs, request, lambda answer: answer.mobs, timeout)

    async def validate_definition(
        self, definition: Definition, *, timeout: float | None = None
    ) -> mobs_pb2.ValidateDefinitionResponse:
        """Say what is wrong with a definition; nothing is stored."""
        request = mobs_pb2.ValidateDefinitionRequest(definition=document_of(definition))
        return await self._call(self._stubs.mobs.ValidateDefinition, request, timeout)
