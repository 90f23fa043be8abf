"""Running turns: async ones on the caller's loop, plain ones each in a thread.

`begin` is called by the thread of the connection and never waits, so that nothing a handler does holds up heartbeats.
"""

import asyncio
import contextlib
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from mobd import reports, system
from mobd.errors import Cancelled
from mobd.holding import Held
from mobd.output import Put
from mobd.turn import Abandon, Turn
from mobd.v1 import agents_pb2

Frame = agents_pb2.AgentFrame
Handler = Callable[[Turn], Any]
Hook = Callable[[Turn], Any]

IN_A_THREAD: Final = "the turn runs in a thread, which can't be ended"

log: Final = logging.getLogger("mobd.agent")


@dataclass(frozen=True)
class Sink:
    """Where what turns say goes; for any thread."""

    #: The report of a run that is over.
    finish: Callable[[str, Frame], None]
    #: The answer to a request to cancel a run.
    acknowledge: Callable[[str, Frame], None]
    #: What a run puts out while it runs.
    put: Put


@dataclass
class _Going:
    """A turn that is under way."""

    turn: Turn
    task: "asyncio.Task[None] | None" = None
    #: The task has begun: only then does it notice that it is cancelled.
    begun: bool = False
    #: It is to end at once.
    ending: bool = False


class Turns:
    """The turns of one agent that runs."""

    def __init__(
        self, handler: Handler, mob_id: str, loop: asyncio.AbstractEventLoop, sink: Sink, hook: Hook | None = None
    ) -> None:
        self._handler = handler
        self._is_async = is_async(handler)
        self._mob_id = mob_id
        self._loop = loop
        self._thread_id = threading.get_ident()
        self._sink = sink
        self._hook = hook
        #: By run. Written by the thread of the connection, and where a turn ends.
        self._going: dict[str, _Going] = {}
        self._tasks: dict[asyncio.Task[None], Turn] = {}
        self._hooks: set[asyncio.Task[None]] = set()
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
        turn = Turn(self._mob_id, held.start, held.assignment.assign, held.message_count, self._sink.put)
        going = self._going[turn.run_id] = _Going(turn)
        if self._is_async:
            self._on_loop(self._begin_task, going)
        else:
            system.current().start(f"mobd-turn-{turn.member_id}", partial(self._run_plain, turn))

    def steer(self, held: Held, inputs: Iterable[agents_pb2.RunInput]) -> None:
        """Give a turn more inputs."""
        going = self._going.get(held.start.run_id)
        if going is not None:
            going.turn.steer(inputs)

    def cancel_run(self, held: Held, control_id: str, reason: str, hard: bool) -> None:
        """Ask a turn to end, or end it at once; answer when that is done.

        A turn on a loop that is blocked does not hear of it and is not answered for; the server takes the run away.
        A turn that has ended meanwhile is not answered for either: its report follows.
        """
        going = self._going.get(held.start.run_id)
        if going is None:
            return
        # What is answered now is answered before the turn can notice and end.
        if not hard:
            self._acknowledge(going.turn, control_id, agents_pb2.CONTROL_RESULT_OK)
        elif not self._is_async:
            self._acknowledge(going.turn, control_id, agents_pb2.CONTROL_RESULT_FAILED, IN_A_THREAD)
        going.turn.cancelled.set(reason)
        if not hard:
            self._call_hook(going.turn)
        elif self._is_async:
            self._on_loop(self._end_task, going, control_id)

    def disown(self, held: Held) -> None:
        """Let a turn know that its run was settled without it."""
        going = self._going.get(held.start.run_id)
        if going is not None:
            going.turn.cancelled.set("the run is not this agent's any more")

    async def cancel(self) -> None:
        """End the turns on the loop."""
        self.leaving = True
        tasks = [*self._tasks, *self._hooks]
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

    def _on_loop(self, callback: Callable[..., object], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the agent leaves
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _begin_task(self, going: _Going) -> None:
        turn = going.turn
        going.task = task = self._loop.create_task(self._run_async(going), name=f"mobd-turn-{turn.member_id}")
        self._tasks[task] = turn
        task.add_done_callback(self._tasks.pop)

    def _end_task(self, going: _Going, control_id: str) -> None:
        if going.turn.run_id not in self._going:
            return
        going.ending = True
        if going.begun and going.task is not None:
            going.task.cancel()
        self._acknowledge(going.turn, control_id, agents_pb2.CONTROL_RESULT_OK)

    def _acknowledge(
        self, turn: Turn, control_id: str, result: "agents_pb2.ControlResult.ValueType", message: str = ""
    ) -> None:
        self._sink.acknowledge(turn.run_id, reports.control_ack(control_id, result, message))

    def _call_hook(self, turn: Turn) -> None:
        hook = self._hook
        if hook is None:
            return
        if is_async(hook):
            self._on_loop(self._begin_hook, hook, turn)
        else:
            system.current().start("mobd-on-cancel", partial(self._run_hook, hook, turn))

    def _begin_hook(self, hook: Hook, turn: Turn) -> None:
        task = self._loop.create_task(self._await_hook(hook, turn), name="mobd-on-cancel")
        self._hooks.add(task)
        task.add_done_callback(self._hooks.discard)

    async def _await_hook(self, hook: Hook, turn: Turn) -> None:
        try:
            await hook(turn)
        except Exception:
            log.exception("on_cancel raised for run %s of member '%s'", turn.run_id, turn.member_id)

    def _run_hook(self, hook: Hook, turn: Turn) -> None:
        try:
            hook(turn)
        except Exception:
            log.exception("on_cancel raised for run %s of member '%s'", turn.run_id, turn.member_id)

    async def _run_async(self, going: _Going) -> None:
        turn = going.turn
        try:
            report = self._returned(turn, await self._call(going))
        except asyncio.CancelledError:
            if self.leaving:
                raise
            report = self._cancelled(turn) or self._raised(turn, RuntimeError("the turn was cancelled"))
        except (Exception, SystemExit) as error:
            if self.leaving:
                raise
            report = self._raised(turn, error)
        self._finish(turn, report)

    def _call(self, going: _Going) -> Coroutine[Any, Any, Any]:
        going.begun = True
        if going.ending:
            raise asyncio.CancelledError
        coroutine: Coroutine[Any, Any, Any] = self._handler(going.turn)
        return coroutine

    def _run_plain(self, turn: Turn) -> None:
        try:
            report = self._returned(turn, self._handler(turn))
        except (Exception, SystemExit) as error:  # noqa: BLE001 whatever a handler raises is the end of an attempt
            report = self._raised(turn, error)
        self._finish(turn, report)

    def _finish(self, turn: Turn, report: Frame) -> None:
        self._going.pop(turn.run_id, None)
        self._sink.finish(turn.run_id, report)

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

    def _cancelled(self, turn: Turn) -> agents_pb2.AgentFrame | None:
        if not turn.cancelled:
            return None
        log.info(
            "the turn of member '%s' (run %s) ended as it was asked to: %s",
            turn.member_id,
            turn.run_id,
            turn.cancelled.reason or "no reason was given",
        )
        return reports.cancelled(turn)

    def _raised(self, turn: Turn, error: BaseException) -> agents_pb2.AgentFrame:
        if isinstance(error, Cancelled) and (report := self._cancelled(turn)) is not None:
            return report
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
