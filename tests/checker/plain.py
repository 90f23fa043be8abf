"""Protobuf messages as the plain values of a history."""

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from tests.checker.history import Plain


def plain(message: Message) -> Plain:
    """Return the fields that are set: enums by name, times and durations as integers of microseconds."""
    found: Plain = {}
    for descriptor, value in message.ListFields():
        if _is_map(descriptor):
            found[descriptor.name] = dict(sorted(value.items()))
        elif isinstance(value, Message) or not hasattr(value, "extend"):
            found[descriptor.name] = _value(descriptor, value)
        else:
            found[descriptor.name] = [_value(descriptor, one) for one in value]
    return found


def _is_map(descriptor: FieldDescriptor) -> bool:
    kind = descriptor.message_type
    return kind is not None and bool(kind.GetOptions().map_entry)


def _value(descriptor: FieldDescriptor, value: Any) -> Any:
    if descriptor.message_type is not None:
        if descriptor.message_type.full_name in ("google.protobuf.Timestamp", "google.protobuf.Duration"):
            return int(value.seconds) * 1_000_000 + int(value.nanos) // 1_000
        return plain(value)
    if descriptor.enum_type is not None:
        named = descriptor.enum_type.values_by_number.get(value)
        return named.name if named is not None else int(value)
    if isinstance(value, bytes):
        return value.hex()
    return value
