"""An event loop on a thread of its own, for what must go on whatever the caller's thread does."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final, TypeVar

T = TypeVar("T")

STOP_S: Final = 5.0


class LoopThread:
    """Starts at once; `stop` ends it. A daemon, so that it never keeps a process alive."""

    def __init__(self, name: str) -> None:
        self._ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()
        self.loop, self._stopped = self._ready.result()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine there."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def post(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Call something there soon; nothing happens if the loop has ended."""
        if not self.loop.is_closed():
            try:
                self.loop.call_soon_threadsafe(callback, *arguments)
            except RuntimeError:  # closed since
                return

    def stop(self) -> None:
        """Cancel what still runs there and end the thread."""
        self.post(self._stopped.set)
        if threading.current_thread() is not self._thread:
            self._thread.join(STOP_S)

    def _main(self) -> None:
        with asyncio.Runner() as runner:
            runner.run(self._live())

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_handle)
        stopped = asyncio.Event()
        self._ready.set_result((loop, stopped))
        await stopped.wait()


def _handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # Older grpcio wakes every loop of the process for each event, and complains on those that find nothing to do
    # (grpc issue 25364). Nothing is lost by it.
    if isinstance(context.get("exception"), BlockingIOError) and "PollerCompletionQueue" in str(context.get("handle")):
        return
    loop.default_exception_handler(context)
