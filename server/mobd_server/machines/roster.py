"""Who belongs to a mob: spawning members."""

from sys import intern
from typing import Final

from msgspec import Raw

from mobd_server.errors import MemberExists, MobFull, ProfileNotFound
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines import operation
from mobd_server.machines.admission import require_admitted
from mobd_server.machines.answers import Again, EnsuredMember, MemberView, SpawnedMembers, SpawnRefusal
from mobd_server.machines.draft import Draft
from mobd_server.machines.inbox import accept
from mobd_server.machines.member import TABLE
from mobd_server.machines.placement import place
from mobd_server.machines.records import Record, SessionRow
from mobd_server.machines.state import EMPTY_DIGEST, NOTHING, Member, Mob
from mobd_server.machines.undo import Undo
from mobd_server.machines.views import view_member

MEMBERS: Final = 10_000
# The most that one request spawns; a decision always keeps room for as many.
MEMBERS_AT_ONCE: Final = 1_000


def spawn_member(d: Draft, command: c.SpawnMember) -> MemberView:
    """Spawn one member and give it to an agent if one has room."""
    require_admitted(d.mob, c.SpawnMember)
    return view_member(d.mob, _spawn(d, command.spec))


def spawn_members(d: Draft, command: c.SpawnMembers) -> SpawnedMembers:
    """Spawn in order, each for itself."""
    require_admitted(d.mob, c.SpawnMembers)
    results: list[MemberView | SpawnRefusal] = []
    for spec in command.specs:
        try:
            results.append(view_member(d.mob, _spawn(d, spec)))
        except (MemberExists, ProfileNotFound, MobFull) as refused:
            results.append(SpawnRefusal(refused.reason, refused.message))
    return SpawnedMembers(results)


def ensure_member(d: Draft, command: c.EnsureMember) -> EnsuredMember:
    """Spawn unless a member of that name and role is there; one that is leaving is in the way."""
    require_admitted(d.mob, c.EnsureMember)
    member = d.mob.members.get(command.spec.member_id)
    if member is not None and member.role == command.spec.role and member.lifecycle == "active":
        return EnsuredMember(view_member(d.mob, member), False)
    return EnsuredMember(view_member(d.mob, _spawn(d, command.spec)), True)


def _spawn(d: Draft, spec: c.MemberSpec) -> Member:
    mob = d.mob
    there = mob.members.get(spec.member_id)
    if there is not None:
        still = "" if there.lifecycle == "active" else ", which is still retiring: spawn it anew when it has left"
        raise MemberExists(
            f"mob '{mob.mob_id}' has a member '{spec.member_id}' of role '{there.role}' already{still}",
            {"mob_id": mob.mob_id, "member_id": spec.member_id, "role": there.role, "lifecycle": there.lifecycle},
        )
    if spec.role not in mob.definition.profiles:
        roles = ", ".join(sorted(mob.definition.profiles))
        raise ProfileNotFound(
            f"the definition of mob '{mob.mob_id}' has no role '{spec.role}': it has {roles}",
            {"mob_id": mob.mob_id, "role": spec.role, "roles": roles},
        )
    if len(mob.members) >= MEMBERS:
        raise MobFull(f"a mob has at most {MEMBERS} members", {"mob_id": mob.mob_id})
    ids = d.context.ids
    session_id, operation_id = ids.new("ses"), ids.new("op")
    initial = ids.new("in") if spec.initial_message is not None else ""
    former = mob.former.get(spec.member_id)
    d.emit(
        e.MemberSpawned(
            spec.member_id,
            spec.role,
            former.generation + 1 if former is not None else 0,
            mob.fences + 1,
            session_id,
            operation_id,
            # Its operation begins in the registry of the member that spawns it, or in the mob's own.
            operation.acting_member(d),
            spec.labels or None,
            NOTHING if spec.context is None else spec.context,
            initial,
        ),
        spec.member_id,
    )
    d.sessions.append(SessionRow(session_id, spec.member_id, 0, EMPTY_DIGEST))
    member = mob.members[spec.member_id]
    if d.room > MEMBERS_AT_ONCE:
        place(d, member)
    else:
        # What is left of this decision is for the spawns of a large request; agents come with the next.
        d.react(Again())
    deliver_initial(d, member, spec.initial_message)
    return member


def deliver_initial(d: Draft, member: Member, content: Raw | None) -> None:
    """Deliver the prompt that a new incarnation begins with, under the name that its first event gave it."""
    if content is not None:
        name = member.initial_input_id
        accept(d, member, c.Deliver(member.member_id, name, content, kind="prompt"), name)


def spawned(mob: Mob, undo: Undo, record: Record, event: e.MemberSpawned) -> None:
    """Evolve: the member is there."""
    if event.member_id in mob.members:
        raise ValueError(f"member {event.member_id} was spawned twice")
    undo.touch(mob)
    mob.fences = event.fence_token
    former = mob.former.get(event.member_id)
    if former is not None:
        undo.drop(mob.former, event.member_id)
        at = mob.left.index(event.member_id)
        undo.splice(mob.left, at, at + 1, ())
    member = Member(
        member_id=event.member_id,
        # One text for all members of the role.
        role=intern(event.role),
        generation=event.generation,
        fence_token=event.fence_token,
        session_id=event.session_id,
        created_at=record.at,
        state=TABLE["initializing", "spawn"],
        labels=event.labels,
        # A copy: what was decoded is a view that would keep the whole payload.
        context=NOTHING if event.context is NOTHING else Raw(bytes(event.context)),
        ended=former.ended if former is not None else b"",
        forgotten_at=former.forgotten_at if former is not None else 0,
        active_seq=record.seq,
        operation_id=event.operation_id,
        initial_input_id=event.initial_input_id,
    )
    undo.put(mob.members, event.member_id, member)
    operation.begin(mob, undo, record, event.operation_id, event.owner, member)
