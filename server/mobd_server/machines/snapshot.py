"""The state of a mob as JSON text, from which it is loaded without folding its whole log.

A snapshot is only ever a shorter way to what the log says: one that can't be used is passed over, and the log is
folded instead. `FORMAT` changes with every change of `Mob` that an old text would be read wrongly by.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Final, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import force_setattr

from mobd_server.machines.interning import share
from mobd_server.machines.state import NOTHING, Mob

FORMAT: Final = 2

_encode: Final = msgspec.json.Encoder(order="deterministic").encode
_decode: Final = msgspec.json.Decoder(Mob).decode

Settle = Callable[[Any], Any]


class SnapshotUnusable(Exception):
    """A text is no snapshot of this format; the message says why."""


def encode(mob: Mob) -> bytes:
    """Return the state as JSON. States that were folded from the same log have the same bytes."""
    return _encode(mob)


def decode(text: bytes | str) -> Mob:
    """Return the state that `encode` wrote; it shares no memory with `text`. Raises SnapshotUnusable."""
    try:
        mob = _decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise SnapshotUnusable(str(error)) from error
    _SETTLE_MOB(mob)
    share(mob)
    return mob


def take(mob: Mob) -> bytes:
    """Return the state as JSON that was read back and is the same state. Raises SnapshotUnusable if it is not."""
    text = encode(mob)
    if decode(text) != mob:
        raise SnapshotUnusable(f"the state of mob '{mob.mob_id}' at {mob.head} does not come back as it was")
    return text


def superfluous(seqs: Sequence[int], spacing: int) -> list[int]:
    """Return those of a mob's snapshots, given by their seqs in order, that need not be kept.

    The newest two stay. Behind them two that are kept are never farther apart than half the way from the older one to
    the newest, or than `spacing` events: a state of the past is folded from at most half the log, and at most
    2 · log2(newest / spacing) + 4 snapshots stay.
    """
    dropped: list[int] = []
    # The log's beginning needs no snapshot.
    older = 0
    for seq, younger in pairwise(seqs[:-1]):
        if younger - older <= max(spacing, (seqs[-1] - older) // 2):
            dropped.append(seq)
        else:
            older = seq
    return dropped


def _raw(value: Raw) -> Raw:
    # What was decoded is a view that would keep the whole text; what was left out is told by its identity.
    return value if value is NOTHING else value.copy()


def _settler(kind: Any, known: dict[Any, Settle | None]) -> Settle | None:
    """Return what makes a decoded value of a type independent of the text; None if it is so already."""
    if kind is Raw:
        return _raw
    if isinstance(kind, type) and issubclass(kind, Struct):
        if kind not in known:
            known[kind] = None
            known[kind] = _of_struct(kind, known)
        return known[kind]
    inner = [_settler(part, known) for part in get_args(kind) if part is not NoneType]
    settle = next((one for one in inner if one is not None), None)
    if settle is None:
        return None
    origin = get_origin(kind)
    if origin is dict:
        return lambda value: _each(value, value.items(), settle)
    if origin is list:
        return lambda value: _each(value, enumerate(value), settle)
    if origin is UnionType and len(inner) == 1:
        return lambda value: value if value is None else settle(value)
    raise TypeError(f"{kind} can't be a part of the state: it holds JSON in a place that snapshots do not know")


def _each(container: Any, items: Iterable[tuple[Any, Any]], settle: Settle) -> Any:
    for key, value in list(items):
        settled = settle(value)
        if settled is not value:
            container[key] = settled
    return container


def _of_struct(kind: type[Struct], known: dict[Any, Settle | None]) -> Settle | None:
    hints = get_type_hints(kind)
    fields = [(name, one) for name in kind.__struct_fields__ if (one := _settler(hints[name], known)) is not None]

    def settle(value: Struct) -> Struct:
        for name, one in fields:
            before = getattr(value, name)
            after = one(before)
            if after is not before:
                force_setattr(value, name, after)
        return value

    return settle if fields else None


_SETTLE_MOB: Final[Settle] = _settler(Mob, {}) or (lambda value: value)
