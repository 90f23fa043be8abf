"""Following what agents put out while they run."""

from collections.abc import AsyncIterator, Sequence

from mobd_server.actors.live import Lagged, Live, LiveEvent
from mobd_server.actors.publisher import Publisher
from mobd_server.actors.registry import Registry
from mobd_server.errors import MobNotFound


class AgentEvents:
    """The use case of EventService.WatchAgentEvents."""

    def __init__(self, registry: Registry, publisher: Publisher, live: Live) -> None:
        self._registry = registry
        self._publisher = publisher
        self._live = live

    async def watch(self, mob_id: str, member_id: str | None) -> AsyncIterator[Sequence[LiveEvent | Lagged]]:
        """Yield nothing as soon as it listens, then what comes. Ends when the mob is destroyed.

        Raises MobNotFound, what `load` raises, and what ends a watch: Draining, or why the mob can't be loaded.
        """
        await self._registry.load(mob_id)
        feed = self._publisher.feed(mob_id)
        if feed is None:
            raise MobNotFound(f"mob '{mob_id}' does not exist", {"mob_id": mob_id})
        # The mob's own changes, of which its end is one, ring the same bell as what its agents put out.
        watch = self._publisher.watch(mob_id)
        listener = self._live.listen(mob_id, member_id, watch.ring)
        try:
            yield []
            while True:
                taken = listener.take()
                if taken:
                    yield taken
                elif feed.ended:
                    return
                else:
                    await watch.changed()
        finally:
            listener.close()
            watch.close()
