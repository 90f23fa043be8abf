"""A value of any type of the core with every field set, the same each time: what the corpus is made of."""

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from msgspec import Raw, Struct

RAW = b'{"text":"\\u0000 \\ud83d\\ude00","n":[1.50,1e2]}'


def sample(kind: Any, name: str = "value") -> Any:
    """Return a value of a type, told apart by the name of the field that it is for. Raises TypeError if it can't."""
    plain = {str: f"{name}-é", bool: True, int: 1_000_000 + len(name), bytes: name.encode(), Raw: Raw(RAW)}
    plain[bytearray] = bytearray(name.encode())
    if kind in plain:
        return plain[kind]
    if isinstance(kind, type) and issubclass(kind, Struct):
        return _struct(kind)
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        # Not the one that is likely to be the default.
        return parts[-1]
    if origin in (Union, UnionType):
        return sample(next(part for part in parts if part is not NoneType), name)
    if origin is list:
        return [sample(parts[0], f"{name}_0"), sample(parts[0], f"{name}_1")]
    if origin is dict:
        return {f"{name}_{n}": None if parts[1] in (None, NoneType) else sample(parts[1], f"{name}_{n}") for n in "ab"}
    if origin is tuple and parts[-1] is ...:
        return (sample(parts[0], f"{name}_0"), sample(parts[0], f"{name}_1"))
    if origin is tuple:
        return tuple(sample(part, f"{name}_{at}") for at, part in enumerate(parts))
    raise TypeError(f"no sample of {kind} for {name}")


def _struct(kind: type[Struct]) -> Struct:
    hints = get_type_hints(kind)
    return kind(**{name: sample(hints[name], name) for name in kind.__struct_fields__})
