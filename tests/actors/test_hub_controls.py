"""Runs that are to end: what overtakes what on the way to an agent, and what becomes of one that does not obey."""

from typing import Any

import pytest
from tests.actors.hub_world import TERMS, AgentPeer, HubWorld, result
from tests.actors.world import ANYBODY, deliver
from tests.support.loops import ticks

from mobd_server.actors import frames as f
from mobd_server.actors.connection import Connection
from mobd_server.actors.links import Call
from mobd_server.machines import answers as a
from mobd_server.machines import commands as c
from mobd_server.machines.events import ExecutorLost, RunSettled
from mobd_server.machines.keys import remembered
from mobd_server.machines.state import Profile

pytestmark = pytest.mark.asyncio

PROFILE = Profile("analyst")
RETIRE = a.SendRetire("att", "ada", 1, drain=True)


async def settlements(world: HubWorld) -> list[RunSettled]:
    return [record.event for record in await world.log() if isinstance(record.event, RunSettled)]


async def running(world: HubWorld, *members: str, **hello: Any) -> tuple[AgentPeer, a.SendStartRun]:
    """Return an agent with a run of ada that it has accepted."""
    await world.create(*(members or ("ada",)))
    agent = await AgentPeer(world, **hello).serve()
    await world.deliver("i1")
    return agent, await agent.accept_run()


async def interrupt(world: HubWorld, member_id: str = "ada") -> a.CancelAnswer:
    answer = (await world.ask(c.Interrupt(member_id, reason="enough"))).answer
    assert isinstance(answer, a.CancelAnswer)
    return answer


async def hard_cancel(world: HubWorld, run_id: str) -> None:
    assert (await world.ask(c.HardCancel("ada", run_id, reason="now"))).answer == a.CancelAnswer("requested", run_id)


async def test_an_interrupt_reaches_the_agent_once_and_a_turn_that_ends_by_it_is_cancelled() -> None:
    world = HubWorld()
    agent, start = await running(world)
    assert (await interrupt(world)).outcome == "requested"
    assert (await interrupt(world)).outcome == "requested"
    (cancel,) = agent.take(a.SendCancel)
    assert (cancel.run_id, cancel.fence, cancel.hard, cancel.reason) == (start.run_id, start.fence, False, "enough")
    await agent.say(f.ControlAck(cancel.control_id, "ok"))
    await world.elapse(TERMS.accept_s * 3)
    assert not await settlements(world)
    await agent.say(f.RunFailed(start.run_id, start.fence, "cancelled", "enough"))
    assert [one.state for one in await settlements(world)] == ["cancelled"]
    assert [one.disposition for one in agent.take(a.SendSettled)] == ["cancelled"]


async def test_a_result_that_comes_first_is_stored() -> None:
    world = HubWorld()
    agent, start = await running(world)
    await interrupt(world)
    (cancel,) = agent.take(a.SendCancel)
    await agent.say(result(start))
    await agent.say(f.ControlAck(cancel.control_id, "not_running"))
    assert [one.state for one in await settlements(world)] == ["committed"]
    assert [one.disposition for one in agent.take(a.SendSettled)] == ["committed"]


async def test_a_claim_of_a_cancel_that_nobody_asked_for_is_a_failed_attempt() -> None:
    world = HubWorld()
    agent, start = await running(world)
    await agent.say(f.RunFailed(start.run_id, start.fence, "cancelled"))
    (failed,) = await settlements(world)
    assert (failed.state, failed.outcomes[0].outcome) == ("failed", "requeued")


async def test_an_agent_that_does_not_acknowledge_a_hard_cancel_is_fenced_off() -> None:
    world = HubWorld()
    agent, start = await running(world)
    await hard_cancel(world, start.run_id)
    assert [one.hard for one in agent.take(a.SendCancel)] == [True]
    await world.elapse(TERMS.accept_s - 1)
    assert not await settlements(world)
    await world.elapse(3)
    assert [one.state for one in await settlements(world)] == ["cancelled"]
    assert [one.disposition for one in agent.take(a.SendSettled)] == ["cancelled"]
    assert [one.member_id for one in agent.take(a.SendUnassign)] == ["ada"]
    lost = [record.event for record in await world.log() if isinstance(record.event, ExecutorLost)]
    assert [one.reason for one in lost] == ["its agent did not acknowledge the cancel within 10 s"]
    await agent.say(result(start))
    assert [one.disposition for one in agent.take(a.SendSettled)] == ["fenced"]


