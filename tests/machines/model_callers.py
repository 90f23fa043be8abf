"""What callers do in the property test, and what they must be answered."""

from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from tests.machines.model_inputs import DATED
from tests.machines.model_operations import STEPS
from tests.machines.model_play import ROLES, Play, member_ids, picks, requests
from tests.machines.stage import text

from mobd_server.errors import (
    InvalidTransition,
    MemberNotFound,
    OperationExists,
    OperationNotFound,
    OperationTransition,
    PeerNotExpected,
    RequestConflict,
    StaleFence,
)
from mobd_server.machines import commands as c
from mobd_server.machines.answers import (
    Accepted,
    BatchDelivered,
    CancelAnswer,
    Deduplicated,
    Destroyed,
    EnsuredMember,
    MemberView,
    MobReport,
    OperationView,
    Rejected,
    Respawned,
    Retired,
    UnknownMember,
)
from mobd_server.machines.state import Kind, Lane

KINDS: Final[tuple[Kind, ...]] = (
    "peer_message",
    "peer_message",
    "prompt",
    "peer_request",
    "peer_response_progress",
    "peer_response_terminal",
    "external_event",
    "flow_step",
    "continuation",
    "operation",
)
# Kind, handling mode, wake, supersession key, intent.
Form = tuple[Kind, Lane | None, bool, str | None, str]
PLAIN: Final[Form] = ("peer_message", None, True, None, "")
STEER: Final[Form] = ("peer_message", "steer", True, None, "")

forms: Final = st.one_of(
    st.just(PLAIN),
    st.just(STEER),
    st.tuples(
        st.sampled_from(KINDS),
        st.sampled_from([None, None, "queue", "steer", "steer"]),
        st.sampled_from([True, True, False]),
        st.sampled_from([None, None, "k0", "k1"]),
        st.sampled_from(["", "hush"]),
    ),
)
operation_ids: Final = st.sampled_from([f"o{n}" for n in range(5)])
input_ids: Final = st.sampled_from([*(f"i{n}" for n in range(14)), DATED])
fences: Final = st.sampled_from(["none", "none", "right", "generation", "token"])

REFUSALS: Final = {"refused": InvalidTransition, "unknown": MemberNotFound, "stale": StaleFence}


OPERATION_ANSWERS: Final[dict[str, type[Any]]] = {
    **REFUSALS,
    "exists": OperationExists,
    "transition": OperationTransition,
    "unknown operation": OperationNotFound,
    "no peer": PeerNotExpected,
    "ok": OperationView,
}


def outcome_of(answer: Any) -> str:
    match answer:
        case Rejected(cause=cause):
            return cause
        case Accepted():
            return "accepted"
        case Deduplicated():
            return "deduplicated"
        case _:
            assert isinstance(answer, UnknownMember)
            return "unknown_member"


