"""A history sorted out: calls with their ends, streams with what they brought, agents with what they heard and said."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.checker.facts import Facts
from tests.checker.folding import fold
from tests.checker.history import (
    AgentReceived,
    AgentSent,
    Answered,
    Final,
    FinalEnd,
    Invoked,
    Logged,
    Note,
    Plain,
    Record,
    Refused,
    StreamEnded,
    StreamEvent,
    StreamMark,
    StreamOpened,
    Unknown,
)

_Observed = Answered | Refused | Unknown | StreamEvent | StreamMark | StreamEnded | AgentReceived


class BadHistory(ValueError):
    """The history itself is not what history.py says: nothing can be judged by it."""


@dataclass(slots=True)
class Call:
    """One attempt of a call. A call that is answered more than once is a stream, such as WatchInput."""

    invoked: Invoked
    answers: list[Answered] = field(default_factory=list)
    refused: Refused | None = None
    unknown: Unknown | None = None

    @property
    def rpc(self) -> str:
        return self.invoked.rpc

    @property
    def request(self) -> Plain:
        return self.invoked.request

    @property
    def answered(self) -> Answered | None:
        """The one answer of a call that has one."""
        return self.answers[0] if self.answers else None

    @property
    def decided(self) -> bool:
        """Whether the call may have changed something: it was no question what it would do, and not replayed."""
        asked = bool(self.request.get("validate_only"))
        return not asked and not (self.answered is not None and self.answered.answer.get("replayed", False))


@dataclass(slots=True)
class Stream:
    """One stream of events."""

    opened: StreamOpened
    came: list[StreamEvent | StreamMark] = field(default_factory=list)
    ended: StreamEnded | None = None


@dataclass(slots=True)
class Attached:
    """One Attach stream of an agent: what it said and heard, in its order."""

    who: str
    name: str
    frames: list[AgentSent | AgentReceived] = field(default_factory=list)


@dataclass(slots=True)
class MobSeen:
    """Everything that concerns one mob."""

    mob: str
    calls: list[Call] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    attached: dict[tuple[str, str], Attached] = field(default_factory=dict)
    facts: Facts = field(default_factory=lambda: Facts(""))
    final: dict[str, list[Plain]] = field(default_factory=lambda: defaultdict(list))
    listed: set[str] = field(default_factory=set)
    quiet: bool = False

    @property
    def frames(self) -> Iterable[AgentSent | AgentReceived]:
        """Every frame of every agent; those of one stream in order."""
        for one in self.attached.values():
            yield from one.frames


class _Sorting:
    def __init__(self, since: dict[str, int]) -> None:
        # mob -> from when on what was seen is not judged.
        self._since = since
        self.mobs: dict[str, MobSeen] = {}
        self._calls: dict[str, Call] = {}
        self._streams: dict[str, Stream] = {}
        self.logs: dict[str, list[Plain]] = defaultdict(list)

    def mob(self, name: str) -> MobSeen:
        return self.mobs.setdefault(name, MobSeen(name))

    def take(self, one: Record) -> None:
        """Put a record where it belongs."""
        match one:
            case Invoked() | Answered() | Refused() | Unknown():
                self._call(one)
            case StreamOpened() | StreamEvent() | StreamMark() | StreamEnded():
                self._stream(one)
            case AgentSent() | AgentReceived():
                if isinstance(one, AgentReceived) and self._late(one, one.mob):
                    return
                seen = self.mob(one.mob)
                attached = seen.attached.setdefault((one.who, one.stream), Attached(one.who, one.stream))
                attached.frames.append(one)
            case Logged():
                self.logs[one.mob].append(one.event)
            case Final():
                self.mob(one.mob).final[one.what].append(one.value)
            case FinalEnd():
                self.mob(one.mob).listed.add(one.what)
                self.mob(one.mob).quiet |= one.quiet
            case Note():
                pass

    def _late(self, one: _Observed, mob: str) -> bool:
        return mob in self._since and one.at >= self._since[mob]

    def _call(self, one: Invoked | Answered | Refused | Unknown) -> None:
        if isinstance(one, Invoked):
            if one.call in self._calls:
                raise BadHistory(f"call {one.call} is invoked twice")
            self._calls[one.call] = Call(one)
            self.mob(one.mob).calls.append(self._calls[one.call])
            return
        if one.call not in self._calls:
            raise BadHistory(f"call {one.call} ends and was never invoked")
        call = self._calls[one.call]
        if self._late(one, call.invoked.mob):
            return
        match one:
            case Answered():
                call.answers.append(one)
            case Refused():
                call.refused = one
            case Unknown():
                call.unknown = one

    def _stream(self, one: StreamOpened | StreamEvent | StreamMark | StreamEnded) -> None:
        if isinstance(one, StreamOpened):
            if one.stream in self._streams:
                raise BadHistory(f"stream {one.stream} is opened twice")
            self._streams[one.stream] = Stream(one)
            self.mob(one.mob).streams.append(self._streams[one.stream])
            return
        if one.stream not in self._streams:
            raise BadHistory(f"stream {one.stream} brings something and was never opened")
        stream = self._streams[one.stream]
        if self._late(one, stream.opened.mob):
            return
        if isinstance(one, StreamEnded):
            stream.ended = one
        else:
            stream.came.append(one)


def sort(records: Iterable[Record]) -> dict[str, MobSeen]:
    """Return what was seen of each mob whose final log is in the history, by its name.

    Raises BadHistory if a record refers to nothing, or a mob was used and its final log is missing.
    """
    records = list(records)
    sorting = _Sorting({one.mob: one.since for one in records if isinstance(one, FinalEnd) and one.since is not None})
    for one in records:
        sorting.take(one)
    for name, seen in sorting.mobs.items():
        if "log" not in seen.listed and (sorting.logs[name] or any(call.answers for call in seen.calls)):
            raise BadHistory(f"the final log of mob {name} is missing")
        seen.facts = fold(name, sorting.logs[name])
    return sorting.mobs
