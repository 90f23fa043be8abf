"""What the core needs from outside, as protocols: time, ids, and a store.

The store has two faces. `Writer` is used by the journal alone: it takes one group at a time and commits it in one
transaction. `Store` is used for everything that reads, and for taking a mob over. Adapters implement both: SQL for
servers, memory for tests and simulation.
"""

from collections.abc import Callable, Sequence
from typing import Final, Literal, Protocol

from msgspec import Struct

from mobd_server.machines.commands import Ids
from mobd_server.machines.records import Append, MessageRow, OperationRow, Record, RunRow
from mobd_server.machines.sections import Part

__all__ = [
    "GONE",
    "CallMeter",
    "Clock",
    "Ids",
    "IdsFactory",
    "JournalMeter",
    "Kind",
    "Rebuilder",
    "Result",
    "Snapshot",
    "SnapshotMeter",
    "Store",
    "Timer",
    "Writer",
]

# Why a snapshot was not stored whose mob was deleted meanwhile.
GONE: Final = "the mob is gone"


class Timer(Protocol):
    """A call that is planned."""

    def cancel(self) -> None:
        """Make it not happen; harmless if it has happened."""


class Clock(Protocol):
    """Time."""

    def now(self) -> int:
        """Return wall time: microseconds since 1970, UTC."""

    def monotonic(self) -> float:
        """Return seconds that never go back."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` on the loop after `delay_s` seconds of monotonic time."""


class IdsFactory(Protocol):
    """Makes the id source of one load of one mob."""

    def __call__(self, epoch: int) -> Ids:
        """Return a source whose ids begin with `epoch` and a prefix drawn now."""


# What became of one append:
# committed  it is durable
# fenced     another incarnation owns the mob, or the head is not where this one thinks; nothing was written
# offender   this append itself can't be stored; nothing of it was written
# dropped    not tried, because an earlier append of the same incarnation did not commit
# unknown    the store failed: it may or may not be durable
# aborted    the store failed and certainly wrote nothing, for as long as the retries lasted
Fate = Literal["committed", "fenced", "offender", "dropped", "unknown", "aborted"]


class Result(Struct, gc=False):
    """What became of one append, in the order of the group. `error` is for the log."""

    fate: Fate
    error: str = ""


class Writer(Protocol):
    """Commits groups, one at a time. What waits, for a disk, a lock or a network, does so off the loop."""

    def submit(self, group: Sequence[Append], done: Callable[[list[Result]], None]) -> None:
        """Commit `group` in one transaction and call `done` on the loop with one result for each append.

        Consecutive appends of one (mob, epoch) are one span with one fate unless the span is repeated decision by
        decision: those before the offender commit, the offender is `offender`, those after it are `dropped`. Only one
        group is ever submitted at a time. `done` is called exactly once, on the loop, never from within `submit`.
        """

    def probe(self, done: Callable[[bool], None]) -> None:
        """Try the store with a new connection and call `done` on the loop with whether it answers."""

    def write_snapshot(
        self, mob_id: str, log_id: str, snapshot: "Snapshot", spacing: int, done: Callable[[str], None]
    ) -> None:
        """Store a snapshot in a transaction of its own, behind the groups that were submitted.

        It is stored only if the mob's log is `log_id` and reaches to the snapshot; those that are superfluous beside
        it go in the same transaction (machines/snapshot.py). `done` is called on the loop, with why it was not stored
        (GONE: the mob has no such log) or with "". A failure here never hurts a group.
        """

    def close(self) -> None:
        """Wait for what is in flight and release every resource."""


class JournalMeter(Protocol):
    """Counts what the journal does."""

    def group(self, results: Sequence[Result], queued_s: float, commit_s: float) -> None:
        """Count a group that returned: how long its oldest append was queued, and how long the writer had it."""


class SnapshotMeter(Protocol):
    """Counts snapshots."""

    def snapshot_written(self, seconds: float) -> None:
        """Count a snapshot that is stored, `seconds` after it was begun."""

    def snapshot_failed(self) -> None:
        """Count a snapshot that was not taken, or not stored."""


# How a method streams, as go-grpc-prometheus names it.
Kind = Literal["unary", "server_stream", "bidi_stream"]


class CallMeter(Protocol):
    """Counts the calls of one method, and the messages of those that are streams."""

    def began(self) -> None:
        """Count a call that begins."""

    def received(self) -> None:
        """Count a message of a stream of the caller."""

    def sent(self) -> None:
        """Count a message of a stream to the caller."""

    def ended(self, code: str, seconds: float) -> None:
        """Count a call that ended with the gRPC status `code`, `seconds` after it began."""


class Snapshot(Struct, gc=False):
    """A row of `snapshots`: the state after event `seq`, as machines/snapshot.py of `format` writes it."""

    seq: int
    format: int
    # µs since 1970.
    taken_at: int
    state: str


class Rebuilder(Protocol):
    """Folds the state of mobs as they were, off the loop: from the newest snapshot that helps, and the log behind it.

    Both methods raise MobNotFound, CursorAhead, CursorTooOld, MobQuarantined, MobFormatNewer and Unavailable. One
    state is folded at a time; to cancel a call ends its work.
    """

    async def state(self, mob_id: str, seq: int) -> bytes:
        """Return the state after event `seq`, as machines/snapshot.py writes it, read back and compared."""

    async def sections(self, mob_id: str, seq: int) -> list[Part]:
        """Return the state after event `seq` for its readers (machines/sections.py)."""

    async def close(self) -> None:
        """Release every resource; what is in flight fails with Unavailable."""


