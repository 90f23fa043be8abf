"""The state of a mob as JSON text, from which it is loaded without folding its whole log.

A snapshot is only ever a shorter way to what the log says: one that can't be used is passed over, and the log is
folded instead. It is a JSON array with a line for each piece: the mob without its large containers, and these in
pieces that are each read in about a millisecond, so that whoever reads one can let others run in between. `FORMAT`
changes with every change of `Mob` that an old text would be read wrongly by.
"""

from collections.abc import Generator, Iterator, Sequence
from itertools import pairwise
from typing import Final

import msgspec
from msgspec import Struct

from mobd_server.machines.interning import Sharing
from mobd_server.machines.settling import Settle, settler
from mobd_server.machines.state import Former, Ledger, Member, Mob, Operation

FORMAT: Final = 2
# A piece ends with the entry with which it is so long, in bytes.
PIECE_BYTES: Final = 1 << 16


class Piece(Struct, omit_defaults=True):
    """Some entries of one of the large containers of a mob, which have the same names there.

    The containers come in the order in which they stand here: members share what the others have.
    """

    operations: dict[str, Operation] = {}
    receipts: dict[str, bytes] = {}
    requests: dict[str, Ledger] = {}
    former: dict[str, Former] = {}
    members: dict[str, Member] = {}


_encode: Final = msgspec.json.Encoder(order="deterministic").encode
_decode_mob: Final = msgspec.json.Decoder(Mob).decode
_decode_piece: Final = msgspec.json.Decoder(Piece).decode


class SnapshotUnusable(Exception):
    """A text is no snapshot of this format; the message says why."""


def encode(mob: Mob) -> bytes:
    """Return the state as JSON. States that were folded from the same log have the same bytes."""
    return b"[\n" + b",\n".join(_pieces(mob)) + b"\n]"


def decode(text: bytes | str) -> Mob:
    """Return the state that `encode` wrote; it shares no memory with `text`. Raises SnapshotUnusable."""
    reading = read(text)
    while True:
        try:
            next(reading)
        except StopIteration as done:
            mob: Mob = done.value
            return mob


def read(text: bytes | str) -> Generator[None, None, Mob]:
    """Do what `decode` does, piece by piece: yield after each, and return the state."""
    lines = _lines(text if isinstance(text, str) else _text(text))
    try:
        mob: Mob = _SETTLE_MOB(_decode_mob(next(lines, "")))
        sharing = Sharing(mob)
        for line in lines:
            yield
            piece: Piece = _SETTLE_PIECE(_decode_piece(line))
            for name in _CONTAINERS:
                getattr(mob, name).update(getattr(piece, name))
            sharing.operations(piece.operations)
            sharing.members(piece.members)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise SnapshotUnusable(str(error)) from error
    return mob


def take(mob: Mob) -> bytes:
    """Return the state as JSON that was read back and is the same state. Raises SnapshotUnusable if it is not."""
    text = encode(mob)
    if decode(text) != mob:
        raise SnapshotUnusable(f"the state of mob '{mob.mob_id}' at {mob.head} does not come back as it was")
    return text


def _pieces(mob: Mob) -> Iterator[bytes]:
    """Yield the lines of a text."""
    yield _encode(msgspec.structs.replace(mob, **{name: {} for name in _CONTAINERS}))
    for container in _CONTAINERS:
        entries: list[bytes] = []
        size = 0
        whole = getattr(mob, container)
        for name in sorted(whole):
            entries.append(_encode(name) + b":" + _encode(whole[name]))
            size += len(entries[-1])
            if size >= PIECE_BYTES:
                yield _piece(container, entries)
                entries, size = [], 0
        if entries:
            yield _piece(container, entries)


def _piece(container: str, entries: list[bytes]) -> bytes:
    return b'{"%s":{%s}}' % (container.encode(), b",".join(entries))


def _text(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise SnapshotUnusable(str(error)) from error


def _lines(text: str) -> Iterator[str]:
    """Yield the pieces of a text, of which there is one at least."""
    if not (text.startswith("[\n") and text.endswith("\n]")):
        raise ValueError("it is no list of pieces")
    at = 2
    while at < len(text) - 1:
        end = text.index("\n", at)
        # All but the last end with a comma.
        yield text[at : end - 1] if end < len(text) - 2 else text[at:end]
        at = end + 1


def superfluous(seqs: Sequence[int], spacing: int) -> list[int]:
    """Return those of a mob's snapshots, given by their seqs in order, that need not be kept.

    The newest two stay. Behind them two that are kept are never farther apart than half the way from the older one to
    the newest, or than `spacing` events: a state of the past is folded from at most half the log, and at most
    2 · log2(newest / spacing) + 4 snapshots stay.
    """
    dropped: list[int] = []
    # The log's beginning needs no snapshot.
    older = 0
    for seq, younger in pairwise(seqs[:-1]):
        if younger - older <= max(spacing, (seqs[-1] - older) / 2):
            dropped.append(seq)
        else:
            older = seq
    return dropped


_CONTAINERS: Final = Piece.__struct_fields__
_SETTLE_MOB: Final[Settle] = settler(Mob) or (lambda value: value)
_SETTLE_PIECE: Final[Settle] = settler(Piece) or (lambda value: value)
