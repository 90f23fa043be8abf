"""What a state that was read has twice is one object in it, as after a fold; what differs stays as it was written."""

from collections.abc import Callable
from typing import Final

import pytest
from msgspec import Raw

from mobd_server.machines.snapshot import decode, encode
from mobd_server.machines.state import NOTHING, Member, Mob, Operation

CREATED: Final = 1_700_000_000_000_000


def member(name: str, operation_id: str, role: str = "an analyst", receipts: tuple[str, ...] = ()) -> Member:
    """Return a member that has done nothing since it was spawned."""
    return Member(name, role, 0, 1, "s", CREATED, active_seq=1_000, operation_id=operation_id, receipts=receipts)


def operation(operation_id: str, member_id: str = "", handle: Raw = NOTHING) -> Operation:
    """Return an operation that nothing has happened to since it was registered."""
    found = Operation(operation_id, "mob_member_child", "", "a life", 1_000, CREATED, member_id, peer_handle=handle)
    found.updated_seq = found.created_seq
    return found


def mob() -> Mob:
    """Return a mob whose members share what they can."""
    return Mob(
        "m",
        members={
            "the first": member("the first", "op one", receipts=("run one", "run two")),
            "the second": member("the second", "op two", receipts=("run two", "run gone")),
        },
        operations={
            "op one": operation("op one", "the first", handle=Raw(b'{"at": 1}')),
            "op two": operation("op two", "the second", handle=Raw(b'{"at": 1}')),
            "op three": operation("op three", handle=Raw(b'{"at": 2}')),
            "op four": operation("op four"),
        },
        receipts={"run one": b"1", "run two": b"2"},
    )


def test_every_name_is_there_once() -> None:
    read = decode(encode(mob()))
    for name, one in read.operations.items():
        assert one.operation_id is name
    for name, who in read.members.items():
        life = read.operations[who.operation_id]
        assert who.member_id is name
        assert life.member_id is name
        assert who.operation_id is life.operation_id
    first, second = read.members.values()
    assert first.role is second.role
    kept = {name: name for name in read.receipts}
    assert first.receipts[0] is kept["run one"]
    assert first.receipts[1] is second.receipts[0] is kept["run two"]


def test_every_number_of_a_life_is_there_once() -> None:
    read = decode(encode(mob()))
    for who in read.members.values():
        life = read.operations[who.operation_id]
        assert life.created_at is who.created_at
        assert life.created_seq is who.active_seq
        assert life.created_seq is life.updated_seq
    for alone in ("op three", "op four"):
        assert read.operations[alone].updated_seq is read.operations[alone].created_seq


def test_handles_that_are_equal_are_one_and_no_others() -> None:
    read = decode(encode(mob()))
    one, two, three, four = [read.operations[f"op {n}"].peer_handle for n in ("one", "two", "three", "four")]
    assert one is two
    assert [bytes(handle) for handle in (one, three)] == [b'{"at": 1}', b'{"at": 2}']
    assert four is NOTHING


def no_life(state: Mob) -> None:
    state.members["the first"].operation_id = ""


def another_life(state: Mob) -> None:
    state.members["the first"].operation_id = "op two"


def gone_life(state: Mob) -> None:
    del state.operations["op one"]


def changed_since(state: Mob) -> None:
    state.members["the first"].active_seq = 2_000
    state.operations["op one"].updated_seq = 2_001


def spawned_after(state: Mob) -> None:
    state.operations["op one"].created_at = CREATED - 1


def other_roles(state: Mob) -> None:
    state.members["the first"].role = ""
    state.members["the third"] = member("the third", "op three", role="a lead")


def other_names(state: Mob) -> None:
    state.members["the first"].member_id = "the other"
    state.operations["op three"].operation_id = "op other"


@pytest.mark.parametrize(
    "change", [no_life, another_life, gone_life, changed_since, spawned_after, other_roles, other_names]
)
def test_what_differs_stays_as_it_was_written(change: Callable[[Mob], None]) -> None:
    state = mob()
    change(state)
    text = encode(state)
    read = decode(text)
    assert read == state
    assert encode(read) == text
