"""Calls with bytes, as a client would make them that cares for nothing: its answers are read only in part.

A call is told in one line, from which it can be made again: the method, then the messages in hex, with commas between.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.text_format import MessageToString
from msgspec import Struct
from tests.fuzz.judging import DETAILS, Code, Outcome

from mobd_server.adapters.rpc.server import SERVICES

METHODS: Final[dict[str, MethodDescriptor]] = {
    f"{service.name}/{method.name}": method for service in SERVICES for method in service.methods
}
# These wait for others to act: their callers may wait in vain.
PATIENT: Final = frozenset(
    {
        "MemberService/WaitMembers",
        "OperationService/WaitOperations",
        "MemberService/RetireAllMembers",
        "MobService/CompleteMob",
        "MobService/ResetMob",
        "MobService/DestroyMob",
    }
)
PATIENCE_S: Final = 0.3
# Whoever is answered later than this was forgotten.
LIMIT_S: Final = 20.0
# A stream without a message for this long is given up.
SILENCE_S: Final = 0.05
# This stream says nothing while nothing happens; the others begin with what is there.
SILENT: Final = "EventService/WatchAgentEvents"
MAX_READ: Final = 5
MAX_SHOWN: Final = 2_000

Metadata = Sequence[tuple[str, str | bytes]]


class Case(Struct):
    """One call: to which method, with which messages and metadata, and when its caller gives up."""

    method: str
    messages: list[bytes]
    metadata: Metadata = ()
    # Seconds; 0: as long as the method may take.
    timeout_s: float = 0.0

    @property
    def descriptor(self) -> MethodDescriptor:
        """The method."""
        return METHODS[self.method]

    def line(self) -> str:
        """Return what `case_from` reads."""
        return f"{self.method}:{','.join(message.hex() for message in self.messages)}"

    def text(self) -> str:
        """Return the messages for people."""
        return "\n".join(shown(self.descriptor, message) for message in self.messages)


def case_from(line: str) -> Case:
    """Read a case. Raises ValueError."""
    method, _, messages = line.strip().partition(":")
    if method not in METHODS:
        raise ValueError(f"there is no method {method}")
    return Case(method, [bytes.fromhex(message) for message in messages.split(",")])


def shown(method: MethodDescriptor, raw: bytes) -> str:
    """Return a request as text, or what its bytes are if they are none."""
    made: Any = GetMessageClass(method.input_type)
    try:
        text = MessageToString(made.FromString(raw), as_utf8=True, print_unknown_fields=True)
    except DecodeError:
        return f"no {method.input_type.full_name}: {raw!r}"[:MAX_SHOWN]
    return f"{method.input_type.full_name} {{\n{text}}}"[:MAX_SHOWN]


async def call(channel: grpc.aio.Channel, case: Case) -> Outcome:
    """Make a call, and return what became of it. A stream of requests sends them all, whatever it is told."""
    method = case.descriptor
    path = f"/{method.containing_service.full_name}/{method.name}"
    timeout_s = case.timeout_s or (PATIENCE_S if case.method in PATIENT else LIMIT_S)
    began = time.perf_counter()
    made: Any
    answers: list[bytes] = []
    given_up = False
    if method.client_streaming:
        talked: Any = channel.stream_stream(path)
        made = talked(timeout=timeout_s, metadata=case.metadata)
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for message in case.messages:
                await made.write(message)
            await made.done_writing()
        given_up = await read(made, answers, LIMIT_S)
    elif method.server_streaming:
        opened: Any = channel.unary_stream(path)
        made = opened(case.messages[0], timeout=timeout_s, metadata=case.metadata)
        given_up = await read(made, answers, SILENCE_S if case.method == SILENT else LIMIT_S)
    else:
        asked: Any = channel.unary_unary(path)
        made = asked(case.messages[0], timeout=timeout_s, metadata=case.metadata)
        with suppress(grpc.aio.AioRpcError):
            answers.append(await made)
    outcome = await outcome_of(made, answers)
    outcome.seconds = time.perf_counter() - began
    outcome.impatient = given_up or timeout_s < LIMIT_S
    return outcome


async def read(made: Any, answers: list[bytes], first_s: float) -> bool:
    """Read some answers of a stream, the first within `first_s`; return whether it was given up before its end."""
    while len(answers) < MAX_READ:
        reading = asyncio.ensure_future(made.read())
        done, _ = await asyncio.wait([reading], timeout=SILENCE_S if answers else first_s)
        if not done:
            # Who waited for the first answer in vain was forgotten.
            given_up = bool(answers) or first_s < LIMIT_S
            made.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            return given_up
        try:
            answer = reading.result()
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            return False
        if answer is grpc.aio.EOF:
            return False
        answers.append(answer)
    made.cancel()
    return True


async def outcome_of(made: Any, answers: list[bytes]) -> Outcome:
    """Return how a call has ended."""
    code = await made.code()
    details = b""
    if code not in (Code.OK, Code.CANCELLED):
        details = next((value for key, value in await made.trailing_metadata() or () if key == DETAILS), b"")
    return Outcome(code, await made.details() or "", details, answers)
