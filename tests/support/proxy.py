"""A TCP proxy of a test, whose wires can be cut, held, and led elsewhere."""

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Final, Self

CHUNK: Final = 65_536
# Closing with this set sends RST instead of FIN: the other side loses what it has not read.
_NO_LINGER: Final = struct.pack("ii", 1, 0)


class Proxy:
    """Listens on a port of its own and passes everything on to `port` on this machine, until it is told not to."""

    def __init__(self, port: int) -> None:
        self.port = port
        # How many connections were cut, ever.
        self.cuts = 0
        self._server: asyncio.Server | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._wires: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}

    @property
    def own_port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def target(self) -> str:
        """Its address, as gRPC takes it."""
        return f"127.0.0.1:{self.own_port}"

    @property
    def wires(self) -> int:
        """How many connections there are."""
        return len(self._wires)

    def hold(self) -> None:
        """Pass nothing on any more: nobody is told, and nothing is lost. New connections are taken and held, too."""
        self._open.clear()

    def go_on(self) -> None:
        """Pass everything on again, also what was held."""
        self._open.set()

    def cut(self) -> None:
        """Reset all connections; what is on its way is lost. New ones are taken."""
        for task, writers in list(self._wires.items()):
            self.cuts += 1
            for writer in writers:
                wire: socket.socket = writer.get_extra_info("socket")
                # It may be closed already.
                with contextlib.suppress(OSError):
                    wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                writer.transport.abort()
            task.cancel()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        tasks = list(self._wires)
        self.cut()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._wires[task] = (writer,)
        try:
            await self._open.wait()
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self.port)
            self._wires[task] = (writer, other_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, other_writer))
                both.create_task(self._pass(other_reader, writer))
        except* (OSError, asyncio.CancelledError):
            # Nobody is there, one side has ended, or the wires were cut: so has the other side, then.
            pass
        finally:
            for one in self._wires.pop(task):
                one.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            await self._open.wait()
            writer.write(data)
            await writer.drain()
        await self._open.wait()
        writer.write_eof()
