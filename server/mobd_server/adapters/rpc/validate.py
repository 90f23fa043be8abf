"""Checks requests against the rules that stand beside their fields in the protocol (mobd/v1/validate.proto).

A checker is compiled once per message type into closures. It returns None for a message without fault, and a list of
violations otherwise; paths are built on the way back out, so that a good message pays for none.
"""

import re
from collections.abc import Callable
from functools import cache
from json import dumps
from operator import attrgetter
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from mobd.v1 import validate_pb2
from mobd_server.errors import Violation
from mobd_server.ids import ID_PATTERN, RESERVED_PREFIX
from mobd_server.services import json_text

Found = list[Violation] | None
Check = Callable[[Any], Found]
Rules = validate_pb2.FieldRules

MAX_CONTENT_BYTES: Final = 262_144
MAX_SPECS_BYTES: Final = 3 << 20
# A request can break a rule in every one of its thousands of items; nobody reads that far.
MAX_VIOLATIONS: Final = 100

_ID_SHAPE = f"(?!{RESERVED_PREFIX}){ID_PATTERN.removeprefix('^').removesuffix('$')}"
_KEY_SHAPE = "[!-~]{1,128}"
_ID = re.compile(_ID_SHAPE).fullmatch
_KEY = re.compile(_KEY_SHAPE).fullmatch
_NO_RULES = Rules()
_MAX_TIMESTAMP_S = 253_402_300_799
_MIN_TIMESTAMP_S = -62_135_596_800
_MAX_DURATION_MS = 315_576_000_000_000


@cache
def checker(descriptor: Descriptor) -> Check:
    """Return the check of one message type."""
    return _message(descriptor)


def rules_of(field: FieldDescriptor) -> Rules | None:
    """Return the rules that are written beside a field, if there are any."""
    options = field.GetOptions()
    return options.Extensions[validate_pb2.rules] if options.HasExtension(validate_pb2.rules) else None


