"""Servers that are killed while a run is to end, or has more inputs: the agent goes on, and nothing is done twice."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.faults.conftest import World
from tests.support.processes import WAIT_S
from tests.support.served import Served

import mobd
from mobd.v1 import bridge_pb2, common_pb2

pytestmark = pytest.mark.asyncio

DEFINITION = {"profiles": {"worker": {"instructions": "Do what the input says."}}}


class Worker:
    """An agent whose turn goes on until it is told to end, or has taken in as many inputs as it wants."""

    def __init__(self, server: Served, client: mobd.Client) -> None:
        self.client = client
        self.agent = mobd.Agent(server.target, mob="crew", role="worker", steer=True)
        self.agent.reconnect_s = (0.05, 0.2)
        self.begun = asyncio.Event()
        self.turns: list[mobd.Turn] = []
        self.hooked: list[str] = []
        self.agent.turn(self._turn)
        self.agent.on_cancel(self._hook)

    async def _turn(self, ctx: mobd.Turn) -> list[str]:
        self.turns.append(ctx)
        self.begun.set()
        taken: list[str] = []
        while len(taken) < 2:
            taken += [one.input_id for one in ctx.take_steered()]
            await asyncio.sleep(0.01)  # noqa: TID251 the turn looks now and then, as a real one does
        return taken

    async def _hook(self, ctx: mobd.Turn) -> None:
        self.hooked.append(ctx.run_id)

    async def ended(self, input_id: str) -> bridge_pb2.Input:
        """Return an input as it ended."""
        async with asyncio.timeout(WAIT_S * 2):
            return [state async for state in self.client.watch_input("crew", "ada", input_id)][-1]

    async def back(self) -> None:
        """Return when the agent has come back to a server that was started again."""
        async with asyncio.timeout(WAIT_S * 2):
            while True:
                state = await self.client.observe("crew", "ada")
                if state.connectivity == common_pb2.CONNECTIVITY_CONNECTED:
                    return


@asynccontextmanager
async def working(served: Served) -> AsyncIterator[Worker]:
    """Yield an agent in its first run of the one member of a mob."""
    async with mobd.Client(served.target) as client:
        await client.create_mob("crew", DEFINITION)
        await client.spawn("crew", "ada", "worker")
        worker = Worker(served, client)
        async with worker.agent.running():
            await client.deliver("crew", "ada", "work", input_id="i1")
            await asyncio.wait_for(worker.begun.wait(), WAIT_S)
            yield worker


async def test_a_request_to_cancel_outlives_a_kill_and_is_obeyed_once(world: World) -> None:
    served = await world.serve()
    async with working(served) as worker:
        (turn,) = worker.turns
        await worker.client.interrupt("crew", "ada", reason="enough")
        await asyncio.wait_for(turn.cancelled.wait(), WAIT_S)
        served.kill9()
        await served.restart()
        await worker.back()
        await worker.client.hard_cancel("crew", "ada", turn.run_id, reason="now")
        ended = await worker.ended("i1")
        page = await worker.client.poll_events("crew", kinds=["run_cancel_requested", "run_settled", "run_resent"])
    assert worker.hooked == [turn.run_id]
    assert (ended.state, ended.reason) == (bridge_pb2.INPUT_STATE_ABANDONED, "cancelled: enough")
    assert [event.kind for event in page.events] == ["run_cancel_requested", "run_cancel_requested", "run_settled"]


async def test_what_was_steered_into_a_run_outlives_a_kill_and_is_taken_in_once(world: World) -> None:
    served = await world.serve()
    async with working(served) as worker:
        await worker.client.deliver("crew", "ada", "more", input_id="s1", steer=True)
        served.kill9()
        await served.restart()
        await worker.back()
        # The first one is known by now, whether its agent had it before the kill or not.
        for input_id in ("s1", "s2"):
            await worker.client.deliver("crew", "ada", "more", input_id=input_id, steer=True)
        ended = [await worker.ended(input_id) for input_id in ("i1", "s1", "s2")]
    (turn,) = worker.turns
    assert [(one.state, one.run_id, one.attempt) for one in ended] == [
        (bridge_pb2.INPUT_STATE_CONSUMED, turn.run_id, 1)
    ] * 3
    assert ended[0].output_json == '["s1","s2"]'
