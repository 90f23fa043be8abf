"""Letting the loop run without letting time pass."""

import asyncio


async def ticks(count: int = 20) -> None:
    """Let everything run that is ready, and what that makes ready, `count` times over."""
    loop = asyncio.get_running_loop()
    for _ in range(count):
        ticked = loop.create_future()
        loop.call_soon(ticked.set_result, None)
        await ticked
