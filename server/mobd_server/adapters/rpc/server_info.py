"""ServerService, and the list of agents: what only shows."""

from mobd.v1 import agents_pb2, server_pb2
from mobd_server.actors.links import Call
from mobd_server.adapters.rpc.convert_bridge import agent_to
from mobd_server.services.agents import Agents
from mobd_server.services.server import ServerInfo


class ServerServicer:
    """Its methods are those of ServerService; see server.proto."""

    def __init__(self, info: ServerInfo) -> None:
        self._info = server_pb2.GetServerInfoResponse(
            version=info.version,
            protocol_min=info.protocol_min,
            protocol_max=info.protocol_max,
            features=info.features,
            limits=[server_pb2.Limit(name=name, value=value) for name, value in sorted(info.limits.items())],
            node=info.node,
            auth_mode=info.auth_mode,
            store=info.store,
        )

    async def get_server_info(self, _: server_pb2.GetServerInfoRequest, __: Call) -> server_pb2.GetServerInfoResponse:
        return self._info


class AgentListServicer:
    """ListAgents of AgentService; Attach is beside it."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents

    async def list_agents(self, request: agents_pb2.ListAgentsRequest, _: Call) -> agents_pb2.ListAgentsResponse:
        page, token = await self._agents.page(request.mob_id, request.page_size, request.page_token)
        return agents_pb2.ListAgentsResponse(agents=map(agent_to, page), next_page_token=token)
