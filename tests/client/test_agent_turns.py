"""What handlers may do, and what follows from it. The agent runs on a loop of its own, apart from that of the test."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.client.peer import MOB, WAIT_S, Link, Peer, Said

import mobd
from mobd.v1 import agents_pb2

pytestmark = [pytest.mark.floor, pytest.mark.asyncio]


@asynccontextmanager
async def serving(
    peer: Peer, handler: Callable[[mobd.Turn], Any], hook: Callable[[mobd.Turn], Any] | None = None, **options: Any
) -> AsyncIterator[Link]:
    """Serve in a thread, as a program of its own would; yield the stream, with a member assigned."""
    agent = mobd.Agent(peer.target, mob=MOB, role="worker", **options)
    agent.reconnect_s = (0.01, 0.02)
    agent.blocked_s = 0.1
    agent.turn(handler)
    if hook is not None:
        agent.on_cancel(hook)
    with ThreadPoolExecutor(1) as threads:
        ended = asyncio.get_running_loop().run_in_executor(threads, lambda: asyncio.run(agent.serve()))
        link = await peer.attached(heartbeat_s=0.02)
        await link.assign()
        try:
            yield link
        finally:
            agent.drain()
            for run_id in {one.run_result.run_id or one.run_failed.run_id for one in link.heard}:
                link.settle(run_id)
            await asyncio.wait_for(ended, WAIT_S)


async def test_an_async_turn_that_blocks_its_loop_keeps_its_run_and_is_named(peer: Peer, said: Said) -> None:
    go = threading.Event()

    async def stubborn(ctx: mobd.Turn) -> str:
        assert go.wait(WAIT_S)
        return "done"

    async with serving(peer, stubborn) as link:
        await link.run("run-1")
        warning = await said.saying("has blocked the event loop")
        beats = await link.heartbeats(3)
        go.set()
        result = await link.hear("run_result")
    assert [list(beat.run_ids) for beat in beats] == [["run-1"]] * len(beats)
    assert result.output_json == '"done"'
    assert warning.startswith("WARNING the turn of member 'm-1' (run run-1) at ")
    assert "make it a plain def" in warning


async def test_plain_turns_run_in_threads_beside_each_other(peer: Peer) -> None:
    together = threading.Barrier(2)
    threads = []

    def plain(ctx: mobd.Turn) -> str:
        together.wait(WAIT_S)
        threads.append(threading.current_thread())
        return ctx.member_id

    async with serving(peer, plain, capacity=2) as link:
        await link.assign("m-2", 8)
        link.start("run-1")
        link.start("run-2", member_id="m-2", fence=8)
        await link.hear("run_accepted")
        await link.hear("run_accepted")
        outputs = {(await link.hear("run_result")).output_json for _ in range(2)}
    assert outputs == {'"m-1"', '"m-2"'}
    assert len(set(threads)) == 2
    assert threading.main_thread() not in threads


async def test_a_turn_that_raises_fails_its_attempt_and_prints_where_and_what_follows(peer: Peer, said: Said) -> None:
    def broken(ctx: mobd.Turn) -> None:
        raise KeyError("no such column")

    async with serving(peer, broken) as link:
        await link.run("run-1", attempt=1)
        failed = await link.hear("run_failed")
        line = await said.saying("run run-1")
        link.settle("run-1", agents_pb2.RUN_DISPOSITION_REQUEUED)
        await link.run("run-2", attempt=3)
        await link.hear("run_failed")
        last = await said.saying("run run-2")
    assert (failed.kind, failed.retryable) == (agents_pb2.FAILURE_KIND_ERROR, True)
    assert failed.message == "KeyError: 'no such column'"
    head, *traceback = line.splitlines()
    assert head == "ERROR the turn of member 'm-1' (run run-1) raised in attempt 1 of 3; attempt 2 of 3 follows"
    assert "in broken" in traceback[1]
    assert traceback[-1] == "KeyError: 'no such column'"
    assert "that was the last" in last


async def test_an_async_turn_that_raises_fails_its_attempt(peer: Peer, said: Said) -> None:
    async def broken(ctx: mobd.Turn) -> None:
        raise SystemExit(3)

    async with serving(peer, broken) as link:
        await link.run("run-1")
        failed = await link.hear("run_failed")
    assert (failed.message, failed.retryable) == ("SystemExit: 3", True)


async def test_abandon_gives_the_inputs_up(peer: Peer, said: Said) -> None:
    async def picky(ctx: mobd.Turn) -> None:
        raise mobd.Abandon("there is no such file")

    async with serving(peer, picky) as link:
        await link.run("run-1")
        failed = await link.hear("run_failed")
        line = await said.saying("gave its inputs up")
    assert (failed.kind, failed.retryable) == (agents_pb2.FAILURE_KIND_ERROR, False)
    assert failed.message == "there is no such file"
    assert "Traceback" not in line


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (object(), "Object of type object is not JSON serializable"),
        (float("nan"), "can't be JSON"),
        ("\ud800", "half of a surrogate pair"),
        ("x" * (1 << 20), "at most 1048576 may be"),
        ([[[[]]]] * 50_000, None),
    ],
    ids=["no JSON", "nan", "surrogate", "too long", "many brackets"],
)
async def test_what_can_not_be_an_output_is_a_failure_that_is_not_tried_again(
    peer: Peer, said: Said, value: object, why: str | None
) -> None:
    async with serving(peer, lambda ctx: value) as link:
        await link.run("run-1")
        if why is None:
            await link.hear("run_result")
        else:
            failed = await link.hear("run_failed")
            assert not failed.retryable
            assert why in failed.message


async def test_an_output_that_nests_too_deep_is_not_sent(peer: Peer, said: Said) -> None:
    value: list[Any] = []
    for _ in range(200):
        value = [value]
    async with serving(peer, lambda ctx: value) as link:
        await link.run("run-1")
        assert "128 levels" in (await link.hear("run_failed")).message


async def test_inputs_show_every_kind_of_content(peer: Peer) -> None:
    seen: list[mobd.TurnInput] = []

    def look(ctx: mobd.Turn) -> None:
        seen.extend(ctx.inputs)

    image = mobd.Image(b"\x89PNG\r\n\x1a\n...")
    async with serving(peer, look) as link:
        content = mobd.blocks("one", {"n": 1}, image, "two", [2])
        one = agents_pb2.RunInput(canonical_input_id="in-1", input_id="key-1", content=content, sender="x", attempt=2)
        link.say(start_run=agents_pb2.StartRun(run_id="run-1", executor_fence=7, member_id="m-1", inputs=[one]))
        await link.hear("run_accepted")
        await link.hear("run_result")
    assert seen[0].content == ["one", {"n": 1}, mobd.Image(image.data, "image/png"), "two", [2]]
    assert (seen[0].text, seen[0].json, seen[0].sender, seen[0].attempt) == ("one\ntwo", {"n": 1}, "x", 2)


async def test_an_agent_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="give role=, roles=, member= or members="):
        mobd.Agent("localhost:1", mob=MOB)
    agent = mobd.Agent("localhost:1", mob=MOB, role="worker")
    with pytest.raises(ValueError, match=r"decorate one with @agent\.turn"):
        await agent.serve()
    agent.turn(lambda ctx: None)
    with pytest.raises(ValueError, match="one handler"):
        agent.turn(lambda ctx: None)
