"""The process that folds states on uvloop, which starts processes and tells of their ends in a way of its own."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.stores.conftest import EngineOf
from tests.support.processes import until

from mobd_server.__main__ import GRPC
from mobd_server.adapters.sql.rebuilding import RebuilderProcess
from mobd_server.errors import MobNotFound

uvloop = pytest.importorskip("uvloop")

WAIT_S = 60
# One in eight crashed when gRPC had its way.
STARTS = 100
BESIDE_CALLS = f"""
import asyncio, grpc, uvloop

async def echo(request, context):
    return request

async def main():
    server = grpc.aio.server()
    handlers = {{"Echo": grpc.unary_unary_rpc_method_handler(echo)}}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{{port}}") as channel:
        async def call():
            while True:
                await channel.unary_unary("/test/Echo")(b"echo")
        calls = [asyncio.create_task(call()) for _ in range(8)]
        ends = []
        for _ in range({STARTS}):
            process = await asyncio.create_subprocess_exec("/bin/true")
            ends.append(await process.wait())
        assert not any(call.done() for call in calls)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
    await server.stop(None)
    print(len(ends), set(ends))

uvloop.run(main())
"""


def test_a_process_that_has_ended_is_started_again(engine_of: EngineOf) -> None:
    url = engine_of("sqlite").url.render_as_string(hide_password=False)

    async def die_between_requests() -> None:
        rebuilder = RebuilderProcess(url)
        with pytest.raises(MobNotFound):
            await rebuilder.state("nobody", 0)
        pid = rebuilder.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        # The loop takes note of it, and closes the pipes.
        await until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the process")
        with pytest.raises(MobNotFound):
            await rebuilder.state("nobody", 0)
        assert rebuilder.pid not in (pid, None)
        await rebuilder.close()

    uvloop.run(asyncio.wait_for(die_between_requests(), WAIT_S))


def test_processes_start_beside_calls() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", BESIDE_CALLS],
        env={**os.environ, **GRPC},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert (ended.stdout, ended.stderr) == (f"{STARTS} {{0}}\n", "")
