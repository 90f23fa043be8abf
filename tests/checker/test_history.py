"""Histories as files, and histories that are none."""

from pathlib import Path

import pytest
from tests.checker.checker import BadHistory, check
from tests.checker.history import Answered, FinalEnd, Invoked, Logged, Record, Recorder, merged, read, write
from tests.checker.plain import plain

from mobd.v1 import bridge_pb2, common_pb2, events_pb2


def test_a_history_is_read_as_it_was_written_without_a_line_that_a_kill_cut(tmp_path: Path) -> None:
    records: list[Record] = [Invoked(1, "a", "c1", "Deliver", "crew", {"n": 1}), Answered(2, "a", "c1", {})]
    path = tmp_path / "history.jsonl"
    write(path, records)
    assert read(path) == records
    path.write_text(path.read_text() + '{"type":"Answered","at":3,"wh')
    assert read(path) == records


@pytest.mark.parametrize(
    "line", ['{"type":"Guess","at":1}', '{"type":"Note","at":1,"who":"a","text":"","more":1}', "7"]
)
def test_a_line_that_is_no_record_is_an_error(tmp_path: Path, line: str) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"no record|has no field"):
        read(path)


def test_a_recorder_writes_what_a_kill_can_not_take_back(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with path.open("a") as out:
        recorder = Recorder(iter(range(10)).__next__, "p-", out)
        call = recorder.invoked("a", "Deliver", "crew", {})
        recorder.failed("a", call, "NOT_FOUND", "MEMBER_NOT_FOUND")
        assert [type(one).__name__ for one in read(path)] == ["Invoked", "Refused"]
        recorder.failed("a", recorder.invoked("a", "Deliver", "crew", {}), "UNAVAILABLE")
    assert [one.at for one in read(path) if isinstance(one, Invoked)] == [0, 2]
    assert type(read(path)[-1]).__name__ == "Unknown"


def test_histories_are_merged_by_the_one_clock_and_what_is_final_comes_last() -> None:
    final = Logged("crew", {"seq": 1})
    late, early = Invoked(9, "a", "c1", "Observe", "crew", {}), Invoked(4, "b", "c2", "Observe", "crew", {})
    assert merged([final, late], [early]) == [early, late, final]


def test_a_message_is_plain_values() -> None:
    event = events_pb2.Event(seq=3, kind="input_accepted")
    event.time.FromMicroseconds(7_000_001)
    event.input_accepted.content.blocks.add(text="hi")
    event.input_accepted.handling_mode = common_pb2.HANDLING_MODE_STEER
    assert plain(event) == {
        "seq": 3,
        "time": 7_000_001,
        "kind": "input_accepted",
        "input_accepted": {"content": {"blocks": [{"text": "hi"}]}, "handling_mode": "HANDLING_MODE_STEER"},
    }
    assert plain(bridge_pb2.DeliverRequest(wake=False)) == {"wake": False}


def test_records_that_refer_to_nothing_are_no_history() -> None:
    with pytest.raises(BadHistory, match="never invoked"):
        check([Answered(1, "a", "c1", {})])
    with pytest.raises(BadHistory, match="final log"):
        check([Invoked(1, "a", "c1", "Observe", "crew", {}), Answered(2, "a", "c1", {})])
    assert check([FinalEnd("crew", "log")]) == []
