"""Snapshots of the state as text: the same state comes back, and the tail folds on it as on the log."""

import msgspec
import pytest
from msgspec import Raw
from tests.support.authors import Author, Counted

from mobd_server.machines import commands as c
from mobd_server.machines.decision import fold, new_mob
from mobd_server.machines.events import BY_KIND
from mobd_server.machines.records import Append, Record
from mobd_server.machines.sections import parts
from mobd_server.machines.snapshot import PIECE_BYTES, SnapshotUnusable, decode, encode, read, take
from mobd_server.machines.state import NOTHING, Mob


def lived() -> tuple[Author, list[Append]]:
    """Return a mob that has a bit of everything, and what it appended."""
    author = Author("m")
    appends = [*author.create("a", "b"), *author.attach()]
    appends.append(
        author.append(c.SpawnMember(c.MemberSpec("c", "analyst", {"k": "v"}, Raw(b'{"x":[1.50,"\\u0000"]}'))))
    )
    appends += author.run("a", "i1", '{"role":"user"}')
    appends += [author.deliver("a", f"i{n}") for n in range(2, 6)]
    appends += [author.deliver("b", "j1", '"\\ud83d\\ude00"')]
    return author, appends


def stored(appends: list[Append]) -> list[Record]:
    """Return the events as a store gives them back."""
    records = [record for append in appends for record in append.records]
    return [
        msgspec.structs.replace(one, event=msgspec.json.decode(one.payload, type=BY_KIND[one.kind, one.v]))
        for one in records
    ]


def test_a_state_comes_back_as_it_was() -> None:
    author, _ = lived()
    text = take(author.mob)
    assert decode(text) == author.mob
    assert decode(text.decode()) == author.mob
    assert encode(decode(text)) == text


def test_the_tail_folds_on_a_snapshot_as_on_the_log() -> None:
    _, appends = lived()
    records = stored(appends)
    whole = new_mob("m")
    texts = []
    for record in records:
        fold(whole, record)
        texts.append(encode(whole))
    for at, text in enumerate(texts):
        mob = decode(text)
        for record in records[at + 1 :]:
            fold(mob, record)
        assert encode(mob) == texts[-1], f"from event {at + 1}"


def test_what_is_decided_on_a_snapshot_is_what_is_decided_on_the_state() -> None:
    author, _ = lived()
    other = Author("m")
    other.mob, other.now, other.online = decode(take(author.mob)), author.now, author.online
    author.ids, other.ids = Counted(7), Counted(7)
    assert other.deliver("b", "next") == author.deliver("b", "next")
    assert other.mob == author.mob


def test_what_was_left_out_is_still_told_by_its_identity() -> None:
    author, _ = lived()
    mob = decode(take(author.mob))
    assert mob.members["a"].context is NOTHING
    assert bytes(mob.members["c"].context) == b'{"x":[1.50,"\\u0000"]}'


def test_the_state_does_not_hold_its_text() -> None:
    author, _ = lived()
    mob = decode(take(author.mob))
    held = [mob.members["c"].context, *(one.content for run in mob.runs.values() for one in run.inputs)]
    for raw in held:
        # What is a view, and would hold all that it looks into, would be another object when it is copied.
        assert raw.copy() is raw


def test_members_take_no_more_memory_than_after_a_fold() -> None:
    author, _ = lived()
    mob = decode(take(author.mob))
    assert len({id(member.role) for member in mob.members.values()}) == len({m.role for m in mob.members.values()})
    for name, member in mob.members.items():
        assert member.member_id is name
        assert member.operation_id is mob.operations[member.operation_id].operation_id


def test_a_state_shows_the_names_of_lives_that_go_on() -> None:
    author, _ = lived()
    shown = [msgspec.json.decode(part.value) for part in parts(author.mob) if part.kind == "operation"]
    assert {one["member_id"]: one["display_name"] for one in shown if one.get("member_id") in author.mob.members} == {
        name: f"{author.mob.mob_id}/{member.role}/{name}" for name, member in author.mob.members.items()
    }


def test_a_large_state_is_read_in_pieces_and_every_line_is_one() -> None:
    author = Author("m")
    author.create(*[f"m{n}" for n in range(400)])
    text = take(author.mob)
    lines = text.decode().split("\n")
    assert max(map(len, lines)) < PIECE_BYTES + 2_000
    pieces = list(read(text))
    assert len(pieces) + 1 == len(lines) - 2 >= 4
    # It is one JSON text all the same.
    whole = msgspec.json.decode(text)
    assert whole[0]["mob_id"] == "m"
    assert {name for piece in whole[1:] for name in piece.get("members", ())} == set(author.mob.members)
    assert decode(text) == author.mob


