"""A clock that is set: what is due is late by little, whatever was read from the clock in between."""

import pytest
from tests.actors.world import World, soon
from tests.support.loops import ticks

pytestmark = pytest.mark.asyncio

HOUR = 3_600


async def test_a_clock_that_is_set_back_by_much_holds_nothing_up() -> None:
    world = World()
    actor = await world.create("m", "ada")
    attachment_id = await world.confirm(actor)
    await world.fail_attempt(actor, attachment_id)
    # The pause is a second, and when it is over the clock is an hour behind.
    world.clock.step_wall(-HOUR)
    world.clock.advance(60)
    await ticks()
    assert len(actor.mob.runs) == 1


async def test_a_clock_that_is_set_back_by_little_makes_a_pause_longer_by_that() -> None:
    world = World()
    actor = await world.create("m", "ada")
    attachment_id = await world.confirm(actor)
    await world.fail_attempt(actor, attachment_id)
    world.clock.step_wall(-40)
    world.clock.advance(40)
    await ticks()
    assert not actor.mob.runs
    world.clock.advance(1)
    await ticks()
    assert len(actor.mob.runs) == 1
    await soon(world.journal.drain())
