"""Writers whose groups return when a test says so, with the fate that it names."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from mobd_server.machines.records import Append
from mobd_server.ports import Fate, Result, Snapshot, Writer

Done = Callable[[list[Result]], None]


class HeldWriter:
    """Keeps each group until the test lets it go.

    With a writer inside, `commit` passes the group on to it; without one it answers that all of it is durable.
    """

    def __init__(self, inner: Writer | None = None) -> None:
        self._inner = inner
        self._held: tuple[list[Append], Done] | None = None
        self._probe: Callable[[bool], None] | None = None
        self._answers: list[Callable[[], None]] = []
        # Every group that was ever handed over, and how it was.
        self.groups: list[list[Append]] = []
        # The seqs of snapshots, as they are stored.
        self.snapshots: asyncio.Queue[int] = asyncio.Queue()
        self.open = False

    def in_flight(self) -> int:
        """Return how many appends are held."""
        return 0 if self._held is None else len(self._held[0])

    def probing(self) -> bool:
        """Return whether the journal waits for the answer to a probe."""
        return self._probe is not None

    def submit(self, group: Sequence[Append], done: Done) -> None:
        assert self._held is None, "two groups in flight"
        self.groups.append(list(group))
        self._held = (list(group), done)
        if self.open:
            self.commit()

    def commit(self) -> None:
        """Store the group that is held."""
        group, done = self._take()
        if self._inner is not None:
            self._inner.submit(group, done)
        else:
            done([Result("committed") for _ in group])

    def fail(self, *fates: Fate) -> None:
        """Answer with these fates, the last one for all that follow; nothing of the group is stored."""
        group, done = self._take()
        done([Result(fates[min(place, len(fates) - 1)], "as the test said") for place in range(len(group))])

    def lose_answer(self) -> None:
        """Store the group, and answer that its outcome is unknown."""
        assert self._inner is not None
        group, done = self._take()
        self._inner.submit(group, lambda _: done([Result("unknown", "as the test said") for _ in group]))

    def hold_answer(self) -> None:
        """Store the group, and keep the answer until `release_answer`."""
        assert self._inner is not None
        group, done = self._take()
        self._inner.submit(group, lambda results: self._answers.append(partial(done, results)))

    def release_answer(self) -> None:
        """Give the answer that was kept."""
        self._answers.pop()()

    def probe(self, done: Callable[[bool], None]) -> None:
        self._probe = done

    def answer_probe(self, *, answers: bool) -> None:
        assert self._probe is not None
        done, self._probe = self._probe, None
        done(answers)

    def write_snapshot(
        self, mob_id: str, log_id: str, snapshot: Snapshot, spacing: int, done: Callable[[str], None]
    ) -> None:
        def stored(error: str) -> None:
            done(error)
            if not error:
                self.snapshots.put_nowait(snapshot.seq)

        assert self._inner is not None
        self._inner.write_snapshot(mob_id, log_id, snapshot, spacing, stored)

    def close(self) -> None:
        if self._inner is not None:
            self._inner.close()

    def _take(self) -> tuple[list[Append], Done]:
        assert self._held is not None, "no group in flight"
        held, self._held = self._held, None
        return held
