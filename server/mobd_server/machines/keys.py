"""What a member remembers of its inputs, by key, so that a delivery that is repeated never runs twice.

Most of what a mob holds is this, and most of it belongs to members that do nothing. So an entry is packed into bytes:
of an input that has not ended, its content and what accepted it; of one that has, also its key and its end. A few ended
ones are one text, oldest end first, that is read from its beginning to its end; more have a dict, and their order
beside it. Which of the two it is follows from the number alone, so that the same log makes the same state.
"""

from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from typing import Final

from msgspec import Struct

from mobd_server.machines.state import Former, Many, Member
from mobd_server.machines.undo import Undo

# So many ended inputs are one text: to look for a key in it takes less than a dict takes memory.
FEW: Final = 8

_KEY: Final = 12
_HASH: Final = 16
# An event, as its seq (48 bits) and its time (56 bits: µs since 1970), the highest byte first.
_EVENT: Final = 13
_AT: Final = (1 << 56) - 1
# A live entry: content hash, event, name. An ended one: key, end, and the live entry.
_NAME: Final = _HASH + _EVENT
_LIVE: Final = _KEY + _EVENT
# A name is one byte that says how long it is, and its text; 0 stands for a canonical id as servers make them, which is
# this prefix and hexadecimal digits, packed.
_PREFIX: Final = "in-"
_PACKED: Final = 12
_PREFIXED: Final = len(_PREFIX) + 2 * _PACKED

_number: Final = int.from_bytes


class Dedupe(Struct, frozen=True, gc=False):
    """What is remembered of an input, live or ended; the rest is read from the event at `seq`. Times are µs."""

    content_hash: bytes
    canonical_input_id: str
    seq: int
    at: int
    # The event that ended it; 0 while it is live.
    end_seq: int = 0
    end_at: int = 0


@lru_cache(maxsize=256)
def input_key(input_id: str) -> str:
    """Return the key (96 bits, hexadecimal) under which a caller's input_id is remembered.

    A decision asks for it before it is made and when it is applied.
    """
    return blake2b(input_id.encode(), digest_size=_KEY).hexdigest()


def content_hash(content: bytes | memoryview) -> bytes:
    """Return the 128-bit hash by which a repeated delivery is compared with the first."""
    return blake2b(content, digest_size=_HASH).digest()


def find(holder: Member | Former, key: str) -> Dedupe | None:
    """Return what is remembered under a key."""
    live = holder.live if isinstance(holder, Member) else None
    if live is not None:
        entry = live.get(key)
        if entry is not None:
            return _read(entry, 0)
    ended = holder.ended
    if not ended:
        return None
    if isinstance(ended, Many):
        entry = ended.records.get(key)
        return _read(entry, _EVENT, 0) if entry is not None else None
    packed = bytes.fromhex(key)
    at, start = ended.find(packed), 0
    while at >= 0:
        # What was found may lie across two entries.
        while start < at:
            start += _size(ended, start)
        if start == at:
            return _read(ended, at + _LIVE, at + _KEY)
        at = ended.find(packed, at + 1)
    return None


def remembered(holder: Member | Former) -> list[Dedupe]:
    """Return all that is remembered, in no particular order."""
    live = holder.live if isinstance(holder, Member) else None
    found = [_read(one, 0) for one in (live or {}).values()]
    ended = holder.ended
    if isinstance(ended, Many):
        found += [_read(one, _EVENT, 0) for one in ended.records.values()]
    else:
        found += [_read(ended, start + _LIVE, start + _KEY) for start in _starts(ended)]
    return found


def count_ended(holder: Member | Former) -> int:
    """Return how many inputs that have ended are remembered."""
    ended = holder.ended
    return len(ended.records) if isinstance(ended, Many) else sum(1 for _ in _starts(ended))


def accept(undo: Undo, member: Member, key: str, content: bytes, canonical_id: str, seq: int, at: int) -> None:
    """Remember an input that was accepted; the member is touched. Raises ValueError if the key is known."""
    if find(member, key) is not None:
        raise ValueError(f"input {canonical_id} was accepted twice")
    entry = content_hash(content) + (seq << 56 | at).to_bytes(_EVENT) + _named(canonical_id)
    if member.live is None:
        member.live = {}
    undo.put(member.live, key, entry)


def end(undo: Undo, member: Member, key: str, seq: int, at: int) -> None:
    """Remember that a live input ended; the member is touched. Raises ValueError and KeyError if it is not live."""
    live, ended = member.live, member.ended
    if live is None:
        raise ValueError(f"member {member.member_id} knows no input that has not ended")
    entry = (seq << 56 | at).to_bytes(_EVENT) + undo.drop(live, key)
    if not live:
        member.live = None
    packed = bytes.fromhex(key)
    if not isinstance(ended, Many):
        member.ended = _indexed(ended + packed + entry)
        return
    undo.put(ended.records, key, entry)
    undo.splice(ended.order, len(ended.order), len(ended.order), packed)


