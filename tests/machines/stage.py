"""A mob on a stage: decisions with a clock, ids and connections that a test holds in its hand.

Every decision is logged the way it would be stored, so that any test can ask for the replayed state.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar, overload

import msgspec
from msgspec import Raw

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import (
    Accepted,
    Answer,
    Attached,
    Delivered,
    Reaction,
    RunAnswer,
    SendStartRun,
)
from mobd_server.machines.decision import Decided, decide, fold, new_mob
from mobd_server.machines.records import Append, Record
from mobd_server.machines.state import Attachment, Definition, Executor, Member, Mob, Profile, Run, Serve

SECOND: Final = 1_000_000
DAY: Final = 86_400 * SECOND
NOW: Final = 1_700_000_000 * SECOND

ROLES: Final = ("analyst", "lead")

_encode: Final = msgspec.json.Encoder(order="deterministic").encode

A = TypeVar("A")
E = TypeVar("E", bound=e.Event)
R = TypeVar("R", bound=Reaction)


class CountedIds:
    """Ids in the order of a counter."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def new(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}-{self.count}"


def state_bytes(mob: Mob) -> bytes:
    """Return the whole state; two states are the same if these are."""
    return _encode(mob)


def stored(record: Record) -> Record:
    """Return a record as it comes back from a store: its event is read from the payload."""
    event = msgspec.json.decode(record.payload, type=e.BY_KIND[record.kind, record.v])
    return msgspec.structs.replace(record, event=event)


def replay(mob_id: str, log: Iterable[Record]) -> Mob:
    """Return the state that a stored log adds up to."""
    mob = new_mob(mob_id)
    for record in log:
        fold(mob, stored(record))
    return mob


def check_columns(records: Iterable[Record]) -> None:
    """Check that records are filed under the member and run that their events name; operations have their own rules."""
    for record in records:
        event = record.event
        if not event.kind.startswith("operation_"):
            assert record.member_id == getattr(event, "member_id", None), record
            assert record.run_id == getattr(event, "run_id", None), record


def text(words: str) -> Raw:
    """Return content of one text block."""
    return Raw(msgspec.json.encode([{"text": words}]))


def role(name: str) -> Serve:
    return Serve(role=name)


def named(name: str) -> Serve:
    return Serve(member_id=name)


