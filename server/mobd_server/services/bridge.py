"""Delivering inputs to members, following what becomes of them, and ending runs and runtimes."""

from collections.abc import AsyncIterator, Awaitable
from itertools import islice
from typing import Final, cast

from msgspec import Struct

from mobd_server.actors.actor import MobActor
from mobd_server.actors.hub import Hub
from mobd_server.actors.links import Call, Reply
from mobd_server.actors.loading import unless_deleted
from mobd_server.actors.publisher import Publisher
from mobd_server.actors.registry import Registry
from mobd_server.errors import LocalMember, RunNotFound
from mobd_server.machines.answers import CancelAnswer, MemberView
from mobd_server.machines.cancel import check_fence
from mobd_server.machines.commands import (
    Command,
    Deliver,
    DeliverBatch,
    DestroyRuntime,
    HardCancel,
    Interrupt,
    RetireRuntime,
)
from mobd_server.machines.member import accepts_inputs, bridge_terminal
from mobd_server.machines.state import Mob
from mobd_server.machines.views import view_member
from mobd_server.ports import Clock, Store
from mobd_server.services.inputs import LIVE, Ended, InputView, advanced, canonical_id, ended_views, find, listed
from mobd_server.services.members import member_of
from mobd_server.services.paging import DEFAULT_PAGE, PAGE_BYTES, page_start, page_token

# Whether an agent is connected is no event, but may be what an input waits for: look again after this time.
LOOK_AGAIN_S: Final = 5.0
# How many inputs a page of a filter that matches little looks at, and how many ended ones are read at once.
PAGE_SCANNED: Final = 1_000
READ_AT_ONCE: Final = 16


class Fence(Struct, frozen=True):
    """Which incarnation is meant; a number that is None is not compared."""

    generation: int | None = None
    fence_token: int | None = None


class Observed(Struct):
    """The state of a member's runtime."""

    member: MemberView
    accepting_inputs: bool
    terminal: bool
    observed_at: int


class Standing(Struct):
    """Whether the numbers that were given are in force, and those that are."""

    current: bool
    generation: int
    fence_token: int
    run_id: str
    executor_fence: int


