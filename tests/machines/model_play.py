"""How the commands of the property test are carried out, and what is watched after each."""

import sys
from typing import Any, Final

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant
from tests.machines.model import Model
from tests.machines.model_facts import DAY, SILENT, TIMEOUTS
from tests.machines.stage import NOW, CountedIds, state_bytes, stored

from mobd_server.errors import MobdError, RequestConflict
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines import slices, snapshot
from mobd_server.machines.answers import (
    Again,
    AgentReaction,
    Attached,
    SendAssign,
    SendCancel,
    SendRetire,
    SendStartRun,
    SendSteer,
)
from mobd_server.machines.decision import Decided, decide, fold, new_mob
from mobd_server.machines.records import Record
from mobd_server.machines.state import Definition, Profile

ROLES: Final = {"m0": "analyst", "m1": "analyst", "m2": "analyst", "m3": "lead", "m4": "lead"}
SLICES: Final = (1, 3, slices.SLICE_EVENTS)

member_ids: Final = st.sampled_from(sorted(ROLES))
picks: Final = st.integers(0, 9)
requests: Final = st.sampled_from([None, None, "r0", "r1"])


class Play(RuleBasedStateMachine):
    """One mob, decided and replayed side by side, and watched by a model."""

    @initialize(
        start=st.sampled_from([True, True, True, False]),
        slice_events=st.sampled_from(SLICES),
        staffed=st.sampled_from([True, True, True, False]),
    )
    def begin(self, start: bool, slice_events: int, staffed: bool) -> None:
        self.mob, self.replayed = new_mob("mob"), new_mob("mob")
        self.model = Model()
        self.ids = CountedIds()
        self.now = NOW
        self.connected: set[str] = set()
        self.reactions: list[Any] = []
        # Whether what is to be gone on with waits, and whether anything does.
        self.lazy, self.owed = False, False
        # Incarnation and terms of each host, results that were sent, requests that were made.
        self.hosts: dict[str, tuple[int, int]] = {}
        self.results: list[c.SettleRun] = []
        self.ledger: dict[str, tuple[str, int, int]] = {}
        # Every assignment and run that there ever was: attachment, member and fence; attachment, run and fence.
        self.assigned: list[tuple[str, str, int]] = []
        self.started: list[tuple[str, str, int]] = []
        self.steps = 0
        self.fresh = 0
        # Small slices end in the midst of things; the bound is a constant of the server.
        slices.SLICE_EVENTS = slice_events  # type: ignore[misc]  # a smaller bound, for this example
        profiles = {name: Profile(name, silent_intents=SILENT[name], run_timeout_s=TIMEOUTS[name]) for name in TIMEOUTS}
        self.step(c.CreateMob(Definition("mob", profiles=profiles), {}, "log", start))
        if staffed:
            self.staff()

    def staff(self) -> None:
        """Let everybody be there from the beginning."""

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.rest()
        finally:
            slices.SLICE_EVENTS = SLICES[-1]  # type: ignore[misc]  # the bound as it was

    def rest(self) -> None:
        """Let what there is come to its end."""

    # How a command is carried out and watched.

    def context(
        self, ids: CountedIds, request: tuple[str | None, str | None] = (None, None), **options: Any
    ) -> c.Context:
        return c.Context(
            self.now, ids, frozenset(self.connected), request_id=request[0], request_hash=request[1], **options
        )

    def step(self, command: c.Command, request_id: str | None = None, acting: tuple[str, int] | None = None) -> Any:
        """Carry out a command and what it asks to be gone on with; return its answer, or the error that it raised."""
        answer = self._one(command, request_id, acting)
        if not self.lazy:
            self.go_on()
        return answer

    def go_on(self) -> None:
        """Go on with what is owed."""
        rounds = 0
        while self.owed:
            rounds += 1
            assert rounds < 100, "a mob that goes on and on"
            self._one(c.Continue())

    def _one(self, command: c.Command, request_id: str | None = None, acting: tuple[str, int] | None = None) -> Any:
        before = state_bytes(self.mob)
        request_hash = msgspec.json.encode(command).decode() + type(command).__name__ if request_id else None
        known = self.ledger.get(request_id or "")
        self.reactions = []
        if isinstance(command, c.Continue):
            self.owed = False
        tried = self._try(command, (request_id, request_hash), acting)
        assert not isinstance(tried, RequestConflict), "a question is no request"
        if known is not None and known[1] >= self.now - DAY:
            return self._known_request(command, request_id, request_hash, known)
        decided: Decided | None = None
        error: MobdError | None = None
        try:
            decided = decide(self.mob, command, self.context(self.ids, (request_id, request_hash), acting=acting), 1)
        except MobdError as refused:
            error = refused
        if error is not None or decided is None:
            assert isinstance(tried, type(error)), "what is refused once is refused again"
            assert state_bytes(self.mob) == before, "a refusal changes nothing"
            return error
        records = decided.append.records if decided.append is not None else []
        assert isinstance(tried, list)
        assert [record.payload for record in records] == tried, "what it would append is what it appends"
        if not records:
            assert state_bytes(self.mob) == before, "no event, no change"
        self.reactions = decided.reactions
        self.owed |= any(isinstance(one, Again) for one in self.reactions)
        self._follow(command, decided, records, acting)
        if request_id is not None and records and request_hash is not None:
            self.ledger[request_id] = (request_hash, self.now, records[-1].seq)
        return decided.answer

    def _known_request(
        self, command: c.Command, request_id: str | None, request_hash: str | None, known: tuple[str, int, int]
    ) -> Any:
        before = state_bytes(self.mob)
        context = self.context(self.ids, (request_id, request_hash))
        if request_hash != known[0]:
            with pytest.raises(RequestConflict) as refused:
                decide(self.mob, command, context, 1)
            assert state_bytes(self.mob) == before
            return refused.value
        decided = decide(self.mob, command, context, 1)
        assert state_bytes(self.mob) == before
        assert (decided.replay_seq, decided.append) == (known[2], None)
        return None

    def _try(
        self, command: c.Command, request: tuple[str | None, str | None], acting: tuple[str, int] | None
    ) -> list[str] | MobdError:
        """Only ask what the command would do to the replayed state, which leaves no trace.

        Whether the request was made before is not asked.
        """
        before = state_bytes(self.replayed)
        context = self.context(CountedIds(self.ids.count), request, acting=acting, validate_only=True)
        try:
            decided = decide(self.replayed, command, context, 1)
        except MobdError as refused:
            return refused
        finally:
            assert state_bytes(self.replayed) == before, "who only asks leaves no trace"
        assert (decided.append, decided.reactions, decided.replay_seq) == (None, [], 0)
        return [record.payload for record in decided.would]

    def _follow(
        self, command: c.Command, decided: Decided, records: list[Record], acting: tuple[str, int] | None
    ) -> None:
        """Let the model and the replayed state go along."""
        model = self.model
        model.begin(command, self.connected, acting)
        if isinstance(decided.answer, Attached):
            model.connected.add(decided.answer.attachment_id)
        held = set(model.runs)
        for record in records:
            model.apply(record)
            match record.event:
                case e.ExecutorAssigned(member_id=member_id, attachment_id=attachment_id, executor_fence=fence):
                    self.assigned.append((attachment_id, member_id, fence))
                case e.RunStarted(run_id=run_id, attachment_id=attachment_id, executor_fence=fence):
                    self.started.append((attachment_id, run_id, fence))
            fold(self.replayed, stored(record))
        self.connected = (model.connected if isinstance(command, c.Attach) else self.connected) & set(model.agents)
        assert state_bytes(self.replayed) == state_bytes(self.mob), "the log adds up to the state"
        model.check(self.mob)
        rows = [one.operation_id for one in decided.append.operations] if decided.append is not None else []
        assert sorted(rows) == sorted(model.changed), "what changed is written, each once"
        self._check_sent(decided.reactions, records)
        if isinstance(decided.answer, Attached) and decided.answer.resumed:
            self._check_reminded(decided.answer.attachment_id, held)

    def _check_sent(self, reactions: list[Any], records: list[Record]) -> None:
        model, events = self.model, [record.event for record in records]
        started = [one.run_id for one in events if isinstance(one, e.RunStarted | e.RunResent)]
        sent = [one for one in reactions if isinstance(one, SendStartRun)]
        assert sorted(one.run_id for one in sent) == sorted(started), "every run is sent, and no other"
        for run in sent:
            assert [bytes(part.content) for part in run.inputs] == [
                model.inputs[part.canonical_input_id].content for part in run.inputs
            ]
        asked = {one.member_id for one in reactions if isinstance(one, SendAssign)}
        assert {one.member_id for one in events if isinstance(one, e.ExecutorAssigned)} <= asked
        steered = {one.canonical_input_id for sent in reactions if isinstance(sent, SendSteer) for one in sent.inputs}
        for one in events:
            if isinstance(one, e.RunSteered):
                assert set(one.canonical_input_ids) <= steered
            elif isinstance(one, e.RunCancelRequested) and one.run_id in model.runs:
                known = [sent.control_id for sent in reactions if isinstance(sent, SendCancel)]
                joined = not known and one.by == "caller"
                assert joined or one.control_id in known
            elif isinstance(one, e.RuntimeRetired) and one.inputs_pending_drain:
                assert one.member_id in [sent.member_id for sent in reactions if isinstance(sent, SendRetire)]
        for reaction in reactions:
            assert isinstance(reaction, Again | AgentReaction)

    def _check_reminded(self, attachment_id: str, held: set[str]) -> None:
        """An agent that came back is told again what was asked of its runs."""
        for run_id in held & set(self.model.agents[attachment_id].runs):
            run = self.model.runs[run_id]
            cancels = [one for one in self.reactions if isinstance(one, SendCancel) and one.run_id == run_id]
            assert [(one.control_id, one.hard) for one in cancels] == (
                [(run.control_id, run.cancel == "hard")] if run.cancel else []
            )
            sent = [one for one in self.reactions if isinstance(one, SendSteer) and one.run_id == run_id]
            assert {part.canonical_input_id for one in sent for part in one.inputs} == set(run.steered)

    def load(self) -> None:
        """Go on from a snapshot of the replayed state: what follows must add up to the same."""
        text = snapshot.encode(self.replayed)
        self.replayed = snapshot.decode(text)
        assert snapshot.encode(self.replayed) == text

    @invariant()
    def nothing_waits_for_nothing(self) -> None:
        self.steps += 1
        if not self.owed:
            self.model.check_nothing_waits_for_nothing(self.connected)
