"""The limits of the protocol, as they stand beside its fields."""

from google.protobuf.descriptor import Descriptor

from mobd.v1 import validate_pb2


def of(message: Descriptor, field: str) -> validate_pb2.FieldRules:
    """Return the rules of a field."""
    rules: validate_pb2.FieldRules = message.fields_by_name[field].GetOptions().Extensions[validate_pb2.rules]
    return rules


def clean(text: str, max_bytes: int) -> str:
    """Return a text as the protocol can carry it: no U+0000, nothing that is no UTF-8, and not too long."""
    encoded = text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace")[:max_bytes]
    return encoded.decode(errors="ignore")