class Bridge:
    """The use cases of BridgeService."""

    def __init__(self, registry: Registry, publisher: Publisher, store: Store, hub: Hub, clock: Clock) -> None:
        self._registry = registry
        self._publisher = publisher
        self._store = store
        self._hub = hub
        self._clock = clock

    def deliver(self, mob_id: str, command: Deliver, call: Call) -> Awaitable[Reply]:
        """Deliver one input; answers a Delivered that is no UnknownMember."""
        return self._ask(mob_id, command, call)

    def deliver_batch(self, mob_id: str, command: DeliverBatch, call: Call) -> Awaitable[Reply]:
        """Deliver several inputs in one decision; answers a BatchDelivered."""
        return self._ask(mob_id, command, call)

    async def observe(self, mob_id: str, member_id: str, fence: Fence) -> Observed:
        """Return the state of a member's runtime. Raises StaleFence if another incarnation is meant."""
        now = self._clock.now()

        def view(mob: Mob) -> Observed:
            member = member_of(mob, member_id)
            check_fence(member, fence.generation, fence.fence_token)
            accepting = mob.phase == "running" and mob.pending == "none" and accepts_inputs(member.state)
            return Observed(view_member(mob, member), accepting, bridge_terminal(member.state), now)

        return await (await self._registry.load(mob_id)).read(view)

    async def interrupt(self, mob_id: str, command: Interrupt, call: Call) -> Reply:
        """Ask a run to end at its next boundary; answers a CancelAnswer. Raises RunNotFound for one that never was."""
        reply = await self._ask(mob_id, command, call)
        await self._require_run(mob_id, command.member_id, command.run_id, reply)
        return reply

    async def hard_cancel(self, mob_id: str, command: HardCancel, call: Call) -> Reply:
        """End a run at once; answers a CancelAnswer. Raises RunNotFound for one that never was."""
        reply = await self._ask(mob_id, command, call)
        await self._require_run(mob_id, command.member_id, command.run_id, reply)
        return reply

    async def retire(self, mob_id: str, command: RetireRuntime, call: Call) -> Reply:
        """Retire a member's runtime; answers a Retired."""
        return await self._ask(mob_id, command, call)

    async def destroy(self, mob_id: str, command: DestroyRuntime, call: Call) -> Reply:
        """Destroy a member's runtime; answers a Destroyed."""
        return await self._ask(mob_id, command, call)

    async def check_fence(
        self, mob_id: str, member_id: str, fence: Fence, run_id: str | None, executor_fence: int | None
    ) -> Standing:
        """Tell whether all numbers that are given are in force; those of a destroyed runtime never are."""

        def view(mob: Mob) -> Standing:
            member = member_of(mob, member_id)
            executor = member.executor.fence if member.executor is not None else 0
            current = (
                member.state != "destroyed"
                and fence.generation in (None, member.generation)
                and fence.fence_token in (None, member.fence_token)
                and run_id in (None, member.run_id)
                and executor_fence in (None, executor)
            )
            return Standing(current, member.generation, member.fence_token, member.run_id or "", executor)

        return await (await self._registry.load(mob_id)).read(view)

    async def confirm_authority(self, mob_id: str, member_id: str) -> None:
        """Return if there is such a member: the server has the authority over every member that it hosts."""
        await (await self._registry.load(mob_id)).read(lambda mob: member_of(mob, member_id).generation)

    async def refuse_wiring(self, mob_id: str, member_id: str) -> None:
        """Raise LocalMember: the peers of a member that the server hosts are not installed through the bridge."""
        await self.confirm_authority(mob_id, member_id)
        raise LocalMember(
            f"member '{member_id}' is hosted by this server: the bridge wires members of other processes only",
            {"mob_id": mob_id, "member_id": member_id},
        )

    async def get_input(self, mob_id: str, member_id: str, name: str) -> InputView:
        """Return one input by the caller's id or by the canonical one."""
        actor = await self._registry.load(mob_id)
        connected = self._hub.connected(mob_id)
        found = await actor.read(lambda mob: find(mob, member_id, name, connected))
        return (await self._views(actor, [found]))[0]

    async def page(
        self, mob_id: str, member_id: str, state: str | None, page_size: int, token: str
    ) -> tuple[list[InputView], str]:
        """Return a page of inputs by member and canonical id, which may be empty, and the token of the next."""
        question = ("inputs", mob_id, member_id, state)
        start, _, beyond = page_start(question, token).partition("\n")
        limit = page_size or DEFAULT_PAGE
        scan = limit if state is None or state in LIVE else max(limit, PAGE_SCANNED)
        connected = self._hub.connected(mob_id)
        actor = await self._registry.load(mob_id)
        found = await actor.read(
            lambda mob: list(islice(listed(mob, member_id, state, (start, beyond), connected), scan + 1))
        )
        page: list[InputView] = []
        room, last = PAGE_BYTES, ""
        for begin in range(0, min(len(found), scan), READ_AT_ONCE):
            for view in await self._views(actor, found[begin : min(begin + READ_AT_ONCE, scan)]):
                if state in (None, view.state):
                    room -= _size(view)
                    if page and (len(page) == limit or room < 0):
                        return page, page_token(question, last)
                    page.append(view)
                last = f"{view.member_id}\n{view.canonical_input_id}"
        return page, page_token(question, last if len(found) > scan else "")

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

    def _ask(self, mob_id: str, command: Command, call: Call) -> Awaitable[Reply]:
        actor = self._registry.get(mob_id)
        return actor.ask(command, call) if actor is not None else self._load_and_ask(mob_id, command, call)

    async def _load_and_ask(self, mob_id: str, command: Command, call: Call) -> Reply:
        return await (await self._registry.load(mob_id)).ask(command, call)

    async def _require_run(self, mob_id: str, member_id: str, run_id: str | None, reply: Reply) -> None:
        """Tell a run of the member that has ended from one that never was: its row is durable with its end."""
        if run_id is None or cast("CancelAnswer", reply.answer).outcome != "already_terminal":
            return
        row = await self._store.read_run(mob_id, run_id)
        if row is None or row.member_id != member_id:
            raise RunNotFound(
                f"member '{member_id}' has no run '{run_id}'",
                {"mob_id": mob_id, "member_id": member_id, "run_id": run_id},
            )

    async def _views(self, actor: MobActor, found: list[InputView | Ended]) -> list[InputView]:
        ended = [one for one in found if isinstance(one, Ended)]
        if not ended:
            return [one for one in found if not isinstance(one, Ended)]
        reading = ended_views(self._store, self._publisher.recent, actor.log_id, ended)
        views = iter(await unless_deleted(self._store, actor.mob_id, actor.log_id, reading))
        return [next(views) if isinstance(one, Ended) else one for one in found]


def _size(view: InputView) -> int:
    output = memoryview(view.output).nbytes if view.output is not None else 0
    return 1024 + memoryview(view.content).nbytes + output + 4 * (len(view.reason) + len(view.waiting_reason))
