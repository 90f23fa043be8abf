"""Time that jumps: what waits for it waits for nothing else, and what works in threads is waited for."""

import asyncio
import threading
import time

import pytest

from mobd_server.testing import VirtualClock, VirtualTime

HOUR = 3600.0


@pytest.mark.asyncio
async def test_time_jumps_to_the_next_timer_and_goes_on_from_there() -> None:
    loop = asyncio.get_running_loop()
    virtual, began, rang = VirtualTime(loop), time.monotonic(), asyncio.Event()
    with virtual.installed():
        start = loop.time()
        order: list[str] = []
        loop.call_later(2 * HOUR, order.append, "late")
        loop.call_later(HOUR, order.append, "early")
        loop.call_later(3 * HOUR, rang.set)
        await rang.wait()
        assert order == ["early", "late"]
        assert loop.time() - start == pytest.approx(3 * HOUR)
    assert loop.time() >= start + 3 * HOUR
    assert time.monotonic() - began < 60


@pytest.mark.asyncio
async def test_timeouts_are_of_the_same_time() -> None:
    with VirtualTime(asyncio.get_running_loop()).installed(), pytest.raises(TimeoutError):
        async with asyncio.timeout(100 * HOUR):
            await asyncio.Event().wait()


@pytest.mark.asyncio
async def test_no_time_passes_while_a_thread_works() -> None:
    loop = asyncio.get_running_loop()
    with VirtualTime(loop).installed():
        start, go = loop.time(), threading.Event()

        def work() -> float:
            go.wait(10)
            return loop.time()

        working = asyncio.ensure_future(asyncio.to_thread(work))
        loop.call_later(HOUR, lambda: None)
        threading.Timer(0.05, go.set).start()
        assert await working == start
        assert loop.time() == start


@pytest.mark.asyncio
async def test_a_thread_may_be_announced_by_whoever_starts_it() -> None:
    loop = asyncio.get_running_loop()
    virtual = VirtualTime(loop)
    with virtual.installed():
        start, done, found = loop.time(), virtual.busy(), asyncio.Event()

        def work() -> None:
            loop.call_soon_threadsafe(found.set)
            done()

        loop.call_later(HOUR, lambda: None)
        threading.Timer(0.05, work).start()
        await found.wait()
        assert loop.time() == start


@pytest.mark.asyncio
async def test_the_wall_clock_goes_with_the_loop_and_can_be_set_apart() -> None:
    with VirtualTime(asyncio.get_running_loop()).installed():
        clock = VirtualClock()
        began, rang = clock.now(), asyncio.Event()
        clock.call_later(HOUR, rang.set)
        await rang.wait()
        assert clock.now() - began == 3_600_000_000
        clock.step_wall(-2 * HOUR)
        assert clock.now() - began == -3_600_000_000


def test_another_loop_is_refused_by_name() -> None:
    uvloop = pytest.importorskip("uvloop")
    loop = uvloop.new_event_loop()
    try:
        with pytest.raises(TypeError, match="asyncio's own loop"):
            VirtualTime(loop)
    finally:
        loop.close()
