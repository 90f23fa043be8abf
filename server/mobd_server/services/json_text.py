"""Whether a text is JSON that mobd takes: exact syntax, decodable to the last number, not too deep."""

import re
from array import array
from itertools import accumulate
from typing import Final

import msgspec

MAX_NESTING: Final = 128

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_STEP = bytes(1 if chr(byte) in "[{" else 255 if chr(byte) in "]}" else 0 for byte in range(256))
_NO_BRACKET = bytes(byte for byte in range(256) if chr(byte) not in "[]{}")


def fault(text: str) -> str | None:
    """Return what is wrong with `text` as JSON, or None.

    It is decoded in full and not only scanned: what can't be decoded here (a lone surrogate, 1e999) could not be
    canonicalised for a digest later.
    """
    # Counted first: the decoder's own recursion limit says nothing that a caller can use. A bracket within a string
    # counts here and is taken out only when it might matter.
    if text.count("[") + text.count("{") > MAX_NESTING and _nesting(text.encode()) > MAX_NESTING:
        return f"must nest at most {MAX_NESTING} levels deep"
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        return f"must be a JSON text: {error}"
    return None


def _nesting(text: bytes) -> int:
    # No loop in Python: a quarter of a megabyte of brackets must not hold up the event loop.
    brackets = _STRING.sub(b"", text).translate(_STEP, _NO_BRACKET)
    return max(accumulate(array("b", brackets)), default=0)