async def test_an_agent_that_acknowledges_a_hard_cancel_keeps_its_run_until_it_ends() -> None:
    world = HubWorld()
    agent, start = await running(world)
    await hard_cancel(world, start.run_id)
    (cancel,) = agent.take(a.SendCancel)
    await agent.say(f.ControlAck(cancel.control_id, "ok"))
    for _ in range(6):
        await world.elapse(TERMS.accept_s / 2)
        await agent.beat(start.run_id)
    assert not await settlements(world)
    assert world.served_by() == "h1"


async def test_an_agent_that_can_not_end_a_run_at_once_is_fenced_off_at_once() -> None:
    world = HubWorld()
    agent, start = await running(world)
    await hard_cancel(world, start.run_id)
    (cancel,) = agent.take(a.SendCancel)
    await agent.say(f.ControlAck(cancel.control_id, "failed", "it runs in a thread"))
    assert [one.state for one in await settlements(world)] == ["cancelled"]
    lost = [record.event for record in await world.log() if isinstance(record.event, ExecutorLost)]
    assert [one.reason for one in lost] == ["it runs in a thread"]


async def test_that_an_interrupt_failed_changes_nothing() -> None:
    world = HubWorld()
    agent, start = await running(world)
    await interrupt(world)
    (cancel,) = agent.take(a.SendCancel)
    await agent.say(f.ControlAck(cancel.control_id, "failed"))
    await world.elapse(TERMS.accept_s * 2)
    await agent.say(result(start))
    assert [one.state for one in await settlements(world)] == ["committed"]


async def test_a_run_that_the_agent_does_not_hold_is_cancelled_when_it_says_so() -> None:
    world = HubWorld()
    agent, _ = await running(world)
    await interrupt(world)
    (cancel,) = agent.take(a.SendCancel)
    await agent.say(f.ControlAck(cancel.control_id, "not_running"))
    assert [one.state for one in await settlements(world)] == ["cancelled"]


async def test_a_result_before_the_answer_that_nothing_runs_is_stored() -> None:
    world = HubWorld()
    agent, start = await running(world)
    await interrupt(world)
    (cancel,) = agent.take(a.SendCancel)
    world.writer.open = False
    await agent.say(result(start), f.ControlAck(cancel.control_id, "not_running"))
    world.writer.commit()
    world.writer.open = True
    await ticks()
    assert [one.state for one in await settlements(world)] == ["committed"]
    assert [one.disposition for one in agent.take(a.SendSettled)] == ["committed"]


async def test_an_answer_to_a_request_of_before_is_passed_over() -> None:
    world = HubWorld()
    agent, start = await running(world)
    await interrupt(world)
    (soft,) = agent.take(a.SendCancel)
    await hard_cancel(world, start.run_id)
    (hard,) = agent.take(a.SendCancel)
    assert soft.control_id != hard.control_id
    await agent.say(f.ControlAck(soft.control_id, "ok"), f.ControlAck("ctl-unknown", "not_running"))
    assert not await settlements(world)
    await world.elapse(TERMS.accept_s + 2)
    assert [one.state for one in await settlements(world)] == ["cancelled"]


async def test_a_cancel_is_sent_again_after_a_return_and_the_wait_begins_anew() -> None:
    world = HubWorld()
    agent, start = await running(world)
    await hard_cancel(world, start.run_id)
    (cancel,) = agent.take(a.SendCancel)
    await world.elapse(TERMS.accept_s - 1)
    agent.break_off()
    await world.elapse(TERMS.accept_s)
    assert not await settlements(world)
    await agent.reconnect(start.run_id)
    assert [one.control_id for one in agent.take(a.SendCancel)] == [cancel.control_id]
    await world.elapse(TERMS.accept_s - 1)
    assert not await settlements(world)
    await world.elapse(3)
    assert [one.state for one in await settlements(world)] == ["cancelled"]


