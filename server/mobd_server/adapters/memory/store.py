"""The ports without a database: for tests and simulation. `mobd serve` can't choose it.

What a group came to reaches the journal in a later tick, as it would from a thread. A `Fault` makes the next groups
fail in one of the ways in which a database can.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal

import msgspec
from msgspec import Struct

from mobd_server.errors import InvalidTransition, MobFormatNewer, MobNotFound, MobQuarantined, Unavailable
from mobd_server.machines.events import BY_KIND
from mobd_server.machines.records import Append, MessageRow, MobRow, OperationRow, Record, RunRow, SessionRow
from mobd_server.machines.snapshot import superfluous
from mobd_server.machines.upcast import upcast
from mobd_server.ports import GONE, Beginning, Loaded, MobListing, Result, Snapshot, Wanted

COMMITTED = Result("committed")
# The phase of a mob whose rows are being deleted.
DELETING = "deleting"


class Log(Struct):
    """Everything that is stored of one mob."""

    row: MobRow
    epoch: int
    head: int
    phase: str
    wake_at: int | None
    # Events as stored; their events are decoded at each read, as from a database.
    records: list[Record]
    runs: dict[str, RunRow]
    sessions: dict[str, SessionRow]
    messages: dict[tuple[str, int], MessageRow]
    operations: dict[str, OperationRow]
    snapshots: dict[int, Snapshot]


class Fault(Struct):
    """What the next group meets: `aborted` writes nothing, `unknown` writes it or not and does not say."""

    fate: Literal["aborted", "unknown"]
    written: bool = False


class MemoryStore:
    """What a database would hold; see ports.Store."""

    name = "memory"

    def __init__(self) -> None:
        self.logs: dict[str, Log] = {}
        # Reads fail while it is True.
        self.unavailable = False

    def _log(self, mob_id: str) -> Log | None:
        if self.unavailable:
            raise Unavailable("the store does not answer")
        log = self.logs.get(mob_id)
        return log if log is not None and log.phase != DELETING else None

    async def acquire(self, mob_id: str) -> Loaded | None:
        log = self._log(mob_id)
        if log is None:
            return None
        log.epoch += 1
        return Loaded(log.epoch, log.head, 1, log.row.log_id)

    async def acquire_many(self, mob_ids: Sequence[str]) -> dict[str, Loaded | None]:
        return {mob_id: await self.acquire(mob_id) for mob_id in mob_ids}

    async def read_many(self, wanted: Sequence[Wanted], limit: int, max_bytes: int = 4 << 20) -> list[Beginning]:
        found: list[Beginning] = []
        size = 0
        for one in wanted:
            if size >= max_bytes:
                break
            snapshot = await self.read_snapshot(one.mob_id, one.at_most)
            begun = Beginning(snapshot, [])
            found.append(begun)
            after = snapshot.seq if snapshot is not None else 0
            size += len(snapshot.state) if snapshot is not None else 0
            with suppress(MobQuarantined, MobFormatNewer):
                for seq in range(after, after + limit):
                    begun.events += await self.read_events(one.mob_id, seq, 1)
        return found

    async def head(self, mob_id: str) -> Loaded | None:
        log = self._log(mob_id)
        return Loaded(log.epoch, log.head, 1, log.row.log_id) if log is not None else None

    async def read_events(self, mob_id: str, after: int, limit: int, max_bytes: int = 1 << 20) -> list[Record]:
        log = self._log(mob_id)
        found: list[Record] = []
        size = 0
        for record in log.records[after : after + limit] if log is not None else ():
            found.append(decoded(mob_id, record))
            size += len(record.payload)
            if size >= max_bytes:
                break
        return found

    async def read_event(self, mob_id: str, seq: int) -> Record | None:
        log = self._log(mob_id)
        if log is None or not 1 <= seq <= log.head:
            return None
        return decoded(mob_id, log.records[seq - 1])

    async def read_these(self, mob_id: str, seqs: Sequence[int]) -> list[Record]:
        log = self._log(mob_id)
        if log is None:
            return []
        return [decoded(mob_id, log.records[seq - 1]) for seq in sorted(set(seqs)) if 1 <= seq <= log.head]

    async def seq_at(self, mob_id: str, at: int) -> int:
        log = self._log(mob_id)
        if log is None:
            return 0
        return next((record.seq - 1 for record in log.records if record.at >= at), log.head)

    async def list_mobs(
        self, after: str, limit: int, phase: str | None, labels: dict[str, str]
    ) -> tuple[list[MobListing], str]:
        self._log("")
        found: list[MobListing] = []
        for mob_id in sorted(i for i in self.logs if i > after):
            log = self.logs[mob_id]
            if log.phase == DELETING:
                continue
            have = msgspec.json.decode(log.row.labels, type=dict[str, str])
            if (phase is None or log.phase == phase) and labels.items() <= have.items():
                found.append(MobListing(mob_id, log.phase, have, log.head, log.row.log_id, log.row.created_at))
            if len(found) == limit:
                return found, mob_id
        return found, ""

    async def owing(self) -> list[tuple[str, int]]:
        self._log("")
        owed = [(mob_id, log.wake_at) for mob_id, log in self.logs.items() if log.wake_at is not None]
        return sorted(owed, key=lambda one: one[1])

    async def read_run(self, mob_id: str, run_id: str) -> RunRow | None:
        log = self._log(mob_id)
        return log.runs.get(run_id) if log is not None else None

    async def list_runs(
        self, mob_id: str, after: str, limit: int, member_id: str | None, state: str | None
    ) -> tuple[list[RunRow], str]:
        log = self._log(mob_id)
        runs = [log.runs[run_id] for run_id in sorted(log.runs) if run_id > after] if log is not None else []
        found = [
            run
            for run in runs
            if (member_id is None or run.member_id == member_id) and (state is None or run.state == state)
        ][:limit]
        return found, found[-1].run_id if found and len(found) == limit else ""

    async def read_messages(self, mob_id: str, session_id: str, after: int, limit: int) -> list[MessageRow]:
        log = self._log(mob_id)
        held = [m for (session, _), m in log.messages.items() if session == session_id] if log is not None else []
        return sorted((m for m in held if m.position >= after), key=lambda m: m.position)[:limit]

    async def read_snapshot(self, mob_id: str, at_most: int) -> Snapshot | None:
        log = self._log(mob_id)
        seqs = [seq for seq in log.snapshots if seq <= at_most] if log is not None else []
        return log.snapshots[max(seqs)] if log is not None and seqs else None

    async def mark_deleting(self, mob_id: str) -> None:
        self._log("")
        log = self.logs.get(mob_id)
        if log is None:
            raise MobNotFound(f"mob '{mob_id}' does not exist", {"mob_id": mob_id})
        if log.phase not in ("destroyed", DELETING):
            raise InvalidTransition("DeleteMob", log.phase, "deleted", ("destroyed",))
        log.epoch, log.phase, log.wake_at = log.epoch + 1, DELETING, None

    async def delete_rows(self, mob_id: str) -> None:
        self._log("")
        if mob_id in await self.deleting():
            del self.logs[mob_id]

    async def deleting(self) -> list[str]:
        self._log("")
        return sorted(mob_id for mob_id, log in self.logs.items() if log.phase == DELETING)

    async def destroy_unreadable(self, mob_id: str) -> None:
        log = self._log(mob_id)
        if log is None:
            raise MobNotFound(f"mob '{mob_id}' does not exist", {"mob_id": mob_id})
        log.epoch, log.phase, log.wake_at = log.epoch + 1, "destroyed", None

    async def read_operation(self, mob_id: str, operation_id: str) -> OperationRow | None:
        log = self._log(mob_id)
        return log.operations.get(operation_id) if log is not None else None

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
        log = self._log(mob_id)
        wanted = {"member_id": member_id, "owner": owner, "kind": kind, "status": status}
        found = [
            row
            for row in (log.operations.values() if log is not None else ())
            if (after_key is None or (row.display_name, row.operation_id) > after_key)
            and all(value is None or getattr(row, name) == value for name, value in wanted.items())
        ]
        return sorted(found, key=lambda row: (row.display_name, row.operation_id))[:limit]

    async def list_completions(self, mob_id: str, after_seq: int, limit: int) -> list[OperationRow]:
        log = self._log(mob_id)
        ended = [(row.completion_seq or 0, row) for row in (log.operations.values() if log is not None else ())]
        return [row for seq, row in sorted(ended, key=lambda one: one[0]) if seq > after_seq][:limit]

    async def close(self) -> None:
        """Nothing is held."""


class MemoryWriter:
    """Commits into a MemoryStore; see ports.Writer."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._stalled: list[tuple[Sequence[Append], Callable[[list[Result]], None]]] = []
        # What the next groups meet, in order.
        self.faults: list[Fault] = []
        # An append for which this is True can't be stored.
        self.poisoned: Callable[[Append], bool] = unstorable
        # While it is True groups wait for `release`.
        self.stall = False
        # Whether a probe is answered.
        self.answers = True
        self.groups: list[int] = []

    def submit(self, group: Sequence[Append], done: Callable[[list[Result]], None]) -> None:
        """Commit `group` and call `done` in a later tick, or keep it while stalled."""
        self.groups.append(len(group))
        if self.stall:
            self._stalled.append((group, done))
        else:
            self._loop.call_soon(self._commit, group, done)

    def release(self) -> None:
        """Commit what is stalled, and stall no more."""
        self.stall = False
        stalled, self._stalled = self._stalled, []
        for group, done in stalled:
            self._commit(group, done)

    def probe(self, done: Callable[[bool], None]) -> None:
        """Answer in a later tick."""
        self._loop.call_soon(lambda: done(self.answers))

    def write_snapshot(
        self, mob_id: str, log_id: str, snapshot: Snapshot, spacing: int, done: Callable[[str], None]
    ) -> None:
        """Store a snapshot and call `done` in a later tick."""
        self._loop.call_soon(lambda: done(self._keep(mob_id, log_id, snapshot, spacing)))

    def close(self) -> None:
        """Nothing is held."""

    def _keep(self, mob_id: str, log_id: str, snapshot: Snapshot, spacing: int) -> str:
        log = self._store.logs.get(mob_id)
        if log is None or log.row.log_id != log_id or log.phase == DELETING:
            return GONE
        if log.head < snapshot.seq:
            return f"the log ends at {log.head}"
        log.snapshots[snapshot.seq] = snapshot
        for seq in superfluous(sorted(log.snapshots), spacing):
            del log.snapshots[seq]
        return ""

    def _commit(self, group: Sequence[Append], done: Callable[[list[Result]], None]) -> None:
        if self.faults:
            fault = self.faults.pop(0)
            if fault.written:
                self._write(group)
            done([Result(fault.fate, "injected") for _ in group])
            return
        done(self._write(group))

    def _write(self, group: Sequence[Append]) -> list[Result]:
        results: list[Result] = []
        failed: dict[tuple[str, str, int], Result] = {}
        for append in group:
            incarnation = (append.mob_id, append.log_id, append.epoch)
            result = failed.get(incarnation) or self._one(append)
            if result.fate != "committed":
                later = "fenced" if result.fate == "fenced" else "dropped"
                failed.setdefault(incarnation, Result(later, result.error))  # type: ignore[arg-type]  # two fates
            results.append(result)
        return results

    def _one(self, append: Append) -> Result:
        logs = self._store.logs
        log = logs.get(append.mob_id)
        if self.poisoned(append):
            return Result("offender", "its text can't be stored")
        if append.create is not None:
            if log is not None:
                return Result("fenced", "the mob exists")
            log = logs[append.mob_id] = Log(append.create, append.epoch, 0, "", None, [], {}, {}, {}, {}, {})
        if log is None or (log.row.log_id, log.epoch, log.head) != (append.log_id, append.epoch, append.base):
            return Result("fenced", "another incarnation owns the mob")
        log.records.extend(append.records)
        log.head += len(append.records)
        log.phase, log.wake_at = append.phase, append.wake_at
        log.runs.update({run.run_id: run for run in append.runs})
        log.sessions.update({session.session_id: session for session in append.sessions})
        log.messages.update({(message.session_id, message.position): message for message in append.messages})
        log.operations.update({operation.operation_id: operation for operation in append.operations})
        return COMMITTED


def decoded(mob_id: str, record: Record) -> Record:
    """Return a record as a database would give it back: its event decoded from its payload."""
    v, payload = record.v, record.payload
    try:
        kind = BY_KIND.get((record.kind, v))
        if kind is None and (lifted := upcast(record.kind, v, payload)) is not None:
            v, payload = lifted
            kind = BY_KIND[record.kind, v]
        if kind is not None:
            event = msgspec.json.decode(payload, type=kind)
            return msgspec.structs.replace(record, v=v, payload=payload, event=event, wire=None)
    except msgspec.MsgspecError as error:
        raise MobQuarantined(f"event {record.seq} of mob '{mob_id}' can't be decoded: {error}") from error
    raise MobFormatNewer(f"event {record.seq} of mob '{mob_id}' is {record.kind} version {record.v}")


def unstorable(append: Append) -> bool:
    """Whether no database could store an append: a text with a lone surrogate is no Unicode."""
    try:
        "".join(record.payload for record in append.records).encode()
    except UnicodeEncodeError:
        return True
    return False
