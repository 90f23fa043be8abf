"""What a history is: everything that clients and agents did and saw, and what the service says in the end.

A history is a list of records. Each carries `at`, a value of one clock that all who record share: virtual time or a
count of steps in a simulation, CLOCK_MONOTONIC in nanoseconds among processes of one machine. What one observer records
is in the order in which it happened to it; records of two observers are ordered by `at`, and equal values order
nothing. A call is recorded as invoked before its first byte leaves, and as ended after its answer came, so that the
true moment of its effect lies between.

Payloads are plain values (`tests.checker.plain`): a protobuf message is a dict of the fields that are set, by their
names in the proto, with enums as names, times and durations as integers of microseconds, and messages nested. A field
that has its default may be missing.

In a file a history is JSON lines, one record each: its fields and its type, as in `{"type": "Invoked", "at": 17, …}`. A
last line that was cut by a kill is left out; any other that can't be read is an error.
"""

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TextIO

Plain = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Invoked:
    """A client calls: `call` names this one attempt, and is unique in the history. A repetition is another call."""

    at: int
    who: str
    call: str
    rpc: str
    mob: str
    request: Plain


@dataclass(frozen=True, slots=True)
class Answered:
    """The call was answered OK."""

    at: int
    who: str
    call: str
    answer: Plain


@dataclass(frozen=True, slots=True)
class Refused:
    """The server refused the call with a status that says that nothing happened, for example FAILED_PRECONDITION."""

    at: int
    who: str
    call: str
    code: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The call ended and its outcome is unknown: UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED, INTERNAL, a broken wire.

    A call without any end counts as this, for ever.
    """

    at: int
    who: str
    call: str
    code: str


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """A stream of events is asked for, from behind `after`; None is the newest event, wherever that is.

    `kinds` and `members` filter, if they are not empty. `stream` is unique in the history. PollEvents may be recorded
    as a stream of one page.
    """

    at: int
    who: str
    stream: str
    mob: str
    after: int | None
    kinds: list[str] = field(default_factory=list)
    members: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """An event came: mobd.v1.Event as a plain value."""

    at: int
    who: str
    stream: str
    event: Plain


@dataclass(frozen=True, slots=True)
class StreamMark:
    """A bookmark came: everything up to `cursor` was sent, `head` is durable."""

    at: int
    who: str
    stream: str
    cursor: int
    head: int


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The stream ended: OK, or the code of its status."""

    at: int
    who: str
    stream: str
    code: str


@dataclass(frozen=True, slots=True)
class AgentSent:
    """An agent sends one frame: `frame` is the name in AgentFrame's oneof, `body` the message in it.

    `who` is a process, not a host: two incarnations are two observers. `stream` names the Attach stream.
    """

    at: int
    who: str
    stream: str
    mob: str
    frame: str
    body: Plain


@dataclass(frozen=True, slots=True)
class AgentReceived:
    """An agent received one frame: `frame` is the name in ServerFrame's oneof."""

    at: int
    who: str
    stream: str
    mob: str
    frame: str
    body: Plain


@dataclass(frozen=True, slots=True)
class Note:
    """Something that no check depends on, for people: a server or an agent was killed or started, a commit failed."""

    at: int
    who: str
    text: str


@dataclass(frozen=True, slots=True)
class Logged:
    """One event of the final log of a mob, read when all is over and quiet, in the order of the log."""

    mob: str
    event: Plain


@dataclass(frozen=True, slots=True)
class Final:
    """One thing of the final state: `what` is member, input, run or operation, `value` what a List RPC answered.

    That all of a kind were listed is said by a FinalEnd of that kind.
    """

    mob: str
    what: str
    value: Plain


@dataclass(frozen=True, slots=True)
class FinalEnd:
    """All things of one kind were listed: `what` is log, member, input, run or operation.

    `quiet` with the log says that it was read when all who deliver had ended and every input had ended too. `since`
    with the log is when its reading began: what anybody saw from then on may be newer than it, and is not judged.
    """

    mob: str
    what: str
    quiet: bool = False
    since: int | None = None


Record = (
    Invoked
    | Answered
    | Refused
    | Unknown
    | StreamOpened
    | StreamEvent
    | StreamMark
    | StreamEnded
    | AgentSent
    | AgentReceived
    | Note
    | Logged
    | Final
    | FinalEnd
)
TYPES: "dict[str, type[Record]]" = {
    one.__name__: one
    for one in (
        Invoked,
        Answered,
        Refused,
        Unknown,
        StreamOpened,
        StreamEvent,
        StreamMark,
        StreamEnded,
        AgentSent,
        AgentReceived,
        Note,
        Logged,
        Final,
        FinalEnd,
    )
}

# Statuses that say that a call had no effect; any other but OK leaves that open.
NO_EFFECT = frozenset(
    {
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "FAILED_PRECONDITION",
        "RESOURCE_EXHAUSTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
    }
)


def to_line(record: Record) -> str:
    """Return a record as one line of JSON without its end of line."""
    return json.dumps({"type": type(record).__name__, **asdict(record)}, separators=(",", ":"))


