"""Creating and spawning, word for word: events, rows, new members, refusals, and how many get an agent at once."""

from collections.abc import Callable
from typing import Final

import pytest
from msgspec import Raw
from tests.machines.scene import Scene
from tests.machines.stage import DAY, text

from mobd_server.errors import MemberExists, MobExists, MobFull, ProfileNotFound, Refused
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import Again, EnsuredMember, MemberView, SpawnedMembers, SpawnRefusal
from mobd_server.machines.decision import new_mob
from mobd_server.machines.draft import MAX_EVENTS
from mobd_server.machines.lifecycle import Fields
from mobd_server.machines.mob import fields
from mobd_server.machines.records import MobRow, SessionRow
from mobd_server.machines.roster import MEMBERS, MEMBERS_AT_ONCE
from mobd_server.machines.state import EMPTY_DIGEST, Definition, Member, Mob, Profile
from mobd_server.machines.views import view_member, view_mob

GIVEN: Final = c.MemberSpec("a", "analyst", {"team": "red"}, Raw(b'{"x":1}'), text("begin"))


def spec(member_id: str, role: str = "analyst") -> c.MemberSpec:
    return c.MemberSpec(member_id, role)


# What is told of it.


def test_a_mob_is_created_with_its_row() -> None:
    scene = Scene()
    scene.mob = new_mob("other")
    definition = Definition("other", labels={"b": "1", "a": "1"}, profiles={"analyst": Profile("analyst")})
    answer = scene.do(c.CreateMob(definition, {"b": "2"}, "log-2", start=False))
    assert answer == view_mob(scene.mob)
    assert scene.events == [e.MobCreated(definition, "log-2", {"b": "2", "a": "1"})]
    assert scene.append is not None
    assert scene.append.create == MobRow(
        "other",
        "log-2",
        '{"a":"1","b":"2"}',
        '{"id":"other","labels":{"a":"1","b":"1"},"profiles":{"analyst":{"role":"analyst"}}}',
        scene.now,
    )
    assert (scene.mob.definition, scene.mob.labels) == (definition, {"b": "2", "a": "1"})
    assert (scene.mob.log_id, scene.mob.created_at) == ("log-2", scene.now)


def test_the_table_of_the_lifecycle_reads_phase_flow_runs_and_cleanup() -> None:
    assert fields(Mob("mob", "stopped", 2, cleanup_pending=True)) == Fields("stopped", 2, cleanup_pending=True)
    assert fields(Mob("mob", "running")) == Fields("running", 0, cleanup_pending=False)


def test_a_mob_is_created_once() -> None:
    scene = Scene()
    with pytest.raises(MobExists) as refused:
        scene.do(c.CreateMob(Definition(), {}, "other"))
    assert (refused.value.message, refused.value.details) == ("mob 'mob' exists already", {"mob_id": "mob"})


def test_a_member_is_spawned_with_all_of_its_names() -> None:
    scene = Scene()
    scene.ids.count = 100
    answer = scene.do(c.SpawnMember(GIVEN))
    assert answer == view_member(scene.mob, scene.member("a"))
    assert scene.events == [
        e.MemberSpawned(
            "a",
            "analyst",
            0,
            1,
            "ses-101",
            "op-102",
            labels={"team": "red"},
            context=Raw(b'{"x":1}'),
            initial_input_id="in-103",
        ),
        e.InputAccepted("a", "in-103", "in-103", text("begin"), "anonymous", input_kind="prompt"),
    ]
    assert scene.append is not None
    assert scene.append.sessions == [SessionRow("ses-101", "a", 0, EMPTY_DIGEST)]


def test_a_new_member_begins_with_nothing_but_what_it_was_given() -> None:
    scene = Scene()
    scene.ids.count = 100
    scene.do(c.SpawnMember(c.MemberSpec("a", "analyst", {"team": "red"}, Raw(b'{"x":1}'))))
    assert scene.member("a") == Member(
        "a",
        "analyst",
        0,
        1,
        "ses-101",
        scene.now,
        "idle",
        labels={"team": "red"},
        context=Raw(b'{"x":1}'),
        active_seq=scene.mob.head,
        operation_id="op-102",
    )
    assert scene.mob.fences == 1


