"""Reading events, and beginning to read many mobs at once, on a connection that has begun."""

import typing
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final

import msgspec
from msgspec import structs
from sqlalchemy import Connection, Select, and_, bindparam, func, or_, select, update

from mobd_server.adapters.sql import snapshots
from mobd_server.adapters.sql.purge import DELETING
from mobd_server.adapters.sql.rows import FORMAT
from mobd_server.adapters.sql.tables import events, mobs
from mobd_server.adapters.sql.tables import snapshots as kept
from mobd_server.errors import MobdError, MobFormatNewer, MobQuarantined
from mobd_server.machines.events import BY_KIND
from mobd_server.machines.records import Record
from mobd_server.machines.upcast import upcast
from mobd_server.ports import Beginning, Loaded, Wanted

_DECODE: Final = {key: msgspec.json.Decoder(kind).decode for key, kind in BY_KIND.items()}

# How many events are read before it is known how large they are.
FIRST_ROWS: Final = 32

# By position: a page of events is mostly this.
_fill: Final[Callable[..., Record]] = Record

# The columns in the order of the struct, which ends with the decoded event and what is made of it.
_COLUMNS: Final = tuple(events.c[name] for name in Record.__struct_fields__[:-2])
_types: Final = typing.get_type_hints(Record)
_decode_rows: Final[Callable[[str], list[tuple[Any, ...]]]] = msgspec.json.Decoder(
    list[tuple[tuple(_types[column.name] for column in _COLUMNS)]]  # type: ignore[misc]  # as many as there are columns
).decode
_decode_many: Final[Callable[[str], list[tuple[Any, ...]]]] = msgspec.json.Decoder(
    list[tuple[(str, *(_types[column.name] for column in _COLUMNS))]]  # type: ignore[misc]  # as above
).decode
_place: Final = itemgetter(0, 1)
_SEQ, _KIND, _V, _PAYLOAD = (Record.__struct_fields__.index(name) for name in ("seq", "kind", "v", "payload"))


def select_events() -> Select[Any]:
    """Return a query of events that `record` understands."""
    return select(*_COLUMNS)


# Made once: to put a statement together takes longer than to read its page.
_PAGE: Final = (
    select_events()
    .where(events.c.mob_id == bindparam("mob_id"), events.c.seq > bindparam("after"))
    .order_by(events.c.seq)
    .limit(bindparam("limit"))
)
# SQLite's driver lets go of the interpreter at every row, and has to get hold of it again: with others at work that
# takes five times as long as the row. So a page is one row there, of JSON.
_PAGE_AS_JSON: Final = select(func.json_group_array(func.json_array(*_PAGE.subquery().c)))


_THESE: Final = (
    select_events()
    .where(events.c.mob_id == bindparam("mob_id"), events.c.seq.in_(bindparam("seqs", expanding=True)))
    .order_by(events.c.seq)
)


def record(mob_id: str, row: Sequence[Any]) -> Record:
    """Return a row of `select_events` with its event decoded. Raises MobQuarantined and MobFormatNewer."""
    kind, v, payload = row[_KIND], row[_V], row[_PAYLOAD]
    decode = _DECODE.get((kind, v))
    try:
        if decode is not None:
            return _fill(*row, decode(payload))
        lifted = upcast(kind, v, payload)
        if lifted is not None:
            newer, payload = lifted
            event = _DECODE[kind, newer](payload)
            return structs.replace(_fill(*row, event), v=newer, payload=payload)
    except msgspec.MsgspecError as error:
        raise MobQuarantined(
            f"event {row[_SEQ]} of mob '{mob_id}' can't be decoded: {error}",
            {"mob_id": mob_id, "seq": str(row[_SEQ])},
        ) from error
    raise MobFormatNewer(
        f"event {row[_SEQ]} of mob '{mob_id}' is {kind} version {v}, which this mobd does not know",
        {"mob_id": mob_id, "seq": str(row[_SEQ]), "kind": kind},
    )


def read_events(connection: Connection, mob_id: str, after: int, limit: int, max_bytes: int) -> list[Record]:
    """Return a page of events; see ports.Store."""
    found: list[Record] = []
    size = 0
    while size < max_bytes and len(found) < limit:
        count = _count(len(found), size, limit, max_bytes)
        rows = _rows(connection, mob_id, after, count)
        for row in rows:
            found.append(record(mob_id, row))
            size += len(row[_PAYLOAD])
            if size >= max_bytes:
                break
        if len(rows) < count:
            break
        after = found[-1].seq
    return found


def read_these(connection: Connection, mob_id: str, seqs: Sequence[int]) -> list[Record]:
    """Return the events with these seqs that are there, in order; see ports.Store."""
    rows = connection.execute(_THESE, {"mob_id": mob_id, "seqs": list(seqs)}).all()
    return [record(mob_id, row) for row in rows]


