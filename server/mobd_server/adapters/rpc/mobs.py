"""MobService: convert, ask, convert."""

from typing import cast

from mobd.v1 import mobs_pb2
from mobd_server.actors.links import Call
from mobd_server.adapters.rpc.convert_mobs import PHASE_NAMES, diagnostic_to, listing_to, mob_to, report_to
from mobd_server.adapters.rpc.convert_would import would_append
from mobd_server.machines.answers import MobReport, MobView
from mobd_server.services.documents import Notation
from mobd_server.services.mobs import Mobs


class MobServicer:
    """Its methods are those of MobService; see mobs.proto."""

    def __init__(self, mobs: Mobs) -> None:
        self._mobs = mobs

    async def create_mob(self, request: mobs_pb2.CreateMobRequest, call: Call) -> mobs_pb2.CreateMobResponse:
        notation, document = _document(request.definition)
        start = request.start if request.HasField("start") else True
        created = await self._mobs.create(request.mob_id, notation, document, dict(request.labels), call, start=start)
        return mobs_pb2.CreateMobResponse(
            mob=mob_to(created.mob),
            diagnostics=map(diagnostic_to, created.diagnostics),
            cursor=created.reply.cursor,
            replayed=created.reply.replayed,
            would_append=would_append(created.reply.would),
        )

    async def start_mob(self, request: mobs_pb2.StartMobRequest, call: Call) -> mobs_pb2.StartMobResponse:
        reply = await self._mobs.start(request.mob_id, call)
        mob = mob_to(cast("MobView", reply.answer))
        return mobs_pb2.StartMobResponse(
            mob=mob, cursor=reply.cursor, replayed=reply.replayed, would_append=would_append(reply.would)
        )

    async def stop_mob(self, request: mobs_pb2.StopMobRequest, call: Call) -> mobs_pb2.StopMobResponse:
        reply = await self._mobs.stop(request.mob_id, call)
        mob = mob_to(cast("MobView", reply.answer))
        return mobs_pb2.StopMobResponse(
            mob=mob, cursor=reply.cursor, replayed=reply.replayed, would_append=would_append(reply.would)
        )

    async def resume_mob(self, request: mobs_pb2.ResumeMobRequest, call: Call) -> mobs_pb2.ResumeMobResponse:
        reply = await self._mobs.resume(request.mob_id, call)
        mob = mob_to(cast("MobView", reply.answer))
        return mobs_pb2.ResumeMobResponse(
            mob=mob, cursor=reply.cursor, replayed=reply.replayed, would_append=would_append(reply.would)
        )

    async def destroy_mob(self, request: mobs_pb2.DestroyMobRequest, call: Call) -> mobs_pb2.DestroyMobResponse:
        destroyed = await self._mobs.destroy(request.mob_id, call, force=request.force)
        answer = destroyed.answer
        return mobs_pb2.DestroyMobResponse(
            mob=mob_to(answer.mob),
            report=report_to(answer),
            already=answer.already,
            cursor=destroyed.cursor,
            replayed=destroyed.replayed,
            would_append=would_append(destroyed.would),
        )

    async def complete_mob(self, request: mobs_pb2.CompleteMobRequest, call: Call) -> mobs_pb2.CompleteMobResponse:
        reply = await self._mobs.complete(request.mob_id, call)
        answer = cast("MobReport", reply.answer)
        return mobs_pb2.CompleteMobResponse(
            mob=mob_to(answer.mob),
            report=report_to(answer),
            cursor=reply.cursor,
            replayed=reply.replayed,
            would_append=would_append(reply.would),
        )

    async def reset_mob(self, request: mobs_pb2.ResetMobRequest, call: Call) -> mobs_pb2.ResetMobResponse:
        done = await self._mobs.reset(request.mob_id, call)
        return mobs_pb2.ResetMobResponse(
            mob=mob_to(done.answer.mob),
            report=report_to(done.answer),
            cursor=done.cursor,
            replayed=done.replayed,
            would_append=would_append(done.would),
        )

    async def delete_mob(self, request: mobs_pb2.DeleteMobRequest, _: Call) -> mobs_pb2.DeleteMobResponse:
        return mobs_pb2.DeleteMobResponse(cursor=await self._mobs.delete(request.mob_id))

    async def get_mob(self, request: mobs_pb2.GetMobRequest, _: Call) -> mobs_pb2.GetMobResponse:
        found = await self._mobs.get(request.mob_id)
        return mobs_pb2.GetMobResponse(mob=mob_to(found.mob), report=report_to(found) if found.outcomes else None)

    async def list_mobs(self, request: mobs_pb2.ListMobsRequest, _: Call) -> mobs_pb2.ListMobsResponse:
        phase = PHASE_NAMES.get(request.phase)
        page, token = await self._mobs.page(phase, dict(request.labels), request.page_size, request.page_token)
        return mobs_pb2.ListMobsResponse(mobs=map(listing_to, page), next_page_token=token)

    async def validate_definition(
        self, request: mobs_pb2.ValidateDefinitionRequest, _: Call
    ) -> mobs_pb2.ValidateDefinitionResponse:
        checked = await self._mobs.check(*_document(request.definition))
        return mobs_pb2.ValidateDefinitionResponse(
            diagnostics=map(diagnostic_to, checked.diagnostics), definition_json=checked.canonical
        )


def _document(definition: mobs_pb2.DefinitionDocument) -> tuple[Notation, str]:
    notation = cast("Notation", definition.WhichOneof("document"))
    return notation, getattr(definition, notation)