async def test_a_cancel_while_the_agent_is_away_is_sent_when_it_comes_back() -> None:
    world = HubWorld()
    agent, start = await running(world)
    agent.break_off()
    await ticks()
    await interrupt(world)
    await agent.reconnect(start.run_id)
    assert [one.run_id for one in agent.take(a.SendCancel)] == [start.run_id]


async def test_a_cancel_is_sent_again_when_the_mob_was_read_anew() -> None:
    world = HubWorld()
    agent, start = await running(world)
    await hard_cancel(world, start.run_id)
    (cancel,) = agent.take(a.SendCancel)
    await world.fail_store()
    await world.mend_store()
    await world.registry.load("m")
    await ticks()
    assert [one.control_id for one in agent.take(a.SendCancel)] == [cancel.control_id]
    await world.elapse(TERMS.accept_s + 2)
    assert [one.state for one in await settlements(world)] == ["cancelled"]


async def test_a_fence_that_can_not_be_decided_now_is_tried_again() -> None:
    world = HubWorld(slots=16)
    agent, start = await running(world)
    await hard_cancel(world, start.run_id)
    (cancel,) = agent.take(a.SendCancel)
    world.writer.open = False
    # Acknowledgements are decided as far as the journal has room, and it has none.
    while world.journal.refusal(kept=True) is None:
        world.actor.submit(deliver(f"x{len(remembered(world.member()))}"), ANYBODY, kept=True)
    await agent.say(f.ControlAck(cancel.control_id, "failed", "it can't"))
    world.writer.commit()
    world.writer.open = True
    await ticks()
    assert not await settlements(world)
    await world.elapse(2)
    assert [one.state for one in await settlements(world)] == ["cancelled"]


async def test_a_run_that_was_not_sent_yet_is_taken_back_with_its_cancel() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    agent.stop_reading()
    await ticks()
    await world.deliver("i1")
    await interrupt(world)
    await ticks()
    assert [one.state for one in await settlements(world)] == ["cancelled"]
    agent.connection.acknowledge()
    waiting = await agent.connection.take()
    assert not [frame for frame in waiting if isinstance(frame, a.SendStartRun | a.SendCancel)]
    await world.elapse(TERMS.accept_s + 2)
    assert len(await settlements(world)) == 1
    agent.connection.acknowledge()
    assert await agent.connection.take() == [f.HeartbeatAck()]


async def test_what_is_taken_back_leaves_the_member_free_for_its_next_input() -> None:
    world = HubWorld()
    await world.create("ada")
    agent = await AgentPeer(world).serve()
    agent.stop_reading()
    await ticks()
    await world.deliver("i1")
    await world.deliver("i2")
    await interrupt(world)
    await ticks()
    starts = [frame for frame in await agent.connection.take() if isinstance(frame, a.SendStartRun)]
    assert [[one.input_id for one in start.inputs] for start in starts] == [["i2"]]


async def test_an_agent_is_told_that_a_member_is_retired() -> None:
    world = HubWorld()
    agent, start = await running(world)
    await world.ask(c.RetireRuntime("ada"))
    assert [(one.member_id, one.fence, one.drain) for one in agent.take(a.SendRetire)] == [("ada", start.fence, True)]


async def test_an_agent_that_steers_is_sent_what_comes_for_a_run_and_says_what_it_took() -> None:
    world = HubWorld()
    agent, start = await running(world, steers=True)
    for input_id in ("s1", "s2"):
        steer = deliver(input_id)
        steer.handling_mode = "steer"
        await world.ask(steer)
    first, second = agent.take(a.SendSteer)
    assert [one.input_id for one in (*first.inputs, *second.inputs)] == ["s1", "s2"]
    taken = first.inputs[0].canonical_input_id
    done = result(start)
    await agent.say(f.RunResult(done.run_id, done.fence, done.output, steered=[taken]))
    (settled,) = await settlements(world)
    assert [(one.outcome, one.sequence) for one in settled.outcomes] == [
        ("consumed", 0),
        ("consumed", 1),
        ("returned", 0),
    ]
    assert [[one.input_id for one in run.inputs] for run in agent.take(a.SendStartRun)] == [["s2"]]


