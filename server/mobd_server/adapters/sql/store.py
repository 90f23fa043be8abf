"""Reading, and taking mobs over. Everything runs on a few threads of its own, never on the loop."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final, TypeVar

import msgspec
from sqlalchemy import Connection, RowMapping, Select, and_, bindparam, func, select, tuple_, update
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from mobd_server.adapters.sql import purge, reading, snapshots
from mobd_server.adapters.sql.engine import turn
from mobd_server.adapters.sql.purge import DELETING
from mobd_server.adapters.sql.readers import Readers
from mobd_server.adapters.sql.rows import FORMAT
from mobd_server.adapters.sql.tables import events, messages, mobs, operations, runs
from mobd_server.errors import MobFormatNewer, Unavailable
from mobd_server.machines.records import MessageRow, OperationRow, Record, RunRow
from mobd_server.ports import Beginning, Loaded, MobListing, Snapshot, Wanted

# Rows that a page of a filtered list looks at.
SCANNED: Final = 10_000

T = TypeVar("T")


class StoreUnavailable(Unavailable):
    """The database does not answer. Callers know it as what it is a kind of."""


class SqlStore:
    """The store of a server; see ports.Store."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.dialect.name
        self._engine = engine
        self._reader = engine.execution_options(writes=False)
        self._writer = engine.execution_options(writes=True)
        self._readers = Readers(engine)

    async def acquire(self, mob_id: str) -> Loaded | None:
        def work(connection: Connection) -> Loaded | None:
            row = (
                connection.execute(
                    update(mobs)
                    .where(mobs.c.mob_id == mob_id, mobs.c.phase != DELETING)
                    .values(epoch=mobs.c.epoch + 1)
                    .returning(mobs.c.epoch, mobs.c.head, mobs.c.first_seq, mobs.c.log_id, mobs.c.format)
                )
                .mappings()
                .first()
            )
            return _loaded(mob_id, row)

        return await self._call(work, writes=True)

    async def acquire_many(self, mob_ids: Sequence[str]) -> dict[str, Loaded | None]:
        return await self._call(lambda connection: reading.acquire_many(connection, mob_ids), writes=True)

    async def read_many(self, wanted: Sequence[Wanted], limit: int, max_bytes: int = 4 << 20) -> list[Beginning]:
        return await self._call(lambda connection: reading.read_many(connection, wanted, limit, max_bytes))

    async def head(self, mob_id: str) -> Loaded | None:
        return await self._read(
            lambda connection: _loaded(mob_id, connection.execute(_HEAD, {"mob_id": mob_id}).mappings().first())
        )

    async def read_events(self, mob_id: str, after: int, limit: int, max_bytes: int = 1 << 20) -> list[Record]:
        return await self._read(lambda connection: reading.read_events(connection, mob_id, after, limit, max_bytes))

    async def read_event(self, mob_id: str, seq: int) -> Record | None:
        found = await self.read_these(mob_id, [seq])
        return found[0] if found else None

    async def read_these(self, mob_id: str, seqs: Sequence[int]) -> list[Record]:
        return await self._read(lambda connection: reading.read_these(connection, mob_id, seqs))

    async def seq_at(self, mob_id: str, at: int) -> int:
        def work(connection: Connection) -> int:
            # Times grow with seq but for a clock that was set back; the first that is late enough is what is asked for.
            first = connection.execute(
                select(func.min(events.c.seq)).where(events.c.mob_id == mob_id, events.c.at >= at)
            ).scalar()
            if first is not None:
                return int(first) - 1
            return int(connection.execute(select(mobs.c.head).where(mobs.c.mob_id == mob_id)).scalar() or 0)

        return await self._read(work)

    async def list_mobs(
        self, after: str, limit: int, phase: str | None, labels: dict[str, str]
    ) -> tuple[list[MobListing], str]:
        def work(connection: Connection) -> tuple[list[MobListing], str]:
            query = select(
                mobs.c.mob_id, mobs.c.phase, mobs.c.labels, mobs.c.head, mobs.c.log_id, mobs.c.created_at
            ).where(mobs.c.mob_id > after, mobs.c.phase != DELETING)
            if phase is not None:
                query = query.where(mobs.c.phase == phase)
            found: list[MobListing] = []
            scanned = 0
            last = after
            scan = SCANNED if labels else limit
            for row in connection.execute(query.order_by(mobs.c.mob_id).limit(scan)).mappings():
                scanned += 1
                last = row["mob_id"]
                have = msgspec.json.decode(row["labels"], type=dict[str, str])
                if labels.items() <= have.items():
                    found.append(MobListing(**{**row, "labels": have}))
                if len(found) >= limit:
                    return found, last
            return found, last if scanned >= SCANNED else ""

        return await self._read(work)

    async def owing(self) -> list[tuple[str, int]]:
        def work(connection: Connection) -> list[tuple[str, int]]:
            query = select(mobs.c.mob_id, mobs.c.wake_at).where(mobs.c.wake_at.is_not(None))
            return [(row.mob_id, row.wake_at) for row in connection.execute(query.order_by(mobs.c.wake_at))]

        return await self._read(work)

    async def read_run(self, mob_id: str, run_id: str) -> RunRow | None:
        def work(connection: Connection) -> RunRow | None:
            row = connection.execute(_RUN, {"mob_id": mob_id, "run_id": run_id}).mappings().first()
            return RunRow(**row) if row is not None else None

        return await self._read(work)

    async def list_runs(
        self, mob_id: str, after: str, limit: int, member_id: str | None, state: str | None
    ) -> tuple[list[RunRow], str]:
        def work(connection: Connection) -> tuple[list[RunRow], str]:
            wanted = [runs.c.mob_id == mob_id, runs.c.run_id > after]
            if member_id is not None:
                wanted.append(runs.c.member_id == member_id)
            if state is not None:
                wanted.append(runs.c.state == state)
            query = _runs().where(and_(*wanted)).order_by(runs.c.run_id).limit(limit)
            found = [RunRow(**row) for row in connection.execute(query).mappings()]
            return found, found[-1].run_id if len(found) == limit else ""

        return await self._read(work)

    async def read_messages(self, mob_id: str, session_id: str, after: int, limit: int) -> list[MessageRow]:
        def work(connection: Connection) -> list[MessageRow]:
            columns = [messages.c[name] for name in MessageRow.__struct_fields__]
            query = select(*columns).where(
                messages.c.mob_id == mob_id, messages.c.session_id == session_id, messages.c.position >= after
            )
            rows = connection.execute(query.order_by(messages.c.position).limit(limit)).mappings()
            return [MessageRow(**row) for row in rows]

        return await self._read(work)

    async def read_snapshot(self, mob_id: str, at_most: int) -> Snapshot | None:
        return await self._call(lambda connection: snapshots.newest(connection, mob_id, at_most))

    async def mark_deleting(self, mob_id: str) -> None:
        await self._call(lambda connection: purge.mark(connection, mob_id), writes=True)

    async def delete_rows(self, mob_id: str) -> None:
        while await self._call(lambda connection: purge.slice_of(connection, mob_id), writes=True):
            continue

    async def deleting(self) -> list[str]:
        query = select(mobs.c.mob_id).where(mobs.c.phase == DELETING).order_by(mobs.c.mob_id)
        return await self._read(lambda connection: list(connection.execute(query).scalars()))

    async def destroy_unreadable(self, mob_id: str) -> None:
        await self._call(lambda connection: purge.destroy(connection, mob_id), writes=True)

    async def read_operation(self, mob_id: str, operation_id: str) -> OperationRow | None:
        def work(connection: Connection) -> OperationRow | None:
            row = connection.execute(_OPERATION, {"mob_id": mob_id, "operation_id": operation_id}).mappings().first()
            return OperationRow(**row) if row is not None else None

        return await self._read(work)

    async def list_operations(
        self,
        mob_id: str,
        after_key: tuple[str, str] | None,
        limit: int,
        member_id: str | None = None,
        owner: str | None = None,
        kind: str | None = None,
        status: str | None = None,
    ) -> list[OperationRow]:
        def work(connection: Connection) -> list[OperationRow]:
            table = operations.c
            query = _operations().where(table.mob_id == mob_id)
            wanted = ((table.member_id, member_id), (table.owner, owner), (table.kind, kind), (table.status, status))
            query = query.where(*[column == value for column, value in wanted if value is not None])
            if after_key is not None:
                query = query.where(tuple_(table.display_name, table.operation_id) > tuple_(*after_key))
            query = query.order_by(table.display_name, table.operation_id).limit(limit)
            return [OperationRow(**row) for row in connection.execute(query).mappings()]

        return await self._read(work)

    async def list_completions(self, mob_id: str, after_seq: int, limit: int) -> list[OperationRow]:
        def work(connection: Connection) -> list[OperationRow]:
            column = operations.c.completion_seq
            query = _operations().where(operations.c.mob_id == mob_id, column > after_seq)
            return [OperationRow(**row) for row in connection.execute(query.order_by(column).limit(limit)).mappings()]

        return await self._read(work)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._readers.close)

    async def _read(self, work: Callable[[Connection], T]) -> T:
        """Read what needs no transaction."""
        with _told():
            return await self._readers.read(work)

    async def _call(self, work: Callable[[Connection], T], *, writes: bool = False) -> T:
        """Read or write in a transaction."""
        engine = self._writer if writes else self._reader

        def run() -> T:
            with turn(engine) if writes else nullcontext(), engine.begin() as connection:
                return work(connection)

        with _told():
            return await asyncio.get_running_loop().run_in_executor(self._readers.pool, run)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (DBAPIError, SQLAlchemyError) as error:
        raise StoreUnavailable(f"the database does not answer: {type(error).__name__}") from error


def _runs() -> Select[Any]:
    return select(*[runs.c[name] for name in RunRow.__struct_fields__])


def _operations() -> Select[Any]:
    return select(*[operations.c[name] for name in OperationRow.__struct_fields__])


# Made once: to put a statement together takes longer than to read a row.
_HEAD: Final = select(mobs.c.epoch, mobs.c.head, mobs.c.first_seq, mobs.c.log_id, mobs.c.format).where(
    mobs.c.mob_id == bindparam("mob_id"), mobs.c.phase != DELETING
)
_RUN: Final = _runs().where(runs.c.mob_id == bindparam("mob_id"), runs.c.run_id == bindparam("run_id"))
_OPERATION: Final = _operations().where(
    operations.c.mob_id == bindparam("mob_id"), operations.c.operation_id == bindparam("operation_id")
)


def _loaded(mob_id: str, row: RowMapping | None) -> Loaded | None:
    if row is None:
        return None
    if row["format"] > FORMAT:
        raise MobFormatNewer(f"mob '{mob_id}' is stored in format {row['format']}; this mobd reads up to {FORMAT}")
    return Loaded(row["epoch"], row["head"], row["first_seq"], row["log_id"])
