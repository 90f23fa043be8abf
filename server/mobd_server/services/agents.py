"""Showing the agents of a mob."""

from msgspec import Struct

from mobd_server.actors.hub import Hub
from mobd_server.actors.registry import Registry
from mobd_server.machines.state import Mob, Serve
from mobd_server.services.paging import DEFAULT_PAGE, page_start_number, page_token


class AgentView(Struct):
    """An agent; see Agent in agents.proto."""

    attachment_id: str
    host_id: str
    incarnation: str
    serves: list[Serve]
    capacity: int
    runs: int
    max_members: int
    members: int
    attached_at: int
    connected: bool
    draining: bool
    steers: bool


class Agents:
    """The use cases of AgentService beside Attach."""

    def __init__(self, registry: Registry, hub: Hub) -> None:
        self._registry = registry
        self._hub = hub

    async def page(self, mob_id: str, page_size: int, token: str) -> tuple[list[AgentView], str]:
        """Return a page of agents in the order in which they attached, and the token of the next."""
        question = ("agents", mob_id)
        after = page_start_number(question, token)
        limit = page_size or DEFAULT_PAGE
        hub = self._hub

        def view(mob: Mob) -> tuple[list[AgentView], int]:
            found = sorted((one for one in mob.attachments.values() if one.seq > after), key=lambda one: one.seq)
            page = [
                AgentView(
                    attachment_id=one.attachment_id,
                    host_id=one.host_id,
                    incarnation=one.incarnation,
                    serves=one.serves,
                    capacity=one.capacity,
                    runs=len(one.runs),
                    max_members=one.max_members,
                    members=len(one.members),
                    attached_at=one.at,
                    connected=hub.connectivity(mob_id, one.attachment_id) == "connected",
                    draining=hub.is_draining(mob_id, one.attachment_id),
                    steers=one.steers,
                )
                for one in found[:limit]
            ]
            return page, found[limit - 1].seq if len(found) > limit else 0

        page, last = await (await self._registry.load(mob_id)).read(view)
        return page, page_token(question, str(last) if last else "")
