"""A large team under a steady load, its server and agents killed again and again.

MOBD_TEST_FULL=1 delivers 20,000 inputs; MOBD_TEST_SEED repeats a run.
"""

import random

import pytest
from tests.crash.conftest import NewStage
from tests.crash.outages import kill_agent, kill_server
from tests.crash.plain import PlainStage
from tests.crash.stage import RECOVERY_S
from tests.support.processes import say
from tests.support.settings import setting

FULL = setting("MOBD_TEST_FULL") == "1"
INPUTS = 20_000 if FULL else 4_000
LIMIT_S = 600 if FULL else 300
SERVER_KILLS = 3
AGENT_KILLS = 2


class LargeStage(PlainStage):
    """Many members and callers, several agents, and enough that waits to keep them busy."""

    members = tuple(f"member-{at:03}" for at in range(100))
    callers = 32
    hosts = 4
    watchers = 3
    sizes = (1, 1, 4, 16, 32)
    backlog = 2_000


@pytest.mark.asyncio
@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
async def test_every_acknowledged_input_is_consumed_once_and_in_order_whatever_is_killed(
    new_stage: NewStage, store: str
) -> None:
    seed = int(setting("MOBD_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    say(f"MOBD_TEST_SEED={seed}")
    draw = random.Random(seed)
    kills = [kill_server] * SERVER_KILLS + [kill_agent] * AGENT_KILLS
    draw.shuffle(kills)
    stage = new_stage(store, LargeStage)
    # Nobody is to lose an agent three times because the machine is busy.
    stage.settings.update(MOBD_LEASE_S="3", MOBD_GRACE_S="15" if FULL else "6")
    async with stage:
        async with stage.calling(draw):
            for kill in kills:
                await stage.more(draw.randrange(INPUTS // 10, INPUTS // 6))
                found = await kill(stage, draw)
                say(f"{stage.done:6} acknowledged; {kill.__name__}: {found}")
            await stage.served.serving(RECOVERY_S)
            await stage.more(max(INPUTS - stage.done, INPUTS // 10))
        await stage.check()
        say(f"{stage.done} inputs")
