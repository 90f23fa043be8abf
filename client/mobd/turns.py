"""Running turns: async ones on the caller's loop, plain ones each in a thread.

`begin` is called by the thread of the connection and never waits, so that nothing a handler does holds up heartbeats.
"""

import asyncio
import contextlib
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final

from mobd import reports
from mobd.holding import Held
from mobd.turn import Abandon, Turn
from mobd.v1 import agents_pb2

Finish = Callable[[str, agents_pb2.AgentFrame], None]
Handler = Callable[[Turn], Any]

log: Final = logging.getLogger("mobd.agent")


class Turns:
    """The turns of one agent that runs."""

    def __init__(self, handler: Handler, mob_id: str, loop: asyncio.AbstractEventLoop, finish: Finish) -> None:
        self._handler = handler
        self._is_async = is_async(handler)
        self._mob_id = mob_id
        self._loop = loop
        self._thread_id = threading.get_ident()
        self._finish = finish
        self._tasks: dict[asyncio.Task[None], Turn] = {}
        #: The greatest output of a run with its messages, in bytes; 0 until the server has said it.
        self.output_bytes = 0
        #: The agent leaves at once: nobody wants to know how turns end.
        self.leaving = False

    @property
    def on_loop(self) -> bool:
        """Whether a turn runs on the caller's loop."""
        return bool(self._tasks)

    def begin(self, held: Held) -> None:
        """Start the turn of a run that was accepted."""
        turn = Turn(self._mob_id, held.start, held.assignment.assign, held.message_count)
        if self._is_async:
            try:
                self._loop.call_soon_threadsafe(self._begin_task, turn)
            except RuntimeError:
                return  # the loop is closed: the agent leaves
        else:
            threading.Thread(
                target=self._run_plain, args=(turn,), name=f"mobd-turn-{turn.member_id}", daemon=True
            ).start()

    async def cancel(self) -> None:
        """End the turns on the loop."""
        self.leaving = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def ping(self) -> asyncio.Future[None]:
        """Return what is done as soon as the caller's loop answers; for the loop of another thread."""
        loop = asyncio.get_running_loop()
        answered = loop.create_future()

        def answer() -> None:
            if not answered.done():
                answered.set_result(None)

        def pong() -> None:
            with contextlib.suppress(RuntimeError):  # the other loop has ended
                loop.call_soon_threadsafe(answer)

        try:
            self._loop.call_soon_threadsafe(pong)
        except RuntimeError:  # the caller's loop has ended
            answer()
        return answered

    def blocker(self) -> str:
        """Say what holds up the caller's loop now; for other threads, while it does not answer."""
        task = asyncio.current_task(self._loop)
        turn = self._tasks.get(task) if task is not None else None
        frame = sys._current_frames().get(self._thread_id)  # noqa: SLF001 the documented way to another thread's stack
        where = f" at {frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else ""
        what = f"the turn of member '{turn.member_id}' (run {turn.run_id})" if turn is not None else "something"
        return f"{what}{where}"

    def _begin_task(self, turn: Turn) -> None:
        task = self._loop.create_task(self._run_async(turn), name=f"mobd-turn-{turn.member_id}")
        self._tasks[task] = turn
        task.add_done_callback(self._tasks.pop)

    async def _run_async(self, turn: Turn) -> None:
        try:
            report = self._returned(turn, await self._call(turn))
        except asyncio.CancelledError:
            if self.leaving:
                raise
            report = self._raised(turn, RuntimeError("the turn was cancelled"))
        except (Exception, SystemExit) as error:
            if self.leaving:
                raise
            report = self._raised(turn, error)
        self._finish(turn.run_id, report)

    def _call(self, turn: Turn) -> Coroutine[Any, Any, Any]:
        coroutine: Coroutine[Any, Any, Any] = self._handler(turn)
        return coroutine

    def _run_plain(self, turn: Turn) -> None:
        try:
            report = self._returned(turn, self._handler(turn))
        except (Exception, SystemExit) as error:  # noqa: BLE001 whatever a handler raises is the end of an attempt
            report = self._raised(turn, error)
        self._finish(turn.run_id, report)

    def _returned(self, turn: Turn, value: Any) -> agents_pb2.AgentFrame:
        try:
            return reports.result(turn, value, self.output_bytes)
        except ValueError as error:
            log.error(  # noqa: TRY400 the stack says nothing: the handler has returned
                "the turn of member '%s' (run %s) failed: %s. Its inputs are given up: another would end so too",
                turn.member_id,
                turn.run_id,
                error,
            )
            return reports.failure(turn, str(error), retryable=False)

    def _raised(self, turn: Turn, error: BaseException) -> agents_pb2.AgentFrame:
        where = f"the turn of member '{turn.member_id}' (run {turn.run_id})"
        if isinstance(error, Abandon):
            log.warning("%s gave its inputs up: %s", where, error)
            return reports.failure(turn, str(error) or "given up by its handler", retryable=False)
        follows = (
            f"attempt {turn.attempt + 1} of {reports.ATTEMPTS} follows"
            if turn.attempt < reports.ATTEMPTS
            else "that was the last: what was tried so often is given up"
        )
        stack = error.__traceback__
        own = stack.tb_next if stack is not None else None
        log.error(
            "%s raised in attempt %d of %d; %s",
            where,
            turn.attempt,
            reports.ATTEMPTS,
            follows,
            exc_info=(type(error), error, own),
        )
        return reports.failure(turn, f"{type(error).__name__}: {error}", retryable=True)


def is_async(handler: Handler) -> bool:
    """Whether a handler is `async def`, or an object that is called like one."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004 whether it is callable is known
