"""What was decoded and is settled is the same value, and holds nothing of its text wherever its type keeps JSON."""

from sys import getrefcount
from typing import Any, Final, Literal

import msgspec
import pytest
from msgspec import Raw, Struct

from mobd_server.machines.settling import settler
from mobd_server.machines.snapshot import Piece
from mobd_server.machines.state import NOTHING, Many, Mob


class Plain(Struct, frozen=True):
    """Holds no JSON."""

    number: int = 0
    words: list[str] = []


class Leaf(Struct, frozen=True, gc=False, omit_defaults=True):
    """Holds JSON between other fields, and may be without."""

    name: str = ""
    first: Raw = NOTHING
    number: int = 0
    second: Raw = NOTHING


class Tree(Struct, omit_defaults=True):
    """Holds JSON in every place where a part of the state may."""

    own: Raw = NOTHING
    bare: Leaf = Leaf()
    maybe: Leaf | None = None
    by_name: dict[str, Leaf] = {}
    in_order: list[Leaf] | None = None
    gaps: list[Leaf | None] = []
    deep: dict[str, list[dict[str, Raw]]] = {}
    kind: Literal["oak", "elm"] = "oak"
    plain: Plain = Plain()


class Endless(Struct):
    """Holds itself."""

    content: Raw = NOTHING
    next: "Endless | None" = None


class Odd(Struct):
    """Holds JSON where no part of the state does."""

    pair: tuple[int, Raw]


ONE: Final = Leaf("one", Raw(b"[1.50]"), 1, Raw(b'{"a": "\\u0000"}'))
TWO: Final = Leaf("two", NOTHING, 2, Raw(b"2e2"))
ONE_TEXT: Final = '{"name":"one","first":[1.50],"number":1,"second":{"a": "\\u0000"}}'
TWO_TEXT: Final = '{"name":"two","number":2,"second":2e2}'

HOLDING: Final[dict[str, tuple[Any, str, object]]] = {
    "JSON": (Raw, '{"a": [1.50]}', Raw(b'{"a": [1.50]}')),
    "a struct": (Leaf, ONE_TEXT, ONE),
    "a struct that is in part without": (Leaf, TWO_TEXT, TWO),
    "a dict": (dict[str, Raw], '{"a":1.0,"b":"x"}', {"a": Raw(b"1.0"), "b": Raw(b'"x"')}),
    "a list": (list[Raw], '[1.0,"x"]', [Raw(b"1.0"), Raw(b'"x"')]),
    "one that may be absent, and is not": (Leaf | None, ONE_TEXT, ONE),
    "a list with gaps": (list[Leaf | None], f"[null,{ONE_TEXT},null,{TWO_TEXT}]", [None, ONE, None, TWO]),
    "a struct's own JSON": (Tree, '{"own":[ 1 ]}', Tree(Raw(b"[ 1 ]"))),
    "a struct in a struct": (Tree, f'{{"bare":{ONE_TEXT}}}', Tree(bare=ONE)),
    "a struct that may be absent in a struct": (Tree, f'{{"maybe":{TWO_TEXT}}}', Tree(maybe=TWO)),
    "a struct's dict": (
        Tree,
        f'{{"by_name":{{"x":{ONE_TEXT},"y":{TWO_TEXT},"z":{{}}}}}}',
        Tree(by_name={"x": ONE, "y": TWO, "z": Leaf()}),
    ),
    "a struct's list": (Tree, f'{{"in_order":[{TWO_TEXT},{ONE_TEXT}]}}', Tree(in_order=[TWO, ONE])),
    "a struct's list with gaps": (Tree, f'{{"gaps":[{ONE_TEXT},null]}}', Tree(gaps=[ONE, None])),
    "a dict of lists of dicts": (
        Tree,
        '{"deep":{"x":[{"a":1.0},{"b":2.0,"c":3.0}],"y":[]}}',
        Tree(deep={"x": [{"a": Raw(b"1.0")}, {"b": Raw(b"2.0"), "c": Raw(b"3.0")}], "y": []}),
    ),
    "a struct with all of it": (
        Tree,
        f'{{"own":1.0,"maybe":null,"in_order":[{ONE_TEXT}],"kind":"elm","plain":{{"number":7}}}}',
        Tree(Raw(b"1.0"), in_order=[ONE], kind="elm", plain=Plain(7)),
    ),
}


