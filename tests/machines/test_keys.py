"""What a member remembers of its inputs: packed as it is, it behaves as a plain dict of entries would."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.settings import setting

from mobd_server.machines import keys
from mobd_server.machines.keys import FEW, Dedupe, input_key
from mobd_server.machines.state import Former, Many, Member
from mobd_server.machines.undo import NO_UNDO, Undo

KEEP = FEW + 4
SECOND = 1_000_000
# As servers name inputs, and as they do not: other lengths, digits that do not come back as they were, no digits.
NAMES = ("in-{:024x}", "in-{}", "in-{:024X}", "in-{:023x} ", "on-{:024x}", "é{}", "{:0255}")

_encode = msgspec.json.Encoder(order="deterministic").encode


def member() -> Member:
    return Member("m", "role", 0, 1, "s", 0)


def name(number: int) -> str:
    return NAMES[number % len(NAMES)].format(0xABC0 + number)


class Plain:
    """The same, as one would write it without a thought for memory."""

    def __init__(self) -> None:
        self.entries: dict[str, Dedupe] = {}
        self.ended: list[str] = []
        self.forgotten_at = 0

    def live(self) -> list[str]:
        return [key for key in self.entries if key not in self.ended]

    def outlived(self, horizon: int, at_most: int) -> list[str]:
        excess = len(self.ended) - KEEP
        found = []
        for n, key in enumerate(self.ended[:at_most]):
            if n >= excess and self.entries[key].end_at >= horizon:
                break
            found.append(key)
        return found

    def check(self, real: Member) -> None:
        assert {one.canonical_input_id: one for one in keys.remembered(real)} == {
            one.canonical_input_id: one for one in self.entries.values()
        }
        for key, entry in self.entries.items():
            assert keys.find(real, key) == entry
        assert keys.count_ended(real) == len(self.ended)
        assert real.forgotten_at == self.forgotten_at
        assert bool(real.live) == (real.live is not None), "a member that does nothing has no dict"
        assert isinstance(real.ended, Many) == (len(self.ended) > FEW), "the form follows from the number alone"


step = st.tuples(st.sampled_from(["accept", "accept", "end", "end", "end", "forget"]), st.integers(0, 63))


@settings(max_examples=int(setting("MOBD_TEST_EXAMPLES", "300")))
@given(st.lists(st.tuples(step, st.booleans()), max_size=60))
def test_it_behaves_as_a_plain_dict_did_and_what_is_undone_leaves_no_trace(
    steps: list[tuple[tuple[str, int], bool]],
) -> None:
    real, plain, now = member(), Plain(), SECOND
    for number, ((what, pick), undone) in enumerate(steps, 1):
        now += pick * SECOND
        before = _encode(real)
        undo = Undo()
        undo.touch(real)
        key = input_key(str(number))
        if what == "accept":
            keys.accept(undo, real, key, b"%d" % number, name(number), number, now)
        elif what == "end" and plain.live():
            key = plain.live()[pick % len(plain.live())]
            keys.end(undo, real, key, number, now)
        else:
            gone = keys.outlived(real, now - 40 * SECOND, KEEP, 3)
            assert gone == plain.outlived(now - 40 * SECOND, 3)
            if gone:
                keys.forget(undo, real, gone)
        if undone:
            undo.rollback()
            assert _encode(real) == before
            continue
        if what == "accept":
            plain.entries[key] = Dedupe(keys.content_hash(b"%d" % number), name(number), number, now)
        elif what == "end" and plain.live():
            plain.entries[key] = msgspec.structs.replace(plain.entries[key], end_seq=number, end_at=now)
            plain.ended.append(key)
        else:
            for one in plain.outlived(now - 40 * SECOND, 3):
                plain.ended.remove(one)
                plain.forgotten_at = max(plain.forgotten_at, plain.entries.pop(one).at)
        plain.check(real)
        stored = msgspec.json.decode(_encode(real), type=Member)
        assert stored == real
        plain.check(stored)


def ended(count: int) -> Member:
    found = member()
    for number in range(count):
        keys.accept(NO_UNDO, found, input_key(str(number)), b"x", name(number), number + 1, SECOND)
        keys.end(NO_UNDO, found, input_key(str(number)), number + 100, 2 * SECOND)
    return found


@pytest.mark.parametrize("count", [1, 2, FEW, FEW + 1])
def test_an_input_is_accepted_and_ended_once(count: int) -> None:
    found = ended(count)
    for number in range(count):
        with pytest.raises(ValueError, match="accepted twice"):
            keys.accept(NO_UNDO, found, input_key(str(number)), b"x", "in-x", 9, SECOND)
        with pytest.raises(ValueError, match="not ended"):
            keys.end(NO_UNDO, found, input_key(str(number)), 9, SECOND)
    keys.accept(NO_UNDO, found, input_key("new"), b"x", "in-x", 9, SECOND)
    with pytest.raises(ValueError, match="accepted twice"):
        keys.accept(NO_UNDO, found, input_key("new"), b"x", "in-x", 9, SECOND)


@pytest.mark.parametrize("count", [2, FEW, FEW + 1, FEW + 9])
def test_only_the_oldest_are_forgotten(count: int) -> None:
    found = ended(count)
    for wrong in ([input_key("1")], [input_key("0"), input_key("0")], [input_key(str(n)) for n in range(count + 1)]):
        with pytest.raises(ValueError, match="not its oldest"):
            keys.forget(NO_UNDO, found, wrong)
    keys.forget(NO_UNDO, found, [input_key("0"), input_key("1")])
    assert keys.find(found, input_key("0")) is None
    assert keys.count_ended(found) == count - 2


def test_a_key_that_lies_across_entries_is_none() -> None:
    found = member()
    for number in range(2):
        keys.accept(NO_UNDO, found, input_key(str(number)), b"x", name(0), number + 1, SECOND)
        keys.end(NO_UNDO, found, input_key(str(number)), number + 100, 2 * SECOND)
    assert isinstance(found.ended, bytes)
    entries = {found.ended[:12], found.ended[len(found.ended) // 2 :][:12]}
    for start in range(len(found.ended) - 11):
        packed = found.ended[start : start + 12]
        assert (keys.find(found, packed.hex()) is not None) == (packed in entries)


def test_a_key_that_begins_as_the_entry_before_it_ends_is_found() -> None:
    found = member()
    for number, (key, canonical_id) in enumerate([("ab" * 12, "in-" + "12" * 11 + "00"), ("00" * 12, "in-x")]):
        keys.accept(NO_UNDO, found, key, b"x", canonical_id, number + 1, SECOND)
        keys.end(NO_UNDO, found, key, number + 100, 2 * SECOND)
    entry = keys.find(found, "00" * 12)
    assert entry is not None
    assert entry.canonical_input_id == "in-x"


# Numbers as wide as an entry has room for.
LAST_SEQ = (1 << 48) - 1
LAST_AT = (1 << 56) - 1


@pytest.mark.parametrize("live", [0, 1, 3])
@pytest.mark.parametrize("count", [0, 1, 2, FEW, FEW + 1, FEW + 7])
def test_every_entry_comes_back_as_it_was_put_in(count: int, live: int) -> None:
    found = member()
    wanted = {}
    for n in range(count + live):
        key, seq, at = input_key(str(n)), LAST_SEQ - 2 * n, LAST_AT - 3 * n
        keys.accept(NO_UNDO, found, key, b"%d" % n, name(n), seq, at)
        wanted[key] = Dedupe(keys.content_hash(b"%d" % n), name(n), seq, at)
        if n < count:
            keys.end(NO_UNDO, found, key, seq - 1, at - 1)
            wanted[key] = msgspec.structs.replace(wanted[key], end_seq=seq - 1, end_at=at - 1)
    assert {key: keys.find(found, key) for key in wanted} == wanted
    assert keys.find(found, input_key("new")) is None
    assert sorted(keys.remembered(found), key=lambda one: one.seq) == [*wanted.values()][::-1]
    assert keys.count_ended(found) == count
    assert isinstance(found.ended, Many) == (count > FEW), "the form follows from the number alone"


@pytest.mark.parametrize("forgotten", [1, 2, 3])
@pytest.mark.parametrize("count", [3, FEW, FEW + 1, FEW + 2, FEW + 9])
def test_what_is_forgotten_is_gone_and_nothing_else_is(count: int, forgotten: int) -> None:
    found = ended(count)
    before, kept = _encode(found), [keys.find(found, input_key(str(n))) for n in range(count)]
    undo = Undo()
    undo.touch(found)
    keys.forget(undo, found, [input_key(str(n)) for n in range(forgotten)])
    assert [keys.find(found, input_key(str(n))) for n in range(count)] == [None] * forgotten + kept[forgotten:]
    assert keys.remembered(found) == kept[forgotten:]
    assert isinstance(found.ended, Many) == (count - forgotten > FEW)
    # The same entries take the same form, whatever was before them.
    other = member()
    other.forgotten_at = found.forgotten_at
    for n in range(forgotten, count):
        keys.accept(NO_UNDO, other, input_key(str(n)), b"x", name(n), n + 1, SECOND)
        keys.end(NO_UNDO, other, input_key(str(n)), n + 100, 2 * SECOND)
    assert found == other
    undo.rollback()
    assert _encode(found) == before


@pytest.mark.parametrize("more", [0, FEW])
def test_the_newest_acceptance_that_was_forgotten_stays_known(more: int) -> None:
    found = member()
    # In the order of their ends, which is not that of their acceptances.
    accepted = [5, 3, 9, 7, *range(100, 100 + more)]
    for n, at in enumerate(accepted):
        keys.accept(NO_UNDO, found, input_key(str(n)), b"x", name(n), n + 1, at * SECOND)
        keys.end(NO_UNDO, found, input_key(str(n)), n + 50, 1_000 * SECOND)
    known = []
    for some in ([0], [1], [2, 3]):
        keys.forget(NO_UNDO, found, [input_key(str(n)) for n in some])
        known.append(found.forgotten_at // SECOND)
    assert known == [5, 5, 9]


@pytest.mark.parametrize(
    ("count", "horizon", "at_most", "outlived"),
    [
        # They end at 1, 2, 3 … seconds.
        (0, 100, 9, 0),
        (1, 1, 9, 0),
        (1, 2, 9, 1),
        (FEW, 1, 9, 0),
        (FEW, 4, 9, 3),
        (FEW, 4, 2, 2),
        (FEW, 100, 99, FEW),
        (KEEP, 1, 9, 0),
        (KEEP, 4, 9, 3),
        (KEEP, 4, 2, 2),
        (KEEP, 100, 99, KEEP),
        # What is more than the newest ones goes at any time.
        (KEEP + 1, 1, 9, 1),
        (KEEP + 3, 1, 9, 3),
        (KEEP + 3, 3, 9, 3),
        (KEEP + 3, 6, 9, 5),
        (KEEP + 3, 1, 2, 2),
    ],
)
def test_what_ended_before_the_horizon_and_what_is_too_much_may_be_forgotten(
    count: int, horizon: int, at_most: int, outlived: int
) -> None:
    found = member()
    for n in range(count):
        keys.accept(NO_UNDO, found, input_key(str(n)), b"x", name(n), n + 1, 0)
        keys.end(NO_UNDO, found, input_key(str(n)), n + 100, (n + 1) * SECOND)
    assert keys.outlived(found, horizon * SECOND, KEEP, at_most) == [input_key(str(n)) for n in range(outlived)]


def test_what_has_left_remembers_what_had_ended() -> None:
    stays = ended(3)
    left = Former("m", "role", 0, SECOND, stays.ended, stays.forgotten_at)
    assert keys.remembered(left) == keys.remembered(stays)
    assert keys.find(left, input_key("2")) == keys.find(stays, input_key("2")) is not None


def test_a_name_that_no_server_gives_is_refused_before_anything_is_written() -> None:
    found = member()
    with pytest.raises(ValueError, match="256"):
        keys.accept(NO_UNDO, found, input_key("x"), b"x", "n" * 300, 1, SECOND)
    assert found == member()


def test_two_ended_inputs_take_less_than_a_fifth_of_a_kibibyte() -> None:
    found = member()
    for number in range(2):
        keys.accept(NO_UNDO, found, input_key(str(number)), b"x", f"in-{number:024x}", 1 << 40, 1 << 51)
        keys.end(NO_UNDO, found, input_key(str(number)), 1 << 41, 1 << 51)
    assert isinstance(found.ended, bytes)
    assert len(found.ended) == 2 * 67
    assert found.live is None
