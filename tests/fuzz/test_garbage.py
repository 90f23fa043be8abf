"""What a refusal leaves behind: nothing. An error holds the frames that it passed through, and all that they hold."""

import gc
import weakref

import pytest
from tests.actors.world import ANYBODY, World, create_mob, deliver, soon

from mobd_server.errors import MemberNotFound, MobExists

pytestmark = pytest.mark.asyncio


async def test_a_refused_command_leaves_nothing_in_memory() -> None:
    world = World()
    actor = await world.create("m")
    with pytest.raises(MemberNotFound) as refused:
        await soon(actor.ask(deliver("i1"), ANYBODY))
    error = weakref.ref(refused.value)
    del refused
    gc.collect()
    assert error() is None


async def test_a_mob_that_was_there_already_leaves_nothing_in_memory() -> None:
    world = World()
    await world.create("m")
    with pytest.raises(MobExists) as refused:
        await soon(world.registry.create("m", create_mob(), ANYBODY))
    error = weakref.ref(refused.value)
    del refused
    gc.collect()
    assert error() is None
