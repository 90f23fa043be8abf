"""A loop whose time is virtual and whose order is drawn: one seed, one order of everything.

Each callback belongs to the node in whose context it runs. Which node goes next is drawn; what one node has ready runs
in the order in which it became ready, as asyncio promises. A node that is frozen runs later; one that is dead runs
nothing any more, not even what would clean up: all that it held is kept until the world is over.
"""

import asyncio
import contextvars
import heapq
import random
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple, Unpack

from mobd_server.testing.network import Node, node_of

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Stuck(Exception):
    """Nothing is ready and nothing is planned."""


class Endless(Exception):
    """The world has taken more steps than any world needs."""


class SimLoop(asyncio.SelectorEventLoop):
    """Runs one world."""

    # What BaseEventLoop has and does not say.
    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _timer_cancelled_count: int
    _clock_resolution: float

    def __init__(self, chance: random.Random, most_steps: int) -> None:
        super().__init__()
        self._chance = chance
        self._now = 0.0
        self._most_steps = most_steps
        self._queues: dict[Node | None, deque[asyncio.Handle]] = {}
        # Until when (in the loop's time) nodes stand still.
        self._frozen: dict[Node, float] = {}
        # All that there ever were.
        self._tasks: list[asyncio.Task[Any]] = []
        self._dead: list[Node] = []
        self._parked: list[asyncio.Handle] = []
        #: Whether what one node has ready runs in any order, too: asyncio does not do so, and nothing should need it.
        self.shuffles = False
        #: How many callbacks ran.
        self.steps = 0
        #: What nobody caught.
        self.uncaught: list[str] = []
        self._clock_resolution = 1e-6
        self.set_exception_handler(self._note)

    # What asyncio asks for.

    def time(self) -> float:
        return self._now

    def call_soon_threadsafe(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Call soon: there are no other threads."""
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> "asyncio.Future[T]":
        """Do the work on the loop, after a moment."""
        del executor
        future: asyncio.Future[T] = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 it is the caller's
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        self.call_later(self._chance.random() * 0.02, work)
        return future

    def create_task(
        self, coro: Any, *, name: object = None, context: contextvars.Context | None = None
    ) -> "asyncio.Task[Any]":
        """Begin a task, and keep it: what is dead must not be tidied up."""
        task: asyncio.Task[Any] = super().create_task(coro, name=name, context=context)
        self._tasks.append(task)
        return task

    def _note(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.uncaught.append(f"{context.get('message')}: {context.get('exception')!r}")

    # How it goes on.

    def _run_once(self) -> None:
        self._sort()
        node = self._choose()
        queue = self._queues[node]
        if self.shuffles and len(queue) > 1:
            queue.rotate(-self._chance.randrange(len(queue)))
        handle = queue.popleft()
        if not handle.cancelled():
            self.steps += 1
            if self.steps > self._most_steps:
                raise Endless(f"{self.steps} steps")
            handle._run()

    def _choose(self) -> Node | None:
        while True:
            ready = [node for node, queue in self._queues.items() if queue and not self._is_frozen(node)]
            if ready:
                return ready[0] if len(ready) == 1 else self._chance.choice(ready)
            self._pass_time()
            self._sort()

    def _pass_time(self) -> None:
        """Go on to the next timer, or to the end of a frost."""
        while self._scheduled and self._scheduled[0].cancelled():
            heapq.heappop(self._scheduled)
            self._timer_cancelled_count = max(0, self._timer_cancelled_count - 1)
        thaws = [until for node, until in self._frozen.items() if self._queues.get(node)]
        if not self._scheduled and not thaws:
            raise Stuck(f"at {self._now:.3f}")
        due = min([*(one.when() for one in self._scheduled[:1]), *thaws])
        self._now = max(self._now, due)
        while self._scheduled and self._scheduled[0].when() <= self._now:
            self._ready.append(heapq.heappop(self._scheduled))

    def _sort(self) -> None:
        ready = self._ready
        while ready:
            handle = ready.popleft()
            node = node_of(handle._context)  # type: ignore[attr-defined]  # not in the stubs
            if node is not None and not node.alive:
                self._parked.append(handle)
                continue
            queue = self._queues.get(node)
            if queue is None:
                queue = self._queues[node] = deque()
            queue.append(handle)

    def _is_frozen(self, node: Node | None) -> bool:
        if node is None or node not in self._frozen:
            return False
        if self._frozen[node] > self._now:
            return True
        del self._frozen[node]
        return False

    # What a world does to its nodes.

    def freeze(self, node: Node, seconds: float) -> None:
        """Let a node stand still, as a process that gets no time."""
        self._frozen[node] = max(self._frozen.get(node, 0.0), self._now + seconds)

    def kill(self, node: Node) -> None:
        """Let a node run nothing any more."""
        node.alive = False
        self._frozen.pop(node, None)
        self._dead.append(node)
        self._parked.extend(self._queues.pop(node, ()))

    def discard(self) -> None:
        """End all that is under way, also what the dead held, so that nothing is left of this world."""
        self._most_steps = self.steps + 1_000_000
        self._scheduled.clear()
        self._frozen.clear()
        for node in self._dead:
            node.alive = True
        self._ready.extend(self._parked)
        self.run_until_complete(self._bury())
        self._parked.clear()
        self._tasks.clear()
        self._queues.clear()
        self.close()

    async def _bury(self) -> None:
        own = asyncio.current_task()
        for _ in range(5):
            under_way = [task for task in self._tasks if not task.done() and task is not own]
            if not under_way:
                return
            for task in under_way:
                task.cancel()
            await asyncio.wait(under_way, timeout=10)
