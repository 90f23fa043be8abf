"""RunService: convert, ask, convert."""

from mobd.v1 import runs_pb2
from mobd_server.actors.links import Call
from mobd_server.adapters.rpc.convert_bridge import run_to
from mobd_server.adapters.rpc.convert_events import RUN_STATE_NAMES
from mobd_server.services.runs import Runs


class RunServicer:
    """Its methods are those of RunService; see runs.proto."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    async def get_run(self, request: runs_pb2.GetRunRequest, _: Call) -> runs_pb2.GetRunResponse:
        return runs_pb2.GetRunResponse(run=run_to(await self._runs.get(request.mob_id, request.run_id)))

    async def list_runs(self, request: runs_pb2.ListRunsRequest, _: Call) -> runs_pb2.ListRunsResponse:
        page, token = await self._runs.page(
            request.mob_id,
            request.member_id,
            RUN_STATE_NAMES.get(request.state),
            request.page_size,
            request.page_token,
        )
        return runs_pb2.ListRunsResponse(runs=map(run_to, page), next_page_token=token)