def is_map(field: FieldDescriptor) -> bool:
    """Tell whether a field is a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def is_repeated(field: FieldDescriptor) -> bool:
    """Tell whether a field holds several values. Older protobufs have only the label, newer ones only the attribute."""
    if hasattr(field, "is_repeated"):
        return field.is_repeated
    return bool(getattr(field, "label", None) == FieldDescriptor.LABEL_REPEATED)


def _one(description: str, code: str) -> list[Violation]:
    return [Violation("", description, code)]


def _under(prefix: str, found: list[Violation]) -> list[Violation]:
    for violation in found:
        joint = "" if violation.field[:1] in ("", "[") else "."
        violation.field = f"{prefix}{joint}{violation.field}"
    return found


def _message(descriptor: Descriptor) -> Check:
    """Compile a message into one function: nearly all that it does for a good one is to read its fields."""
    source = Source()
    for field in descriptor.fields:
        if field.containing_oneof is not None and len(field.containing_oneof.fields) > 1:
            continue
        rules = rules_of(field) or _NO_RULES
        if field.has_presence:
            source.present(field.name, _value(field, rules), required=rules.required)
        elif is_map(field):
            source.plain(field.name, _map(field, rules), optional=False)
        elif is_repeated(field):
            source.plain(field.name, _repeated(field, rules), optional=False)
        else:
            # A zero value means that it was not given.
            optional = not (rules.required or rules.HasField("gte") or field.type == FieldDescriptor.TYPE_BOOL)
            source.plain(field.name, _value(field, rules), _match(rules), optional=optional)
    for oneof in descriptor.oneofs:
        if len(oneof.fields) > 1:
            source.choice(_choice(oneof))
    return source.compiled(descriptor.full_name)


class Source:
    """The text of a check, with what its names stand for. Of the protocol it holds names of fields and nothing else."""

    def __init__(self) -> None:
        self._lines = ["def check(message):", "    bad = None"]
        self._names: dict[str, Any] = {"grown": _grown}

    def _name(self, thing: object) -> str:
        name = f"_{len(self._names)}"
        self._names[name] = thing
        return name

    def _add(self, *lines: str) -> None:
        self._lines += [f"    {line}" for line in lines]

    def plain(self, field: str, rule: Check, match: Callable[[str], object] | None = None, *, optional: bool) -> None:
        """A field without presence, which may be `optional`. What matches `match` is right without being looked at."""
        if rule is _nothing:
            return
        conditions = ["value"] if optional else []
        if match is not None:
            conditions.append(f"not {self._name(match)}(value)")
        self._add(f"value = message.{field}")
        if conditions:
            self._add(f"if {' and '.join(conditions)}:")
        self._found(f"{self._name(rule)}(value)", field, "    " if conditions else "")

    def present(self, field: str, rule: Check, *, required: bool) -> None:
        """A field with presence."""
        if rule is not _nothing:
            self._add(f"if message.HasField({field!r}):")
            self._found(f"{self._name(rule)}(message.{field})", field, "    ")
        if required:
            self._add(f"if not message.HasField({field!r}):")
            self._found(f"{self._name(_unset)}()", field, "    ")

    def choice(self, rule: Check) -> None:
        """A oneof, whose check names its arms."""
        self._found(f"{self._name(rule)}(message)", "")

    def _found(self, call: str, field: str, indent: str = "") -> None:
        self._add(
            f"{indent}found = {call}",
            f"{indent}if found is not None:",
            f"{indent}    bad = grown(bad, {field!r}, found)",
        )

    def compiled(self, name: str) -> Check:
        """Return the check of the message called `name`."""
        text = "\n".join([*self._lines, "    return bad"])
        exec(compile(text, f"<check of {name}>", "exec"), self._names)  # noqa: S102 names of fields are all it holds
        check: Check = self._names["check"]
        return check


def _grown(bad: Found, prefix: str, found: Found) -> Found:
    return bad if found is None else [*(bad or ()), *(_under(prefix, found) if prefix else found)]


def _unset() -> list[Violation]:
    return _one("must be given", "REQUIRED")


def _match(rules: Rules) -> Callable[[str], object] | None:
    if rules.format == validate_pb2.STRING_FORMAT_ID and not rules.max_bytes:
        return _ID
    return _KEY if rules.format == validate_pb2.STRING_FORMAT_KEY and not rules.max_bytes else None


def _choice(oneof: Any) -> Check:
    name: str = oneof.name
    required: bool = oneof.GetOptions().Extensions[validate_pb2.choice_required]
    arms = {field.name: (attrgetter(field.name), _value(field, rules_of(field) or _NO_RULES)) for field in oneof.fields}
    legal = ", ".join(arms)

    def check(message: Message) -> Found:
        arm = message.WhichOneof(name)
        if arm is None:
            return [Violation(name, f"must be one of {legal}", "REQUIRED")] if required else None
        get, rule = arms[arm]
        found = rule(get(message))
        return None if found is None else _under(arm, found)

    return check


def _value(field: FieldDescriptor, rules: Rules) -> Check:
    """One value that is there."""
    if field.message_type is not None:
        name = field.message_type.full_name
        if name == "google.protobuf.Timestamp":
            return _timestamp
        if name == "google.protobuf.Duration":
            return _duration(rules)
        return checker(field.message_type)
    if field.enum_type is not None:
        return _enum(field.enum_type, rules)
    if field.type == FieldDescriptor.TYPE_STRING:
        return _string(rules)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _bytes(rules)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return _must(rules, "must be true")
    return _number(rules)


def _nothing(_: Any) -> Found:
    return None


def _must(rules: Rules, description: str) -> Check:
    if not rules.required:
        return _nothing

    def check(value: Any) -> Found:
        return None if value else _one(description, "REQUIRED")

    return check


def _string(rules: Rules) -> Check:
    formats: dict[int, Check] = {
        validate_pb2.STRING_FORMAT_ID: _id,
        validate_pb2.STRING_FORMAT_KEY: _key,
        validate_pb2.STRING_FORMAT_JSON: _json,
    }
    shape = formats.get(rules.format, _text)
    required, limit = rules.required, rules.max_bytes
    if shape in (_id, _key) and not limit:
        return _required(shape) if required else shape

    def check(value: str) -> Found:
        if not value:
            return _one("must be given", "REQUIRED") if required else None
        # A character takes one to four bytes: most texts need not be encoded to know that they fit.
        if limit and len(value) * 4 > limit and (length := len(value.encode())) > limit:
            return _one(f"must be at most {limit} bytes, not {length}", "TOO_LONG")
        return shape(value)

    return check


def _required(shape: Check) -> Check:
    def check(value: str) -> Found:
        found = shape(value)
        return found if found is None or value else _one("must be given", "REQUIRED")

    return check


def _id(value: str) -> Found:
    if _ID(value):
        return None
    return _one(
        "must be 1 to 128 characters of A-Z a-z 0-9 . _ - that begin with a letter or a digit,"
        f" and must not begin with {RESERVED_PREFIX}",
        "BAD_FORMAT",
    )


def _key(value: str) -> Found:
    return None if _KEY(value) else _one("must be 1 to 128 printable ASCII characters without spaces", "BAD_FORMAT")


def _json(value: str) -> Found:
    wrong = json_text.fault(value)
    return None if wrong is None else _one(wrong, "BAD_FORMAT")


def _text(value: str) -> Found:
    return _one("must not contain U+0000", "BAD_FORMAT") if "\0" in value else None


def _bytes(rules: Rules) -> Check:
    required, limit = rules.required, rules.max_bytes

    def check(value: bytes) -> Found:
        if not value and required:
            return _one("must be given", "REQUIRED")
        if limit and len(value) > limit:
            return _one(f"must be at most {limit} bytes, not {len(value)}", "TOO_LONG")
        return None

    return check


def _number(rules: Rules) -> Check:
    least = rules.gte if rules.HasField("gte") else None
    most = rules.lte if rules.HasField("lte") else None
    if least is None and most is None:
        return _must(rules, "must be given and not 0")
    if least is None:
        legal = f"must be at most {most}"
    elif most is None:
        legal = f"must be at least {least}"
    else:
        legal = f"must be from {least} to {most}" if least != most else f"must be {least}"

    def check(value: int) -> Found:
        if (least is not None and value < least) or (most is not None and value > most):
            return _one(f"{legal}, not {value}", "OUT_OF_RANGE")
        return None

    return check


def _enum(enum: EnumDescriptor, rules: Rules) -> Check:
    known = frozenset(value.number for value in enum.values if value.number or not rules.required)
    legal = f"must be one of {', '.join(value.name for value in enum.values if value.number)}"

    def check(value: int) -> Found:
        return None if value in known else _one(f"{legal}, not {value}", "UNKNOWN_VALUE" if value else "REQUIRED")

    return check


def _timestamp(value: Any) -> Found:
    if _MIN_TIMESTAMP_S <= value.seconds <= _MAX_TIMESTAMP_S and 0 <= value.nanos < 1_000_000_000:
        return None
    return _one("must be from year 1 to year 9999, with nanos from 0 to 999999999", "OUT_OF_RANGE")


def _duration(rules: Rules) -> Check:
    most = rules.max_duration_ms or _MAX_DURATION_MS

    def check(value: Any) -> Found:
        whole = 0 <= value.seconds <= most // 1000 and 0 <= value.nanos < 1_000_000_000
        if whole and value.seconds * 1_000_000_000 + value.nanos <= most * 1_000_000:
            return None
        return _one(f"must be from 0 to {most / 1000:g} s, with nanos from 0 to 999999999", "OUT_OF_RANGE")

    return check


def _repeated(field: FieldDescriptor, rules: Rules) -> Check:
    required, limit = rules.required, rules.max_items
    item = _value(field, rules.items)
    together = _TOGETHER.get(field.full_name, _nothing)

    def check(values: Any) -> Found:
        count = len(values)
        if count == 0:
            return _one("must have at least one item", "REQUIRED") if required else None
        if count == 1:
            found = item(values[0])
            return None if found is None else _under("[0]", found)
        if limit and count > limit:
            return _one(f"must have at most {limit} items, not {count}", "TOO_MANY")
        bad: list[Violation] = []
        for index, value in enumerate(values):
            if (found := item(value)) is not None:
                bad += _under(f"[{index}]", found)
                if len(bad) >= MAX_VIOLATIONS:
                    break
        return bad or together(values)

    return check


def _map(field: FieldDescriptor, rules: Rules) -> Check:
    assert field.message_type is not None
    entry = field.message_type.fields_by_name
    key_check, value_check = _value(entry["key"], rules.keys), _value(entry["value"], rules.values)
    limit, required = rules.max_items, rules.required

    def check(values: Any) -> Found:
        if not values:
            return _one("must have at least one entry", "REQUIRED") if required else None
        if limit and len(values) > limit:
            return _one(f"must have at most {limit} entries, not {len(values)}", "TOO_MANY")
        bad: list[Violation] = []
        for key, value in values.items():
            for found, what in ((key_check(key), "its key "), (value_check(value), "")):
                for violation in found or ():
                    violation.description = what + violation.description
                    bad += _under(f"[{_shown(key)}]", [violation])
        return bad[:MAX_VIOLATIONS] or None

    return check


def _shown(key: object) -> str:
    text = str(key)
    return dumps(text if len(text) <= 64 else text[:64] + "…", ensure_ascii=False)


def _content(blocks: Any) -> Found:
    """Sum the blocks; one alone is limited by its own rule."""
    total = sum(len(block.text.encode()) + len(block.value_json.encode()) + len(block.image.data) for block in blocks)
    if total <= MAX_CONTENT_BYTES:
        return None
    return _one(f"must be at most {MAX_CONTENT_BYTES} bytes together, not {total}", "TOO_LONG")


def _specs(specs: Any) -> Found:
    """Bound what an answer that shows all of them holds."""
    total = sum(spec.ByteSize() for spec in specs)
    if total <= MAX_SPECS_BYTES:
        return None
    return _one(
        f"must be at most {MAX_SPECS_BYTES} bytes together, not {total}: spawn them in several calls", "TOO_LONG"
    )


# What several items must satisfy together; the field options have no words for it.
_TOGETHER: Final[dict[str, Check]] = {
    "mobd.v1.Content.blocks": _content,
    "mobd.v1.SpawnMembersRequest.specs": _specs,
}
