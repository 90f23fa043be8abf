"""What the crews of all mobs share."""

from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from msgspec import Struct

from mobd_server.actors.actor import MobActor
from mobd_server.actors.frames import Terms
from mobd_server.actors.journal import Journal
from mobd_server.actors.links import Call, Receiver
from mobd_server.actors.live import Live
from mobd_server.actors.patience import Patience
from mobd_server.machines.commands import Command
from mobd_server.ports import Clock, Store

HUB: Final = Call(principal="mobd")


class Mobs(Protocol):
    """The registry, as the hub sees it."""

    def get(self, mob_id: str) -> MobActor | None:
        """Return the mob if it is in memory."""

    async def load(self, mob_id: str) -> MobActor:
        """Return the mob, read from its log if it is not in memory."""


class Shared(Struct):
    """What all crews share. `later` runs something in a tick of its own, in order."""

    mobs: Mobs
    journal: Journal
    store: Store
    clock: Clock
    terms: Terms
    patience: Patience
    live: Live
    later: Callable[[Callable[[], None]], None]
    spawn: Callable[[Coroutine[Any, Any, None]], None]
    # How often an agent was suspended, ever.
    suspensions: int = 0

    def tell(self, mob_id: str, command: Command, then: Receiver | None = None, call: Call = HUB) -> bool:
        """Have a mob decide what the hub found out; return False if that is not possible now."""
        actor = self.mobs.get(mob_id)
        if actor is None or actor.failed or self.journal.refusal(kept=True) is not None:
            return False
        actor.submit(command, call, then, kept=True)
        return True
