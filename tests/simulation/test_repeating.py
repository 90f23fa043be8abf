"""One number is one world: byte for byte, in every process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.simulation import plan
from tests.simulation.shrink import shrink
from tests.simulation.world import simulate

ROOT = Path(__file__).parents[2]
SEEDS = (3, 14, 15)
CODE = "from tests.simulation.world import simulate; print(*(simulate(seed).digest for seed in {seeds}))"


def digests(hash_seed: str) -> str:
    """Return what worlds come to in a process of its own."""
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CODE.format(seeds=SEEDS)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.timeout(200)
def test_a_world_is_the_same_in_every_process() -> None:
    first = digests("1")
    assert len(set(first.split())) == len(SEEDS)
    assert digests("2") == first
    assert [simulate(seed).digest for seed in SEEDS] == first.split()


def test_a_plan_is_drawn_from_its_number() -> None:
    assert plan.draw(5) == plan.draw(5)
    assert plan.draw(5) != plan.draw(6)
    assert [step.at for step in plan.draw(5)] == sorted(step.at for step in plan.draw(5))


def test_every_trouble_and_every_call_is_drawn_sometimes() -> None:
    drawn = {step.what for seed in range(300) for step in plan.draw(seed)}
    assert drawn == {*plan.CALLS, *plan.TROUBLES, "start"}


def test_shrinking_keeps_what_it_takes() -> None:
    steps = plan.draw(5)
    needed = {str(steps[7]), str(steps[20])}
    left = shrink(steps, lambda some: needed <= {str(step) for step in some})
    assert {str(step) for step in left} == needed