def test_a_name_that_is_spawned_again_keeps_what_was_remembered_of_it() -> None:
    scene = Scene("a", "b")
    scene.serve()
    scene.put("a", "m1")
    scene.settle(scene.run_of("a"))
    scene.now += DAY + 1
    scene.put("a", "m2")
    scene.settle(scene.run_of("a"))
    scene.retire("b")
    scene.retire("a")
    before, fences = scene.former("a"), scene.mob.fences
    assert before.forgotten_at > 0
    scene.ids.count = 100
    scene.do(c.SpawnMember(spec("a", "lead")))
    assert scene.member("a") == Member(
        "a",
        "lead",
        1,
        fences + 1,
        "ses-101",
        scene.now,
        "idle",
        ended=before.ended,
        forgotten_at=before.forgotten_at,
        active_seq=scene.mob.head,
        operation_id="op-102",
    )
    assert (list(scene.mob.former), scene.mob.left) == (["b"], ["b"])


# Refusals.


def full() -> Scene:
    """Return a mob with as many members as it may have, which are all the same one."""
    scene = Scene("a")
    scene.mob.members.update(dict.fromkeys((f"m{n}" for n in range(MEMBERS - 1)), scene.member("a")))
    return scene


def there() -> Scene:
    return Scene("a")


def leaving() -> Scene:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "m1")
    scene.retire("a")
    return scene


REFUSED: Final[dict[str, tuple[Callable[[], Scene], c.MemberSpec, type[Refused], str, dict[str, str]]]] = {
    "a name that is taken": (
        there,
        spec("a", "lead"),
        MemberExists,
        "mob 'mob' has a member 'a' of role 'analyst' already",
        {"mob_id": "mob", "member_id": "a", "role": "analyst", "lifecycle": "active"},
    ),
    "a name whose member still retires": (
        leaving,
        spec("a"),
        MemberExists,
        "mob 'mob' has a member 'a' of role 'analyst' already, which is still retiring: spawn it anew when it has left",
        {"mob_id": "mob", "member_id": "a", "role": "analyst", "lifecycle": "retiring"},
    ),
    "a role that is none": (
        there,
        spec("b", "nurse"),
        ProfileNotFound,
        "the definition of mob 'mob' has no role 'nurse': it has analyst, lead",
        {"mob_id": "mob", "role": "nurse", "roles": "analyst, lead"},
    ),
    "one member too many": (full, spec("b"), MobFull, "a mob has at most 10000 members", {"mob_id": "mob"}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_who_can_not_be_spawned_is_refused_with_the_facts(name: str) -> None:
    make, asked, kind, message, details = REFUSED[name]
    scene = make()
    for command in (c.SpawnMember(asked), c.EnsureMember(asked)):
        with pytest.raises(kind) as refused:
            scene.do(command)
        assert (refused.value.message, refused.value.details) == (message, details)
    answer = scene.do(c.SpawnMembers([asked]))
    assert answer == SpawnedMembers([SpawnRefusal(kind.reason, message)])
    assert scene.append is None


def test_a_mob_may_have_as_many_members_as_that() -> None:
    scene = full()
    del scene.mob.members["m0"]
    scene.spawn("b")
    assert len(scene.mob.members) == MEMBERS


def test_ensuring_a_member_tells_whether_it_was_spawned() -> None:
    scene = Scene()
    assert scene.do(c.EnsureMember(GIVEN)) == EnsuredMember(view_member(scene.mob, scene.member("a")), spawned=True)
    assert scene.do(c.EnsureMember(GIVEN)) == EnsuredMember(view_member(scene.mob, scene.member("a")), spawned=False)
    assert scene.append is None


# Many at once.


def test_the_members_of_a_large_request_get_agents_as_long_as_all_of_them_surely_fit() -> None:
    scene = Scene()
    scene.join(max_members=1_000)
    # The first one is served by nobody and costs one event, the others two.
    answer = scene.do(c.SpawnMembers([spec("l", "lead"), *(spec(f"m{n}") for n in range(999))]), SpawnedMembers)
    assert all(isinstance(one, MemberView) for one in answer.results)
    placed = (MAX_EVENTS - 100 - MEMBERS_AT_ONCE) // 2 - 1
    assert len(scene.all(e.ExecutorAssigned)) == placed
    assert scene.sent(Again) == [Again()] * (999 - placed)
    while scene.sent(Again):
        scene.do(c.Continue())
    assert sum(member.executor is not None for member in scene.mob.members.values()) == 999
