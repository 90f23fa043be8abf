"""Delivering inputs to members, and following what becomes of them."""

from collections.abc import AsyncIterator
from typing import Final

from msgspec import Struct

from mobd_server.actors.hub import Hub
from mobd_server.actors.links import Call, Reply
from mobd_server.actors.publisher import Publisher
from mobd_server.actors.registry import Registry
from mobd_server.machines.answers import MemberView
from mobd_server.machines.commands import Deliver, DeliverBatch
from mobd_server.machines.member import accepts_inputs
from mobd_server.machines.state import Mob
from mobd_server.machines.views import view_member
from mobd_server.ports import Clock, Store
from mobd_server.services.inputs import Ended, InputView, advanced, canonical_id, ended_view, find
from mobd_server.services.members import member_of

# Whether an agent is connected is no event, but may be what an input waits for: look again after this time.
LOOK_AGAIN_S: Final = 5.0
TERMINAL_STATES: Final = ("retired", "stopped", "destroyed")


class Observed(Struct):
    """The state of a member's runtime."""

    member: MemberView
    accepting_inputs: bool
    terminal: bool
    observed_at: int


class Bridge:
    """The use cases of BridgeService."""

    def __init__(self, registry: Registry, publisher: Publisher, store: Store, hub: Hub, clock: Clock) -> None:
        self._registry = registry
        self._publisher = publisher
        self._store = store
        self._hub = hub
        self._clock = clock

    async def deliver(self, mob_id: str, command: Deliver, call: Call) -> Reply:
        """Deliver one input; answers a Delivered that is no UnknownMember."""
        actor = self._registry.get(mob_id) or await self._registry.load(mob_id)
        return await actor.ask(command, call)

    async def deliver_batch(self, mob_id: str, command: DeliverBatch, call: Call) -> Reply:
        """Deliver several inputs in one decision; answers a BatchDelivered."""
        actor = self._registry.get(mob_id) or await self._registry.load(mob_id)
        return await actor.ask(command, call)

    async def observe(self, mob_id: str, member_id: str) -> Observed:
        """Return the state of a member's runtime."""
        now = self._clock.now()

        def view(mob: Mob) -> Observed:
            member = member_of(mob, member_id)
            accepting = mob.phase == "running" and mob.pending == "none" and accepts_inputs(member.state)
            return Observed(view_member(mob, member), accepting, member.state in TERMINAL_STATES, now)

        return await (await self._registry.load(mob_id)).read(view)

    async def get_input(self, mob_id: str, member_id: str, name: str) -> InputView:
        """Return one input by the caller's id or by the canonical one."""
        actor = await self._registry.load(mob_id)
        connected = self._hub.connected(mob_id)
        found = await actor.read(lambda mob: find(mob, member_id, name, connected))
        return await ended_view(self._store, found) if isinstance(found, Ended) else found

    async def watch_input(self, mob_id: str, member_id: str, name: str) -> AsyncIterator[InputView]:
        """Follow one input: as it is now, then after each change; how it ended comes last."""
        actor = await self._registry.load(mob_id)
        canonical = await actor.read(lambda mob: canonical_id(mob, member_id, name))
        watch = self._publisher.watch(mob_id, member_id, canonical)
        try:
            shown = await self.get_input(mob_id, member_id, canonical)
            yield shown
            while not shown.ended:
                await watch.changed(LOOK_AGAIN_S)
                # All that was published since before the first look: it ends at least where that look was.
                after = advanced(shown, watch.news())
                if after.state == "queued":
                    # What it waits for is no event of its own.
                    after = await self.get_input(mob_id, member_id, canonical)
                if after != shown:
                    shown = after
                    yield shown
        finally:
            watch.close()
