r"""mobd for tests: a whole server in the process of the test, in virtual time, without ports and without waiting.

    async with testing.server() as world:
        agent = mobd.Agent(mob="triage", role="analyst")

        @agent.turn
        async def turn(ctx):
            await asyncio.sleep(3600)          # an hour of the world
            return {"lines": len(ctx.text.splitlines())}

        world.serve(agent)
        await world.client.create_mob("triage", {"profiles": {"analyst": {}}})
        await world.client.spawn("triage", "ada", "analyst")
        assert await world.client.ask("triage", "ada", "a\nb", timeout=7200) == {"lines": 2}

The server is the real one, from the door of its RPCs down to its store; client and agents are the real SDK. What is not
real is the network between them, the clock, and where randomness comes from: that is the seed.
"""

from mobd_server.testing.virtual import EPOCH, VirtualClock, VirtualTime
from mobd_server.testing.world import World, run, server

__all__ = ["EPOCH", "VirtualClock", "VirtualTime", "World", "run", "server"]