def receipt(letter: str, size: int) -> dict[str, bytes]:
    """Return a receipt that is so many bytes long in a text, with its name, which is that letter a few times."""
    # What is around name and value; three bytes are four letters there.
    fours, more = divmod(size - len('"?":""'), 4)
    return {letter * (1 + more): bytes(3 * fours)}


@pytest.mark.parametrize(
    ("sizes", "pieces"),
    [
        ({}, []),
        ({"a": 20}, ["a"]),
        ({"a": PIECE_BYTES, "b": 20}, ["a", "b"]),
        ({"a": PIECE_BYTES + 4, "b": PIECE_BYTES + 4}, ["a", "b"]),
        ({"a": PIECE_BYTES - 20, "b": 20, "c": 20}, ["ab", "c"]),
        # One byte is missing: the next entry belongs to the piece.
        ({"a": PIECE_BYTES - 20, "b": 19, "c": 20, "d": 20}, ["abc", "d"]),
        ({"a": PIECE_BYTES, "b": PIECE_BYTES - 20, "c": 19, "d": 20, "e": 20}, ["a", "bcd", "e"]),
    ],
)
def test_a_piece_ends_with_the_entry_with_which_it_is_long_enough(sizes: dict[str, int], pieces: list[str]) -> None:
    mob = Mob("m")
    # In whatever order they came.
    for letter, size in reversed(sizes.items()):
        mob.receipts |= receipt(letter, size)
    text = take(mob)
    assert ["".join(name[0] for name in piece["receipts"]) for piece in msgspec.json.decode(text)[1:]] == pieces
    assert len(text.split(b"\n")) == 3 + len(pieces)


TRUNCATED = "Input data was truncated"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is no list of pieces"),
        ("{", "it is no list of pieces"),
        ("[]", "it is no list of pieces"),
        ('{"mob_id":"m"}', "it is no list of pieces"),
        ('[\n{"mob_id":"m"}', "it is no list of pieces"),
        ('{"mob_id":"m"}\n]', "it is no list of pieces"),
        ("[\n]", TRUNCATED),
        ("[\n\n]", TRUNCATED),
        ('[\n{"mob_id":"m"},\n]', "JSON is malformed: trailing characters (byte 15)"),
        ('[\n{"mob_id":"m"},\n\n]', TRUNCATED),
        ('[\n{"mob_id":"m"},\n{}\n\n]', TRUNCATED),
        ('[\n{"mob_id":1}\n]', "Expected `str`, got `int` - at `$.mob_id`"),
        ('[\n{"mob_id":"m"},\n{"members":[]}\n]', "Expected `object`, got `array` - at `$.members`"),
        ('"\ud800"', "it is no list of pieces"),
        (
            '[\n{"mob_id":"\ud800"}\n]',
            "'utf-8' codec can't encode character '\\ud800' in position 11: surrogates not allowed",
        ),
        (b'[\n{"mob_id":"\xff"}\n]', "'utf-8' codec can't decode byte 0xff in position 13: invalid start byte"),
    ],
)
def test_what_is_no_snapshot_is_named(text: str | bytes, why: str) -> None:
    with pytest.raises(SnapshotUnusable) as unusable:
        decode(text)
    assert str(unusable.value) == why


def test_a_state_that_does_not_come_back_is_not_taken() -> None:
    mob = Mob("m", head=7)
    mob.labels = {"a": 1}  # type: ignore[dict-item]  # what a bug would do
    with pytest.raises(SnapshotUnusable) as unusable:
        take(mob)
    assert str(unusable.value) == "Expected `str`, got `int` - at `$.labels[...]`"
    mob.labels = {}
    mob.superseded = [["h", "1"]]  # type: ignore[list-item]  # another one
    with pytest.raises(SnapshotUnusable) as unusable:
        take(mob)
    assert str(unusable.value) == "the state of mob 'm' at 7 does not come back as it was"


def test_the_sections_of_a_state_are_those_of_its_snapshot() -> None:
    author, _ = lived()
    sections = list(parts(author.mob))
    assert list(parts(decode(take(author.mob)))) == sections
    kinds = [one.kind for one in sections]
    assert kinds == sorted(kinds, key=["mob", "member", "input", "run", "attachment", "operation", "requests"].index)
    by_kind = {kind: [one for one in sections if one.kind == kind] for kind in kinds}
    assert [one.id for one in by_kind["member"]] == ["a", "b", "c"]
    inputs = [msgspec.json.decode(one.value) for one in by_kind["input"]]
    assert {(one["input_id"], one["state"]) for one in inputs} >= {("i2", "running"), ("j1", "running")}
