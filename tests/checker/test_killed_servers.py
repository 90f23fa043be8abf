"""Real servers and agents, killed again and again, judged by the history of all that clients and agents saw.

MOBD_TEST_SEED repeats a run as far as processes can be repeated; MOBD_TEST_FULL=1 goes on for longer.
"""

import random
from pathlib import Path

import pytest
from tests.checker.checker import broken, told
from tests.checker.history import write
from tests.checker.workload import Plan, Workload, faults
from tests.support.processes import say
from tests.support.settings import setting

FULL = setting("MOBD_TEST_FULL") == "1"


@pytest.mark.asyncio
@pytest.mark.timeout(240)
async def test_what_clients_and_agents_saw_of_killed_servers_is_what_a_correct_service_shows(
    tmp_path: Path, store_url: str | None
) -> None:
    seed = int(setting("MOBD_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    say(f"MOBD_TEST_SEED={seed}")
    plan = Plan(seed, seconds=30.0 if FULL else 3.0, kills=8 if FULL else 2, agent_kills=6 if FULL else 1)
    # One store is killed at any moment, the other in the middle of what a server does with a commit.
    plan.faults = faults(seed) if store_url is None else []
    history = await Workload(tmp_path, store_url, plan).run()
    write(tmp_path / "history.jsonl", history)
    say(f"{len(history)} records in {tmp_path}")
    verdicts = broken(history)
    assert not verdicts, told(verdicts)
