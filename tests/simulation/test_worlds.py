"""Worlds of fixed and of fresh numbers: whatever goes wrong in them, nothing that was promised is broken.

MOBD_TEST_SEED repeats one world; scripts/simulate.py finds out which of its steps it takes.
"""

import secrets
import sys

import pytest
from tests.simulation.storage import Backend
from tests.simulation.world import simulate
from tests.support.settings import setting

WORLDS = 200
AT_ONCE = 10
FRESH = 8


def failures(seeds: list[int], backend: Backend = "memory") -> str:
    """Run worlds; return what is wrong with those that fail."""
    found = []
    for seed in seeds:
        outcome = simulate(seed, backend=backend)
        assert outcome.records
        if outcome.failures:
            again = f"make simulate SEEDS=1 FROM={seed} STORE={backend}"
            found.append("\n".join([f"seed {seed} ({again}):", *outcome.failures[:5]]))
    return "\n\n".join(found)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(0, WORLDS, AT_ONCE))
def test_nothing_promised_is_broken(first: int) -> None:
    assert not failures(list(range(first, first + AT_ONCE)))


@pytest.mark.timeout(300)
def test_nothing_promised_is_broken_on_a_database() -> None:
    assert not failures(list(range(WORLDS, WORLDS + AT_ONCE)), "sqlite")


@pytest.mark.timeout(300)
def test_nothing_promised_is_broken_in_worlds_that_nobody_has_seen() -> None:
    given = setting("MOBD_TEST_SEED")
    seeds = [int(given)] if given else [secrets.randbelow(1 << 40) for _ in range(FRESH)]
    sys.stdout.write(f"seeds {seeds}\n")
    assert not failures(seeds)
