"""Folding states of the past where there is no other process: on the loop, a little at a time."""

from mobd_server.actors.loading import rebuild
from mobd_server.machines import snapshot as snapshots
from mobd_server.machines.sections import Part, parts
from mobd_server.ports import Store


class InlineRebuilder:
    """Folds on the loop; see ports.Rebuilder."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def state(self, mob_id: str, seq: int) -> bytes:
        return snapshots.take(await rebuild(self._store, mob_id, seq))

    async def sections(self, mob_id: str, seq: int) -> list[Part]:
        return list(parts(await rebuild(self._store, mob_id, seq)))

    async def close(self) -> None:
        """Nothing is held."""
