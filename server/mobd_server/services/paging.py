"""Where a list goes on: opaque to callers, and good only for the question that it came from."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Final, TypeVar

from mobd_server.errors import FieldInvalid, Violation

T = TypeVar("T")

DEFAULT_PAGE: Final = 100
# A page ends early at this size: what it lists may carry much, and a message may hold 4 MiB.
PAGE_BYTES: Final = 1 << 20
_DIGEST_BYTES: Final = 8


def page_token(question: object, after: str) -> str:
    """Return the token of the page that begins after `after`; empty if there is none."""
    return urlsafe_b64encode(_digest(question) + after.encode()).decode().rstrip("=") if after else ""


def page_start(question: object, token: str) -> str:
    """Return what the page begins after. Raises FieldInvalid for a token of another question."""
    if not token:
        return ""
    try:
        raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
        after = raw[_DIGEST_BYTES:].decode()
    except ValueError:
        raw, after = b"", ""
    # Anybody can put a token together. What is behind the digest goes to the store, and some stores can't take a zero.
    if not after or "\0" in after or raw[:_DIGEST_BYTES] != _digest(question):
        raise _foreign()
    return after


def page_start_number(question: object, token: str) -> int:
    """Return the number that the page begins after, or 0. Raises FieldInvalid for a token of another question."""
    try:
        return int(page_start(question, token) or 0)
    except ValueError:
        raise _foreign() from None


def fill(items: Iterable[T], size: Callable[[T], int], limit: int) -> tuple[list[T], bool]:
    """Take items until the page is full; return them and whether any is left."""
    page: list[T] = []
    room = PAGE_BYTES
    for item in items:
        room -= size(item)
        if page and (len(page) >= limit or room < 0):
            return page, True
        page.append(item)
    return page, False


def _foreign() -> FieldInvalid:
    legal = "must be the next_page_token of an answer to this request with the same filters"
    return FieldInvalid([Violation("page_token", legal, "FOREIGN_TOKEN")])


def _digest(question: object) -> bytes:
    return blake2b(repr(question).encode(), digest_size=_DIGEST_BYTES).digest()
