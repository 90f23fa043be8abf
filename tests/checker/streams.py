"""Checks of streams of events: each is a piece of the final log without a hole, and nobody saw what is not durable."""

from collections.abc import Iterator

from tests.checker.history import Plain, StreamEvent, StreamMark
from tests.checker.knowledge import floors
from tests.checker.seen import MobSeen, Stream
from tests.checker.verdicts import Verdict, cite

_NAME = "streams_equal_log"


def streams_equal_log(seen: MobSeen) -> Iterator[Verdict]:
    """Each stream is what its filter leaves of the log, from behind its cursor, in order, each event once and equal."""
    known = floors(seen)
    for stream in seen.streams:
        yield from _one(seen, stream, known[stream.opened.stream])


def _wanted(stream: Stream, event: Plain) -> bool:
    kinds, members = stream.opened.kinds, stream.opened.members
    return (not kinds or event.get("kind") in kinds) and (not members or event.get("member_id", "") in members)


def _one(seen: MobSeen, stream: Stream, floor: int) -> Iterator[Verdict]:
    log, opened = seen.facts.log, stream.opened
    cursor = opened.after
    head = 0
    for came in stream.came:
        if isinstance(came, StreamMark):
            if came.head < max(head, floor):
                text = f"the head was said to be {came.head}, and {max(head, floor)} had been seen before"
                yield Verdict(_NAME, text, cite(opened, came))
            if came.cursor > came.head or came.head > seen.facts.head:
                text = f"a bookmark of {came.cursor} of {came.head}; the log ends at {seen.facts.head}"
                yield Verdict(_NAME, text, cite(opened, came))
            head = max(head, came.head)
        seq = came.event.get("seq", 0) if isinstance(came, StreamEvent) else came.cursor
        if cursor is None:
            # From the newest event on: where that was is known from what comes first.
            cursor = seq - 1 if isinstance(came, StreamEvent) else seq
        yield from _step(seen, stream, came, cursor, seq, log)
        cursor = max(cursor, seq)
    if stream.ended is not None and stream.ended.code == "OK" and seen.facts.phase == "destroyed":
        yield from _missing(stream, log, cursor or 0, len(log) + 1, "before its stream ended in order", stream.ended)


def _step(
    seen: MobSeen, stream: Stream, came: StreamEvent | StreamMark, cursor: int, seq: int, log: list[Plain]
) -> Iterator[Verdict]:
    if isinstance(came, StreamMark):
        yield from _missing(stream, log, cursor, seq + 1, "before a bookmark behind them", came)
        return
    if seq <= cursor:
        yield Verdict(_NAME, f"event {seq} came at or before the cursor {cursor}", cite(stream.opened, came))
        return
    yield from _missing(stream, log, cursor, seq, f"before event {seq}", came)
    event = seen.facts.event(seq)
    if event is None:
        text = f"event {seq} was seen, and the final log ends at {seen.facts.head}: it was never durable"
        yield Verdict("visible_is_durable", text, cite(stream.opened, came))
    elif event != came.event:
        text = f"event {seq} was seen as {came.event.get('kind')}, and the final log has another one"
        yield Verdict("visible_is_durable", text, cite(came, event))
    elif not _wanted(stream, event):
        yield Verdict(_NAME, f"event {seq} is not what was asked for", cite(stream.opened, came))


def _missing(
    stream: Stream, log: list[Plain], after: int, until: int, when: str, came: StreamEvent | object
) -> Iterator[Verdict]:
    gone = [event for event in log[after : max(after, until - 1)] if _wanted(stream, event)]
    if gone:
        numbers = [event.get("seq", 0) for event in gone[:5]]
        text = f"{len(gone)} events are missing {when}: {numbers}"
        yield Verdict(_NAME, text, cite(stream.opened, came if isinstance(came, StreamEvent) else None, gone[0]))
