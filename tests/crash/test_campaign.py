"""Servers, agents, databases and wires fail at all their worst moments, and nothing that was acknowledged is lost.

`make crash KILLS=200` does so many things to them, MOBD_TEST_SEED repeats a run, MOBD_TEST_CRASH=word takes those with
the word in their names. Without KILLS it is a dozen of those that are quick.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import cycle, product

import pytest
from tests.crash.campaign import INJECTIONS, Table, fitting, inject, rotating
from tests.crash.conftest import NewStage
from tests.crash.injection import Injection
from tests.crash.mixed import MixedStage
from tests.crash.plain import PlainStage
from tests.crash.stage import Stage
from tests.support.processes import say
from tests.support.settings import setting

KILLS = int(setting("MOBD_TEST_KILLS") or 0)
WORD = setting("MOBD_TEST_CRASH")
QUICK = 6
LIMIT_S = 240 + KILLS * 30
# What callers do on one stage after the other.
KINDS: tuple[type[Stage], ...] = (PlainStage, MixedStage) if KILLS else (PlainStage,)
# A few on each store, or all in one campaign.
STORES = [("sqlite", "postgresql")] if KILLS else [("sqlite",), ("postgresql",)]


async def campaign(new_stage: NewStage, stores: Sequence[str], count: int, seed: int, table: Table) -> None:
    """Do `count` things to stages of these stores, one stage after the other."""
    draws = {store: random.Random(f"{seed}-{store}") for store in stores}
    orders: dict[str, Iterator[Injection]] = {}
    number = 0
    stores = [store for store in stores if any(WORD in one.name for one in fitting(store, disk=True))]
    assert stores, f"nothing has {WORD} in its name"
    for kind, store in cycle(product(KINDS, stores)):
        async with new_stage(store, kind) as stage:
            if store not in orders:
                able = fitting(store, disk=stage.disk is not None, quick=not KILLS)
                able = [one for one in able if WORD in one.name]
                assert able, f"nothing with {WORD} in its name can be done to {store} here"
                orders[store] = rotating(able, draws[store])
            for _ in range(min(stage.uses, count - number)):
                number += 1
                await inject(stage, next(orders[store]), draws[store], table, number)
            await stage.judge()
        if number == count:
            return


@pytest.mark.asyncio
@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("stores", STORES, ids="+".join)
async def test_whatever_fails_nothing_acknowledged_is_lost_and_nothing_is_done_twice(
    new_stage: NewStage, stores: Sequence[str]
) -> None:
    seed = int(setting("MOBD_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    say(f"MOBD_TEST_SEED={seed}")
    table = Table()
    count = KILLS or QUICK
    try:
        await campaign(new_stage, stores, count, seed, table)
    finally:
        say(table.text())
    assert table.survived == count


def test_every_injection_has_a_name_of_its_own() -> None:
    names = [one.name for one in INJECTIONS]
    assert len(set(names)) == len(names)
