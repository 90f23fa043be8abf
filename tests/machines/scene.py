"""A stage with the whole runtime of a member: lanes, cancels, deadlines, retirement, and agents that take steers."""

from collections.abc import Sequence
from typing import Any, Final, TypeVar

from msgspec import Raw
from tests.machines.stage import Stage, text

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import (
    Accepted,
    Attached,
    CancelAnswer,
    Delivered,
    Done,
    Retired,
    RunAnswer,
)
from mobd_server.machines.decision import Decided, decide, new_mob
from mobd_server.machines.state import Definition, Former, Input, Member, Operation, Profile, Run, Serve

# Intents of peer requests that wake no analyst.
SILENT: Final = ("mob.joined", "mob.left")

A = TypeVar("A")


class Scene(Stage):
    """One mob whose analysts have silent intents, and may have a time limit for their runs."""

    def __init__(self, *member_ids: str, timeout_s: int = 0, start: bool = True) -> None:
        super().__init__()
        self.mob, self.log = new_mob("mob"), []
        profiles = {
            "analyst": Profile("analyst", silent_intents=list(SILENT), run_timeout_s=timeout_s),
            "lead": Profile("lead"),
        }
        self.do(c.CreateMob(Definition("mob", profiles=profiles), {}, "log", start))
        self.spawn(*member_ids)

    # What callers do.

    def send(self, member_id: str, input_id: str, words: str = "hello", **options: Any) -> Delivered:
        """Deliver one input with whatever options it has."""
        return self.do(c.Deliver(member_id, input_id, text(words), **options))  # type: ignore[return-value]  # a Delivered

    def put(self, member_id: str, *input_ids: str, **options: Any) -> None:
        """Deliver inputs that are accepted."""
        for input_id in input_ids:
            answer = self.send(member_id, input_id, **options)
            assert isinstance(answer, Accepted), answer

    def steer(self, member_id: str, *input_ids: str, **options: Any) -> None:
        self.put(member_id, *input_ids, handling_mode="steer", **options)

    def interrupt(self, member_id: str, **options: Any) -> CancelAnswer:
        return self.do(c.Interrupt(member_id, **options), CancelAnswer)

    def cancel(self, member_id: str, run_id: str | None = None, **options: Any) -> CancelAnswer:
        """Cancel hard: the run in flight, or the one that is named."""
        command = c.HardCancel(member_id, run_id or self.run_of(member_id).run_id, **options)
        return self.do(command, CancelAnswer)

    def retire(self, member_id: str, **options: Any) -> Retired:
        return self.do(c.RetireMember(member_id, **options), Retired)

    def retire_runtime(self, member_id: str, **options: Any) -> Retired:
        return self.do(c.RetireRuntime(member_id, **options), Retired)

    def would(self, command: c.Command) -> Decided:
        """Only ask what a command would do."""
        context = c.Context(self.now, self.ids, self.connected, validate_only=True)
        return decide(self.mob, command, context, 1)

    def act(self, command: c.Command, run_id: str, fence: int) -> Decided:
        """Decide a command for whoever acts for a run, and log what was appended."""
        decided = decide(self.mob, command, c.Context(self.now, self.ids, self.connected, acting=(run_id, fence)), 1)
        self.append, self.reactions = decided.append, decided.reactions
        if decided.append is not None:
            self.log.extend(decided.append.records)
        return decided

    # What agents do.

    def join(
        self,
        host: str = "h",
        role: str = "analyst",
        *,
        steers: bool = True,
        capacity: int = 8,
        max_members: int = 100,
        held: Sequence[str] = (),
    ) -> str:
        """Attach an agent that serves what it is asked to, and takes steers unless it is said otherwise."""
        command = c.Attach(host, "1", capacity, max_members, [Serve(role=role)], held=list(held), steers=steers)
        attachment_id = self.do(command, Attached).attachment_id
        self.connected.add(attachment_id)
        return attachment_id

    def serve(self, host: str = "h", role: str = "analyst", **options: Any) -> str:
        """Attach an agent, and let it serve whatever it is asked to."""
        attachment_id = self.join(host, role, **options)
        self.confirm(*sorted(self.attachment(attachment_id).members))
        return attachment_id

    def settle(self, run: Run, took: Sequence[str] = (), output: str = '"done"') -> RunAnswer:
        """The agent's result, with the canonical ids of the steered inputs that it took in."""
        command = c.SettleRun(
            run.attachment_id,
            run.run_id,
            run.fence,
            Raw(output.encode()),
            output.encode().ljust(32, b"."),
            steered=list(took),
        )
        return self.do(command, RunAnswer)

    def report(self, run: Run, kind: str, message: str = "", took: Sequence[str] = (), **options: Any) -> RunAnswer:
        """The agent's word that a run brought no result."""
        command = c.FailRun(
            run.attachment_id,
            run.run_id,
            run.fence,
            kind,  # type: ignore[arg-type]  # a test names the kind
            message,
            steered=list(took),
            **options,
        )
        return self.do(command, RunAnswer)

    def fence_off(self, run: Run, reason: str = "it did not answer", control_id: str | None = None) -> bool:
        """The hub gave up waiting for a hard cancel's acknowledgement."""
        command = c.FenceOff(run.attachment_id, run.run_id, run.fence, control_id or run.control_id, reason)
        return self.do(command, Done).changed

    # What there is.

    def steering(self, member_id: str) -> list[str]:
        """Return the caller's ids of the inputs that wait in the steer lane, in order."""
        return [one.input_id for one in self.member(member_id).steer or []]

    def steered(self, member_id: str) -> list[str]:
        """Return the caller's ids of the inputs that were steered into the member's run, in order."""
        return [one.input_id for one in self.run_of(member_id).steered or []]

    def taken(self, member_id: str) -> list[str]:
        """Return the canonical ids of everything that was steered into the member's run."""
        return [one.canonical_input_id for one in self.run_of(member_id).steered or []]

    def outcomes(self) -> list[tuple[str, str]]:
        """Return what became of the inputs of the run that was settled last: the caller's ids and the outcomes."""
        return [(self.named(one.canonical_input_id), one.outcome) for one in self.event(e.RunSettled).outcomes]

    def named(self, canonical_input_id: str) -> str:
        """Return the caller's id of an input."""
        (name,) = [one.input_id for one in self.logged(e.InputAccepted) if one.canonical_input_id == canonical_input_id]
        return name

    def canonical(self, input_id: str) -> str:
        """Return the canonical id of an input by the caller's id."""
        (name,) = [one.canonical_input_id for one in self.logged(e.InputAccepted) if one.input_id == input_id]
        return name

    def ran(self, member_id: str = "a") -> list[list[str]]:
        """Finish the member's runs one by one, until it has none or has left, and return the batches."""
        batches: list[list[str]] = []
        while (member := self.mob.members.get(member_id)) is not None and member.run_id is not None:
            batches.append(self.batch(member_id))
            self.settle(self.run_of(member_id))
            assert len(batches) < 1_000, f"{member_id} runs the same again and again"
        return batches

    def operation(self, member_id: str) -> Operation:
        return self.mob.operations[self.member(member_id).operation_id]

    def former(self, member_id: str) -> Former:
        return self.mob.former[member_id]

    def inputs(self, member_id: str) -> list[Input]:
        """Return everything that waits, the queue first."""
        member: Member = self.member(member_id)
        return [*(member.queue or []), *(member.steer or [])]


def running(*, steers: bool = True, timeout_s: int = 0) -> Scene:
    """Return a mob whose member `a` runs `m1`, with nothing behind it."""
    scene = Scene("a", timeout_s=timeout_s)
    scene.serve(steers=steers)
    scene.put("a", "m1")
    return scene


def steered(*input_ids: str) -> Scene:
    """Return a mob whose member `a` runs `m1`, with inputs that were steered into the run."""
    scene = running()
    scene.steer("a", *input_ids)
    assert scene.steered("a") == list(input_ids)
    return scene
