"""HTTP/2 by hand, as far as a hostile client needs it: frames as they are on the wire, complete or not.

No library would send what these tests send. Headers are written without compression, which every server must take.
"""

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Final, NamedTuple

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
WAIT_S: Final = 20.0


class Frame(NamedTuple):
    """A frame that was received."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header(name: bytes, value: bytes) -> bytes:
    """Return a header, literal and not to be remembered."""
    return b"\x00" + _text(name) + _text(value)


def _text(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, out = len(text) - 127, bytearray([127])
    while rest > 127:
        out.append(rest & 127 | 128)
        rest >>= 7
    out.append(rest)
    return bytes(out) + text


def request(path: str, *more: tuple[bytes, bytes]) -> bytes:
    """Return the headers of a gRPC call."""
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"x"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        *more,
    ]
    return b"".join(header(name, value) for name, value in fields)


def message(raw: bytes, compressed: bool = False) -> bytes:
    """Return a message as gRPC frames it."""
    return struct.pack(">BI", compressed, len(raw)) + raw


class Connection:
    """A connection of bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *parts: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(b"".join(parts))
        await self.writer.drain()

    async def begin(self) -> None:
        """Say what a client of HTTP/2 says first."""
        await self.send(PREFACE, frame(SETTINGS, 0, 0))

    async def receive(self) -> Frame | None:
        """Return the next frame; None at the end of the connection. SETTINGS and PING are acknowledged."""
        try:
            head = await asyncio.wait_for(self.reader.readexactly(9), WAIT_S)
            length = int.from_bytes(head[:3], "big")
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            payload = await self.reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        if kind in (SETTINGS, PING) and not flags & ACK:
            await self.send(frame(kind, ACK, 0, payload if kind == PING else b""))
        return Frame(kind, flags, stream, payload)

    async def until(self, *kinds: int) -> Frame | None:
        """Return the next frame of one of these kinds; None at the end of the connection."""
        while (got := await self.receive()) is not None and got.kind not in kinds:
            pass
        return got

    async def ended_by_peer(self) -> None:
        """Read, and return when the server has closed the connection."""
        with suppress(TimeoutError):
            while await self.receive() is not None:
                pass

    async def ended(self) -> None:
        """Send nothing more, and return when the server has closed the connection."""
        with suppress(OSError):
            self.writer.write_eof()
            while await asyncio.wait_for(self.reader.read(1 << 16), WAIT_S):
                pass

    async def reset(self) -> None:
        """Break the connection off: the other side gets RST."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.close()

    async def close(self) -> None:
        """Close the connection, whatever is still to be sent."""
        self.writer.transport.abort()
        with suppress(OSError):
            await self.writer.wait_closed()


async def connect(port: int) -> Connection:
    """Return a connection on which nothing was said."""
    return Connection(*await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), WAIT_S))
