"""What was decoded from a text is made to stand alone: JSON that stays JSON looks into the text, and would keep it.

Which fields of a type hold such JSON follows from their annotations, once for each type; what holds none costs nothing.
"""

from collections.abc import Callable, Iterable
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from msgspec import Raw, Struct
from msgspec.structs import force_setattr

from mobd_server.machines.state import NOTHING

Settle = Callable[[Any], Any]


def settler(kind: Any) -> Settle | None:
    """Return what makes a decoded value of a type independent of its text; None if every value is so already.

    It changes a value in its place and returns it, or what takes its place; `NOTHING` stays that very object. Raises
    TypeError for a type that holds JSON where this does not look, and RecursionError for one that holds itself: no
    part of the state may.
    """
    if kind is Raw:
        # A copy of what is no view is the same object.
        return Raw.copy
    if isinstance(kind, type) and issubclass(kind, Struct):
        return _of_struct(kind)
    inner = [settler(part) for part in get_args(kind) if part is not NoneType]
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
    # Only places that are there already are written.
    for key, value in items:
        settled = settle(value)
        if settled is not value:
            container[key] = settled
    return container


def _of_struct(kind: type[Struct]) -> Settle | None:
    hints = get_type_hints(kind)
    fields = [(name, one) for name in kind.__struct_fields__ if (one := settler(hints[name])) is not None]

    def settle(value: Struct) -> Struct:
        for name, one in fields:
            before = getattr(value, name)
            # As nearly all of them are.
            if before is NOTHING or before is None:
                continue
            after = one(before)
            if after is not before:
                force_setattr(value, name, after)
        return value

    return settle if fields else None
