"""What agents do in the property test, the server's hub included, and what they must be told."""

from typing import Final, Literal

from hypothesis import strategies as st
from hypothesis.stateful import rule
from msgspec import Raw
from msgspec.structs import replace
from tests.machines.model_facts import Run
from tests.machines.model_play import Play, picks
from tests.machines.model_runs import Report
from tests.machines.stage import named, role

from mobd_server.machines import commands as c
from mobd_server.machines.answers import Attached, Done, RunAnswer

# What an agent serves, its capacity, how many members it takes, whether it takes inputs into a run.
TERMS: Final = (
    ([role("analyst")], 2, 2, True),
    ([role("analyst")], 1, 1, False),
    ([role("analyst"), role("lead")], 2, 4, True),
    ([named("m0"), named("m3")], 1, 1, False),
    ([role("lead"), named("m1")], 3, 2, True),
)

wrongs: Final = st.sampled_from(["", "", "", "", "", "", "fence", "agent"])


class Agents(Play):
    """Agents, and the hub that speaks for them."""

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
        serves, capacity, max_members, steers = TERMS[terms]
        held = [r for r, run in self.model.runs.items() if self.model.agents[run.attachment_id].host == host]
        answer = self.step(
            c.Attach(
                host,
                str(incarnation),
                capacity,
                max_members,
                serves,
                held=held if holds else [],
                steers=steers,
            )
        )
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

    @rule(pick=picks, stale=st.sampled_from([False, False, True]))
    def decline(self, pick: int, stale: bool) -> None:
        served = [(m, one.executor) for m, one in sorted(self.model.members.items()) if one.executor is not None]
        if served:
            member_id, executor = served[pick % len(served)]
            answer = self.step(c.Decline(executor[0], member_id, executor[1] - stale, "no"))
            assert answer == Done(not stale)

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

    # What agents say of runs.

    def run_in_flight(self, pick: int) -> tuple[str, Run] | None:
        runs = sorted(self.model.runs.items())
        return runs[pick % len(runs)] if runs else None

    def _report(self, command: Report) -> None:
        expected = self.model.disposition(command)
        answer = self.step(command)
        assert isinstance(answer, RunAnswer)
        assert answer.disposition == expected

    @rule(pick=picks, wrong=wrongs, messages=st.integers(0, 2), taken=st.integers(0, 3))
    def finish(self, pick: int, wrong: str, messages: int, taken: int) -> None:
        if (found := self.run_in_flight(pick)) is None:
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
            steered=run.steered[:taken],
        )
        self._report(command)
        self.results.append(command)

    @rule(pick=st.integers(0, 40), other=st.booleans())
    def finish_again(self, pick: int, other: bool) -> None:
        """A result comes again, perhaps of a member that was replaced or has left since."""
        if self.results:
            command = self.results[-1 - pick % len(self.results)]
            self._report(replace(command, result_hash=b"other") if other else command)

    @rule(
        pick=picks,
        kind=st.sampled_from(["error", "error", "final", "released", "cancelled", "cancelled"]),
        taken=st.integers(0, 2),
        wrong=wrongs,
    )
    def fail(self, pick: int, kind: str, taken: int, wrong: str) -> None:
        if (found := self.run_in_flight(pick)) is None:
            return
        run_id, run = found
        attachment_id = "att-0" if wrong == "agent" else run.attachment_id
        fence = run.fence - (wrong == "fence")
        how: Literal["error", "cancelled", "released"] = "error"
        if kind == "released":
            how = "released"
        elif kind == "cancelled":
            how = "cancelled"
        self._report(c.FailRun(attachment_id, run_id, fence, how, "boom", kind != "final", steered=run.steered[:taken]))

    @rule(pick=picks)
    def lose(self, pick: int) -> None:
        if (found := self.run_in_flight(pick)) is not None:
            run_id, run = found
            self._report(c.LoseRun(run.attachment_id, run_id, run.fence, "silent"))

    @rule(pick=picks, wrong=wrongs)
    def progress(self, pick: int, wrong: str) -> None:
        if (found := self.run_in_flight(pick)) is None:
            return
        run_id, run = found
        attachment_id = "att-0" if wrong == "agent" else run.attachment_id
        before = self.mob.head
        command = c.ReportRunProgress(attachment_id, run_id, run.fence - (wrong == "fence"), "half", 50)
        answer = self.step(command)
        assert (answer, self.mob.head) == (Done(not wrong), before + (not wrong))

    @rule(pick=st.integers(0, 40), kind=st.sampled_from(["settle", "fail", "lose", "progress", "unsent", "off"]))
    def haunt(self, pick: int, kind: str) -> None:
        """Something is said of a run that is over, perhaps by an agent that is gone."""
        over = [one for one in self.started if one[1] not in self.model.runs]
        if not over:
            return
        attachment_id, run_id, fence = over[-1 - pick % len(over)]
        head = self.mob.head
        if kind == "settle":
            known = self.model.receipts.get(run_id)
            self._report(c.SettleRun(attachment_id, run_id, fence, Raw(b"null"), known[1] if known else b"other"))
        elif kind == "fail":
            self._report(c.FailRun(attachment_id, run_id, fence, "cancelled", "late"))
        elif kind == "lose":
            self._report(c.LoseRun(attachment_id, run_id, fence, "late"))
        else:
            late: dict[str, c.Command] = {
                "progress": c.ReportRunProgress(attachment_id, run_id, fence, "late", 99),
                "unsent": c.CancelUnsent(attachment_id, run_id, fence),
                "off": c.FenceOff(attachment_id, run_id, fence, "ctl-1", "late"),
            }
            assert self._one(late[kind]) == Done(changed=False)
        assert self.mob.head == head, "the dead change nothing"

    @rule(pick=st.integers(0, 40), declines=st.booleans())
    def haunt_member(self, pick: int, declines: bool) -> None:
        """An agent speaks for a member that was taken from it."""
        now = [one.executor for one in self.model.members.values()]
        over = [one for one in self.assigned if (one[0], one[2]) not in now]
        if over:
            attachment_id, member_id, fence = over[-1 - pick % len(over)]
            late = c.Decline if declines else c.Confirm
            head = self.mob.head
            assert self._one(late(attachment_id, member_id, fence)) == Done(changed=False)
            assert self.mob.head == head, "the dead change nothing"

    # What the hub does about cancels.

    @rule(pick=picks, stale=st.sampled_from([False, False, True]))
    def take_back(self, pick: int, stale: bool) -> None:
        """A run that is to be cancelled was never sent."""
        if (found := self.run_in_flight(pick)) is not None:
            run_id, run = found
            answer = self.step(c.CancelUnsent(run.attachment_id, run_id, run.fence - stale))
            assert answer == Done(not stale)

    @rule(pick=picks, wrong=st.sampled_from(["", "", "", "fence", "control"]))
    def fence_off(self, pick: int, wrong: str) -> None:
        """An agent did not acknowledge a hard cancel."""
        hard = [found for found in sorted(self.model.runs.items()) if found[1].cancel == "hard"]
        runs = hard or sorted(self.model.runs.items())
        if runs:
            run_id, run = runs[pick % len(runs)]
            control_id = "ctl-0" if wrong == "control" else run.control_id
            fence = run.fence - (wrong == "fence")
            answer = self.step(c.FenceOff(run.attachment_id, run_id, fence, control_id, "silent"))
            assert answer == Done(not wrong and run.cancel == "hard")