class Callers(Play):
    """People, applications and supervisors."""

    def fence(self, member_id: str, fence: str) -> tuple[int | None, int | None]:
        """Return a generation and a fence token as a caller gives them: none, those of now, or stale ones."""
        member = self.model.members.get(member_id)
        if fence == "none":
            return (None, None)
        if member is None:
            return (0, 1)
        return (member.generation + (fence == "generation"), member.fence - (fence == "token"))

    def acting(self, pick: int) -> tuple[str, int] | None:
        """Return the run as whose agent a caller acts, most times none."""
        runs = sorted(self.model.runs.items())
        if pick > 3 or not runs:
            return None
        run_id, run = runs[pick % len(runs)]
        return (run_id, run.fence - (pick == 3))

    def _is_stale(self, acting: tuple[str, int] | None) -> bool:
        if acting is None:
            return False
        run = self.model.runs.get(acting[0])
        return run is None or run.fence != acting[1]

    # Spawning.

    @rule(
        member_id=member_ids, ensure=st.booleans(), request_id=requests, initial=st.booleans(), pick=st.integers(0, 9)
    )
    def spawn(self, member_id: str, ensure: bool, request_id: str | None, initial: bool, pick: int) -> None:
        acting = self.acting(pick)
        stale = self._is_stale(acting)
        spec = c.MemberSpec(member_id, ROLES[member_id], initial_message=text("go") if initial else None)
        answer = self.step(c.EnsureMember(spec) if ensure else c.SpawnMember(spec), request_id, acting)
        if stale and answer is not None and not isinstance(answer, RequestConflict):
            assert isinstance(answer, StaleFence)
        if isinstance(answer, MemberView | EnsuredMember):
            view = answer.member if isinstance(answer, EnsuredMember) else answer
            member = self.model.members[member_id]
            assert (view.generation, view.fence_token) == (member.generation, member.fence)

    @rule()
    def spawn_all(self) -> None:
        self.step(c.SpawnMembers([c.MemberSpec(member_id, of) for member_id, of in ROLES.items()]))

    # Delivering.

    def fresh_id(self) -> str:
        """Return an input id that was never used."""
        self.fresh += 1
        return f"f{self.fresh}"

    def delivery(self, member_id: str, input_id: str, words: str, fence: str, form: Form) -> c.Deliver:
        generation, token = self.fence(member_id, fence)
        kind, mode, wake, key, intent = form
        return c.Deliver(
            member_id,
            input_id,
            text(words),
            generation,
            token,
            mode,
            wake,
            key,
            kind=kind,
            intent=intent if kind == "peer_request" else "",
        )

    @rule(
        member_id=st.sampled_from([*ROLES, *ROLES, "nobody"]),
        input_id=input_ids,
        words=st.sampled_from(["x", "x", "x", "y"]),
        fence=st.sampled_from(["none", "none", "none", "right", "generation", "token"]),
        form=forms,
    )
    def deliver(self, member_id: str, input_id: str, words: str, fence: str, form: Form) -> None:
        command = self.delivery(member_id, input_id, words, fence, form)
        expected = self.model.delivery(command)
        answer = self.step(command)
        if expected == "refused":
            assert isinstance(answer, InvalidTransition)
        elif expected == "unknown_member":
            assert isinstance(answer, MemberNotFound)
        else:
            assert outcome_of(answer) == expected

    @rule(many=st.lists(st.tuples(member_ids, input_ids, forms), min_size=1, max_size=6))
    def deliver_batch(self, many: list[tuple[str, str, Form]]) -> None:
        deliveries = [self.delivery(member_id, input_id, "x", "none", form) for member_id, input_id, form in many]
        expected: list[str] = []
        taken: set[tuple[str, str]] = set()
        for one in deliveries:
            known = (one.member_id, one.input_id) in taken
            # An input that was accepted before it in the batch may have pushed it out.
            pushed = self.model.expired(one.member_id, self.now) if any(m == one.member_id for m, _ in taken) else []
            outcome = self.model.delivery(one)
            if known and outcome != "handling_mode_invalid":
                outcome = "deduplicated"
            elif one.input_id == DATED and pushed and (outcome == "accepted" or DATED in pushed):
                outcome = "input_forgotten"
            elif outcome in ("deduplicated", "content_conflict") and one.input_id in pushed:
                outcome = "accepted"
            if outcome == "accepted":
                taken.add((one.member_id, one.input_id))
            expected.append(outcome)
        answer = self.step(c.DeliverBatch(deliveries))
        if "refused" in expected:
            assert isinstance(answer, InvalidTransition)
        else:
            assert isinstance(answer, BatchDelivered)
            assert [outcome_of(one) for one in answer.outcomes] == expected

    # Operations.

    @rule(
        operation_id=operation_ids,
        owner=st.sampled_from(["", "", *ROLES, "nobody"]),
        running=st.booleans(),
        request_id=requests,
        pick=picks,
    )
    def register(self, operation_id: str, owner: str, running: bool, request_id: str | None, pick: int) -> None:
        acting = self.acting(pick)
        stale = self._is_stale(acting)
        command = c.RegisterOperation(operation_id, "tool", owner, running=running)
        self.model.actor = self.model.runs[acting[0]].member_id if acting is not None else ""
        expected = "stale" if stale else self.model.registering(command)
        answer = self.step(command, request_id, acting)
        if answer is None or isinstance(answer, RequestConflict):
            return
        assert isinstance(answer, OPERATION_ANSWERS[expected])

    @rule(
        operation_id=st.one_of(operation_ids, st.integers(0, 9)),
        action=st.sampled_from([*STEPS, "provisioning_succeeded", "report_progress"]),
        request_id=requests,
    )
    def move_operation(self, operation_id: str | int, action: Any, request_id: str | None) -> None:
        if isinstance(operation_id, int):
            # The operation of a member, perhaps of one that has left.
            known = sorted(name for name, one in self.model.operations.items() if one.member_id)
            operation_id = known[operation_id % len(known)] if known else "o0"
        command = c.MoveOperation(operation_id, action, "further", 5)
        expected = self.model.moving(command)
        answer = self.step(command, request_id)
        if answer is None or isinstance(answer, RequestConflict):
            return
        assert isinstance(answer, OPERATION_ANSWERS[expected])

    @rule(owner=st.sampled_from(["", *ROLES]), sure=st.integers(0, 3))
    def terminate_owner(self, owner: str, sure: int) -> None:
        if sure == 3:
            self.step(c.TerminateOwner(owner, "enough"))

    # Cancelling.

    @rule(member_id=member_ids, fence=fences, hard=st.booleans(), other=st.booleans(), request_id=requests)
    def cancel(self, member_id: str, fence: str, hard: bool, other: bool, request_id: str | None) -> None:
        member = self.model.members.get(member_id)
        run_id = "run-0" if other or member is None else member.run
        generation, token = self.fence(member_id, fence)
        command: c.Interrupt | c.HardCancel
        if hard:
            command = c.HardCancel(member_id, run_id or "run-0", generation, token, "enough")
        else:
            command = c.Interrupt(member_id, run_id, generation, token, "please")
        expected = self.model.cancelling(command)
        answer = self.step(command, request_id)
        if answer is None or isinstance(answer, RequestConflict):
            return
        if expected in REFUSALS:
            assert isinstance(answer, REFUSALS[expected])
        else:
            assert isinstance(answer, CancelAnswer)
            assert answer.outcome == expected

    @rule(pick=picks, hard=st.booleans())
    def cancel_run(self, pick: int, hard: bool) -> None:
        runs = sorted(self.model.runs.items())
        if runs:
            run_id, run = runs[pick % len(runs)]
            self.step(c.HardCancel(run.member_id, run_id) if hard else c.Interrupt(run.member_id))

    # The end of members.

    @rule(
        member_id=st.sampled_from([*ROLES, *ROLES, "nobody"]),
        fence=fences,
        runtime=st.booleans(),
        interrupt=st.booleans(),
        request_id=requests,
    )
    def retire(self, member_id: str, fence: str, runtime: bool, interrupt: bool, request_id: str | None) -> None:
        generation, token = self.fence(member_id, fence)
        command: c.RetireMember | c.RetireRuntime
        if runtime:
            command = c.RetireRuntime(member_id, generation, token)
        else:
            command = c.RetireMember(member_id, generation, token, interrupt)
        member = self.model.members.get(member_id)
        refused = self.model.refusal(command, member_id, generation, token)
        expected = self.model.retirement(member) if member is not None else (0, 0, True)
        answer = self.step(command, request_id)
        if answer is None or isinstance(answer, RequestConflict):
            return
        if refused is not None and not (refused == "unknown" and not runtime):
            assert isinstance(answer, REFUSALS[refused])
            return
        assert isinstance(answer, Retired)
        assert (answer.inputs_abandoned, answer.inputs_pending_drain, answer.already) == expected
        assert not (answer.inputs_abandoned and answer.inputs_pending_drain)

    @precondition(lambda self: self.steps > 5)
    @rule(member_id=member_ids, fence=fences, request_id=requests)
    def destroy_runtime(self, member_id: str, fence: str, request_id: str | None) -> None:
        generation, token = self.fence(member_id, fence)
        command = c.DestroyRuntime(member_id, generation, token)
        member = self.model.members.get(member_id)
        refused = self.model.refusal(command, member_id, generation, token)
        expected = (self.model.holds(member), member.state == "destroyed") if member is not None else (0, True)
        answer = self.step(command, request_id)
        if answer is None or isinstance(answer, RequestConflict):
            return
        if refused is not None:
            assert isinstance(answer, REFUSALS[refused])
        else:
            assert isinstance(answer, Destroyed)
            assert (answer.inputs_abandoned, answer.already) == expected

    @rule(member_id=member_ids, fence=fences, initial=st.booleans(), request_id=requests)
    def respawn(self, member_id: str, fence: str, initial: bool, request_id: str | None) -> None:
        generation, token = self.fence(member_id, fence)
        command = c.RespawnMember(member_id, generation, token, text("anew") if initial else None)
        member = self.model.members.get(member_id)
        refused = self.model.refusal(command, member_id, generation, token)
        had = self.model.holds(member) if member is not None else 0
        answer = self.step(command, request_id)
        if answer is None or isinstance(answer, RequestConflict):
            return
        if refused is not None:
            assert isinstance(answer, REFUSALS[refused])
            return
        assert isinstance(answer, Respawned)
        assert member is not None
        assert (answer.previous_generation, answer.previous_fence_token) == (member.generation, member.fence)
        assert (answer.member.generation, answer.inputs_abandoned) == (member.generation + 1, had)

    # The mob.

    @rule(command=st.sampled_from([c.StartMob(), c.StopMob(), c.ResumeMob(), c.ResumeMob()]), request_id=requests)
    def move(self, command: c.Command, request_id: str | None) -> None:
        self.step(command, request_id)

    @precondition(lambda self: self.steps > 10)
    @rule(
        command=st.sampled_from([c.CompleteMob(), c.ResetMob(), c.RetireAllMembers()]),
        sure=st.integers(0, 2),
        request_id=requests,
    )
    def end_all(self, command: c.Command, sure: int, request_id: str | None) -> None:
        """End all members: begin, or join what is pending."""
        if sure != 2:
            return
        joins = {"complete": c.CompleteMob, "reset": c.ResetMob, "retire_all": c.RetireAllMembers}
        joined = joins.get(self.model.pending) is type(command)
        admitted = self.model.admits(type(command))
        head = self.mob.head
        answer = self._one(command, request_id)
        if answer is None or isinstance(answer, RequestConflict):
            return
        if joined:
            assert (self.mob.head, isinstance(answer, MobReport)) == (head, True)
        elif not admitted:
            assert isinstance(answer, InvalidTransition)
        else:
            assert isinstance(answer, MobReport)
        if not self.lazy:
            self.go_on()
            if isinstance(answer, MobReport) and isinstance(command, c.ResetMob):
                assert (self.mob.phase, self.mob.members) == ("running", {})

    @precondition(lambda self: self.steps > 25)
    @rule(sure=st.integers(0, 4))
    def destroy(self, sure: int) -> None:
        if sure == 4:
            self.step(c.DestroyMob())
            if not self.lazy:
                assert self.mob.phase == "destroyed"