def outlived(member: Member, horizon: int, keep: int, at_most: int) -> list[str]:
    """Return the keys of ended inputs that may be forgotten, oldest end first, at most so many.

    Those are what ended before `horizon` (µs), and what is more than the newest `keep`, which are more than a few.
    """
    ended = member.ended
    if not ended:
        return []
    if isinstance(ended, Many):
        excess = len(ended.records) - keep
        oldest = _time(ended.records[ended.order[:_KEY].hex()], 0)
    else:
        excess = 0
        oldest = _time(ended, _KEY)
    if excess <= 0 and oldest >= horizon:
        # As it nearly always is.
        return []
    keys: list[str] = []
    for key, end_at in _ends(ended):
        if len(keys) == at_most or (excess <= 0 and end_at >= horizon):
            break
        excess -= 1
        keys.append(key)
    return keys


def forget(undo: Undo, member: Member, keys: list[str]) -> None:
    """Forget ended inputs, and note up to when; the member is touched. Raises ValueError if they are not the oldest."""
    packed = bytes.fromhex("".join(keys))
    ended = member.ended
    if isinstance(ended, Many):
        if not ended.order.startswith(packed):
            raise ValueError(f"member {member.member_id} can't forget inputs that are not its oldest")
        undo.splice(ended.order, 0, len(packed), b"")
        gone = [undo.drop(ended.records, key) for key in keys]
        member.forgotten_at = max(member.forgotten_at, *(_time(one, _EVENT + _HASH) for one in gone))
        member.ended = _unindexed(ended)
        return
    starts = [*_starts(ended), len(ended)]
    if b"".join(ended[start : start + _KEY] for start in starts[: len(keys)]) != packed:
        raise ValueError(f"member {member.member_id} can't forget inputs that are not its oldest")
    accepted = (_time(ended, start + _LIVE + _HASH) for start in starts[: len(keys)])
    member.forgotten_at = max(member.forgotten_at, *accepted)
    member.ended = ended[starts[len(keys)] :]


# How it is packed.


def _time(text: bytes, start: int) -> int:
    return _number(text[start : start + _EVENT]) & _AT


def _named(name: str) -> bytes:
    if len(name) == _PREFIXED:
        try:
            packed = bytes.fromhex(name[3:])
        except ValueError:
            packed = b""
        if _PREFIX + packed.hex() == name:
            return b"\0" + packed
    text = name.encode()
    # Longer ones raise a ValueError: no server made them.
    return bytes((len(text),)) + text


def _read(text: bytes, start: int, end_start: int | None = None) -> Dedupe:
    """Return the entry whose live part begins at `start`, and its end, if there is one, at `end_start`."""
    event = _number(text[start + _HASH : start + _NAME])
    at, size = start + _NAME + 1, text[start + _NAME]
    name = text[at : at + size].decode() if size else _PREFIX + text[at : at + _PACKED].hex()
    if end_start is None:
        return Dedupe(text[start : start + _HASH], name, event >> 56, event & _AT)
    ended = _number(text[end_start : end_start + _EVENT])
    return Dedupe(text[start : start + _HASH], name, event >> 56, event & _AT, ended >> 56, ended & _AT)


def _size(ended: bytes, start: int) -> int:
    return _LIVE + _NAME + 1 + (ended[start + _LIVE + _NAME] or _PACKED)


def _starts(ended: bytes) -> Iterator[int]:
    """Yield where the entries of ended inputs begin."""
    start = 0
    while start < len(ended):
        yield start
        start += _size(ended, start)


def _ends(ended: Many | bytes) -> Iterator[tuple[str, int]]:
    """Yield the keys of ended inputs and when they ended, oldest end first."""
    if isinstance(ended, bytes):
        for start in _starts(ended):
            yield ended[start : start + _KEY].hex(), _time(ended, start + _KEY)
        return
    for at in range(0, len(ended.order), _KEY):
        key = ended.order[at : at + _KEY].hex()
        yield key, _time(ended.records[key], 0)


def _indexed(ended: bytes) -> bytes | Many:
    """Return the entries as a text, or with a dict if they are more than a few."""
    starts = [*_starts(ended), len(ended)]
    if len(starts) - 1 <= FEW:
        return ended
    records, order = {}, bytearray()
    for start, stop in pairwise(starts):
        packed = ended[start : start + _KEY]
        records[packed.hex()] = ended[start + _KEY : stop]
        order += packed
    return Many(records, order)


def _unindexed(ended: Many) -> bytes | Many:
    """Return the entries with their dict, or as a text if they are no more than a few."""
    if len(ended.records) > FEW:
        return ended
    keys = [bytes(ended.order[at : at + _KEY]) for at in range(0, len(ended.order), _KEY)]
    return b"".join(key + ended.records[key.hex()] for key in keys)
