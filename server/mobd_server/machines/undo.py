"""How state is written: every change leaves its inverse, so that a refused decision leaves no trace.

A part (a struct) is copied at its first touch; a container gets the inverse of each change, never a copy. Replay uses
`NO_UNDO`, which writes the same and remembers nothing.
"""

from collections.abc import Callable, MutableSequence, Sequence
from typing import Any, Final, TypeVar

from msgspec import Struct

_ABSENT: Final = object()
K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")


def _restore(part: Struct, before: Struct) -> None:
    for name in part.__struct_fields__:
        setattr(part, name, getattr(before, name))


def _unput(container: dict[Any, Any], key: object, before: object) -> None:
    if before is _ABSENT:
        del container[key]
    else:
        container[key] = before


def _unsplice(items: MutableSequence[Any], start: int, added: int, removed: Sequence[Any]) -> None:
    items[start : start + added] = removed


class Undo:
    """The inverses of what one decision wrote."""

    __slots__ = ("_log", "_touched")

    def __init__(self) -> None:
        self._log: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        # Parts are told apart by identity; they are kept alive, so that no identity is used twice.
        self._touched: dict[int, Struct] = {}

    def touch(self, part: Struct) -> None:
        """Remember `part` as it is; call before the first assignment to one of its fields."""
        if id(part) not in self._touched:
            self._touched[id(part)] = part
            before = part.__copy__()  # type: ignore[attr-defined]  # msgspec has it and its stubs do not
            self._log.append((_restore, (part, before)))

    def touched(self, kind: type[T]) -> list[T]:
        """Return the parts of a type that were touched, each once, in the order of their first touches."""
        return [part for part in self._touched.values() if type(part) is kind]

    def put(self, container: dict[K, V], key: K, value: V) -> None:
        """Set `container[key]`."""
        self._log.append((_unput, (container, key, container.get(key, _ABSENT))))
        container[key] = value

    def drop(self, container: dict[K, V], key: K) -> V:
        """Remove and return `container[key]`."""
        value = container.pop(key)
        self._log.append((_unput, (container, key, value)))
        return value

    def splice(self, items: MutableSequence[T], start: int, stop: int, new: Sequence[T]) -> None:
        """Replace `items[start:stop]`; both bounds lie within the list."""
        self._log.append((_unsplice, (items, start, len(new), items[start:stop])))
        items[start:stop] = new

    def append(self, items: list[T], item: T) -> None:
        """Add `item` at the end."""
        self._log.append((items.pop, ()))
        items.append(item)

    def rollback(self) -> None:
        """Undo everything, newest first."""
        for inverse, arguments in reversed(self._log):
            inverse(*arguments)
        self._log.clear()
        self._touched.clear()


class _NoUndo(Undo):
    __slots__ = ()

    def touch(self, part: Struct) -> None:
        pass

    def put(self, container: dict[K, V], key: K, value: V) -> None:
        container[key] = value

    def drop(self, container: dict[K, V], key: K) -> V:
        return container.pop(key)

    def splice(self, items: MutableSequence[T], start: int, stop: int, new: Sequence[T]) -> None:
        items[start:stop] = new

    def append(self, items: list[T], item: T) -> None:
        items.append(item)


NO_UNDO: Final[Undo] = _NoUndo()
