"""Makes requests out of the protocol's descriptors, from a seed: most of them valid, or nearly.

A request is made with a temper. A careful one keeps every rule that is written beside the fields, so that it is only
refused by what stands behind them; a careless one breaks a rule here and there; a wild one everywhere.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from random import Random
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from tests.fuzz import documents, wire
from tests.fuzz.words import Words

from mobd.v1 import validate_pb2
from mobd_server.adapters.rpc.validate import is_map, is_repeated, rules_of

Rules = validate_pb2.FieldRules

CAREFUL, CARELESS, WILD = 0.0, 0.08, 0.5
TEMPERS: Final = (CAREFUL, CAREFUL, CAREFUL, CARELESS, CARELESS, WILD)
# How many of the messages are spoilt as bytes.
SPOILT: Final = 0.12
# How many of the texts that may be left out are there and empty.
EMPTY: Final = 0.04
MAX_DEPTH: Final = 12
# What the parts of one message hold together, so that lists of long texts stay short.
MAX_BYTES: Final = 1 << 20

BAD_NAMES: Final = ("", "-a", "__flow_x", "a b", "a" * 129, "é", "a\n", "a\0", "\0", "a/b", "%", "a" * 100_000)
UNSIGNED: Final = (0, 1, 2, 3, 100, 255, 256, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
LONG: Final = (*UNSIGNED, 1 << 32, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
DOUBLES: Final = (0.0, -0.0, 1.5, 1e308, 5e-324, float("inf"), float("-inf"), float("nan"))
SECONDS: Final = (0, 1, -1, 60, 61, 315_576_000_000, 253_402_300_799, 253_402_300_800, -62_135_596_800, (1 << 63) - 1)
NANOS: Final = (0, 1, 999_999_999, 1_000_000_000, -1, (1 << 31) - 1, -(1 << 31))

F = FieldDescriptor
RANGES: Final = {
    F.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    F.TYPE_SINT32: (-(1 << 31), (1 << 31) - 1),
    F.TYPE_SFIXED32: (-(1 << 31), (1 << 31) - 1),
    F.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    F.TYPE_SINT64: (-(1 << 63), (1 << 63) - 1),
    F.TYPE_SFIXED64: (-(1 << 63), (1 << 63) - 1),
    F.TYPE_UINT32: (0, (1 << 32) - 1),
    F.TYPE_FIXED32: (0, (1 << 32) - 1),
    F.TYPE_UINT64: (0, (1 << 64) - 1),
    F.TYPE_FIXED64: (0, (1 << 64) - 1),
}


class Generator:
    """Makes messages; the same seed and the same words make the same messages."""

    def __init__(self, rng: Random, words: Words) -> None:
        self.rng = rng
        self._words = words
        self._wildness = CAREFUL
        self._room = MAX_BYTES

    def raw(self, descriptor: Descriptor) -> bytes:
        """Return the bytes of a message, or of what is none."""
        raw: bytes = self.message(descriptor).SerializeToString()
        while self.rng.random() < SPOILT:
            raw = wire.spoil(self.rng, raw)
        return raw

    def message(self, descriptor: Descriptor) -> Any:
        """Return a message of a temper that the dice choose."""
        self._wildness = self.rng.choice(TEMPERS)
        self._room = MAX_BYTES
        return self._message(descriptor, 0)

    def careful(self, descriptor: Descriptor) -> Any:
        """Return a message that breaks no rule that is written beside its fields."""
        self._wildness = CAREFUL
        self._room = MAX_BYTES
        return self._message(descriptor, 0)

    def _wild(self) -> bool:
        return self.rng.random() < self._wildness

    def _message(self, descriptor: Descriptor, depth: int) -> Any:
        message = GetMessageClass(descriptor)()
        if descriptor.full_name in ("google.protobuf.Timestamp", "google.protobuf.Duration"):
            raise AssertionError("made with the rules of their field")
        if depth > MAX_DEPTH:
            return message
        for field in descriptor.fields:
            oneof = field.containing_oneof
            if (oneof is None or len(oneof.fields) == 1) and self._given(field):
                self._put(message, field, depth)
        for oneof in descriptor.oneofs:
            if len(oneof.fields) > 1:
                required = oneof.GetOptions().Extensions[validate_pb2.choice_required]
                if (required and not self._wild()) or self.rng.random() < 0.5:
                    self._put(message, self.rng.choice(oneof.fields), depth)
        return message

    def _given(self, field: FieldDescriptor) -> bool:
        rules = rules_of(field) or Rules()
        if self._wild():
            return self.rng.random() < 0.5
        needed = rules.required or rules.gte > 0
        # Whoever acts must hold a run, and whoever only asks changes nothing: both are rare.
        rare = 0.08 if field.name in ("acting", "fence", "validate_only", "run_id", "log_id") else 0.4
        return needed or self.rng.random() < rare

    def _put(self, message: Any, field: FieldDescriptor, depth: int) -> None:
        rules = rules_of(field) or Rules()
        if is_map(field):
            self._put_map(message, field, rules)
        elif is_repeated(field):
            self._put_items(getattr(message, field.name), field, rules, depth)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(self._part(field, rules, depth))
        else:
            setattr(message, field.name, self._scalar(field, rules, message))

    def _part(self, field: FieldDescriptor, rules: Rules, depth: int) -> Message:
        assert field.message_type is not None
        name = field.message_type.full_name
        if name == "google.protobuf.Timestamp":
            return self._time(field.message_type)
        if name == "google.protobuf.Duration":
            return self._duration(field.message_type, rules)
        part: Message = self._message(field.message_type, depth + 1)
        return part

    def _put_items(self, items: Any, field: FieldDescriptor, rules: Rules, depth: int) -> None:
        count = self._count(rules)
        for _ in range(count):
            if self._room <= 0:
                return
            if field.message_type is not None:
                part = self._part(field, rules.items, depth)
                self._room -= part.ByteSize()
                items.append(part)
            else:
                items.append(self._scalar(field, rules.items))
                self._room -= 16
        if count and self.rng.random() < 0.1:
            # The same thing twice in one request.
            items.append(items[0])

    def _count(self, rules: Rules) -> int:
        most = rules.max_items or 8
        if self._wild():
            return self.rng.choice((0, 1, 3, min(most + 1, 1_100)))
        if self.rng.random() < 0.01:
            return min(most, 1_024)
        return max(int(rules.required), self.rng.choice((0, 1, 1, 1, 2, 3)))

    def _put_map(self, message: Any, field: FieldDescriptor, rules: Rules) -> None:
        assert field.message_type is not None
        entry = field.message_type.fields_by_name
        into = getattr(message, field.name)
        for _ in range(self._count(rules)):
            key = self._scalar(entry["key"], rules.keys)
            if entry["value"].message_type is not None:
                into[key].CopyFrom(self._part(entry["value"], rules.values, MAX_DEPTH))
            else:
                into[key] = self._scalar(entry["value"], rules.values)

    def _scalar(self, field: FieldDescriptor, rules: Rules, message: Any = None) -> Any:
        if field.enum_type is not None:
            return self._enum(field, rules)
        if field.type == F.TYPE_BOOL:
            return rules.required or self.rng.random() < 0.5
        if field.type in (F.TYPE_DOUBLE, F.TYPE_FLOAT):
            return self.rng.choice(DOUBLES)
        if field.type == F.TYPE_STRING:
            return self._string(field, rules, message)
        if field.type == F.TYPE_BYTES:
            return self._bytes(rules)
        return self._number(field, rules)

    def _enum(self, field: FieldDescriptor, rules: Rules) -> int:
        assert field.enum_type is not None
        if self._wild() and not field.enum_type.is_closed:
            return self.rng.choice((0, 99, -1, (1 << 31) - 1, -(1 << 31)))
        known = [value.number for value in field.enum_type.values]
        return self.rng.choice([number for number in known if number or not rules.required])

    def _number(self, field: FieldDescriptor, rules: Rules) -> int:
        low, high = RANGES[field.type]
        if self._wild():
            return max(low, min(high, self.rng.choice(LONG) * self.rng.choice((1, -1))))
        known = self._words.pick(self.rng, field.name)
        if isinstance(known, int) and self.rng.random() < 0.8:
            return known
        if rules.HasField("gte"):
            low = rules.gte
        elif rules.required:
            low = 1
        if rules.HasField("lte"):
            high = rules.lte
        legal = [number for number in LONG if low <= number <= high]
        return self.rng.choice([low, high, *legal])

    def _string(self, field: FieldDescriptor, rules: Rules, message: Any) -> str:
        if field.full_name.startswith("mobd.v1.DefinitionDocument."):
            return documents.definition(self.rng, field.name)
        if self._wild():
            return self._bad(rules)
        if not rules.required and self.rng.random() < EMPTY:
            return ""
        known = self._words.pick(self.rng, field.name)
        if field.name == "page_token" and isinstance(known, str):
            return self._token(known)
        limit = min(rules.max_bytes or 128, max(self._room, 1))
        if rules.format in (validate_pb2.STRING_FORMAT_ID, validate_pb2.STRING_FORMAT_KEY):
            return self._name(known)
        if rules.format == validate_pb2.STRING_FORMAT_JSON:
            made = documents.json_text(self.rng, limit)
        elif isinstance(known, str):
            made = known
        else:
            made = documents.text(self.rng, limit)
        self._room -= len(made)
        return made or "x"

    def _name(self, known: str | int | None) -> str:
        dice = self.rng.random()
        if isinstance(known, str) and dice < 0.93:
            return known
        if dice < 0.98:
            return f"x{self.rng.randrange(10_000)}"
        return "z" * 128

    def _bad(self, rules: Rules) -> str:
        if rules.format == validate_pb2.STRING_FORMAT_JSON:
            return self.rng.choice(documents.BAD_JSON)
        if rules.format in (validate_pb2.STRING_FORMAT_ID, validate_pb2.STRING_FORMAT_KEY):
            return self.rng.choice(BAD_NAMES)
        if rules.max_bytes and self.rng.random() < 0.1:
            return self.rng.choice("xé") * (rules.max_bytes + 1)
        return self.rng.choice((*documents.BAD_TEXTS, *documents.TEXTS))

    def _token(self, known: str) -> str:
        """Return a page's token, also one that somebody made out of a good one."""
        return self.rng.choice(_TOKENS)(self.rng, known)

    def _bytes(self, rules: Rules) -> bytes:
        if self._wild():
            return self.rng.choice((b"", b"\0", b"x" * ((rules.max_bytes or 1_000) + 1)))
        return self.rng.randbytes(self.rng.choice((1, 1, 10, 1_000)))

    def _time(self, descriptor: Descriptor) -> Message:
        made = GetMessageClass(descriptor)
        if self._wild():
            return made(seconds=self.rng.choice(SECONDS), nanos=self.rng.choice(NANOS))
        seconds = self.rng.choice((0, 1, 1_700_000_000, 253_402_300_799, -62_135_596_800))
        return made(seconds=seconds, nanos=self.rng.choice(NANOS[:3]))

    def _duration(self, descriptor: Descriptor, rules: Rules) -> Message:
        made = GetMessageClass(descriptor)
        if self._wild():
            return made(seconds=self.rng.choice(SECONDS), nanos=self.rng.choice(NANOS))
        if self.rng.random() < 0.1:
            return made(seconds=(rules.max_duration_ms or 1_000) // 1_000)
        return made(nanos=self.rng.choice(NANOS[:3]))


def _same(_: Random, token: str) -> str:
    return token


def _shorter(rng: Random, token: str) -> str:
    return token[: rng.randrange(len(token) + 1)]


def _longer(rng: Random, token: str) -> str:
    return token + rng.choice(("A", "=", "é", "\x7f", "AAAA", "_" * 300))


def _other_end(rng: Random, token: str) -> str:
    """Keep the digest of the question, which stands first, and put something else behind it."""
    raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    other = rng.choice(
        (b"", b"\0", b"-1", b"99999999999999999999", b"x", b"\xff", b"1/2/3", b" 1", b"1e3", "é".encode())
    )
    return urlsafe_b64encode(raw[:8] + other).decode().rstrip("=")


_TOKENS: Final[tuple[Callable[[Random, str], str], ...]] = (
    _same,
    _same,
    _same,
    _shorter,
    _longer,
    _other_end,
    _other_end,
)
