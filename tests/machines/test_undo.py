"""Every change is undone as if it had not been, newest first; a part is copied once, and containers never are."""

from typing import Any

import pytest
from msgspec import Struct

from mobd_server.machines.undo import NO_UNDO, Undo


class Part(Struct):
    """Counts how often it is copied."""

    number: int = 0
    words: str = ""
    copies: list[str] = []

    def __copy__(self) -> "Part":
        self.copies.append(self.words)
        return Part(self.number, self.words, self.copies)


class Other(Struct):
    """Another kind of part."""

    number: int = 0


class Store(Struct):
    """One of each container that a state has."""

    table: dict[str, int]
    items: list[str]
    text: bytearray


def store() -> Store:
    return Store({"a": 1, "b": 2}, ["x", "y"], bytearray(b"12"))


def test_a_part_is_copied_at_its_first_touch_and_gets_all_its_fields_back() -> None:
    part, undo = Part(1, "one"), Undo()
    undo.touch(part)
    part.number, part.words = 2, "two"
    undo.touch(part)
    part.number, part.words = 3, "three"
    assert part.copies == ["one"]
    undo.rollback()
    assert (part.number, part.words) == (1, "one")


def test_parts_that_were_touched_are_told_apart_by_identity_and_listed_by_kind() -> None:
    first, second, other, undo = Part(), Part(), Other(), Undo()
    for part in (second, other, first, second):
        undo.touch(part)
    listed = undo.touched(Part)
    assert [id(part) for part in listed] == [id(second), id(first)]
    assert undo.touched(Other) == [other]
    assert undo.touched(Struct) == []
    undo.rollback()
    assert undo.touched(Part) == []


def test_what_was_undone_is_not_undone_again() -> None:
    part, table, undo = Other(1), {"a": 1}, Undo()
    undo.touch(part)
    undo.put(table, "a", 2)
    undo.rollback()
    part.number, table["a"] = 5, 6
    undo.rollback()
    assert (part.number, table) == (5, {"a": 6})
    undo.touch(part)
    part.number = 7
    undo.rollback()
    assert part.number == 5


def put(undo: Undo, held: Store) -> Any:
    undo.put(held.table, "a", 3)
    undo.put(held.table, "c", 4)
    undo.put(held.table, "a", 5)


def drop(undo: Undo, held: Store) -> Any:
    return undo.drop(held.table, "b")


def drop_and_put(undo: Undo, held: Store) -> Any:
    undo.put(held.table, "a", undo.drop(held.table, "b"))
    undo.put(held.table, "b", undo.drop(held.table, "a"))


def append(undo: Undo, held: Store) -> Any:
    undo.append(held.items, "z")
    undo.append(held.items, "x")


def splice(undo: Undo, held: Store) -> Any:
    undo.splice(held.items, 1, 1, ["between", "both"])
    undo.splice(held.items, 0, 2, ["first"])
    undo.append(held.items, "last")
    undo.splice(held.items, 0, 4, [])


def splice_text(undo: Undo, held: Store) -> Any:
    undo.splice(held.text, 2, 2, b"345")
    undo.splice(held.text, 0, 1, b"")
    undo.splice(held.text, 1, 3, b"x")


CHANGES = {
    put: (Store({"a": 5, "b": 2, "c": 4}, ["x", "y"], bytearray(b"12")), None),
    drop: (Store({"a": 1}, ["x", "y"], bytearray(b"12")), 2),
    drop_and_put: (Store({"b": 2}, ["x", "y"], bytearray(b"12")), None),
    append: (Store({"a": 1, "b": 2}, ["x", "y", "z", "x"], bytearray(b"12")), None),
    splice: (Store({"a": 1, "b": 2}, [], bytearray(b"12")), None),
    splice_text: (Store({"a": 1, "b": 2}, ["x", "y"], bytearray(b"2x5")), None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_written_is_the_same_with_and_without_an_undo_and_goes_back(change: Any) -> None:
    after, answer = CHANGES[change]
    held, undo = store(), Undo()
    containers = [id(held.table), id(held.items), id(held.text)]
    assert change(undo, held) == answer
    assert held == after
    replayed = store()
    assert change(NO_UNDO, replayed) == answer
    assert replayed == after
    undo.rollback()
    assert held == store()
    assert [id(held.table), id(held.items), id(held.text)] == containers


def test_a_replay_remembers_nothing() -> None:
    part = Part(1)
    NO_UNDO.touch(part)
    for change, (after, _) in CHANGES.items():
        held = store()
        change(NO_UNDO, held)
        NO_UNDO.rollback()
        assert held == after
    assert (part.copies, NO_UNDO.touched(Part)) == ([], [])


@pytest.mark.parametrize("undo", [Undo(), NO_UNDO], ids=["undo", "replay"])
def test_only_what_is_there_can_be_removed(undo: Undo) -> None:
    table = {"a": 1}
    with pytest.raises(KeyError):
        undo.drop(table, "b")
    undo.rollback()
    assert table == {"a": 1}
