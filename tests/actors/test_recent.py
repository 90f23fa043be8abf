"""What was published last is at hand without the store, and never more of it than there may be."""

from msgspec import Raw

from mobd_server.actors import recent as module
from mobd_server.actors.recent import Recent
from mobd_server.machines import events as e
from mobd_server.machines.records import Record


def accepted(seq: int, size: int = 10) -> Record:
    event = e.InputAccepted("ada", f"i{seq}", f"in-{seq}", Raw(b"[]"), "caller")
    return Record(seq, 1, event.kind, 1, "ada", None, None, None, None, "caller", None, "x" * size, event)


def test_events_are_found_by_their_log_and_their_place_in_it() -> None:
    recent = Recent()
    first, second = accepted(1), accepted(2)
    recent.keep("log-a", [first, second])
    assert recent.find("log-a", [2, 1]) == [second, first]
    assert recent.find("log-b", [1]) is None


def test_half_of_an_answer_is_none() -> None:
    recent = Recent()
    recent.keep("log", [accepted(1)])
    assert recent.find("log", [1, 2]) is None


def test_only_what_begins_or_ends_inputs_is_kept() -> None:
    recent = Recent()
    stopped = e.MobStopped()
    recent.keep("log", [Record(1, 1, stopped.kind, 1, None, None, None, None, None, "caller", None, "{}", stopped)])
    assert recent.find("log", [1]) is None


def test_an_event_that_took_the_place_of_another_is_what_is_found_and_makes_room_once() -> None:
    recent = Recent()
    other = accepted(1, module.BYTES)
    recent.keep("log", [accepted(1, module.BYTES)])
    recent.keep("log", [other])
    assert recent.find("log", [1]) == [other]
    recent.keep("log", [accepted(2), accepted(3)])
    assert recent.find("log", [1]) is None
    assert recent.find("log", [2, 3]) is not None


def test_the_oldest_make_room_when_there_are_too_many() -> None:
    recent = Recent()
    recent.keep("log", [accepted(seq) for seq in range(1, module.RECORDS + 2)])
    assert recent.find("log", [1]) is None
    assert recent.find("log", [2, module.RECORDS + 1]) is not None


def test_the_oldest_make_room_when_they_are_too_large() -> None:
    recent = Recent()
    half = module.BYTES // 2
    recent.keep("log", [accepted(1, half), accepted(2, half)])
    assert recent.find("log", [1, 2]) is not None
    recent.keep("log", [accepted(3, 1)])
    assert recent.find("log", [1]) is None
    assert recent.find("log", [2, 3]) is not None
