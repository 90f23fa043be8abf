"""The whole state of a mob, now or as it was."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mobd import calls
from mobd.content import load
from mobd.errors import DeadlineExceeded
from mobd.v1 import events_pb2


@dataclass
class MobState:
    """What the events of a mob's log add up to, up to a cursor."""

    #: The last event that is part of it.
    cursor: int = 0
    #: The newest durable event when it was asked for.
    head: int = 0
    #: The identity of the log.
    log_id: str = ""
    #: Its parts by kind (mob, member, input, run, attachment, operation, requests) and then by id: JSON values.
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)


async def read_state(target: str, open_call: Callable[[], Any], patience_s: float) -> MobState:
    """Read a state to its end; one that breaks is read from its beginning."""
    state = MobState()
    try:
        async with asyncio.timeout(patience_s):
            async for answer in calls.stream(open_call):
                if answer.WhichOneof("part") == "header":
                    state = _begun(answer.header)
                for section in answer.sections.sections:
                    state.parts.setdefault(section.kind, {})[section.id] = load(section.value_json)
    except TimeoutError:
        message = f"the state was not read from {target} within {patience_s:g} s"
        raise DeadlineExceeded(message) from None
    return state


def _begun(header: events_pb2.StateHeader) -> MobState:
    return MobState(header.cursor, header.head, header.log_id)