def from_line(line: str) -> Record:
    """Return the record of a line. Raises ValueError if it is none."""
    value = json.loads(line)
    if not isinstance(value, dict) or value.get("type") not in TYPES:
        raise ValueError(f"no record: {line[:200]}")
    kind = TYPES[value.pop("type")]
    known = {one.name for one in fields(kind)}
    if not set(value) <= known:
        raise ValueError(f"{kind.__name__} has no field {sorted(set(value) - known)}")
    return kind(**value)


def read(path: Path) -> list[Record]:
    """Return the records of a file, compressed if its name ends with gz, without a last line that a kill cut off."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        lines = file.read().split("\n")
    return [from_line(line) for line in lines[:-1] if line]


def write(path: Path, records: Iterable[Record]) -> None:
    """Write records to a file."""
    with path.open("w", encoding="utf-8") as out:
        out.writelines(to_line(one) + "\n" for one in records)


def merged(*histories: Iterable[Record]) -> list[Record]:
    """Return the records of several observers as one history, ordered by `at`; what is final comes last."""
    records = [one for history in histories for one in history]
    timed = [one for one in records if not isinstance(one, Logged | Final | FinalEnd)]
    timed.sort(key=lambda one: one.at)
    return [*timed, *(one for one in records if isinstance(one, Logged | Final | FinalEnd))]


class Recorder:
    """Takes down records, to memory or to a file, which then survives a kill of the process.

    `clock` is the shared one. Names of calls and streams that it gives out are unique among recorders with different
    `prefix`.
    """

    def __init__(self, clock: Callable[[], int], prefix: str = "", out: TextIO | None = None) -> None:
        self.records: list[Record] = []
        self._clock = clock
        self._prefix = prefix
        self._out = out
        self._names = 0
        self._reading: dict[str, int] = {}

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def _add(self, record: Record) -> None:
        if self._out is None:
            self.records.append(record)
        else:
            self._out.write(to_line(record) + "\n")
            self._out.flush()

    def _name(self, kind: str) -> str:
        self._names += 1
        return f"{self._prefix}{kind}{self._names}"

    def invoked(self, who: str, rpc: str, mob: str, request: Plain) -> str:
        """Before a call is sent. Returns the name by which its end is recorded."""
        call = self._name("c")
        self._add(Invoked(self._clock(), who, call, rpc, mob, request))
        return call

    def answered(self, who: str, call: str, answer: Plain) -> None:
        """After the answer came."""
        self._add(Answered(self._clock(), who, call, answer))

    def failed(self, who: str, call: str, code: str, reason: str = "") -> None:
        """After a call failed: `code` is the name of the gRPC status, or anything else if the wire broke."""
        if code in NO_EFFECT:
            self._add(Refused(self._clock(), who, call, code, reason))
        else:
            self._add(Unknown(self._clock(), who, call, code))

    def opened(
        self, who: str, mob: str, after: int | None, kinds: Iterable[str] = (), members: Iterable[str] = ()
    ) -> str:
        """Before a stream of events is asked for. Returns its name."""
        stream = self._name("s")
        self._add(StreamOpened(self._clock(), who, stream, mob, after, list(kinds), list(members)))
        return stream

    def event(self, who: str, stream: str, event: Plain) -> None:
        """After an event came on a stream."""
        self._add(StreamEvent(self._clock(), who, stream, event))

    def mark(self, who: str, stream: str, cursor: int, head: int) -> None:
        """After a bookmark came on a stream."""
        self._add(StreamMark(self._clock(), who, stream, cursor, head))

    def ended(self, who: str, stream: str, code: str) -> None:
        """After a stream of events ended."""
        self._add(StreamEnded(self._clock(), who, stream, code))

    def attached(self) -> str:
        """Return the name of a new Attach stream."""
        return self._name("a")

    def sent(self, who: str, stream: str, mob: str, frame: str, body: Plain) -> None:
        """Before an agent sends a frame."""
        self._add(AgentSent(self._clock(), who, stream, mob, frame, body))

    def received(self, who: str, stream: str, mob: str, frame: str, body: Plain) -> None:
        """After an agent received a frame."""
        self._add(AgentReceived(self._clock(), who, stream, mob, frame, body))

    def note(self, who: str, text: str) -> None:
        """Say what happened, for people."""
        self._add(Note(self._clock(), who, text))

    def reading(self, mob: str) -> None:
        """Before the final log is read; not needed if nobody sees anything any more."""
        self._reading[mob] = self._clock()

    def logged(self, mob: str, event: Plain) -> None:
        """One event of the final log."""
        self._add(Logged(mob, event))

    def final(self, mob: str, what: str, value: Plain) -> None:
        """One thing of the final state."""
        self._add(Final(mob, what, value))

    def final_end(self, mob: str, what: str, *, quiet: bool = False) -> None:
        """All of its kind was said."""
        self._add(FinalEnd(mob, what, quiet, self._reading.get(mob) if what == "log" else None))
