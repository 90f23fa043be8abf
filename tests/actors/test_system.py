"""The machine's own clock and ids."""

import asyncio
import re

import pytest

from mobd_server.adapters.system import SystemClock, system_ids, system_jitter


def test_ids_are_unique_in_order_and_name_their_load() -> None:
    ids = system_ids(26)
    made = [ids.new(prefix) for prefix in ("in", "run", "att")]
    assert all(re.fullmatch(r"[a-z]+-0000001a[0-9a-f]{8}[0-9a-f]{8}", one) for one in made)
    assert [one[-8:] for one in made] == ["00000001", "00000002", "00000003"]
    assert system_ids(26).new("in") != ids.new("in")


def test_jitter_is_a_fraction() -> None:
    assert all(0 <= system_jitter() < 1 for _ in range(100))


@pytest.mark.asyncio
async def test_the_clock_calls_on_the_loop_and_can_be_stopped() -> None:
    clock = SystemClock()
    called = asyncio.Event()
    stopped = clock.call_later(0, lambda: pytest.fail("it was cancelled"))
    stopped.cancel()
    clock.call_later(0, called.set)
    await asyncio.wait_for(called.wait(), 10)
    assert clock.monotonic() <= clock.monotonic()
    assert clock.now() > 1_700_000_000_000_000
