"""What a turn puts out while it runs, for those who watch; and how it hears that it is to end."""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Generator
from typing import Any, Final

from mobd import rules
from mobd.content import dump
from mobd.errors import Cancelled
from mobd.live import Event
from mobd.v1 import agents_pb2

Put = Callable[[str, int, Event], object]
# Something that may be awaited and need not be. Called by its true name, checkers would want plain turns to await it.
Said = Any

_TEXT: Final = rules.of(agents_pb2.RunEvent.DESCRIPTOR, "text").max_bytes
_JSON: Final = rules.of(agents_pb2.RunEvent.DESCRIPTOR, "custom_json").max_bytes
_NAME: Final = rules.of(agents_pb2.ToolCall.DESCRIPTOR, "name").max_bytes
_LEVEL: Final = rules.of(agents_pb2.LogLine.DESCRIPTOR, "level").max_bytes
_MESSAGE: Final = rules.of(agents_pb2.RunProgress.DESCRIPTOR, "message").max_bytes
# No character is longer.
_CHARACTER_BYTES: Final = 4
_WHOLE: Final = 100


class _Done:
    """What was done when it was returned. It may be awaited, which lets other tasks run, and need not be."""

    def __await__(self) -> Generator[None, None, None]:
        yield


_DONE: Final = _Done()


class CancelFlag:
    """Whether a turn is to end: false at first, and true for good as soon as somebody asked for it. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set = threading.Event()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        #: Why, as whoever asked has said.
        self.reason = ""

    def __bool__(self) -> bool:
        return self._set.is_set()

    async def wait(self) -> None:
        """Return when the turn is to end."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._set.is_set():
                return
            future: asyncio.Future[None] = loop.create_future()
            self._waiting.append((loop, future))
        await future

    def sleep(self, seconds: float) -> bool:
        """Wait in a plain turn for so long, or until it is to end; return whether it is."""
        return self._set.wait(seconds)

    def set(self, reason: str) -> None:
        """Say that the turn is to end; the first reason stays."""
        with self._lock:
            if self._set.is_set():
                return
            self.reason = reason
            self._set.set()
            waiting, self._waiting = self._waiting, []
        for loop, future in waiting:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and who waited with it
                loop.call_soon_threadsafe(_wake, future)


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class Output:
    """What a turn can say while it runs. Every method has done its work when it returns, and may be awaited.

    Nothing of it is stored, but for the newest progress, which becomes that of the member's operation. Whoever watches
    sees it with `Client.watch_agent_events`. What the stream is too slow for is dropped, the oldest first.
    """

    def __init__(self, run_id: str, executor_fence: int, put: Put) -> None:
        #: Never used again.
        self.run_id = run_id
        #: The fence of the assignment that this run belongs to.
        self.executor_fence = executor_fence
        #: Whether the turn is to end; see `check_cancelled`.
        self.cancelled = CancelFlag()
        self._output = put
        self._output_lock = threading.Lock()
        self._sequences = itertools.count(1)

    def emit(self, value: Any) -> Said:
        """Show a text, or any other JSON value; raise ValueError for what is none or is longer than 64 KiB."""
        if isinstance(value, str):
            self._texts("text", value)
        else:
            self._put(custom_json=_json(value, "what it emits"))
        return _DONE

    def emit_delta(self, text: str) -> Said:
        """Show the next piece of a text that goes on."""
        self._texts("text_delta", text)
        return _DONE

    def tool_call(self, call_id: str, name: str, arguments: Any = None) -> Said:
        """Show that a tool is called; `call_id` is what its result refers to."""
        call = agents_pb2.ToolCall(
            id=rules.clean(call_id, _NAME),
            name=rules.clean(name, _NAME),
            arguments_json=_json(arguments, "a tool's argument"),
        )
        self._put(tool_call=call)
        return _DONE

    def tool_result(self, call_id: str, output: Any = None, *, is_error: bool = False) -> Said:
        """Show what a tool has answered."""
        result = agents_pb2.ToolResult(
            id=rules.clean(call_id, _NAME), output_json=_json(output, "a tool's output"), is_error=is_error
        )
        self._put(tool_result=result)
        return _DONE

    def log(self, message: str, level: str = "info") -> Said:
        """Show a line of a log."""
        self._put(log=agents_pb2.LogLine(level=rules.clean(level, _LEVEL), message=rules.clean(message, _TEXT)))
        return _DONE

    def progress(self, message: str, percent: int | None = None) -> Said:
        """Say how far the run has come; of what a member says, at most one a second is stored, the newest."""
        if percent is not None and not 0 <= percent <= _WHOLE:
            raise ValueError(f"percent is {percent}: it must be from 0 to 100")
        with self._output_lock:
            event = agents_pb2.RunProgress(
                run_id=self.run_id,
                executor_fence=self.executor_fence,
                message=rules.clean(message, _MESSAGE),
                percent=percent,
                sequence=next(self._sequences),
            )
            self._output(self.run_id, self.executor_fence, event)
        return _DONE

    def check_cancelled(self) -> None:
        """Raise mobd.Cancelled if the turn is to end."""
        if self.cancelled:
            raise Cancelled(f"run {self.run_id} is cancelled: {self.cancelled.reason or 'no reason was given'}")

    def _texts(self, kind: str, text: str) -> None:
        step = _TEXT // _CHARACTER_BYTES
        for begin in range(0, len(text), step):
            piece: Any = {kind: rules.clean(text[begin : begin + step], _TEXT)}
            self._put(**piece)

    def _put(self, **payload: Any) -> None:
        with self._output_lock:
            event = agents_pb2.RunEvent(sequence=next(self._sequences), **payload)
            self._output(self.run_id, self.executor_fence, event)


def _json(value: Any, what: str) -> str:
    try:
        text = dump(value)
    except ValueError as error:
        raise ValueError(f"{what} {error}") from None
    size = len(text.encode())
    if size > _JSON:
        raise ValueError(f"{what} is {size} bytes of JSON: at most {_JSON} may be")
    return text
