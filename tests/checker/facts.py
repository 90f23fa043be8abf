"""What a log says, as plain facts: inputs, runs, members, agents. Written by `folding`, read by the checks."""

from bisect import bisect_right
from dataclasses import dataclass, field

from tests.checker.history import Plain
from tests.checker.verdicts import Verdict, cite

QUEUE = "HANDLING_MODE_QUEUE"
STEER = "HANDLING_MODE_STEER"


@dataclass(slots=True)
class InputFact:
    """One accepted input. `end` is consumed, abandoned, superseded or coalesced; empty while it has not ended."""

    canonical: str
    input_id: str
    member: str
    event: Plain
    lane: str
    kind: str
    silent: bool
    content: Plain
    attempts: int = 0
    run: str = ""
    runs: list[str] = field(default_factory=list)
    end: str = ""
    end_seq: int = 0
    reason: str = ""


@dataclass(slots=True)
class RunFact:
    """One run: what it held, under which fence, and what became of it. `state` is empty while it is in flight."""

    run_id: str
    member: str
    event: Plain
    fence: int
    attachment: str
    batch: list[str]
    attempts: list[int]
    steered: list[str] = field(default_factory=list)
    steered_attempts: list[int] = field(default_factory=list)
    cancels: list[Plain] = field(default_factory=list)
    state: str = ""
    settled: Plain | None = None

    @property
    def outcomes(self) -> list[Plain]:
        found: list[Plain] = (self.settled or {}).get("run_settled", {}).get("outcomes", [])
        return found


@dataclass(slots=True)
class MemberFact:
    """A member on the roster: its incarnation, its two lanes, its run and its agent."""

    name: str
    generation: int
    token: int
    event: Plain
    operation: str
    # active, retired, destroyed
    phase: str = "active"
    leaving: bool = False
    run: str = ""
    attachment: str = ""
    fence: int = 0
    confirmed: bool = False
    lanes: dict[str, list[str]] = field(default_factory=lambda: {QUEUE: [], STEER: []})
    # reason -> how many inputs were given up for it since anything else happened to the member.
    given_up: dict[str, int] = field(default_factory=dict)
    inputs_abandoned: int = 0

    @property
    def waiting(self) -> list[str]:
        """What waits, in the order in which it is given up: the steer lane first."""
        return [*self.lanes[STEER], *self.lanes[QUEUE]]


@dataclass(slots=True)
class AgentFact:
    """An attachment: how much it takes and what it has."""

    name: str
    event: Plain
    capacity: int
    runs: set[str] = field(default_factory=set)
    members: set[str] = field(default_factory=set)
    closed: Plain | None = None


@dataclass(slots=True)
class Facts:
    """Everything that the log of one mob says, and what in it breaks a rule."""

    mob: str
    log: list[Plain] = field(default_factory=list)
    # creating, running, stopped, completed, destroyed
    phase: str = "creating"
    pending: str = ""
    inputs: dict[str, InputFact] = field(default_factory=dict)
    # (member, input_id) -> its acceptances, oldest first: more than one only behind the horizon of the dedupe.
    keys: dict[tuple[str, str], list[InputFact]] = field(default_factory=dict)
    runs: dict[str, RunFact] = field(default_factory=dict)
    roster: dict[str, MemberFact] = field(default_factory=dict)
    agents: dict[str, AgentFact] = field(default_factory=dict)
    # Every number that the one counter of fences gave out -> the event that did.
    fences: dict[int, Plain] = field(default_factory=dict)
    last_fence: int = 0
    operations: dict[str, Plain] = field(default_factory=dict)
    ended_operations: dict[str, Plain] = field(default_factory=dict)
    # member -> its highest generation, and the event with which it left the roster.
    generations: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    # (kind, member) -> the numbers of those events, in order.
    places: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    breaches: list[Verdict] = field(default_factory=list)

    @property
    def head(self) -> int:
        return len(self.log)

    def event(self, seq: int) -> Plain | None:
        """Return an event of the log, if there is one with this number."""
        if 1 <= seq <= len(self.log) and self.log[seq - 1].get("seq") == seq:
            return self.log[seq - 1]
        return next((one for one in self.log if one.get("seq") == seq), None) if seq else None

    def last(self, kind: str, member: str, until: int) -> Plain | None:
        """Return the last event of a kind about a member that is not behind `until`."""
        places = self.places.get((kind, member), [])
        at = bisect_right(places, until)
        return self.event(places[at - 1]) if at else None

    def breach(self, check: str, text: str, *evidence: Plain | None) -> None:
        """Note a broken rule."""
        self.breaches.append(Verdict(check, f"{text} (mob {self.mob})", cite(*evidence)))
