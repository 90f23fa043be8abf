"""An agent as a process of its own: what it does with signals, and what it leaves on the screen."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.client.peer import MOB, WAIT_S, Peer

import mobd
from mobd.v1 import agents_pb2

pytestmark = [pytest.mark.floor, pytest.mark.asyncio]

# Ten lines serve a member. The turn ends when a line comes in.
PLAIN = """
import sys
import mobd

agent = mobd.Agent(mob="crew", role="worker")

@agent.turn
def turn(ctx: mobd.Turn) -> str:
    print("in turn", flush=True)
    return sys.stdin.readline().strip()

agent.run()
print("left", flush=True)
"""
BLOCKING = PLAIN.replace("def turn", "async def turn")


class Program:
    """A program with its pipes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.errors = b""

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), WAIT_S)).decode().strip()

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n".encode())

    async def error(self, part: str) -> str:
        """Return the next line on stderr that holds this part."""
        assert self.process.stderr is not None
        while True:
            line = (await asyncio.wait_for(self.process.stderr.readline(), WAIT_S)).decode()
            assert line, f"never said: {part}"
            if part in line:
                return line

    async def code(self) -> int:
        return await asyncio.wait_for(self.process.wait(), WAIT_S)


@asynccontextmanager
async def program(peer: Peer, source: str) -> AsyncIterator[Program]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        source,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "MOBD_TARGET": peer.target, "PYTHONPATH": str(Path(mobd.__file__).parents[1])},
    )
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("source", [PLAIN, BLOCKING], ids=["plain", "blocks its loop"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_the_run_end_and_then_the_process(peer: Peer, source: str, number: signal.Signals) -> None:
    async with program(peer, source) as agent:
        link = await peer.attached()
        await agent.error(f"attached to mob '{MOB}'")
        await link.assign()
        await link.run("run-1")
        assert await agent.line() == "in turn"
        agent.process.send_signal(number)
        await link.hear("drain")
        agent.type("finished")
        assert (await link.hear("run_result")).output_json == '"finished"'
        link.settle("run-1")
        await link.hear("detach")
        assert await agent.line() == "left"
        assert await agent.code() == 0


@pytest.mark.parametrize("source", [PLAIN, BLOCKING], ids=["plain", "blocks its loop"])
async def test_a_second_signal_gives_the_run_back_and_ends_the_process(peer: Peer, source: str) -> None:
    async with program(peer, source) as agent:
        link = await peer.attached()
        await link.assign()
        await link.run("run-1")
        assert await agent.line() == "in turn"
        agent.process.terminate()
        await link.hear("drain")
        await agent.error("a second signal leaves at once")
        agent.process.terminate()
        await link.hear("detach")
        assert await agent.code() == 128 + signal.SIGTERM


async def test_an_idle_agent_leaves_at_once(peer: Peer) -> None:
    async with program(peer, PLAIN) as agent:
        link = await peer.attached()
        await agent.error("attached")
        agent.process.terminate()
        await link.hear("drain")
        await link.hear("detach")
        assert await agent.code() == 0


async def test_an_agent_without_a_server_says_so_and_can_be_ended(peer: Peer) -> None:
    await peer.stop()
    async with program(peer, PLAIN) as agent:
        assert "trying again" in await agent.error(f"no connection to {peer.target}")
        agent.process.terminate()
        assert await agent.code() == 0
    await peer.start()


async def test_an_agent_that_is_refused_ends_with_1_and_one_line(peer: Peer) -> None:
    async with program(peer, PLAIN) as agent:
        link = await peer.link()
        await link.hear("hello")
        link.say(reject=agents_pb2.Reject(cause=agents_pb2.REJECT_REASON_UNKNOWN_ROLE, message="the roles are: lead"))
        assert "the roles are: lead" in await agent.error("ERROR")
        assert await agent.code() == 1
        assert agent.process.stderr is not None
        assert b"Traceback" not in await agent.process.stderr.read()
