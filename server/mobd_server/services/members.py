"""Spawning, retiring and respawning members, waiting for them, and showing the roster."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

from msgspec import Struct

from mobd_server.actors.links import Call, Reply
from mobd_server.actors.publisher import Publisher
from mobd_server.actors.registry import Registry
from mobd_server.errors import MemberNotFound
from mobd_server.machines.answers import MemberView
from mobd_server.machines.commands import (
    EnsureMember,
    MemberSpec,
    RespawnMember,
    RetireAllMembers,
    RetireMember,
    SpawnMember,
    SpawnMembers,
)
from mobd_server.machines.state import Member, MemberState, Mob
from mobd_server.machines.views import is_final, kickoff_complete, view_member
from mobd_server.ports import Clock
from mobd_server.services.paging import DEFAULT_PAGE, fill, page_start, page_token


class MemberFilter(Struct, frozen=True):
    """Which members to list; what is empty does not filter."""

    role: str
    state: MemberState | None
    labels: dict[str, str]
    # Also members that are about to leave the roster.
    retiring: bool = False


Until = Literal["kickoff_complete", "ready", "final"]


def is_ready(member: Member) -> bool:
    """Whether an agent has confirmed that it serves the member; none is awaited for one that accepts nothing more."""
    if member.lifecycle == "retiring" or member.state in ("retired", "destroyed"):
        return True
    return member.executor is not None and member.executor.confirmed


TESTS: Final[dict[Until, Callable[[Member], bool]]] = {
    "kickoff_complete": kickoff_complete,
    "ready": is_ready,
    "final": is_final,
}


def member_of(mob: Mob, member_id: str) -> Member:
    """Return a member. Raises MemberNotFound."""
    member = mob.members.get(member_id)
    if member is None:
        raise MemberNotFound(
            f"mob '{mob.mob_id}' has no member '{member_id}'", {"mob_id": mob.mob_id, "member_id": member_id}
        )
    return member


class Members:
    """The use cases of MemberService."""

    def __init__(self, registry: Registry, publisher: Publisher, clock: Clock) -> None:
        self._registry = registry
        self._publisher = publisher
        self._clock = clock

    async def spawn(self, mob_id: str, spec: MemberSpec, call: Call) -> Reply:
        """Spawn one member; answers a MemberView."""
        return await (await self._registry.load(mob_id)).ask(SpawnMember(spec), call)

    async def spawn_several(self, mob_id: str, specs: list[MemberSpec], call: Call) -> Reply:
        """Spawn several members, each for itself; answers SpawnedMembers."""
        return await (await self._registry.load(mob_id)).ask(SpawnMembers(specs), call)

    async def ensure(self, mob_id: str, spec: MemberSpec, call: Call) -> Reply:
        """Spawn a member unless it is there; answers an EnsuredMember."""
        return await (await self._registry.load(mob_id)).ask(EnsureMember(spec), call)

    async def retire(self, mob_id: str, command: RetireMember, call: Call) -> Reply:
        """Retire a member and take it off the roster; answers a Retired."""
        return await (await self._registry.load(mob_id)).ask(command, call)

    async def respawn(self, mob_id: str, command: RespawnMember, call: Call) -> Reply:
        """Replace a member's incarnation; answers a Respawned."""
        return await (await self._registry.load(mob_id)).ask(command, call)

    async def retire_all(self, mob_id: str, call: Call) -> Reply:
        """Retire every member; answers a MobReport, whose mob says whether that goes on."""
        return await (await self._registry.load(mob_id)).ask(RetireAllMembers(), call)

    async def wait(
        self, mob_id: str, member_ids: Sequence[str], until: Until, patience_s: float
    ) -> tuple[list[str], list[str]]:
        """Return of whom it is true and of whom it is not, when it is true of all or `patience_s` seconds are over.

        Without names: of all who are on the roster now. A member that is not there counts; what was true once counts.
        """
        actor = await self._registry.load(mob_id)
        names = list(dict.fromkeys(member_ids)) or await actor.read(lambda mob: sorted(mob.members))
        watch = self._publisher.watch_lives(mob_id, names)
        try:
            end = self._clock.monotonic() + patience_s
            pending = await self._not_yet(mob_id, names, until)
            while pending and (left := end - self._clock.monotonic()) > 0 and await watch.changed(left):
                pending = await self._not_yet(mob_id, pending, until)
        finally:
            watch.close()
        waiting = frozenset(pending)
        return [name for name in names if name not in waiting], pending

    async def _not_yet(self, mob_id: str, names: Sequence[str], until: Until) -> list[str]:
        test = TESTS[until]

        def view(mob: Mob) -> list[str]:
            return [name for name in names if name in mob.members and not test(mob.members[name])]

        return await (await self._registry.load(mob_id)).read(view)

    async def get(self, mob_id: str, member_id: str) -> MemberView:
        """Return one member."""
        return await (await self._registry.load(mob_id)).read(lambda mob: view_member(mob, member_of(mob, member_id)))

    async def page(self, mob_id: str, wanted: MemberFilter, page_size: int, token: str) -> tuple[list[MemberView], str]:
        """Return a page of members in the order of their ids, and the token of the next."""
        question = ("members", mob_id, wanted.role, wanted.state, sorted(wanted.labels.items()), wanted.retiring)
        after = page_start(question, token)

        def view(mob: Mob) -> tuple[list[MemberView], bool]:
            return fill(_views(mob, wanted, after), _size, page_size or DEFAULT_PAGE)

        page, more = await (await self._registry.load(mob_id)).read(view)
        return page, page_token(question, page[-1].member_id if more else "")


def _views(mob: Mob, wanted: MemberFilter, after: str) -> Iterator[MemberView]:
    found = sorted(member_id for member_id, member in mob.members.items() if member_id > after and _is(member, wanted))
    return (view_member(mob, mob.members[member_id]) for member_id in found)


def _is(member: Member, wanted: MemberFilter) -> bool:
    if wanted.role and member.role != wanted.role:
        return False
    if member.lifecycle == "retiring" and not wanted.retiring:
        return False
    if wanted.state is not None and member.state != wanted.state:
        return False
    labels = member.labels or {}
    return all(labels.get(key) == value for key, value in wanted.labels.items())


def _size(view: MemberView) -> int:
    labels = sum(4 * (len(key) + len(value)) for key, value in view.labels.items())
    text = 4 * (len(view.last_output) + len(view.last_error))
    return 1024 + labels + text + memoryview(view.context).nbytes