class Loaded(Struct, gc=False):
    """A mob that was taken over: this incarnation's epoch and the log's head and state when that was committed."""

    epoch: int
    head: int
    first_seq: int
    log_id: str


class Wanted(Struct, gc=False):
    """A mob whose state is wanted, from a snapshot that was taken at `at_most` or before."""

    mob_id: str
    at_most: int


class Beginning(Struct, gc=False):
    """Where a mob's state begins: its newest snapshot, if there is one, and the first events behind it, in order."""

    snapshot: Snapshot | None
    events: list[Record]


class MobListing(Struct, gc=False):
    """A row of `mobs` as listed."""

    mob_id: str
    phase: str
    labels: dict[str, str]
    head: int
    log_id: str
    created_at: int


class Store(Protocol):
    """Reads, and takes mobs over. Every method may raise `errors.Unavailable` for a failure of I/O."""

    name: str

    async def acquire(self, mob_id: str) -> Loaded | None:
        """Make the caller the mob's only incarnation: `epoch + 1` is durable before this returns. None: no such mob.

        The row lock waits out a transaction in doubt, so that what the returned head counts is final.
        """

    async def acquire_many(self, mob_ids: Sequence[str]) -> dict[str, Loaded | None]:
        """Return what `acquire` returns for many mobs, in one transaction, and wait for none of them.

        Left out are those that somebody else holds at the moment, and those for which `acquire` raises.
        """

    async def read_many(self, wanted: Sequence[Wanted], limit: int, max_bytes: int = 4 << 20) -> list[Beginning]:
        """Return where the states of mobs begin, in order: of at least one, ending early past `max_bytes`.

        Of each there are at most `limit` events, and fewer if they are large or one can't be decoded: then there are
        more, and `read_events` says what is wrong with the next.
        """

    async def read_events(self, mob_id: str, after: int, limit: int, max_bytes: int = 1 << 20) -> list[Record]:
        """Return the events after `after`, in order: at most `limit`, ending early past `max_bytes` of payload.

        Records are decoded: an event that this build does not know raises `errors.MobFormatNewer`; one that can't be
        decoded raises `errors.MobQuarantined`.
        """

    async def read_event(self, mob_id: str, seq: int) -> Record | None:
        """Return one event."""

    async def read_these(self, mob_id: str, seqs: Sequence[int]) -> list[Record]:
        """Return the events with these seqs, in their order in the log; those that are not there are left out."""

    async def head(self, mob_id: str) -> Loaded | None:
        """Return where the log stands, without taking the mob over. None: no such mob."""

    async def seq_at(self, mob_id: str, at: int) -> int:
        """Return the cursor before the first event that is not older than `at` (µs); the head if there is none."""

    async def list_mobs(
        self, after: str, limit: int, phase: str | None, labels: dict[str, str]
    ) -> tuple[list[MobListing], str]:
        """Return mobs after the id `after`, in the order of ids, and the id where the next page begins ("": none)."""

    async def owing(self) -> list[tuple[str, int]]:
        """Return (mob_id, wake_at in µs) of every mob that owes something, earliest first; 0 means at once."""

    async def read_run(self, mob_id: str, run_id: str) -> RunRow | None:
        """Return one settled run."""

    async def list_runs(
        self, mob_id: str, after: str, limit: int, member_id: str | None, state: str | None
    ) -> tuple[list[RunRow], str]:
        """Return settled runs after the id `after`, in the order of ids, and where the next page begins ("": none)."""

    async def read_messages(self, mob_id: str, session_id: str, after: int, limit: int) -> list[MessageRow]:
        """Return messages from position `after` on, in order, at most `limit`."""

    async def read_snapshot(self, mob_id: str, at_most: int) -> Snapshot | None:
        """Return the newest snapshot, of any format, that was taken at `at_most` or before."""

    async def mark_deleting(self, mob_id: str) -> None:
        """Let a destroyed mob be found no more, durably: `epoch + 1`, so that no incarnation appends, and no wake_at.

        From now on `acquire`, `head`, `list_mobs` and `owing` pass it over, and its id stays taken until
        `delete_rows` returned. Harmless if repeated. Raises MobNotFound, and InvalidTransition unless it is destroyed.
        """

    async def delete_rows(self, mob_id: str) -> None:
        """Remove every row of a mob that is marked, some thousand in each transaction, its row of `mobs` last."""

    async def deleting(self) -> list[str]:
        """Return the mobs that are marked and still have rows: whoever finds one goes on with `delete_rows`."""

    async def destroy_unreadable(self, mob_id: str) -> None:
        """Make the mob destroyed without an event, for one whose log can't be folded: `epoch + 1`, and no wake_at.

        Its log stays as it is and can't be loaded; it can be marked and deleted. Raises MobNotFound.
        """

    async def read_operation(self, mob_id: str, operation_id: str) -> OperationRow | None:
        """Return one operation as it stands at the durable head."""

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
        """Return operations in the order of (display_name, operation_id), from the first behind `after_key` on.

        Names are compared as code points. There are fewer than `limit` only if no more follow.
        """

    async def list_completions(self, mob_id: str, after_seq: int, limit: int) -> list[OperationRow]:
        """Return ended operations whose completion_seq is beyond `after_seq`, in its order, at most `limit`."""

    async def close(self) -> None:
        """Release every resource."""
