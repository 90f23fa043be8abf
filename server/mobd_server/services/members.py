"""Spawning members, and showing the roster."""

from collections.abc import Iterator

from msgspec import Struct

from mobd_server.actors.links import Call, Reply
from mobd_server.actors.registry import Registry
from mobd_server.errors import MemberNotFound
from mobd_server.machines.answers import MemberView
from mobd_server.machines.commands import EnsureMember, MemberSpec, SpawnMember, SpawnMembers
from mobd_server.machines.state import Member, MemberState, Mob
from mobd_server.machines.views import view_member
from mobd_server.services.paging import DEFAULT_PAGE, fill, page_start, page_token


class MemberFilter(Struct, frozen=True):
    """Which members to list; what is empty does not filter."""

    role: str
    state: MemberState | None
    labels: dict[str, str]


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

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def spawn(self, mob_id: str, spec: MemberSpec, call: Call) -> Reply:
        """Spawn one member; answers a MemberView."""
        return await (await self._registry.load(mob_id)).ask(SpawnMember(spec), call)

    async def spawn_several(self, mob_id: str, specs: list[MemberSpec], call: Call) -> Reply:
        """Spawn several members, each for itself; answers SpawnedMembers."""
        return await (await self._registry.load(mob_id)).ask(SpawnMembers(specs), call)

    async def ensure(self, mob_id: str, spec: MemberSpec, call: Call) -> Reply:
        """Spawn a member unless it is there; answers an EnsuredMember."""
        return await (await self._registry.load(mob_id)).ask(EnsureMember(spec), call)

    async def get(self, mob_id: str, member_id: str) -> MemberView:
        """Return one member."""
        return await (await self._registry.load(mob_id)).read(lambda mob: view_member(mob, member_of(mob, member_id)))

    async def page(self, mob_id: str, wanted: MemberFilter, page_size: int, token: str) -> tuple[list[MemberView], str]:
        """Return a page of members in the order of their ids, and the token of the next."""
        question = ("members", mob_id, wanted.role, wanted.state, sorted(wanted.labels.items()))
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
    if wanted.state is not None and member.state != wanted.state:
        return False
    labels = member.labels or {}
    return all(labels.get(key) == value for key, value in wanted.labels.items())


def _size(view: MemberView) -> int:
    labels = sum(4 * (len(key) + len(value)) for key, value in view.labels.items())
    text = 4 * (len(view.last_output) + len(view.last_error))
    return 1024 + labels + text + memoryview(view.context).nbytes
