"""The other process that folds states of the past: how the server talks to it, and what runs in it.

It is started as a program of its own, never forked, so that it inherits neither locks nor connections nor signal
handlers; it only reads. Requests and answers go through its standard input and output, each a length and JSON. It ends
when its input ends: when the server closes it, and when the server is gone.
"""

import asyncio
import logging
import os
import signal
import struct
import sys
from typing import Final, Literal

import msgspec
from msgspec import Struct
from sqlalchemy.engine import make_url

from mobd_server.actors.loading import rebuild
from mobd_server.adapters.sql.engine import open_engine
from mobd_server.adapters.sql.store import SqlStore
from mobd_server.errors import (
    CursorAhead,
    CursorTooOld,
    MobdError,
    MobFormatNewer,
    MobNotFound,
    MobQuarantined,
    Unavailable,
)
from mobd_server.faults import ARMED, reach
from mobd_server.machines import snapshot as snapshots
from mobd_server.machines.sections import Part, parts
from mobd_server.machines.state import Mob

log: Final = logging.getLogger(__name__)

MODULE: Final = "mobd_server.adapters.sql.rebuilding"
# Those who wait for calls come first.
NICE: Final = 10

_LENGTH: Final = struct.Struct(">Q")
_ERRORS: Final[dict[str, type[MobdError]]] = {
    error.reason: error for error in (CursorAhead, CursorTooOld, MobFormatNewer, MobNotFound, MobQuarantined)
}

What = Literal["state", "sections"]


class Request(Struct):
    """What is to be folded; the database is named once, by the first request."""

    what: What
    mob_id: str
    seq: int
    url: str | None = None


class Answer(Struct):
    """What was folded, or why it was not: a reason of `errors`, or "" for a failure that may pass."""

    state: str = ""
    sections: list[Part] = []
    failed: bool = False
    reason: str = ""
    message: str = ""
    details: dict[str, str] = {}


_ANSWER: Final = msgspec.json.Decoder(Answer)
_REQUEST: Final = msgspec.json.Decoder(Request)


class RebuilderProcess:
    """Folds in another process; see ports.Rebuilder. The process is started at first use and again if it died."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The process that folds, if there is one."""
        return self._process.pid if self._process is not None else None

    async def state(self, mob_id: str, seq: int) -> bytes:
        return (await self._ask("state", mob_id, seq)).state.encode()

    async def sections(self, mob_id: str, seq: int) -> list[Part]:
        return (await self._ask("sections", mob_id, seq)).sections

    async def close(self) -> None:
        self._closed = True
        await self._end()

    async def _ask(self, what: What, mob_id: str, seq: int) -> Answer:
        async with self._turn:
            request = Request(what, mob_id, seq)
            # One that is there already may have died since it was last asked.
            answer = await self._exchange(request) if self._process is not None else None
            if answer is None:
                answer = await self._exchange(request)
        if answer is None:
            raise Unavailable("the process that folds states has ended: repeat the call")
        if answer.failed:
            raise _ERRORS.get(answer.reason, Unavailable)(answer.message, answer.details)
        return answer

    async def _exchange(self, request: Request) -> Answer | None:
        """Return the answer to a request; None if the process ended before it came."""
        text = None
        try:
            process = self._process or await self._start(request)
            assert process.stdin is not None
            assert process.stdout is not None
            if process.stdin.is_closing():
                # To write would raise what no other loop than uvloop raises, and warn in one that does not.
                raise BrokenPipeError("it does not read any more")
            process.stdin.write(_framed(msgspec.json.encode(request)))
            await process.stdin.drain()
            (length,) = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))
            text = await process.stdout.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as error:
            log.warning("rebuilder_ended", extra={"error": f"{type(error).__name__}: {error}"})
            return None
        finally:
            if text is None:
                # What it would still answer is nobody's.
                await self._end()
        return await asyncio.to_thread(_ANSWER.decode, text)

    async def _start(self, request: Request) -> asyncio.subprocess.Process:
        if self._closed:
            raise Unavailable("the server shuts down")
        request.url = self._url
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            MODULE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            # It only reads: there is nothing that it could leave half done.
            process.kill()
        # The pipes are read to their ends, and closed.
        await asyncio.shield(asyncio.ensure_future(process.communicate()))


def _framed(text: bytes) -> bytes:
    return _LENGTH.pack(len(text)) + text


# What runs in the other process.


def main() -> None:
    """Answer requests until the input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # Whoever ends the server's whole group leaves it to the server to end this.
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICE)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    store: SqlStore | None = None
    with asyncio.Runner() as runner:
        while len(head := requests.read(_LENGTH.size)) == _LENGTH.size:
            request = _REQUEST.decode(requests.read(_LENGTH.unpack(head)[0]))
            if store is None:
                store = SqlStore(open_engine(make_url(request.url or "")))
            answer = runner.run(_answer(store, request))
            try:
                answers.write(_framed(msgspec.json.encode(answer)))
                answers.flush()
            except BrokenPipeError:
                # The server is gone, and nobody waits. What is left in the buffer would be tried once more at the end.
                os._exit(0)


async def _answer(store: SqlStore, request: Request) -> Answer:
    try:
        mob = await rebuild(store, request.mob_id, request.seq)
        if ARMED:
            reach("during_snapshot")
        return _answer_with(mob, request.what)
    except MobdError as error:
        return Answer(failed=True, reason=error.reason, message=error.message, details=error.details)
    except Exception as error:  # noqa: BLE001 - the server says what failed; this process goes on
        return Answer(failed=True, message=f"{type(error).__name__}: {error}")


def _answer_with(mob: Mob, what: What) -> Answer:
    if what == "state":
        return Answer(state=snapshots.take(mob).decode())
    return Answer(sections=list(parts(mob)))


if __name__ == "__main__":
    main()
