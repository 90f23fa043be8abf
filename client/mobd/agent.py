"""The agent for programs that serve members of a mob."""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Any, Final, Self, TypeVar

from mobd import calls, system
from mobd.attaching import Interests
from mobd.connection import Connection
from mobd.errors import AgentStopped
from mobd.live import Event
from mobd.loops import LoopThread
from mobd.turns import Handler, Hook, Sink, Turns
from mobd.v1 import agents_pb2

H = TypeVar("H", bound=Handler)
K = TypeVar("K", bound=Hook)

# How long to wait for the server to hear that the agent leaves.
LEAVE_S: Final = 3.0
# The most that a server lets one agent have.
MAX_MEMBERS: Final = 1_000

log: Final = logging.getLogger("mobd.agent")


class Agent:
    """Serves members of one mob: those named, and those of the roles named.

        agent = mobd.Agent("localhost:7780", mob="release-triage", role="analyst", capacity=4)

        @agent.turn
        async def turn(ctx: mobd.Turn) -> dict:      # or a plain def: runs in a thread
            return {"lines": len(ctx.text.splitlines())}

        agent.run()

    Mob and members need not exist yet. The handler is called once for each run; what it returns, any JSON value, is the
    run's output. If it raises, the attempt has failed and another one follows, up to three; `raise mobd.Abandon("why")`
    gives the inputs up at once. A run can be dispatched again after its agent was lost: handlers should use the
    `input_id`s as keys of what they do outside. The connection has a thread of its own: it reconnects, keeps runs
    over restarts of the server, and sends a result until the server has settled it.

    `capacity` runs are taken at a time, of at most `max_members` members; members without work cost next to nothing.
    `host_id` names the agent over restarts of its process, so that a new process takes over at once; it is
    MOBD_HOST_ID or random if not given, and two agents must not share one. `drain_timeout` bounds in seconds how long
    a drain waits for runs. With `steer=True` the handler takes inputs that are meant for a run in flight: it calls
    `ctx.take_steered()` now and then. `token` is what the server knows the agent's owner by, MOBD_TOKEN if it is not
    given. Everything worth telling goes to the logger `mobd.agent`.
    """

    #: The first and the greatest pause before a reconnect, in seconds; jitter makes them shorter.
    reconnect_s: tuple[float, float] = (1.0, 30.0)
    #: After how many seconds a turn that blocks the event loop is named in a warning.
    blocked_s: float = 1.0

    def __init__(
        self,
        target: str | None = None,
        *,
        mob: str,
        role: str | None = None,
        roles: Iterable[str] = (),
        member: str | None = None,
        members: Iterable[str] = (),
        capacity: int = 1,
        max_members: int = MAX_MEMBERS,
        host_id: str | None = None,
        drain_timeout: float | None = None,
        steer: bool = False,
        token: str | None = None,
    ) -> None:
        all_roles = [*([role] if role else []), *roles]
        all_members = [*([member] if member else []), *members]
        if not all_roles and not all_members:
            raise ValueError("an agent serves at least one member or role: give role=, roles=, member= or members=")
        self._interests = Interests(
            target=calls.target_of(target),
            mob_id=mob,
            serves=(
                *(agents_pb2.Serve(member_id=one) for one in dict.fromkeys(all_members)),
                *(agents_pb2.Serve(role=one) for one in dict.fromkeys(all_roles)),
            ),
            capacity=capacity,
            max_members=max_members,
            host_id=host_id or os.environ.get("MOBD_HOST_ID") or f"host-{_random_hex()}",
            incarnation=_random_hex(),
            steer=steer,
            token=calls.token_of(token),
        )
        self._drain_timeout = drain_timeout
        self._handler: Handler | None = None
        self._hook: Hook | None = None
        self._serving: _Serving | None = None
        # A signal came before there was anything to drain.
        self._drain_early = False

    @property
    def host_id(self) -> str:
        """The name of this agent's host."""
        return self._interests.host_id

    def turn(self, handler: H) -> H:
        """Make a function the handler of every turn: `async def` runs on the loop, a plain def in a thread."""
        if self._handler is not None:
            raise ValueError("an agent has one handler: turn was used before")
        self._handler = handler
        return handler

    def on_cancel(self, hook: K) -> K:
        """Make a function be called with the turn when somebody asks that its run ends at its next boundary.

        It is called once for each request, beside the turn, which sees `ctx.cancelled` and ends by itself: `async def`
        runs on the loop, a plain def in a thread.
        """
        if self._hook is not None:
            raise ValueError("an agent has one hook: on_cancel was used before")
        self._hook = hook
        return hook

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; the blocking form, for a process of its own.

        The first signal drains: no new runs, those in flight are finished, then this returns. The second gives what is
        left back and exits. Exits with 1, having said why, if the server refuses the agent for good.
        """
        _tell_people()
        self._drain_early = False
        with self._signals():
            try:
                asyncio.run(self.serve())
            except AgentStopped as stopped:
                log.error("%s", stopped)  # noqa: TRY400 the message says what to do, the stack does not
                raise SystemExit(1) from None

    async def serve(self) -> None:
        """Serve until drained; for a program with a loop of its own. Cancelling it gives what is in flight back.

        Raise AgentStopped if the server refuses the agent for good.
        """
        if self._handler is None:
            raise ValueError("the agent has no handler: decorate one with @agent.turn")
        if self._serving is not None:
            raise ValueError("the agent is running already")
        connection = Connection(
            self._interests,
            reconnect_s=self.reconnect_s,
            blocked_s=self.blocked_s,
            drain_s=self._drain_timeout,
        )
        thread = system.current().open_loop("mobd-agent")

        def put(run_id: str, fence: int, event: Event) -> None:
            if connection.live.put(run_id, fence, event):
                thread.post(connection.wake)

        turns = Turns(
            self._handler,
            self._interests.mob_id,
            asyncio.get_running_loop(),
            Sink(
                lambda run_id, report: thread.post(connection.finish, run_id, report),
                lambda run_id, ack: thread.post(connection.acknowledge, run_id, ack),
                put,
            ),
            self._hook,
        )
        self._serving = serving = _Serving(thread, connection, turns)
        running = asyncio.wrap_future(thread.submit(serving.run()))
        if self._drain_early:
            self._drain()
        try:
            await asyncio.shield(running)
        finally:
            turns.leaving = True
            thread.post(connection.leave)
            await asyncio.gather(asyncio.wait([running], timeout=LEAVE_S), return_exceptions=True)
            await turns.cancel()
            thread.stop()
            self._serving = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Serve while the block runs, and drain at its end; an exception gives what is in flight back instead."""
        serving = asyncio.create_task(self.serve())
        try:
            yield self
            # The task may not have begun yet.
            await asyncio.sleep(0)
            self.drain()
            await serving
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    def drain(self) -> None:
        """Take no more runs, finish those in flight, and leave; `run` and `serve` return then. For any thread."""
        self._drain()

    def _drain(self, hint: str = "") -> None:
        if self._serving is not None:
            self._serving.thread.post(self._serving.connection.drain, hint)
        else:
            self._drain_early = True

    @contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in numbers}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def first(_number: int, _frame: FrameType | None) -> None:
            # A plain handler, not one of the loop: a turn that blocks the loop must not hold it up.
            for one in numbers:
                signal.signal(one, second)
            self._drain("; a second signal leaves at once")

        def second(number: int, _frame: FrameType | None) -> None:
            restore()
            if self._serving is not None:
                self._serving.leave()
            raise SystemExit(128 + number)

        for number in numbers:
            signal.signal(number, first)
        try:
            yield
        finally:
            restore()


class _Serving:
    """One use of an agent."""

    def __init__(self, thread: LoopThread, connection: Connection, turns: Turns) -> None:
        self.thread = thread
        self.connection = connection
        self._turns = turns
        self._ended = threading.Event()

    async def run(self) -> None:
        try:
            await self.connection.run(self._turns)
        finally:
            self._ended.set()

    def leave(self) -> None:
        """Leave at once, and return when the server knows or was given the time to."""
        # What is raised next may be raised within a turn: it must not be taken for a failure of it.
        self._turns.leaving = True
        self.thread.post(self.connection.leave)
        self._ended.wait(LEAVE_S)


def _random_hex() -> str:
    return system.current().random_bytes(8).hex()


def _tell_people() -> None:
    """Let a program that set up no logging see what the agent says, on stderr."""
    package = logging.getLogger("mobd")
    if not logging.getLogger().handlers and not package.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        package.addHandler(handler)
        if package.level == logging.NOTSET:
            package.setLevel(logging.INFO)
