"""Agents of a world: the real SDK, with handlers that do everything that handlers do."""

import asyncio
import random
from typing import Any

from tests.simulation.plan import MOODS

import mobd
from mobd.errors import Cancelled


async def pause(seconds: float) -> None:
    """Let time pass in the world."""
    await asyncio.sleep(seconds)  # noqa: TID251 the world's time


def make(chance: random.Random, how: dict[str, Any], client: mobd.Client, *, good: bool = False) -> mobd.Agent:
    """Return an agent as a step describes it; a good one only succeeds."""
    agent = mobd.Agent(
        mob=how.get("mob", "m"),
        roles=how["roles"],
        members=how.get("members", ()),
        capacity=how["capacity"],
        host_id=how["host"],
        steer=how.get("steer", False),
    )
    agent.reconnect_s = (0.2, 2.0)
    moods = {"succeed": 1} if good else MOODS

    @agent.turn
    async def turn(ctx: mobd.Turn) -> Any:
        mood = chance.choices(list(moods), list(moods.values()))[0]
        await pause(chance.random() * 0.5)
        return await _TURNS[mood](ctx, chance, client)

    return agent


async def _succeed(ctx: mobd.Turn, chance: random.Random, client: mobd.Client) -> Any:
    del chance, client
    return {"inputs": [one.input_id for one in ctx.inputs]}


async def _slow(ctx: mobd.Turn, chance: random.Random, client: mobd.Client) -> Any:
    await pause(chance.random() * 8)
    return await _succeed(ctx, chance, client)


async def _emit(ctx: mobd.Turn, chance: random.Random, client: mobd.Client) -> Any:
    for count in range(chance.randrange(1, 5)):
        ctx.emit(f"line {count}")
        ctx.progress(f"step {count}", percent=count * 20)
        await pause(chance.random())
    return await _succeed(ctx, chance, client)


async def _record(ctx: mobd.Turn, chance: random.Random, client: mobd.Client) -> Any:
    ctx.record("user", ctx.text)
    await pause(chance.random())
    ctx.record("assistant", "done")
    return await _succeed(ctx, chance, client)


async def _steered(ctx: mobd.Turn, chance: random.Random, client: mobd.Client) -> Any:
    taken: list[str] = []
    for _ in range(4):
        await pause(chance.random())
        taken += [one.input_id for one in ctx.take_steered()]
    return {"inputs": [one.input_id for one in ctx.inputs], "steered": taken}


async def _fail(ctx: mobd.Turn, chance: random.Random, client: mobd.Client) -> Any:
    raise RuntimeError("it did not work")


async def _abandon(ctx: mobd.Turn, chance: random.Random, client: mobd.Client) -> Any:
    raise mobd.Abandon("it never will")


async def _obey(ctx: mobd.Turn, chance: random.Random, client: mobd.Client) -> Any:
    for _ in range(12):
        await pause(0.5)
        ctx.check_cancelled()
    return await _succeed(ctx, chance, client)


async def _hang(ctx: mobd.Turn, chance: random.Random, client: mobd.Client) -> Any:
    await pause(60)
    return await _succeed(ctx, chance, client)


async def _stubborn(ctx: mobd.Turn, chance: random.Random, client: mobd.Client) -> Any:
    try:
        await pause(6)
    except asyncio.CancelledError:
        await pause(chance.random() * 8)
    return await _succeed(ctx, chance, client)


async def _operation(ctx: mobd.Turn, chance: random.Random, client: mobd.Client) -> Any:
    acting = mobd.Acting(run_id=ctx.run_id, executor_fence=ctx.executor_fence)
    name = f"op-{ctx.run_id}"
    try:
        await client.register_operation(
            "m", "a tool", operation_id=name, owner=ctx.member_id, request_id=f"{name}-1", acting=acting, timeout=5
        )
        await pause(chance.random())
        await client.report_progress("m", name, "half", percent=50, request_id=f"{name}-2", acting=acting, timeout=5)
        await client.complete_operation("m", name, {"ok": True}, request_id=f"{name}-3", acting=acting, timeout=5)
    except Cancelled:
        raise
    except mobd.Error as error:
        return {"refused": error.reason}
    return await _succeed(ctx, chance, client)


_TURNS = {
    "succeed": _succeed,
    "slow": _slow,
    "emit": _emit,
    "record": _record,
    "steered": _steered,
    "fail": _fail,
    "abandon": _abandon,
    "obey": _obey,
    "hang": _hang,
    "stubborn": _stubborn,
    "operation": _operation,
}