def _count(had: int, size: int, limit: int, max_bytes: int) -> int:
    """Return how many rows are worth reading at once: as many as fit if they are as large as those before them."""
    left = limit - had
    return min(left, FIRST_ROWS if not had else max(1, (max_bytes - size) * had // max(1, size)))


def _rows(connection: Connection, mob_id: str, after: int, limit: int) -> Sequence[Sequence[Any]]:
    binds = {"mob_id": mob_id, "after": after, "limit": limit}
    if connection.dialect.name != "sqlite":
        return connection.execute(_PAGE, binds).all()
    # In order as it comes, though nothing says so.
    return sorted(_decode_rows(connection.execute(_PAGE_AS_JSON, binds).scalar_one()))


def acquire_many(connection: Connection, mob_ids: Sequence[str]) -> dict[str, Loaded | None]:
    """Take over the mobs that can be taken at once; see ports.Store."""
    there = select(mobs.c.mob_id).where(mobs.c.mob_id.in_(mob_ids), mobs.c.phase != DELETING)
    # Who waits here for one row would make all of them wait.
    free = there.where(mobs.c.format <= FORMAT).with_for_update(skip_locked=True)
    mine = list(connection.execute(free).scalars())
    taken: dict[str, Loaded | None] = {}
    if mine:
        columns = (mobs.c.mob_id, mobs.c.epoch, mobs.c.head, mobs.c.first_seq, mobs.c.log_id)
        raised = update(mobs).where(mobs.c.mob_id.in_(mine)).values(epoch=mobs.c.epoch + 1).returning(*columns)
        taken = {mob_id: Loaded(*row) for mob_id, *row in connection.execute(raised)}
    if len(taken) < len(mob_ids):
        left = set(connection.execute(there).scalars())
        taken |= {mob_id: None for mob_id in mob_ids if mob_id not in left}
    return taken


def read_many(connection: Connection, wanted: Sequence[Wanted], limit: int, max_bytes: int) -> list[Beginning]:
    """Return where the states of mobs begin, for the first of those that are wanted; see ports.Store."""
    newest = _newest(connection, wanted)
    found: dict[str, Beginning] = {}
    size = 0
    for one in wanted:
        if size >= max_bytes:
            break
        seq = newest.get(one.mob_id)
        snapshot = snapshots.newest(connection, one.mob_id, seq) if seq is not None else None
        found[one.mob_id] = Beginning(snapshot, [])
        size += len(snapshot.state) if snapshot is not None else 0
    broken: set[str] = set()
    for mob_id, *row in _first_rows(connection, found, limit, max_bytes):
        if mob_id not in broken:
            try:
                found[mob_id].events.append(record(mob_id, row))
            except MobdError:
                # Whoever reads on is told.
                broken.add(mob_id)
    return list(found.values())


def _newest(connection: Connection, wanted: Sequence[Wanted]) -> dict[str, int]:
    """Return the seqs of the newest snapshots that may be used."""
    at_most = {one.mob_id: one.at_most for one in wanted}
    newest: dict[str, int] = {}
    query = select(kept.c.mob_id, kept.c.seq).where(kept.c.mob_id.in_(at_most))
    for mob_id, seq in connection.execute(query):
        if newest.get(mob_id, 0) < seq <= at_most[mob_id]:
            newest[mob_id] = seq
    return newest


def _first_rows(
    connection: Connection, begun: dict[str, Beginning], limit: int, max_bytes: int
) -> Sequence[Sequence[Any]]:
    """Return the first rows behind the snapshots of mobs, with the mob's id before each: as many as fit."""
    binds: dict[str, Any] = {"max_bytes": max_bytes}
    for place, (mob_id, one) in enumerate(begun.items()):
        seq = one.snapshot.seq if one.snapshot is not None else 0
        binds |= {f"mob_{place}": mob_id, f"after_{place}": seq, f"up_to_{place}": seq + limit}
    if connection.dialect.name != "sqlite":
        return connection.execute(_first_of(len(begun), as_json=False), binds).all()
    return sorted(_decode_many(connection.execute(_first_of(len(begun), as_json=True), binds).scalar_one()), key=_place)


@lru_cache(maxsize=256)
def _first_of(count: int, *, as_json: bool) -> Select[Any]:
    """Return the query of the first rows of so many mobs, whose sizes add up to less than `max_bytes` before each."""
    places = [
        and_(
            events.c.mob_id == bindparam(f"mob_{place}"),
            events.c.seq > bindparam(f"after_{place}"),
            events.c.seq <= bindparam(f"up_to_{place}"),
        )
        for place in range(count)
    ]
    size = func.length(events.c.payload)
    before = (func.sum(size).over(order_by=(events.c.mob_id, events.c.seq)) - size).label("before")
    rows = select(events.c.mob_id, *_COLUMNS, before).where(or_(*places)).subquery()
    page = select(*list(rows.c)[:-1]).where(rows.c.before < bindparam("max_bytes"))
    page = page.order_by(rows.c.mob_id, rows.c.seq)
    return select(func.json_group_array(func.json_array(*page.subquery().c))) if as_json else page
