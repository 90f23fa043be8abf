"""The digests of transcripts, as live hash objects beside the state: to add messages costs what they are long.

A digest is SHA-256 over the canonical JSON (UTF-8, sorted keys, no spaces) of the array of all messages. Messages are
stored in that form, so that anybody can compute it from the rows.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from mobd_server.errors import Internal
from mobd_server.ports import Store

PAGE: Final = 256
# What is made canonical in one go, in bytes: others wait as long.
STEP_BYTES: Final = 1 << 18

_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder(order="deterministic").encode


class Transcript(Struct):
    """How many messages, and the hash of the array so far, not closed."""

    count: int
    hash: Any

    def extended(self, messages: Sequence[bytes]) -> "Transcript":
        """Return this transcript with canonical messages added; this one stays as it is."""
        grown = self.hash.copy()
        for place, message in enumerate(messages):
            if self.count or place:
                grown.update(b",")
            grown.update(message)
        return Transcript(self.count + len(messages), grown)

    def digest(self) -> str:
        """Return the digest, hexadecimal."""
        closed = self.hash.copy()
        closed.update(b"]")
        return str(closed.hexdigest())


class Transcripts:
    """The durable transcripts of one incarnation of one mob, by session."""

    __slots__ = ("_by_session",)

    def __init__(self) -> None:
        self._by_session: dict[str, Transcript] = {}

    def find(self, session_id: str, count: int) -> Transcript | None:
        """Return the transcript if it is in memory and holds `count` messages."""
        if count == 0:
            return Transcript(0, hashlib.sha256(b"["))
        known = self._by_session.get(session_id)
        return known if known is not None and known.count == count else None

    def keep(self, session_id: str, transcript: Transcript) -> None:
        """Take note of a transcript that is durable."""
        self._by_session[session_id] = transcript

    async def read(self, store: Store, mob_id: str, session_id: str, count: int) -> None:
        """Take `count` messages, which are durable, from the store."""
        known = Transcript(0, hashlib.sha256(b"["))
        while known.count < count:
            rows = await store.read_messages(mob_id, session_id, known.count, min(PAGE, count - known.count))
            if not rows:
                raise Internal(f"session {session_id} holds {known.count} messages and should hold {count}")
            known = known.extended([row.payload.encode() for row in rows])
        self.keep(session_id, known)


async def canonical(texts: Sequence[Raw]) -> list[bytes]:
    """Return JSON texts in canonical form, letting others run in between."""
    forms: list[bytes] = []
    done = 0
    for text in texts:
        done += memoryview(text).nbytes
        if done > STEP_BYTES:
            done = 0
            await asyncio.sleep(0)
        forms.append(_encode(_decode(text)))
    return forms


def result_hash(output: bytes, messages: Sequence[bytes]) -> bytes:
    """Return what tells one result of a run from another; a canonical text holds no line break."""
    return hashlib.sha256(b"\n".join((output, *messages))).digest()
