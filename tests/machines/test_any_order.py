"""Whatever several callers and agents do, in whatever order and with whatever faults, the rules hold."""

from typing import Any, Final, Literal

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import Raw
from tests.machines.model import Model, Run
from tests.machines.stage import DAY, NOW, SECOND, CountedIds, named, role, state_bytes, stored, text
from tests.support.settings import setting

from mobd_server.errors import InvalidTransition, MemberNotFound, MobdError, RequestConflict
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import (
    Accepted,
    Again,
    AgentReaction,
    Attached,
    BatchDelivered,
    Deduplicated,
    Rejected,
    RunAnswer,
    SendAssign,
    SendStartRun,
    UnknownMember,
)
from mobd_server.machines.decision import DECIDE, EVOLVE, Decided, decide, fold, new_mob
from mobd_server.machines.draft import Draft
from mobd_server.machines.records import Record
from mobd_server.machines.state import Definition, Mob, Profile
from mobd_server.machines.undo import Undo

# A failure is made as short as possible before it is shown, which takes its time.
pytestmark = pytest.mark.timeout(600)

EXAMPLES: Final = int(setting("MOBD_TEST_EXAMPLES", "500"))

ROLES: Final = {"m0": "analyst", "m1": "analyst", "m2": "analyst", "m3": "lead", "m4": "lead"}
TERMS: Final = (
    ([role("analyst")], 2, 2),
    ([role("analyst")], 1, 1),
    ([role("analyst"), role("lead")], 2, 4),
    ([named("m0"), named("m3")], 1, 1),
    ([role("lead"), named("m1")], 3, 2),
)

member_ids: Final = st.sampled_from(sorted(ROLES))
input_ids: Final = st.sampled_from([f"i{n}" for n in range(12)])
picks: Final = st.integers(0, 9)
requests: Final = st.sampled_from([None, None, "r0", "r1"])


def evolve(mob: Mob, undo: Undo, record: Record) -> None:
    EVOLVE[type(record.event)](mob, undo, record, record.event)
    mob.head = record.seq


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