@pytest.mark.parametrize("binary", [False, True], ids=["text", "bytes"])
@pytest.mark.parametrize("name", HOLDING)
def test_what_is_settled_is_the_same_value_and_holds_nothing_of_its_text(name: str, binary: bool) -> None:
    kind, written, wanted = HOLDING[name]
    text: str | bytes = written.encode() if binary else str(written.encode(), "utf-8")
    unread = getrefcount(text)
    value = msgspec.json.decode(text, type=kind)
    assert getrefcount(text) > unread, "before it is settled it looks into its text"
    settle = settler(kind)
    assert settle is not None
    value = settle(value)
    assert value == wanted
    assert getrefcount(text) == unread


@pytest.mark.parametrize("name", [name for name in HOLDING if name != "JSON"])
def test_what_holds_json_is_settled_in_its_place(name: str) -> None:
    kind, written, _ = HOLDING[name]
    value = msgspec.json.decode(written, type=kind)
    settle = settler(kind)
    assert settle is not None
    assert settle(value) is value


def test_what_was_left_out_is_still_told_by_its_identity() -> None:
    settle = settler(dict[str, Tree])
    assert settle is not None
    tree = settle({"a": Tree(bare=Leaf("x"), gaps=[None])})["a"]
    assert tree.own is NOTHING
    assert tree.bare.first is NOTHING
    assert tree.bare.second is NOTHING
    alone = settler(Raw)
    assert alone is not None
    assert alone(NOTHING) is NOTHING


@pytest.mark.parametrize("kind", [Leaf | None, dict[str, Leaf | None] | None, list[Raw] | None])
def test_what_is_absent_stays_absent(kind: Any) -> None:
    settle = settler(kind)
    assert settle is not None
    assert settle(None) is None


@pytest.mark.parametrize(
    "kind",
    [
        int,
        str,
        bytes,
        type(None),
        Any,
        int | None,
        Literal["oak", "elm"],
        list[int],
        tuple[str, ...],
        list[tuple[int, str]],
        dict[str, list[str]],
        Plain,
        dict[str, Plain],
        Many,
        Many | bytes,
        dict[str, Many] | None,
    ],
    ids=str,
)
def test_what_can_hold_no_json_needs_nothing(kind: Any) -> None:
    assert settler(kind) is None


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (tuple[Raw, ...], "tuple[msgspec.Raw, ...]"),
        (tuple[int, Leaf], "tuple[int, "),
        (frozenset[Leaf], "frozenset["),
        (Leaf | bytes, "Leaf | bytes"),
        (Leaf | int | None, "Leaf | int | None"),
        (dict[str, list[set[Leaf]]], "set["),
        (Odd, "tuple[int, msgspec.Raw]"),
    ],
    ids=str,
)
def test_json_in_a_place_that_is_not_looked_at_is_refused_by_its_type(kind: Any, named: str) -> None:
    with pytest.raises(TypeError) as refused:
        settler(kind)
    assert named in str(refused.value)


@pytest.mark.parametrize("kind", [Endless, dict[str, Endless]], ids=str)
def test_a_type_that_holds_itself_is_no_part_of_the_state(kind: Any) -> None:
    with pytest.raises(RecursionError):
        settler(kind)


@pytest.mark.parametrize("kind", [Mob, Piece])
def test_what_a_snapshot_is_read_into_can_be_settled(kind: Any) -> None:
    assert settler(kind) is not None
