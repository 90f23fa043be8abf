"""A small HTTP server beside gRPC, on a port and threads of its own: /metrics, /healthz and /readyz.

On threads, so that it answers also when the loop hangs, which is what it is there to tell.
"""

import asyncio
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import TimeoutError as NotInTime
from contextlib import suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

log: Final = logging.getLogger(__name__)

# How long the loop has to show that it turns.
LOOP_S: Final = 2.0
# How long a client may take to say what it wants.
IDLE_S: Final = 5.0
# How many connections may be open, each with a thread; for the next one the oldest is closed. Whoever only connects, or
# says a letter at a time what is wanted, keeps nobody from asking.
MOST: Final = 64
# How long the end of the server may go unnoticed.
POLL_S: Final = 0.2


class PortTaken(Exception):
    """The address can't be listened on; the message says why."""


class _Quiet(WSGIRequestHandler):
    timeout = IDLE_S

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 the name is the base's
        """Say nothing: probes come every few seconds."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # Those who connect at once need not ask twice.
    request_queue_size = 2 * MOST

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self._lock = threading.Lock()
        # In the order in which they were opened.
        self._open: dict[Any, None] = {}
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer on a thread of its own, in the place of the oldest connection if there are too many."""
        with self._lock:
            self._open[request] = None
            oldest = next(iter(self._open)) if len(self._open) > MOST else None
            if oldest is not None:
                del self._open[oldest]
        if oldest is not None:
            # Its thread finds the end, and closes it. It may have done so already.
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def server_bind(self) -> None:
        """Bind without looking up a name for the address, which may take seconds."""
        TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), port
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 the signature is the base's
        """Note an answer that failed: mostly its client was gone."""
        log.debug("web_answer_failed", extra={"error": repr(sys.exception())})


class _Server6(_Server):
    address_family = socket.AF_INET6


class Web:
    """Listens from its making on, and answers until `close`. Raises PortTaken.

    `refusal` is called on the loop and returns why the server does not take work, or "".
    """

    def __init__(
        self, listen: str, metrics: "WSGIApplication", refusal: Callable[[], str], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._metrics = metrics
        self._refusal = refusal
        self._loop = loop
        host, _, port = listen.rpartition(":")
        kind = _Server6 if host.startswith("[") else _Server
        try:
            self._server = kind((host.strip("[]"), int(port)), _Quiet)
        except OSError as error:
            raise PortTaken(error.strerror) from None
        self.address = f"{host}:{self._server.server_port}"
        self._server.set_app(self._answer)
        self._thread = threading.Thread(target=self._server.serve_forever, name="mobd-web", args=(POLL_S,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering, and give the port back. What is being answered may end later."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _say(start, "405 Method Not Allowed", "only GET")
        if path == "/metrics":
            return self._metrics(environ, start)
        if path == "/healthz":
            return _say(start, *self._alive())
        if path == "/readyz":
            return _say(start, *self._ready())
        return _say(start, "404 Not Found", "there are /metrics, /healthz and /readyz")

    def _alive(self) -> tuple[str, str]:
        if self._ask(lambda: "") is None:
            return "503 Service Unavailable", f"the event loop has not turned for {LOOP_S:g} s"
        return "200 OK", "ok"

    def _ready(self) -> tuple[str, str]:
        refusal = self._ask(self._refusal)
        if refusal is None:
            return "503 Service Unavailable", f"the event loop has not turned for {LOOP_S:g} s"
        return ("503 Service Unavailable", refusal) if refusal else ("200 OK", "ok")

    def _ask(self, question: Callable[[], str]) -> str | None:
        """Return what the loop answers, or None if it does not."""

        async def ask() -> str:
            return question()

        asking = asyncio.run_coroutine_threadsafe(ask(), self._loop)
        try:
            return asking.result(LOOP_S)
        except NotInTime:
            asking.cancel()
            return None


def _say(start: "StartResponse", status: str, line: str) -> Iterable[bytes]:
    body = f"{line}\n".encode()
    start(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
    return [body]
