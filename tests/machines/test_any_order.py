"""Whatever several callers and agents do, in whatever order and with whatever faults, the rules hold."""

from typing import Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule
from tests.machines.model_agents import Agents
from tests.machines.model_callers import STEER, Callers, Form, forms, input_ids
from tests.machines.model_play import member_ids, picks
from tests.machines.stage import DAY, SECOND, role
from tests.support.settings import setting

from mobd_server.machines import commands as c
from mobd_server.machines.answers import Done

# A failure is made as short as possible before it is shown, which takes its time.
pytestmark = pytest.mark.timeout(600)

EXAMPLES: Final = int(setting("MOBD_TEST_EXAMPLES", "500"))


class MobLife(Callers, Agents):
    """Everything that may happen to one mob."""

    def staff(self) -> None:
        self.spawn_all()
        self.attach("h0", anew=False, terms=2, holds=False, confirms=True)

    @rule(
        many=st.lists(st.tuples(member_ids, st.one_of(input_ids, st.none()), forms), min_size=2, max_size=8),
        ends=st.lists(st.sampled_from(["finish", "finish", "finish", "error", "lost"]), max_size=8),
    )
    def work(self, many: list[tuple[str, str | None, Form]], ends: list[str]) -> None:
        """Deliver, and let agents do what they are for."""
        self.deliver_batch([(member_id, known or self.fresh_id(), form) for member_id, known, form in many])
        self.confirm_all()
        for n, end in enumerate(ends):
            if end == "finish":
                self.finish(n, "", n % 3, n % 2)
            elif end == "error":
                self.fail(n, "error", n % 2, "")
            else:
                self.lose(n)

    @rule(many=st.lists(st.tuples(member_ids, forms), min_size=1, max_size=8), batch=st.booleans())
    def load_up(self, many: list[tuple[str, Form]], batch: bool) -> None:
        """Deliver what was never delivered before, and let it be under way."""
        self.confirm_all()
        fresh = [(member_id, self.fresh_id(), form) for member_id, form in many]
        if batch:
            self.deliver_batch(fresh)
        else:
            for member_id, input_id, form in fresh:
                self.deliver(member_id, input_id, "x", "none", form)

    @rule(pick=picks, count=st.integers(1, 3), form=forms)
    def steer(self, pick: int, count: int, form: Form) -> None:
        """Deliver to a member whose run is in flight, mostly what goes into it."""
        if (found := self.run_in_flight(pick)) is not None:
            for n in range(count):
                self.deliver(found[1].member_id, self.fresh_id(), "x", "none", STEER if n else form)

    @rule(pick=picks, obeys=st.booleans(), taken=st.integers(0, 2))
    def give_in(self, pick: int, obeys: bool, taken: int) -> None:
        """The agent of a run that is to be cancelled ends it, or brings its result just so."""
        asked = sorted(run_id for run_id, run in self.model.runs.items() if run.cancel)
        if asked:
            at = sorted(self.model.runs).index(asked[pick % len(asked)])
            if obeys:
                self.fail(at, "cancelled", taken, "")
            else:
                self.finish(at, "", 1, taken)

    @rule(
        pick=picks,
        taken=st.integers(0, 3),
        how=st.sampled_from(["finish", "finish", "finish", "error", "final", "released", "cancelled"]),
    )
    def take_in(self, pick: int, taken: int, how: str) -> None:
        """A run into which something was steered ends, and the handler had looked at some of it."""
        runs = sorted(self.model.runs)
        steered = [run_id for run_id in runs if self.model.runs[run_id].steered]
        if not steered:
            return
        at = runs.index(steered[pick % len(steered)])
        if how == "finish":
            self.finish(at, "", 0, taken)
        else:
            self.fail(at, how, taken, "")

    @rule(pick=picks, how=st.sampled_from(["retire", "retire", "runtime", "interrupt", "respawn", "destroy"]))
    def end_busy(self, pick: int, how: str) -> None:
        """End a member that runs, or waits to try again or to be drained."""
        busy = [i for i, one in sorted(self.model.members.items()) if one.run or one.paused_until or one.drain_until]
        if not busy:
            return
        member_id = busy[pick % len(busy)]
        if how == "respawn":
            self.respawn(member_id, "right", initial=True, request_id=None)
        elif how == "destroy":
            self.destroy_runtime(member_id, "right", None)
        else:
            self.retire(member_id, "right", how == "runtime", how == "interrupt", None)

    @rule(pick=picks, holds=st.booleans(), meanwhile=st.sampled_from(["nothing", "interrupt", "cancel", "steer"]))
    def come_back(self, pick: int, holds: bool, meanwhile: str) -> None:
        """An agent is away for a time, and comes back to what was asked of its run."""
        if (found := self.run_in_flight(pick)) is None:
            return
        run_id, run = found
        host = self.model.agents[run.attachment_id].host
        self.connected.discard(run.attachment_id)
        if meanwhile == "steer":
            self.deliver(run.member_id, self.fresh_id(), "x", "none", STEER)
        elif meanwhile != "nothing":
            self.cancel_run(sorted(self.model.runs).index(run_id), hard=meanwhile == "cancel")
        self.attach(host, anew=False, terms=0, holds=holds, confirms=True)

    @rule(pick=picks, first=st.booleans(), how=st.sampled_from(["right", "right", "before", "never"]))
    def cut_off(self, pick: int, first: bool, how: str) -> None:
        """A run is cancelled hard, perhaps after an interrupt, and its agent fenced off: by the last request alone."""
        if (found := self.run_in_flight(pick)) is None:
            return
        run_id, run = found
        if first:
            self.step(c.Interrupt(run.member_id))
        before = run.control_id
        self.step(c.HardCancel(run.member_id, run_id))
        control_id = {"right": run.control_id, "before": before, "never": "ctl-0"}[how]
        right = run.cancel == "hard" and control_id == run.control_id
        answer = self.step(c.FenceOff(run.attachment_id, run_id, run.fence, control_id, "silent"))
        assert answer == Done(changed=right)

    @rule(
        many=st.lists(st.tuples(member_ids, forms), min_size=2, max_size=6),
        pick=picks,
        how=st.sampled_from(["retire", "runtime", "interrupt", "destroy"]),
        resumes=st.booleans(),
    )
    def while_stopped(self, many: list[tuple[str, Form]], pick: int, how: str, resumes: bool) -> None:
        """A member with work ends while its mob is stopped."""
        self.load_up(many, batch=True)
        self.step(c.StopMob())
        member_id = many[pick % len(many)][0]
        if how == "destroy":
            self.destroy_runtime(member_id, "right", None)
        else:
            self.retire(member_id, "right", how == "runtime", how == "interrupt", None)
        if resumes:
            self.step(c.ResumeMob())

    # What time and the server do.

    @rule()
    def due(self) -> None:
        """The next thing that the clock is looked at for is due."""
        if self.mob.timers:
            self.now = max(self.now, self.mob.timers[0][0])
            self.step(c.Wake())
            assert all(at > self.now for at, _, _ in self.mob.timers)

    @rule(passed=st.sampled_from([0, SECOND // 2, SECOND, 10 * SECOND, 10 * SECOND, 20 * SECOND, 60 * SECOND, DAY + 1]))
    def wake(self, passed: int) -> None:
        self.now += passed
        self.step(c.Wake())
        assert all(at > self.now for at, _, _ in self.mob.timers)

    @rule(many=st.lists(st.tuples(member_ids, forms), min_size=1, max_size=5))
    def next_day(self, many: list[tuple[str, Form]]) -> None:
        """What has ended is old enough to be forgotten."""
        self.wake(DAY + 1)
        self.load_up(many, batch=False)

    @rule(loads=st.booleans())
    def restart(self, loads: bool) -> None:
        """Another process goes on from the log, or from a snapshot of it; nobody is connected to it yet."""
        if loads:
            self.load()
        self.mob, self.replayed = self.replayed, self.mob
        self.connected.clear()
        self.step(c.Continue())

    def rest(self) -> None:
        """Give everybody a faithful agent and all the time they want: then nothing is left that could run."""
        self.lazy = False
        self.go_on()
        if self.mob.phase in ("completed", "destroyed"):
            return
        if self.mob.phase != "running":
            self.step(c.StartMob())
        for attachment_id in sorted(self.model.agents):
            self.connected.discard(attachment_id)
            self.step(c.CloseAttachment(attachment_id, "detached"))
        self.step(c.Attach("hz", "1", 2, 5, [role("analyst"), role("lead")]))
        for _ in range(200):
            self.confirm_all()
            if self.model.runs:
                self.finish(0, "", 0, 0)
            elif self.mob.timers:
                self.now = max(self.now, self.mob.timers[0][0])
                self.step(c.Wake())
            else:
                break
        self.model.check_rests()

    @rule()
    def load_snapshot(self) -> None:
        self.load()

    @rule(lazy=st.sampled_from([False, False, True]))
    def hurry(self, lazy: bool) -> None:
        """What is to be gone on with comes at once, or after other things."""
        self.lazy = lazy
        if not lazy:
            self.go_on()


TestMobLife = MobLife.TestCase
TestMobLife.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
