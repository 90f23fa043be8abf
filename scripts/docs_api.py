"""The page of the API: services, calls, messages and enums, from the comments and rules in proto/."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from docs_markdown import code, duration, size, table
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from mobd.v1 import validate_pb2

Field = FieldDescriptorProto
Rules = validate_pb2.FieldRules

BUF: Final = Path(sys.executable).parent / "buf"
PACKAGE: Final = "mobd/v1/"
PREFIX: Final = ".mobd.v1."
# The numbers by which a descriptor's source info names its parts (descriptor.proto).
MESSAGES, ENUMS, SERVICES, FIELDS, METHODS, VALUES, ONEOFS = 4, 5, 6, 2, 2, 2, 8

SCALARS: Final = {
    Field.TYPE_STRING: "string",
    Field.TYPE_BYTES: "bytes",
    Field.TYPE_BOOL: "bool",
    Field.TYPE_UINT32: "uint32",
    Field.TYPE_UINT64: "uint64",
    Field.TYPE_INT32: "int32",
    Field.TYPE_INT64: "int64",
    Field.TYPE_DOUBLE: "double",
}
FORMATS: Final = {
    validate_pb2.STRING_FORMAT_ID: "a [name](#names-keys-and-json)",
    validate_pb2.STRING_FORMAT_KEY: "a [key](#names-keys-and-json)",
    validate_pb2.STRING_FORMAT_JSON: "[JSON](#names-keys-and-json)",
}

INTRO: Final = """# API reference

The protocol of mobd, package `mobd.v1`, as it is written in [proto/mobd/v1](../../proto/mobd/v1). What a call can fail
with is on [errors.md](errors.md), what can be in a log on [events.md](events.md).

A field with something in the column *must be* is checked before anything else looks at the request: a rule that is
broken is INVALID_ARGUMENT, reason `FIELD_INVALID`, with the path of the field. A field that need not be given is held
to its rule once it is given. Strings must not contain U+0000. What is *optional* tells "not given" from its zero value;
of the fields *of one choice* at most one is set.

