"""Makes a call that fails smaller: fields are left out, at any depth, for as long as it fails in the same way."""

from collections.abc import Iterator
from typing import Final

import grpc
from tests.fuzz.calls import Case, call
from tests.fuzz.judging import complaints
from tests.fuzz.wire import BYTES, Broken, Field, join, lengthy, split

# A request that needs more tries is small enough, or its failure is not its own.
MAX_TRIES: Final = 200
MAX_DEPTH: Final = 8


async def shrink(channel: grpc.aio.Channel, case: Case) -> Case:
    """Return the smallest call found that is still complained about with the same words at the beginning."""
    tries = 0
    wanted = await _complaint(channel, case)
    shrunk = True
    while wanted and shrunk and tries < MAX_TRIES:
        shrunk = False
        for raw in smaller(case.messages[0]):
            tries += 1
            smaller_case = Case(case.method, [raw], case.metadata)
            if await _complaint(channel, smaller_case) == wanted:
                case, shrunk = smaller_case, True
                break
            if tries >= MAX_TRIES:
                break
    return case


async def _complaint(channel: grpc.aio.Channel, case: Case) -> str:
    outcome = await call(channel, case)
    return next(complaints(case.descriptor, case.messages, outcome), "")[:24]


def smaller(raw: bytes, depth: int = 0) -> Iterator[bytes]:
    """Yield messages that lack something: a field, half of a text, or something within a field."""
    try:
        fields = split(raw)
    except Broken:
        if raw:
            yield raw[: len(raw) // 2]
        return
    for at in range(len(fields)):
        yield join(fields[:at] + fields[at + 1 :])
    for at, field in enumerate(fields):
        if field.kind != BYTES or depth > MAX_DEPTH:
            continue
        payload = field.payload
        if len(payload) > 64:
            yield join(
                [*fields[:at], Field(field.number, BYTES, lengthy(payload[: len(payload) // 2])), *fields[at + 1 :]]
            )
        for inside in smaller(payload, depth + 1):
            yield join([*fields[:at], Field(field.number, BYTES, lengthy(inside)), *fields[at + 1 :]])