class Stage:
    """One mob, and what it is decided with."""

    def __init__(self, roles: Sequence[str] = ROLES, start: bool = True, mob_id: str = "mob") -> None:
        self.mob = new_mob(mob_id)
        self.ids = CountedIds()
        self.now = NOW
        self.connected: set[str] = set()
        self.log: list[Record] = []
        # What the last decision appended and released.
        self.append: Append | None = None
        self.reactions: list[Reaction] = []
        profiles = {name: Profile(name) for name in roles}
        self.do(c.CreateMob(Definition(mob_id, profiles=profiles), {}, "log", start))

    def decide(
        self,
        command: c.Command,
        request_id: str | None = None,
        request_hash: str | None = None,
        principal: str = "anonymous",
        traceparent: str | None = None,
    ) -> Decided:
        """Decide, and log what was appended."""
        if request_id is not None and request_hash is None:
            request_hash = type(command).__name__
        context = c.Context(
            self.now, self.ids, self.connected, principal, traceparent, request_id=request_id, request_hash=request_hash
        )
        decided = decide(self.mob, command, context, 1)
        self.append = decided.append
        self.reactions = decided.reactions
        if decided.append is not None:
            check_columns(decided.append.records)
            self.log.extend(decided.append.records)
        return decided

    @overload
    def do(self, command: c.Command) -> Answer: ...
    @overload
    def do(self, command: c.Command, expect: type[A]) -> A: ...
    def do(self, command: c.Command, expect: type[Any] = Answer) -> Any:
        """Decide, and return the answer, which is of the expected type."""
        answer = self.decide(command).answer
        assert isinstance(answer, expect), answer
        return answer

    def replayed(self) -> Mob:
        return replay(self.mob.mob_id, self.log)

    # What was decided last.

    @property
    def events(self) -> list[e.Event]:
        """The events of the last decision."""
        return [record.event for record in self.append.records] if self.append is not None else []

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def event(self, kind: type[E]) -> E:
        """Return the one event of this type in the last decision."""
        (found,) = self.all(kind)
        return found

    def all(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def sent(self, kind: type[R]) -> list[R]:
        return [reaction for reaction in self.reactions if isinstance(reaction, kind)]

    def logged(self, kind: type[E]) -> list[E]:
        """Return every event of this type in the log."""
        return [record.event for record in self.log if isinstance(record.event, kind)]

    # What there is.

    def member(self, member_id: str) -> Member:
        return self.mob.members[member_id]

    def executor(self, member_id: str) -> Executor:
        executor = self.member(member_id).executor
        assert executor is not None, f"{member_id} has no agent"
        return executor

    def agent_of(self, member_id: str) -> str | None:
        executor = self.member(member_id).executor
        return executor.attachment_id if executor is not None else None

    def attachment(self, attachment_id: str) -> Attachment:
        return self.mob.attachments[attachment_id]

    def run_of(self, member_id: str) -> Run:
        run_id = self.member(member_id).run_id
        assert run_id is not None, f"{member_id} has no run"
        return self.mob.runs[run_id]

    def batch(self, member_id: str) -> list[str]:
        """Return the caller's ids of the inputs that the member runs."""
        return [one.input_id for one in self.run_of(member_id).inputs]

    def waits(self, member_id: str) -> list[str]:
        """Return the caller's ids of the inputs that wait, in order."""
        return [one.input_id for one in self.member(member_id).queue or []]

    # What people and applications do.

    def spawn(self, *member_ids: str, of: str = "analyst") -> None:
        for member_id in member_ids:
            self.do(c.SpawnMember(c.MemberSpec(member_id, of)))

    def deliver(self, member_id: str, *input_ids: str, words: str = "hello") -> Delivered:
        """Deliver inputs one by one and return the last outcome."""
        outcome: Any = None
        for input_id in input_ids:
            outcome = self.do(c.Deliver(member_id, input_id, text(words)))
        assert outcome is not None
        return outcome  # type: ignore[no-any-return]  # what the caller asked for

    def accepted(self, member_id: str, *input_ids: str) -> None:
        for input_id in input_ids:
            assert isinstance(self.deliver(member_id, input_id), Accepted)

    def advance(self, seconds: float) -> None:
        """Let time pass and look at the clock."""
        self.now += int(seconds * SECOND)
        self.do(c.Wake())

    # What agents do.

    def attach(
        self,
        host: str = "h",
        serves: Sequence[Serve] = (Serve(role="analyst"),),
        capacity: int = 8,
        max_members: int = 100,
        incarnation: str = "1",
        held: Sequence[str] = (),
    ) -> str:
        """Say Hello; return the attachment, which is connected."""
        command = c.Attach(host, incarnation, capacity, max_members, list(serves), held=list(held))
        attached = self.do(command, Attached)
        self.connected.add(attached.attachment_id)
        return attached.attachment_id

    def confirm(self, *member_ids: str) -> None:
        """Let the agents of these members say that they serve them."""
        for member_id in member_ids:
            executor = self.executor(member_id)
            self.do(c.Confirm(executor.attachment_id, member_id, executor.fence))

    def agent(self, host: str = "h", **options: Any) -> str:
        """Attach an agent that serves whatever it is asked to."""
        attachment_id = self.attach(host, **options)
        self.confirm(*sorted(self.attachment(attachment_id).members))
        return attachment_id

    def suspend(self, attachment_id: str) -> None:
        """The stream broke."""
        self.connected.discard(attachment_id)

    def leave(self, attachment_id: str, reason: str = "lost") -> None:
        """The agent is gone for good."""
        self.connected.discard(attachment_id)
        self.do(c.CloseAttachment(attachment_id, reason))  # type: ignore[arg-type]  # a test names the reason

    def finish(self, run: Run | SendStartRun, output: str = '"done"', messages: Sequence[str] = ()) -> RunAnswer:
        """The agent's result."""
        count = 0
        if messages:
            count = self.member(run.member_id).message_count + len(messages)
        return self.do(
            c.SettleRun(
                run.attachment_id,
                run.run_id,
                run.fence,
                Raw(output.encode()),
                output.encode().ljust(32, b"."),
                [Raw(one.encode()) for one in messages],
                count,
                f"digest-{count}" if messages else "",
            ),
            RunAnswer,
        )

    def fail(self, run: Run | SendStartRun, message: str = "boom", retryable: bool = True) -> RunAnswer:
        command = c.FailRun(run.attachment_id, run.run_id, run.fence, "error", message, retryable)
        return self.do(command, RunAnswer)

    def give_back(self, run: Run | SendStartRun) -> RunAnswer:
        return self.do(c.FailRun(run.attachment_id, run.run_id, run.fence, "released"), RunAnswer)

    def lose(self, run: Run | SendStartRun) -> RunAnswer:
        return self.do(c.LoseRun(run.attachment_id, run.run_id, run.fence, "not accepted in time"), RunAnswer)
