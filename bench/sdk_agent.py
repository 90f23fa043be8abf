"""The agent of the client library, with a turn that does nothing. It serves the role `worker` of one mob."""

import sys

import mobd

agent = mobd.Agent(sys.argv[1], mob=sys.argv[2], role="worker", capacity=256)


@agent.turn
async def turn(_: mobd.Turn) -> str:
    return "done"


if __name__ == "__main__":
    agent.run()