## Names, keys and JSON
"""


class Source:
    """The protocol: its files, and what is written above each of their elements."""

    def __init__(self, root: Path) -> None:
        command = [str(BUF), "build", str(root), "--as-file-descriptor-set", "--output", "-"]
        built = subprocess.run(command, capture_output=True, check=False, cwd=root)
        if built.returncode:
            sys.exit(f"buf build failed:\n{built.stderr.decode(errors='replace')}")
        found = FileDescriptorSet.FromString(built.stdout)
        self.files = sorted((one for one in found.file if one.name.startswith(PACKAGE)), key=lambda one: one.name)
        self._comments = {
            (file.name, tuple(place.path)): place.leading_comments
            for file in self.files
            for place in file.source_code_info.location
        }

    def comment(self, file: FileDescriptorProto, name: str, *path: int) -> str:
        """Return the comment of an element; nothing in the protocol is without one."""
        text = " ".join(self._comments.get((file.name, path), "").split())
        if not text:
            sys.exit(f"{file.name}: {name} has no comment")
        return text

    def services(self) -> Iterator[tuple[FileDescriptorProto, int, ServiceDescriptorProto]]:
        """Yield each service in the order of their names."""
        found = [(file, place, one) for file in self.files for place, one in enumerate(file.service)]
        yield from sorted(found, key=lambda one: one[2].name)

    def messages(self) -> Iterator[tuple[FileDescriptorProto, int, DescriptorProto]]:
        """Yield each message in the order of the files."""
        for file in self.files:
            for place, message in enumerate(file.message_type):
                if any(not nested.options.map_entry for nested in message.nested_type) or message.enum_type:
                    sys.exit(f"{file.name}: {message.name} has other types within: this page does not show them")
                yield file, place, message


def page(root: Path) -> list[str]:
    """Return the lines of the page."""
    source = Source(root)
    lines = [*INTRO.splitlines(), ""]
    formats = next(one for file in source.files for one in file.enum_type if one.name == "StringFormat")
    validate = next(file for file in source.files if formats in file.enum_type)
    for place, value in enumerate(formats.value):
        if value.number in FORMATS:
            text = source.comment(validate, value.name, ENUMS, list(validate.enum_type).index(formats), VALUES, place)
            lines.append(f"- {text}")
    lines += ["", "## Services", ""]
    for _, _, service in source.services():
        methods = ", ".join(f"[{one.name}](#{_anchor(service.name, one.name)})" for one in service.method)
        lines.append(f"- [{service.name}](#{_anchor(service.name)}): {methods}")
    lines.append("")
    for file, place, service in source.services():
        lines += _service(source, file, place, service)
    for file in source.files:
        if file.name == validate.name or not (file.message_type or file.enum_type):
            continue
        lines += [f"## Messages of {file.name.removeprefix(PACKAGE)}", ""]
        for owner, place, message in source.messages():
            if owner is file:
                lines += _message(source, file, place, message)
        for place, enum in enumerate(file.enum_type):
            lines += _enum(source, file, place, enum)
    return lines


def anchors(root: Path) -> dict[str, str]:
    """Return the link to each message on this page, by the kinds of events whose payload it is."""
    source = Source(root)
    for file, place, message in source.messages():
        if message.name == "Event":
            return {
                kind.strip(): f"[{_short(field.type_name)}](api.md#{_anchor(_short(field.type_name))})"
                for index, field in enumerate(message.field)
                if field.HasField("oneof_index")
                for kind in source.comment(file, field.name, MESSAGES, place, FIELDS, index).rstrip(".").split(",")
            }
    sys.exit("the protocol has no message Event")


def _service(source: Source, file: FileDescriptorProto, place: int, service: ServiceDescriptorProto) -> list[str]:
    lines = [f"## {service.name}", "", source.comment(file, service.name, SERVICES, place), ""]
    for index, method in enumerate(service.method):
        asked = "a stream of " * method.client_streaming + _link(method.input_type)
        answered = "a stream of " * method.server_streaming + _link(method.output_type)
        lines += [
            f"### {service.name}.{method.name}",
            "",
            source.comment(file, method.name, SERVICES, place, METHODS, index),
            "",
            f"Takes {asked}, answers {answered}.",
            "",
        ]
    return lines


def _message(source: Source, file: FileDescriptorProto, place: int, message: DescriptorProto) -> list[str]:
    lines = [f"### {message.name}", "", source.comment(file, message.name, MESSAGES, place), ""]
    rows = []
    for index, field in enumerate(message.field):
        text = source.comment(file, f"{message.name}.{field.name}", MESSAGES, place, FIELDS, index)
        rows.append((code(field.name), _type(message, field), "; ".join(_rules_of(field)), text))
    if rows:
        lines += table(("field", "type", "must be", "meaning"), rows)
    for index, oneof in enumerate(message.oneof_decl):
        arms = [one for one in message.field if one.HasField("oneof_index") and one.oneof_index == index]
        if not arms[0].proto3_optional:
            required = oneof.options.Extensions[validate_pb2.choice_required]
            text = source.comment(file, f"{message.name}.{oneof.name}", MESSAGES, place, ONEOFS, index)
            names = ", ".join(code(one.name) for one in arms)
            lines += [f"{'Exactly' if required else 'At most'} one of {names} is set. {text}", ""]
    return lines


def _enum(source: Source, file: FileDescriptorProto, place: int, enum: EnumDescriptorProto) -> list[str]:
    rows = [
        (code(value.name), str(value.number), source.comment(file, value.name, ENUMS, place, VALUES, index))
        for index, value in enumerate(enum.value)
    ]
    text = source.comment(file, enum.name, ENUMS, place)
    return [f"### {enum.name}", "", text, "", *table(("value", "number", "meaning"), rows)]


def _type(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    nested = {f"{PREFIX}{message.name}.{one.name}": one for one in message.nested_type}
    if field.type_name in nested:
        key, value = nested[field.type_name].field
        return f"map of {_single(key)} to {_single(value)}"
    name = _single(field)
    if field.label == Field.LABEL_REPEATED:
        return f"list of {name}"
    if field.proto3_optional:
        return f"optional {name}"
    choice = field.HasField("oneof_index")
    return f"{name}, of the choice {code(message.oneof_decl[field.oneof_index].name)}" if choice else name


def _single(field: FieldDescriptorProto) -> str:
    return SCALARS[field.type] if field.type in SCALARS else _link(field.type_name)


def _link(name: str) -> str:
    return f"[{_short(name)}](#{_anchor(_short(name))})" if name.startswith(PREFIX) else _short(name)


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _anchor(*names: str) -> str:
    return "".join(names).lower()


def _rules_of(field: FieldDescriptorProto) -> list[str]:
    if not field.options.HasExtension(validate_pb2.rules):
        return []
    rules = field.options.Extensions[validate_pb2.rules]
    many = field.label == Field.LABEL_REPEATED
    words = [_required(field, many=many)] if rules.required else []
    words += _plain(rules)
    for name, part in (("item", rules.items), ("key", rules.keys), ("value", rules.values)):
        if part.ByteSize():
            each = ["given"] * part.required + _plain(part)
            words.append(f"each {name} {', '.join(each)}" if each else "")
    return [word for word in words if word]


def _required(field: FieldDescriptorProto, *, many: bool) -> str:
    if many:
        return "**at least one**"
    if field.type == Field.TYPE_BOOL:
        return "**true**"
    if field.type == Field.TYPE_ENUM:
        return "**given**"
    return "**given**" if field.type in (Field.TYPE_STRING, Field.TYPE_BYTES, Field.TYPE_MESSAGE) else "**not 0**"


def _plain(rules: Rules) -> list[str]:
    words = [FORMATS[rules.format]] if rules.format else []
    if rules.max_bytes:
        words.append(f"at most {size(rules.max_bytes)}")
    if rules.max_items:
        words.append(f"at most {rules.max_items:,} items")
    if rules.HasField("gte"):
        words.append(f"at least {rules.gte:,}")
    if rules.HasField("lte"):
        words.append(f"at most {rules.lte:,}")
    if rules.max_duration_ms:
        words.append(f"at most {duration(rules.max_duration_ms)}")
    return words