async def test_what_was_steered_is_sent_again_after_a_return() -> None:
    world = HubWorld()
    agent, start = await running(world, steers=True)
    steer = deliver("s1")
    steer.handling_mode = "steer"
    await world.ask(steer)
    agent.take(a.SendSteer)
    agent.break_off()
    await agent.reconnect(start.run_id)
    assert [[one.input_id for one in again.inputs] for again in agent.take(a.SendSteer)] == [["s1"]]


async def test_an_agent_that_comes_back_with_another_ability_does_not_resume() -> None:
    world = HubWorld()
    agent, start = await running(world)
    before = agent.attachment_id
    agent.break_off()
    await AgentPeer(world, steers=True).hello(start.run_id)
    assert before not in world.actor.mob.attachments
    assert [one.state for one in await settlements(world)] == ["lost"]


def assign(member_id: str) -> a.SendAssign:
    return a.SendAssign(
        "att",
        member_id,
        1,
        confirmed=False,
        profile=PROFILE,
        context=None,
        generation=1,
        fence_token=1,
        session_id="ses",
        message_count=0,
        digest="",
    )


def start_of(member_id: str, run_id: str) -> a.SendStartRun:
    return a.SendStartRun("att", run_id, 1, member_id, [], None)


def cancel_of(member_id: str, run_id: str, control_id: str = "ctl", *, hard: bool = False) -> a.SendCancel:
    return a.SendCancel("att", run_id, 1, member_id, control_id, hard, "")


def connection() -> Connection:
    return Connection(HubWorld().clock, Call().principal)


async def test_a_control_overtakes_what_is_not_of_its_member() -> None:
    one = connection()
    settled = a.SendSettled("att", "r0", "committed")
    one.send(assign("ada"), settled, start_of("bob", "r2"), assign("cyd"), f.HeartbeatAck())
    one.send_control(cancel_of("ada", "r1"))
    taken = [type(frame).__name__ for frame in await one.take()]
    assert taken == ["SendAssign", "SendCancel", "SendSettled", "SendStartRun", "SendAssign", "HeartbeatAck"]


@pytest.mark.parametrize(
    "before",
    [start_of("ada", "r1"), assign("ada"), a.SendSteer("att", "r1", 1, "ada", [])],
    ids=["start", "assign", "steer"],
)
async def test_a_control_never_overtakes_what_its_member_must_know_first(before: f.ServerFrame) -> None:
    one = connection()
    one.send(f.HeartbeatAck(), before, start_of("bob", "r2"))
    one.send_control(RETIRE)
    taken = await one.take()
    assert taken.index(before) < taken.index(RETIRE) == 2


async def test_controls_keep_their_order_and_stay_behind_the_welcome() -> None:
    one = connection()
    one.send(f.Welcome("att", "log", [], resumed=False, terms=TERMS), start_of("bob", "r2"))
    controls = [cancel_of("ada", "r1", "c1"), cancel_of("cyd", "r3", "c2"), cancel_of("ada", "r1", "c3", hard=True)]
    for control in controls:
        one.send_control(control)
    assert (await one.take())[1:] == [*controls, start_of("bob", "r2")]


async def test_what_is_taken_back_is_the_run_and_what_was_steered_into_it() -> None:
    one = connection()
    one.send(assign("ada"), start_of("ada", "r1"), a.SendSteer("att", "r1", 1, "ada", []), start_of("bob", "r2"))
    assert one.take_back("r1")
    assert not one.take_back("r1")
    assert await one.take() == [assign("ada"), start_of("bob", "r2")]
    assert not one.full
