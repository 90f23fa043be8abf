"""Reading events that an older mobd wrote: pure steps from one version of an event to the next.

A step gets the object of the payload, its values as they were written (`msgspec.Raw`), and returns that of the next
version; what it does not touch keeps its very bytes. A meaning that changed is a new kind and has no step.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw

from mobd_server.machines.events import BY_KIND

Step = Callable[[dict[str, Any]], dict[str, Any]]
Table = Mapping[tuple[str, int], Step]

# (kind, v) -> the step to v + 1. Empty until an event changes after the first release.
UPCASTERS: Final[dict[tuple[str, int], Step]] = {}

NEWEST: Final[Mapping[str, int]] = dict(sorted(BY_KIND))

_decode: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_encode: Final = msgspec.json.Encoder().encode


def upcast(
    kind: str, v: int, payload: str, table: Table = UPCASTERS, newest: Mapping[str, int] = NEWEST
) -> tuple[int, str] | None:
    """Return the newest version of an event's kind and the payload in it; None if no steps lead there.

    That is so for a kind that this build does not know and for a version that is newer than its own. Raises
    `msgspec.MsgspecError` if the payload is no JSON object, and what a step raises.
    """
    target = newest.get(kind)
    if target is None or v >= target:
        return None
    value: dict[str, Any] = dict(_decode(payload))
    while v < target:
        step = table.get((kind, v))
        if step is None:
            return None
        value = step(value)
        v += 1
    return target, _encode(value).decode()
