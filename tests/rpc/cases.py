"""Requests made from the descriptors alone: one that satisfies every rule, and every way to break one.

A new field with rules is covered by being there; a new rule must be taught here, or `breakages` fails.
"""

from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, OneofDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from msgspec import Struct

from mobd.v1 import validate_pb2
from mobd_server.adapters.rpc.server import SERVICES
from mobd_server.adapters.rpc.validate import is_map, is_repeated, rules_of

METHODS: list[MethodDescriptor] = [method for service in SERVICES for method in service.methods]
FORMATS = {
    validate_pb2.STRING_FORMAT_ID: ["-a", "__flow_x", "a b", "a" * 129, "é", "a\n", "a\0"],
    validate_pb2.STRING_FORMAT_KEY: ["a b", "a" * 129, "é", "a\n", "\0"],
    validate_pb2.STRING_FORMAT_JSON: [
        "{",
        "nul",
        "NaN",
        "1e999",
        '"\\ud800"',
        "[" * 129 + "]" * 129,
        "[" * 100_000,
        '{"a":1}x',
        "\ufeff1",
        '"a\0"',
    ],
    validate_pb2.STRING_FORMAT_UNSPECIFIED: ["a\0b"],
}


Do = Callable[[Any], None]


class Breakage(Struct):
    """One broken rule: the path that the answer must name, what broke it, and how to do it to a good message."""

    path: str
    what: str
    do: Do


def clear(name: str) -> Do:
    return lambda message: message.ClearField(name)


def assign(name: str, value: Any) -> Do:
    return lambda message: setattr(message, name, value)


def append(name: str, value: Any) -> Do:
    return lambda message: getattr(message, name).append(value)


def enter(name: str, key: Any, value: Any) -> Do:
    return lambda message: getattr(message, name).update({key: value})


def inside(name: str, do: Do) -> Do:
    return lambda message: do(getattr(message, name))


def inside_first(name: str, do: Do) -> Do:
    return lambda message: do(getattr(message, name)[0])


def choosing(field: FieldDescriptor, do: Do) -> Do:
    def chosen(message: Any) -> None:
        put(message, field)
        do(message)

    return chosen


def name(method: MethodDescriptor) -> str:
    return f"{method.containing_service.name}.{method.name}"


def full_path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def choices(descriptor: Descriptor) -> list[OneofDescriptor]:
    """The oneofs that are written as such."""
    return [oneof for oneof in descriptor.oneofs if len(oneof.fields) > 1]


def plain_fields(descriptor: Descriptor) -> list[FieldDescriptor]:
    """The fields that are in no oneof."""
    return [field for field in descriptor.fields if field.containing_oneof not in choices(descriptor)]


def valid(descriptor: Descriptor) -> Message:
    """Return a message with every field set and no rule broken."""
    message = GetMessageClass(descriptor)()
    for field in plain_fields(descriptor):
        put(message, field)
    for oneof in choices(descriptor):
        put(message, oneof.fields[0])
    return message


def put(message: Any, field: FieldDescriptor) -> None:
    """Give a field something good."""
    rules = rules_of(field) or validate_pb2.FieldRules()
    if is_map(field):
        key, value = entry_of(field)
        getattr(message, field.name)[good(key, rules.keys)] = good(value, rules.values)
    elif is_repeated(field):
        items = getattr(message, field.name)
        if field.message_type is not None:
            items.add().CopyFrom(good(field, rules.items))
        else:
            items.append(good(field, rules.items))
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(good(field, rules))
    else:
        setattr(message, field.name, good(field, rules))


def good(field: FieldDescriptor, rules: validate_pb2.FieldRules) -> Any:
    """Return one good value of a field."""
    if field.message_type is not None:
        if field.message_type.file.package == "google.protobuf":
            return GetMessageClass(field.message_type)(seconds=1)
        return valid(field.message_type)
    if field.enum_type is not None:
        return next(value.number for value in field.enum_type.values if value.number)
    if field.type == FieldDescriptor.TYPE_STRING:
        return "{}" if rules.format == validate_pb2.STRING_FORMAT_JSON else "a"
    if field.type == FieldDescriptor.TYPE_BYTES:
        return b"a"
    if field.type == FieldDescriptor.TYPE_BOOL:
        return True
    return max(1, rules.gte)


def breakages(descriptor: Descriptor) -> Iterator[Breakage]:
    """Yield every way to break one rule of a message that `valid` made."""
    for field in plain_fields(descriptor):
        yield from of_field(field)
    for oneof in choices(descriptor):
        if oneof.GetOptions().Extensions[validate_pb2.choice_required]:
            yield Breakage(oneof.name, "no choice", clear(oneof.fields[0].name))
        for field in oneof.fields:
            for one in of_field(field):
                yield Breakage(one.path, one.what, choosing(field, one.do))


