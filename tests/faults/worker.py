"""An agent in a process of its own. It notes every handler call in a file of its own before it does anything else.

Arguments: server, mob, role, file, capacity, most members. An input is JSON and says what the handler does with it:
{"n": 7, "do": "sleep", "s": 5}. `do` is one of: (nothing), sleep, block, die, raise.
"""

import asyncio
import json
import os
import signal
import sys
import time
from typing import Any

import mobd


class Book:
    """A file that holds what was written to it even if the process dies right after."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, at: str, turn: mobd.Turn) -> None:
        """Append one line and wait until it is on the disk."""
        line = {
            "at": at,
            "pid": os.getpid(),
            "run": turn.run_id,
            "member": turn.member_id,
            "fence": turn.executor_fence,
            "inputs": [[one.input_id, one.canonical_input_id, one.attempt] for one in turn.inputs],
        }
        os.write(self._file, json.dumps(line).encode() + b"\n")
        os.fsync(self._file)


async def act(order: dict[str, Any]) -> None:
    """Do what an input says. Time passes here because that is what the tests are about."""
    match order.get("do"):
        case "sleep":
            await asyncio.sleep(order["s"])  # noqa: TID251 the turn itself takes this long
        case "block":
            time.sleep(order["s"])  # noqa: TID251, ASYNC251 a turn that blocks its loop is the case
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise RuntimeError("this turn fails")


def main() -> None:
    target, mob, role, path, capacity, members = sys.argv[1:]
    book = Book(path)
    agent = mobd.Agent(target, mob=mob, role=role, capacity=int(capacity), max_members=int(members))
    # Servers are killed again and again, and are soon there again.
    agent.reconnect_s = (0.1, 1.0)

    @agent.turn
    async def turn(ctx: mobd.Turn) -> dict[str, Any]:
        book.write("call", ctx)
        for one in ctx.inputs:
            await act(json.loads(one.text))
        book.write("done", ctx)
        return {"inputs": [one.input_id for one in ctx.inputs]}

    agent.run()


if __name__ == "__main__":
    main()
