"""A decision while it is made: what it appends at once, how much it may append, what is left when it is given up."""

import msgspec
import pytest
from tests.machines.stage import NOW, CountedIds

from mobd_server.errors import DecisionTooLarge
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import Again
from mobd_server.machines.draft import MAX_BYTES, MAX_EVENTS, Draft
from mobd_server.machines.records import Record
from mobd_server.machines.state import Definition, Mob
from mobd_server.machines.undo import Undo

HEAD = 7


def evolve(mob: Mob, undo: Undo, record: Record) -> None:
    """Count, and note who was named."""
    mob.head = record.seq
    undo.put(mob.labels, str(record.seq), record.member_id or "nobody")


def draft(connected: frozenset[str] = frozenset()) -> Draft:
    context = c.Context(NOW, CountedIds(), connected, "somebody", "a trace")
    return Draft(Mob("m", head=HEAD), context, evolve)


def created(size: int) -> e.MobCreated:
    """Return an event that is so many bytes long as JSON."""
    around = len(msgspec.json.encode(e.MobCreated(Definition(), "")))
    return e.MobCreated(Definition(), "x" * (size - around))


def test_an_event_is_a_row_and_applied_at_once() -> None:
    d = draft()
    first, second = e.MobStarted(), e.MobCreated(Definition("é"), "log")
    assert d.emit(first) == 8
    assert d.mob.head == 8
    assert d.mob.labels == {"8": "nobody"}
    assert d.emit(second, "a", "run-1") == 9
    assert d.mob.labels == {"8": "nobody", "9": "a"}
    payload = msgspec.json.encode(second).decode()
    assert d.records == [
        Record(8, NOW, "mob_started", 1, None, None, None, None, None, "somebody", "a trace", "{}", first),
        Record(9, NOW, "mob_created", 1, "a", "run-1", None, None, None, "somebody", "a trace", payload, second),
    ]
    assert d.bytes == len("{}") + len(payload.encode())
    assert (d.base, d.mob.head) == (HEAD, 9)


def test_what_is_not_appended_is_empty_at_first() -> None:
    d = draft()
    assert (d.records, d.reactions, d.runs, d.messages, d.sessions) == ([], [], [], [], [])
    assert (d.create, d.bytes, d.base) == (None, 0, HEAD)
    d.react(Again())
    assert d.reactions == [Again()]


def too_large(d: Draft, event: e.Event) -> None:
    """See that an event is refused, with words that say how much may be, and is neither applied nor a row."""
    before = (d.mob.head, len(d.records), dict(d.mob.labels))
    with pytest.raises(DecisionTooLarge) as refused:
        d.emit(event)
    assert refused.value.reason == "DECISION_TOO_LARGE"
    assert refused.value.message == "one command may append at most 2000 events or 4194304 bytes: send it in parts"
    assert refused.value.details == {}
    assert (d.mob.head, len(d.records), d.mob.labels) == before


def test_a_decision_has_at_most_so_many_events() -> None:
    d = draft()
    room = [d.room]
    for _ in range(MAX_EVENTS):
        d.emit(e.MobStarted())
        room.append(d.room)
    # A hundred are kept for what follows from the last one that looked.
    assert room == list(range(1_900, -101, -1))
    too_large(d, e.MobStarted())


@pytest.mark.parametrize("sizes", [[MAX_BYTES], [MAX_BYTES - 100, 100], [100, MAX_BYTES - 200, 100]])
def test_a_decision_has_at_most_so_many_bytes(sizes: list[int]) -> None:
    d = draft()
    for size in sizes:
        d.emit(created(size))
    assert d.bytes == MAX_BYTES
    too_large(d, e.MobStarted())
    d = draft()
    for size in sizes[:-1]:
        d.emit(created(size))
    too_large(d, created(sizes[-1] + 1))


def test_what_cannot_be_stored_is_never_applied() -> None:
    d = draft()
    with pytest.raises(TypeError):
        d.emit(e.MobCreated(Definition(), object()))  # type: ignore[arg-type]  # what a bug would do
    assert (d.mob.head, d.mob.labels, d.records) == (HEAD, {}, [])


def test_an_agent_is_connected_if_the_hub_says_so_or_this_decision_attaches_it() -> None:
    d = draft(frozenset({"one"}))
    assert [d.is_connected(name) for name in ("one", "two", "")] == [True, False, False]
    d.attaching = "two"
    assert [d.is_connected(name) for name in ("one", "two", "")] == [True, True, False]


def test_a_draft_that_is_given_up_leaves_no_trace() -> None:
    d = draft()
    for name in ("a", "b"):
        d.emit(e.MobStarted(), name)
    d.rollback()
    assert d.mob == Mob("m", head=HEAD)
