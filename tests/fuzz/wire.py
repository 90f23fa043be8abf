"""Messages as bytes: taken apart field by field, put together again, and spoilt.

What a generated message class can't hold is made here: texts that are no UTF-8, fields of the wrong wire type, groups,
numbers that never end, halves of messages.
"""

from collections.abc import Callable, Iterable
from random import Random
from typing import Final, NamedTuple

VARINT, FIXED64, BYTES, START, END, FIXED32 = range(6)
BAD_TEXTS: Final = (
    b"\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",  # a lone surrogate
    b"\xf4\x90\x80\x80",  # beyond the last character
    b"\xe2\x82",
    b"a\x80b",
)
NUMBERS: Final = (0, 1, 127, 128, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
MAX_NUMBER: Final = (1 << 29) - 1


class Field(NamedTuple):
    """A field as it stands on the wire; `body` is what follows its tag, with the length of what has one."""

    number: int
    kind: int
    body: bytes

    @property
    def payload(self) -> bytes:
        """What a field that has a length holds."""
        _, start = read_varint(self.body, 0)
        return self.body[start:]


class Broken(Exception):
    """The bytes are no message."""


def varint(value: int) -> bytes:
    """Encode a number from 0 to 2^64 - 1."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(raw: bytes, at: int) -> tuple[int, int]:
    """Return the number at a place and the place behind it."""
    value = shift = 0
    while True:
        if at >= len(raw) or shift > 63:
            raise Broken
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def lengthy(payload: bytes) -> bytes:
    """Return a payload behind its length."""
    return varint(len(payload)) + payload


def split(raw: bytes) -> list[Field]:
    """Return the fields of a message, groups as a start and an end. Raises Broken."""
    fields = []
    at = 0
    while at < len(raw):
        tag, start = read_varint(raw, at)
        kind = tag & 7
        if kind == VARINT:
            _, at = read_varint(raw, start)
        elif kind == FIXED64:
            at = start + 8
        elif kind == BYTES:
            length, behind = read_varint(raw, start)
            at = behind + length
        elif kind in (START, END):
            at = start
        elif kind == FIXED32:
            at = start + 4
        else:
            raise Broken
        if at > len(raw):
            raise Broken
        fields.append(Field(tag >> 3, kind, raw[start:at]))
    return fields


def join(fields: Iterable[Field]) -> bytes:
    """Put fields together."""
    return b"".join(varint(field.number << 3 | field.kind) + field.body for field in fields)


def spoil(rng: Random, raw: bytes) -> bytes:
    """Return other bytes than a client of the protocol would send."""
    return rng.choice(_WAYS)(rng, raw)


def _unknown(rng: Random, raw: bytes) -> bytes:
    number = rng.choice((99, 1_000, 19_000, MAX_NUMBER, 0))
    kind = rng.choice((VARINT, FIXED64, BYTES, FIXED32))
    bodies = {
        VARINT: varint(rng.choice(NUMBERS)),
        FIXED64: rng.randbytes(8),
        BYTES: lengthy(rng.randbytes(rng.choice((0, 1, 100, 5_000)))),
        FIXED32: rng.randbytes(4),
    }
    extra = join([Field(number, kind, bodies[kind])]) * rng.choice((1, 1, 1, 300))
    return rng.choice((raw + extra, extra + raw))


def _nested(rng: Random, raw: bytes) -> bytes:
    depth = rng.choice((2, 99, 101, 1_000, 10_000))
    number = rng.choice((99, 1, 2))
    if rng.random() < 0.5:
        inner = b""
        for _ in range(min(depth, 1_000)):
            inner = join([Field(number, BYTES, lengthy(inner))])
        return raw + inner
    start, end = (join([Field(number, kind, b"")]) for kind in (START, END))
    return raw + start * depth + end * rng.choice((depth, depth - 1, 0))


def _cut(rng: Random, raw: bytes) -> bytes:
    return raw[: rng.randrange(len(raw) + 1)]


def _flip(rng: Random, raw: bytes) -> bytes:
    out = bytearray(raw or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _insert(rng: Random, raw: bytes) -> bytes:
    at = rng.randrange(len(raw) + 1)
    return raw[:at] + rng.randbytes(rng.choice((1, 2, 16))) + raw[at:]


def _twice(rng: Random, raw: bytes) -> bytes:
    return raw * rng.choice((2, 3))


def _shuffle(rng: Random, raw: bytes) -> bytes:
    fields = _fields(raw)
    rng.shuffle(fields)
    return join(fields)


def _without(rng: Random, raw: bytes) -> bytes:
    fields = _fields(raw)
    if fields:
        del fields[rng.randrange(len(fields))]
    return join(fields)


def _bad_text(rng: Random, raw: bytes) -> bytes:
    """Put bytes that are no UTF-8 into something that has a length, at any depth."""
    fields = _fields(raw)
    texts = [at for at, field in enumerate(fields) if field.kind == BYTES]
    if not texts:
        return raw + b"\x0a" + lengthy(rng.choice(BAD_TEXTS))
    at = rng.choice(texts)
    payload = fields[at].payload
    inside = _bad_text(rng, payload) if _fields(payload) and rng.random() < 0.6 else rng.choice(BAD_TEXTS)
    fields[at] = Field(fields[at].number, BYTES, lengthy(inside))
    return join(fields)


def _wrong_kind(rng: Random, raw: bytes) -> bytes:
    fields = _fields(raw)
    if not fields:
        return raw
    at = rng.randrange(len(fields))
    number = fields[at].number
    fields[at] = rng.choice(
        (
            Field(number, VARINT, varint(rng.choice(NUMBERS))),
            Field(number, FIXED64, rng.randbytes(8)),
            Field(number, FIXED32, rng.randbytes(4)),
            Field(number, BYTES, lengthy(rng.randbytes(3))),
            Field(number, START, b""),
            Field(number, END, b""),
        )
    )
    return join(fields)


def _endless(rng: Random, raw: bytes) -> bytes:
    return raw + b"\x08" + b"\xff" * rng.choice((9, 10, 11, 1_000)) + b"\x01"


def _liar(rng: Random, raw: bytes) -> bytes:
    """Promise more than follows."""
    return raw + b"\x0a" + varint(rng.choice((1, 1_000, (1 << 31) - 1, 1 << 31, (1 << 64) - 1)))


def _noise(rng: Random, _: bytes) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 2, 10, 100, 4_000)))


def _deeper(rng: Random, raw: bytes) -> bytes:
    """Spoil something inside."""
    fields = _fields(raw)
    inside = [at for at, field in enumerate(fields) if field.kind == BYTES and len(field.body) > 2]
    if not inside:
        return _flip(rng, raw)
    at = rng.choice(inside)
    fields[at] = Field(fields[at].number, BYTES, lengthy(spoil(rng, fields[at].payload)))
    return join(fields)


def _fields(raw: bytes) -> list[Field]:
    try:
        return split(raw)
    except Broken:
        return []


_WAYS: Final[tuple[Callable[[Random, bytes], bytes], ...]] = (
    _unknown,
    _nested,
    _cut,
    _flip,
    _insert,
    _twice,
    _shuffle,
    _without,
    _bad_text,
    _bad_text,
    _wrong_kind,
    _endless,
    _liar,
    _noise,
    _deeper,
    _deeper,
)
