"""What carries messages: in order, at most a window unread, and each end once."""

import asyncio
import random
from contextvars import copy_context

import pytest
from tests.support.loops import ticks

from mobd_server.testing import VirtualTime
from mobd_server.testing.network import WINDOW_BYTES, Link, Network, Node, Pipe, here, node_of

pytestmark = pytest.mark.asyncio

END = "end"


class Slow(Network):
    """Every message takes another time."""

    def __init__(self) -> None:
        self.chance = random.Random(1)

    def delay(self, sender: Node | None, receiver: Node | None) -> float:
        return self.chance.random()


def pipe(network: Network) -> Pipe[str]:
    return Pipe(Link(network, copy_context(), copy_context()))


@pytest.mark.parametrize("network", [Network(), Slow()])
async def test_messages_arrive_in_order_and_the_end_comes_last(network: Network) -> None:
    with VirtualTime(asyncio.get_running_loop()).installed():
        carried = pipe(network)
        for count in range(50):
            await carried.put(bytes([count]))
        carried.end(END)
        assert [await carried.get() for _ in range(52)] == [*(bytes([count]) for count in range(50)), END, END]


async def test_a_sender_waits_while_a_window_is_unread() -> None:
    carried, half = pipe(Network()), b"x" * (WINDOW_BYTES // 2)
    await carried.put(half)
    await carried.put(half)
    waiting = asyncio.create_task(carried.put(b"more"))
    await ticks()
    assert not waiting.done()
    assert await carried.get() == half
    await waiting


async def test_what_is_cut_loses_what_was_under_way_and_lets_senders_go() -> None:
    carried = pipe(Network())
    await carried.put(b"x" * WINDOW_BYTES)
    waiting = asyncio.create_task(carried.put(b"more"))
    await ticks()
    carried.cut(END)
    await waiting
    await carried.put(b"late")
    carried.end("another end")
    await ticks()
    assert await carried.get() == b"x" * WINDOW_BYTES
    assert await carried.get() == END
    assert await carried.get() == END


async def test_what_a_node_begins_is_its_own() -> None:
    node, found = Node("a"), []

    async def work() -> None:
        await ticks(1)
        found.append(here())
        asyncio.get_running_loop().call_soon(lambda: found.append(here()))

    await asyncio.get_running_loop().create_task(work(), context=node.context.copy())
    await ticks()
    assert found == [node, node]
    assert here() is None
    assert node_of(node.context) is node