class MobLife(RuleBasedStateMachine):
    """One mob, decided and replayed side by side, and watched by a model."""

    @initialize(start=st.sampled_from([True, True, True, False]), staffed=st.booleans())
    def begin(self, start: bool, staffed: bool) -> None:
        self.mob, self.replayed = new_mob("mob"), new_mob("mob")
        self.model = Model()
        self.ids = CountedIds()
        self.now = NOW
        self.connected: set[str] = set()
        self.reactions: list[Any] = []
        # Incarnation and terms of each host, results that were sent, requests that were made.
        self.hosts: dict[str, tuple[int, int]] = {}
        self.results: list[c.SettleRun] = []
        self.ledger: dict[str, tuple[str, int, int]] = {}
        self.steps = 0
        profiles = {name: Profile(name) for name in ("analyst", "lead")}
        self.step(c.CreateMob(Definition("mob", profiles=profiles), {}, "log", start))
        if staffed:
            self.spawn_all()
            self.attach("h0", anew=False, terms=2, holds=False, confirms=True)

    # How a command is carried out and watched.

    def context(self, ids: CountedIds, request_id: str | None = None, request_hash: str | None = None) -> c.Context:
        return c.Context(self.now, ids, frozenset(self.connected), request_id=request_id, request_hash=request_hash)

    def step(self, command: c.Command, request_id: str | None = None) -> Any:
        """Carry out a command and what it asks to be gone on with; return its answer, or the error that it raised."""
        answer = self._one(command, request_id)
        rounds = 0
        while any(isinstance(one, Again) for one in self.reactions):
            rounds += 1
            assert rounds < 20, "a mob that goes on and on"
            self._one(c.Continue())
        return answer

    def _one(self, command: c.Command, request_id: str | None = None) -> Any:
        before = state_bytes(self.mob)
        request_hash = repr(msgspec.to_builtins(command)) + type(command).__name__ if request_id else None
        known = self.ledger.get(request_id or "")
        if known is not None and known[1] >= self.now - DAY:
            return self._known_request(command, request_id, request_hash, known)
        tried = self._try(command)
        self.reactions = []
        decided: Decided | None = None
        error: MobdError | None = None
        try:
            decided = decide(self.mob, command, self.context(self.ids, request_id, request_hash), 1)
        except MobdError as refused:
            error = refused
        if error is not None or decided is None:
            assert isinstance(tried, type(error)), "what is refused once is refused again"
            assert state_bytes(self.mob) == before, "a refusal changes nothing"
            return error
        records = decided.append.records if decided.append is not None else []
        assert isinstance(tried, list)
        assert [record.payload for record in records] == tried, "the same command on the same state"
        if not records:
            assert state_bytes(self.mob) == before, "no event, no change"
        self.reactions = decided.reactions
        self._follow(command, decided, records)
        if request_id is not None and records and request_hash is not None:
            self.ledger[request_id] = (request_hash, self.now, records[-1].seq)
        return decided.answer

    def _known_request(
        self, command: c.Command, request_id: str | None, request_hash: str | None, known: tuple[str, int, int]
    ) -> Any:
        before = state_bytes(self.mob)
        self.reactions = []
        if request_hash != known[0]:
            with pytest.raises(RequestConflict) as refused:
                decide(self.mob, command, self.context(self.ids, request_id, request_hash), 1)
            assert state_bytes(self.mob) == before
            return refused.value
        decided = decide(self.mob, command, self.context(self.ids, request_id, request_hash), 1)
        assert state_bytes(self.mob) == before
        assert (request_hash, decided.replay_seq, decided.append) == (known[0], known[2], None)
        return None

    def _try(self, command: c.Command) -> list[str] | MobdError:
        """Carry the command out on the replayed state and undo it."""
        before = state_bytes(self.replayed)
        draft = Draft(self.replayed, self.context(CountedIds(self.ids.count)), evolve)
        try:
            DECIDE[type(command)](draft, command)
            return [record.payload for record in draft.records]
        except MobdError as refused:
            return refused
        finally:
            draft.rollback()
            assert state_bytes(self.replayed) == before, "a rollback leaves no trace"

    def _follow(self, command: c.Command, decided: Decided, records: list[Record]) -> None:
        """Let the model and the replayed state go along."""
        model = self.model
        model.command, model.connected = command, set(self.connected)
        if isinstance(decided.answer, Attached):
            model.connected.add(decided.answer.attachment_id)
        for record in records:
            model.apply(record)
            fold(self.replayed, stored(record))
        self.connected = (model.connected if isinstance(command, c.Attach) else self.connected) & set(model.agents)
        assert state_bytes(self.replayed) == state_bytes(self.mob), "the log adds up to the state"
        model.check(self.mob)
        started = {record.event.run_id for record in records if isinstance(record.event, e.RunStarted)}
        started |= {record.event.run_id for record in records if isinstance(record.event, e.RunResent)}
        sent = [one for one in decided.reactions if isinstance(one, SendStartRun)]
        assert sorted(one.run_id for one in sent) == sorted(started), "every run is sent, and no other"
        for one in sent:
            assert [bytes(part.content) for part in one.inputs] == [
                model.inputs[part.canonical_input_id].content for part in one.inputs
            ]
        asked = {one.member_id for one in decided.reactions if isinstance(one, SendAssign)}
        assert {r.member_id for r in records if isinstance(r.event, e.ExecutorAssigned)} <= asked
        for reaction in decided.reactions:
            assert isinstance(reaction, Again | AgentReaction)

    # What callers do.

    @rule(member_id=member_ids, ensure=st.booleans(), request_id=requests)
    def spawn(self, member_id: str, ensure: bool, request_id: str | None) -> None:
        spec = c.MemberSpec(member_id, ROLES[member_id])
        self.step(c.EnsureMember(spec) if ensure else c.SpawnMember(spec), request_id)

    @rule()
    def spawn_all(self) -> None:
        self.step(c.SpawnMembers([c.MemberSpec(member_id, of) for member_id, of in ROLES.items()]))

    def delivery(self, member_id: str, input_id: str, words: str, fence: str) -> c.Deliver:
        member = self.model.members.get(member_id)
        token = {"none": None, "right": member.fence if member else 1, "wrong": 10_000}[fence]
        return c.Deliver(member_id, input_id, text(words), fence_token=token)

    @rule(
        member_id=st.sampled_from([*ROLES, "nobody"]),
        input_id=input_ids,
        words=st.sampled_from(["x", "x", "x", "y"]),
        fence=st.sampled_from(["none", "none", "right", "wrong"]),
    )
    def deliver(self, member_id: str, input_id: str, words: str, fence: str) -> None:
        command = self.delivery(member_id, input_id, words, fence)
        expected = self.model.delivery(command)
        answer = self.step(command)
        if expected == "refused":
            assert isinstance(answer, InvalidTransition)
        elif expected == "unknown_member":
            assert isinstance(answer, MemberNotFound)
        else:
            assert outcome_of(answer) == expected

    @rule(many=st.lists(st.tuples(member_ids, input_ids), min_size=1, max_size=6))
    def deliver_batch(self, many: list[tuple[str, str]]) -> None:
        deliveries = [self.delivery(member_id, input_id, "x", "none") for member_id, input_id in many]
        expected: list[str] = []
        taken: set[tuple[str, str]] = set()
        for one in deliveries:
            known = (one.member_id, one.input_id) in taken
            # An input that was accepted before it in the batch may have pushed it out.
            pushed = self.model.expired(one.member_id, self.now) if any(m == one.member_id for m, _ in taken) else []
            outcome = "deduplicated" if known else self.model.delivery(one)
            if not known and outcome == "deduplicated" and one.input_id in pushed:
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

    @rule(
        many=st.lists(st.tuples(member_ids, input_ids), min_size=2, max_size=8),
        ends=st.lists(st.sampled_from(["finish", "finish", "finish", "error", "lost"]), max_size=8),
    )
    def work(self, many: list[tuple[str, str]], ends: list[str]) -> None:
        """Deliver, and let agents do what they are for."""
        self.deliver_batch(many)
        self.confirm_all()
        for n, end in enumerate(ends):
            if end == "finish":
                self.finish(n, "", n % 3)
            elif end == "error":
                self.fail(n, "error")
            else:
                self.lose(n)

    @rule(command=st.sampled_from([c.StartMob(), c.StopMob(), c.ResumeMob(), c.ResumeMob()]), request_id=requests)
    def move(self, command: c.Command, request_id: str | None) -> None:
        self.step(command, request_id)

    @precondition(lambda self: self.steps > 25)
    @rule(sure=st.integers(0, 4))
    def destroy(self, sure: int) -> None:
        if sure == 4:
            self.step(c.DestroyMob())
            assert self.mob.phase == "destroyed"

    # What agents do.

    @rule(
        host=st.sampled_from(["h0", "h1", "h2"]),
        anew=st.booleans(),
        terms=st.integers(0, len(TERMS) - 1),
        holds=st.booleans(),
        confirms=st.booleans(),
    )
    def attach(self, host: str, anew: bool, terms: int, holds: bool, confirms: bool) -> None:
        incarnation, before = self.hosts.get(host, (0, terms))
        if anew or host not in self.hosts:
            self.hosts[host] = (incarnation + 1, terms)
        else:
            self.hosts[host] = (incarnation, before)
        incarnation, terms = self.hosts[host]
        serves, capacity, max_members = TERMS[terms]
        held = [r for r, run in self.model.runs.items() if self.model.agents[run.attachment_id].host == host]
        answer = self.step(c.Attach(host, str(incarnation), capacity, max_members, serves, held=held if holds else []))
        if isinstance(answer, Attached) and confirms:
            self.confirm_all()

    @rule()
    def confirm_all(self) -> None:
        """Every agent that is asked to serve a member does."""
        while asked := self._unconfirmed():
            self.step(asked[0])

    def _unconfirmed(self) -> list[c.Confirm]:
        return [
            c.Confirm(member.executor[0], member_id, member.executor[1])
            for member_id, member in sorted(self.model.members.items())
            if member.executor is not None and not member.confirmed and member.executor[0] in self.connected
        ]

    @rule(pick=picks, stale=st.booleans())
    def confirm(self, pick: int, stale: bool) -> None:
        if asked := self._unconfirmed():
            one = asked[pick % len(asked)]
            self.step(c.Confirm(one.attachment_id, one.member_id, one.fence - stale))

    @rule(pick=picks)
    def decline(self, pick: int) -> None:
        served = [(m, one.executor) for m, one in sorted(self.model.members.items()) if one.executor is not None]
        if served:
            member_id, executor = served[pick % len(served)]
            self.step(c.Decline(executor[0], member_id, executor[1], "no"))

    def _agent(self, pick: int) -> str | None:
        agents = sorted(self.model.agents)
        return agents[pick % len(agents)] if agents else None

    @rule(pick=picks)
    def break_stream(self, pick: int) -> None:
        self.connected.discard(self._agent(pick) or "")

    @rule(pick=picks)
    def drain(self, pick: int) -> None:
        if (attachment_id := self._agent(pick)) is not None:
            self.connected.discard(attachment_id)
            self.step(c.DrainAttachment(attachment_id))

    @rule(pick=picks, reason=st.sampled_from(["detached", "lost", "lost"]))
    def leave(self, pick: int, reason: Literal["detached", "lost"]) -> None:
        if (attachment_id := self._agent(pick)) is not None:
            self.connected.discard(attachment_id)
            self.step(c.CloseAttachment(attachment_id, reason))

    def _run(self, pick: int) -> tuple[str, Run] | None:
        runs = sorted(self.model.runs.items())
        return runs[pick % len(runs)] if runs else None

    def _report(self, command: c.SettleRun | c.FailRun | c.LoseRun) -> None:
        self.model.command = command
        expected = self.model.disposition(command)
        answer = self.step(command)
        assert isinstance(answer, RunAnswer)
        assert answer.disposition == expected

    @rule(pick=picks, wrong=st.sampled_from(["", "", "", "", "", "", "fence", "agent"]), messages=st.integers(0, 2))
    def finish(self, pick: int, wrong: str, messages: int) -> None:
        if (found := self._run(pick)) is None:
            return
        run_id, run = found
        count = self.mob.members[run.member_id].message_count + messages
        command = c.SettleRun(
            "att-0" if wrong == "agent" else run.attachment_id,
            run_id,
            run.fence - (wrong == "fence"),
            Raw(b"null"),
            run_id.encode(),
            [Raw(b"{}")] * messages,
            count,
            f"digest-{count}",
        )
        self._report(command)
        self.results.append(command)

    @rule(pick=st.integers(0, 40), other=st.booleans())
    def finish_again(self, pick: int, other: bool) -> None:
        if self.results:
            command = self.results[-1 - pick % len(self.results)]
            self._report(msgspec.structs.replace(command, result_hash=b"other") if other else command)

    @rule(pick=picks, kind=st.sampled_from(["error", "error", "final", "released"]))
    def fail(self, pick: int, kind: str) -> None:
        if (found := self._run(pick)) is not None:
            run_id, run = found
            how: Literal["error", "released"] = "released" if kind == "released" else "error"
            self._report(c.FailRun(run.attachment_id, run_id, run.fence, how, "boom", kind != "final"))

    @rule(pick=picks)
    def lose(self, pick: int) -> None:
        if (found := self._run(pick)) is not None:
            run_id, run = found
            self._report(c.LoseRun(run.attachment_id, run_id, run.fence, "silent"))

    # What time and the server do.

    @rule(passed=st.sampled_from([0, SECOND // 2, SECOND, 10 * SECOND, 10 * SECOND, DAY + 1]))
    def wake(self, passed: int) -> None:
        self.now += passed
        self.step(c.Wake())
        assert all(at > self.now for at, _ in self.mob.retries)

    @rule()
    def restart(self) -> None:
        """Another process goes on from the log; nobody is connected to it yet."""
        self.mob, self.replayed = self.replayed, self.mob
        self.connected.clear()
        self.step(c.Continue())

    @invariant()
    def nothing_waits_for_nothing(self) -> None:
        self.steps += 1
        self.model.check_nothing_waits_for_nothing(self.connected)


TestMobLife = MobLife.TestCase
TestMobLife.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
