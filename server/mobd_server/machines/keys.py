"""The keys under which inputs are remembered."""

from hashlib import blake2b


def input_key(input_id: str) -> str:
    """Return the key (96 bits, hexadecimal) under which a caller's input_id is remembered."""
    return blake2b(input_id.encode(), digest_size=12).hexdigest()