def of_field(field: FieldDescriptor) -> Iterator[Breakage]:
    rules = rules_of(field)
    assert rules is not None, f"{field.full_name} has no rules"
    if is_map(field):
        yield from of_map(field, rules)
    elif is_repeated(field):
        yield from of_repeated(field, rules)
    elif field.message_type is not None:
        if rules.required:
            yield Breakage(field.name, "missing", clear(field.name))
        for one in of_message(field.message_type, rules):
            yield Breakage(under(field.name, one.path), one.what, inside(field.name, one.do))
    else:
        for what, value in bad_values(field, rules):
            yield Breakage(field.name, what, assign(field.name, value))


def of_message(descriptor: Descriptor, rules: validate_pb2.FieldRules) -> Iterator[Breakage]:
    """What can be wrong within a message that is there."""
    if descriptor.full_name == "google.protobuf.Timestamp":
        yield setting("out of range", seconds=253_402_300_800)
        yield setting("bad nanos", nanos=-1)
    elif descriptor.full_name == "google.protobuf.Duration":
        yield setting("out of range", seconds=(rules.max_duration_ms // 1_000 or 315_576_000_000) + 1)
        yield setting("negative", seconds=-1)
    else:
        yield from breakages(descriptor)


def setting(what: str, **values: int) -> Breakage:
    def do(message: Any) -> None:
        for key, value in values.items():
            setattr(message, key, value)

    return Breakage("", what, do)


def of_repeated(field: FieldDescriptor, rules: validate_pb2.FieldRules) -> Iterator[Breakage]:
    def fill(message: Any) -> None:
        while len(getattr(message, field.name)) <= rules.max_items:
            put(message, field)

    if rules.required:
        yield Breakage(field.name, "missing", clear(field.name))
    assert rules.max_items, f"{field.full_name} has no bound"
    yield Breakage(field.name, "too many", fill)
    if field.message_type is not None:
        for one in of_message(field.message_type, rules.items):
            yield Breakage(under(f"{field.name}[0]", one.path), one.what, inside_first(field.name, one.do))
        return
    for what, value in bad_values(field, rules.items):
        # The second, so that an index is no constant.
        yield Breakage(f"{field.name}[1]", what, append(field.name, value))


def of_map(field: FieldDescriptor, rules: validate_pb2.FieldRules) -> Iterator[Breakage]:
    def fill(message: Any) -> None:
        getattr(message, field.name).update({f"k{number}": "v" for number in range(rules.max_items + 1)})

    assert rules.max_items, f"{field.full_name} has no bound"
    yield Breakage(field.name, "too many", fill)
    key, value = entry_of(field)
    for what, bad in bad_values(key, rules.keys):
        shown = (bad if len(bad) <= 64 else bad[:64] + "…").replace("\0", "\\u0000")
        yield Breakage(f'{field.name}["{shown}"]', f"key {what}", enter(field.name, bad, "v"))
    for what, bad in bad_values(value, rules.values):
        yield Breakage(f'{field.name}["a"]', f"value {what}", enter(field.name, "a", bad))


def entry_of(field: FieldDescriptor) -> tuple[FieldDescriptor, FieldDescriptor]:
    assert field.message_type is not None
    fields = field.message_type.fields_by_name
    return fields["key"], fields["value"]


def bad_values(field: FieldDescriptor, rules: validate_pb2.FieldRules) -> Iterator[tuple[str, Any]]:
    """Yield every kind of wrong value of a field that is neither message, list nor map."""
    if field.enum_type is not None:
        yield "unknown enum", 99
    if field.type == FieldDescriptor.TYPE_STRING:
        for bad in FORMATS[rules.format]:
            yield f"format {bad[:12]!r}", bad
        if rules.max_bytes:
            quote = '"' if rules.format == validate_pb2.STRING_FORMAT_JSON else ""
            yield "too long", quote + "a" * (rules.max_bytes + 1) + quote
            yield "too long in UTF-8", quote + "é" * (rules.max_bytes // 2 + 1) + quote
    if field.type == FieldDescriptor.TYPE_BYTES and rules.max_bytes:
        yield "too long", b"a" * (rules.max_bytes + 1)
    if rules.required:
        yield "missing", {FieldDescriptor.TYPE_STRING: "", FieldDescriptor.TYPE_BYTES: b""}.get(field.type, 0)
    if rules.HasField("gte"):
        yield "too small", rules.gte - 1
    if rules.HasField("lte"):
        yield "too great", rules.lte + 1


def under(prefix: str, path: str) -> str:
    return f"{prefix}.{path}" if path else prefix
