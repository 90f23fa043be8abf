"""The loop of a world: order within a node, none between nodes; frost, death, and the end."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests.simulation.agents import pause
from tests.simulation.loop import Endless, SimLoop, Stuck

from mobd_server.testing.network import Node


def run(main: Callable[[SimLoop], Coroutine[Any, Any, Any]], seed: int = 0, most_steps: int = 10_000) -> Any:
    loop = SimLoop(random.Random(seed), most_steps)
    try:
        return loop.run_until_complete(main(loop))
    finally:
        loop.discard()


def test_nodes_take_turns_as_it_is_drawn_and_each_keeps_its_order() -> None:
    async def main(loop: SimLoop) -> str:
        told: list[str] = []
        for name in "ab":
            node = Node(name)
            for count in range(5):
                loop.call_soon(told.append, f"{name}{count}", context=node.context)
        await pause(1)
        return " ".join(told)

    orders = {run(main, seed) for seed in range(20)}
    assert len(orders) > 10
    for order in orders:
        for name in "ab":
            assert [one for one in order.split() if one[0] == name] == [f"{name}{count}" for count in range(5)]
    assert run(main, 7) == run(main, 7)


def test_time_is_that_of_the_next_timer() -> None:
    async def main(loop: SimLoop) -> float:
        await pause(3_600)
        async with asyncio.timeout(10):
            await pause(5)
        return loop.time()

    assert run(main) == pytest.approx(3_605)


def test_what_is_frozen_runs_later() -> None:
    async def main(loop: SimLoop) -> tuple[float, float]:
        node, times = Node("frozen"), []
        loop.freeze(node, 5)
        loop.call_soon(lambda: times.append(loop.time()), context=node.context)
        loop.call_later(1, lambda: times.append(loop.time()))
        await pause(10)
        return times[0], times[1]

    assert run(main) == pytest.approx((1, 5))


def test_what_is_dead_runs_nothing_and_tidies_nothing_up() -> None:
    async def main(loop: SimLoop) -> list[str]:
        node, told = Node("dead"), []

        async def work() -> None:
            try:
                await pause(1)
            finally:
                told.append("tidied up")

        task = loop.create_task(work(), context=node.context.copy())
        loop.call_later(2, told.append, "late", context=node.context)
        await pause(0.5)
        loop.kill(node)
        await pause(10)
        assert not task.done()
        return list(told)

    assert run(main) == []


def test_a_world_in_which_nothing_can_happen_is_found_out() -> None:
    async def waits(_: SimLoop) -> None:
        await asyncio.Event().wait()

    async def spins(_: SimLoop) -> None:
        while True:
            await pause(0)

    with pytest.raises(Stuck):
        run(waits)
    with pytest.raises(Endless):
        run(spins)
