"""Large logs in no time: decided by the machine and committed by the store's own statements, without a server."""

import time
from pathlib import Path

from msgspec import Raw
from sqlalchemy.engine import Engine

from mobd_server.adapters.sql import engine as sql
from mobd_server.adapters.sql import migrate, snapshots
from mobd_server.adapters.sql.lanes import lane_for
from mobd_server.adapters.sql.writer import spans_of
from mobd_server.adapters.system import system_ids
from mobd_server.machines import commands as c
from mobd_server.machines import snapshot as states
from mobd_server.machines.answers import Attached
from mobd_server.machines.decision import decide, new_mob
from mobd_server.machines.records import Append
from mobd_server.machines.state import Definition, Profile, Serve
from mobd_server.ports import Snapshot

ROLE = "worker"
# Decisions in one transaction.
GROUP = 256
# How the server spaces snapshots, if it is not set otherwise.
SPACING = 20_000
CONTENT = Raw(b'[{"text":"' + b"x" * 140 + b'"}]')
RESULT = Raw(b'"done"')


class Seeded:
    """A mob that is being made: decisions are gathered, and committed in groups."""

    def __init__(self, store: "Seed", mob_id: str, began_at: int, *, keep_snapshots: bool) -> None:
        self._store = store
        self._ids = system_ids(1)
        self._snapshots = keep_snapshots
        self._snapshot_at = SPACING
        self._connected: set[str] = set()
        # µs since 1970; and how much later each decision is made.
        self.now = began_at
        self.step = 1_000
        self.mob = new_mob(mob_id)
        self.do(c.CreateMob(Definition(profiles={ROLE: Profile(ROLE)}), {}, f"log-{mob_id}"))

    def do(self, command: c.Command) -> object:
        """Decide, and let it be stored."""
        self.now += self.step
        decided = decide(self.mob, command, c.Context(self.now, self._ids, self._connected), 1)
        if decided.append is not None:
            self._store.add(decided.append)
        if self._snapshots and self.mob.head >= self._snapshot_at:
            self._snapshot_at += SPACING
            self._store.keep(self.mob.mob_id, self.mob.log_id, self.snapshot())
        return decided.answer

    def snapshot(self) -> Snapshot:
        """Return the state of now."""
        return Snapshot(self.mob.head, states.FORMAT, self.now, states.encode(self.mob).decode())

    def spawn(self, count: int) -> None:
        """Spawn members m0 … with leading zeros, as many digits as the highest has."""
        width = len(str(count - 1))
        names = [f"m{number:0{width}}" for number in range(count)]
        for start in range(0, count, 500):
            self.do(c.SpawnMembers([c.MemberSpec(name, ROLE) for name in names[start : start + 500]]))

    def ended_inputs(self, each: int) -> None:
        """Let every member remember `each` inputs that have ended."""
        for number in range(each):
            for member_id in list(self.mob.members):
                self.do(c.Deliver(member_id, f"seeded-{member_id}-{number}", CONTENT, kind="operation"))

    def runs(self, each: int) -> None:
        """Let every member take `each` inputs in one run, of an agent that leaves when all is done."""
        attachment_id = self.attach()
        for member_id, member in list(self.mob.members.items()):
            names = [f"seeded-{member_id}-{number}" for number in range(each)]
            self.do(c.DeliverBatch([c.Deliver(member_id, name, CONTENT) for name in names]))
            run = self.mob.runs[member.run_id or ""]
            self.do(c.SettleRun(attachment_id, run.run_id, run.fence, RESULT, run.fence.to_bytes(32, "big")))
        self.detach(attachment_id)

    def detach(self, attachment_id: str) -> None:
        """Let an agent leave."""
        self.do(c.CloseAttachment(attachment_id, "detached"))
        self._connected.clear()

    def attach(self) -> str:
        """Let an agent serve every member."""
        some = len(self.mob.members)
        answer = self.do(c.Attach("seed", "1", some, some, [Serve(role=ROLE)]))
        assert isinstance(answer, Attached), answer
        self._connected.add(answer.attachment_id)
        while any(member.executor is None for member in self.mob.members.values()):
            self.do(c.Continue())
        for member_id in self.mob.members:
            executor = self.mob.members[member_id].executor
            assert executor is not None
            self.do(c.Confirm(answer.attachment_id, member_id, executor.fence))
        return answer.attachment_id

    def turns_up_to(self, head: int, days: float) -> None:
        """Let members take turns of one input each until the log has `head` events, over `days` days."""
        attachment_id = self.attach()
        leaves = len(self.mob.members) + 1
        decisions = max(1, (head - leaves - self.mob.head) * 2 // 3)
        self.step = int(days * 86_400_000_000) // decisions
        number = 0
        names = list(self.mob.members)
        while self.mob.head < head - leaves:
            member_id = names[number % len(names)]
            self.do(c.Deliver(member_id, f"seeded-{number:012}", CONTENT))
            run = self.mob.runs[self.mob.members[member_id].run_id or ""]
            self.do(c.SettleRun(attachment_id, run.run_id, run.fence, RESULT, number.to_bytes(32, "big")))
            number += 1
        self.step = 1_000
        self.detach(attachment_id)


class Seed:
    """A database that is being filled. Nobody else may have it open."""

    def __init__(self, folder: Path, url: str | None) -> None:
        self.engine: Engine = sql.open_engine(sql.database_url(folder, url))
        migrate.upgrade(self.engine)
        self._lane = lane_for(self.engine)
        self._group: list[Append] = []

    def mob(self, mob_id: str, *, days: float = 0.0, keep_snapshots: bool = False) -> Seeded:
        """Begin a mob whose log begins `days` days ago."""
        return Seeded(self, mob_id, time.time_ns() // 1_000 - int(days * 86_400_000_000), keep_snapshots=keep_snapshots)

    def add(self, append: Append) -> None:
        """Commit an append, with others."""
        self._group.append(append)
        if len(self._group) >= GROUP:
            self.flush()

    def flush(self) -> None:
        """Commit what was gathered."""
        if self._group:
            fenced = self._lane.append(spans_of(self._group, range(len(self._group))))
            assert not fenced, "somebody else writes"
            self._lane.commit()
            self._group = []

    def keep(self, mob_id: str, log_id: str, snapshot: Snapshot) -> None:
        """Store a snapshot, as a server would."""
        self.flush()
        with self.engine.execution_options(writes=True).begin() as connection:
            why = snapshots.write(connection, mob_id, log_id, snapshot, SPACING)
        assert not why, why

    def close(self) -> None:
        """Commit what is left, and give the database back."""
        self.flush()
        self._lane.close()
        self.engine.dispose()


def teams_of(seed: Seed, mobs: int, members: int, *, inputs: int, tail: int) -> list[str]:
    """Make mobs at rest whose members remember `inputs` ended inputs each, with a snapshot `tail` events ago."""
    made = [f"team-{number:03}" for number in range(mobs)]
    for mob_id in made:
        one = seed.mob(mob_id)
        one.spawn(members)
        one.ended_inputs(inputs)
        if tail:
            seed.keep(mob_id, one.mob.log_id, one.snapshot())
            for number, member_id in enumerate(list(one.mob.members)[:tail]):
                one.do(c.Deliver(member_id, f"tail-{number}", CONTENT, kind="operation"))
    seed.flush()
    return made


def log_of(seed: Seed, mob_id: str, events: int, *, members: int = 100, days: float, keep_snapshots: bool) -> None:
    """Make a mob whose log has `events` events, most of them of turns: accepted, started, settled."""
    seeded = seed.mob(mob_id, days=days, keep_snapshots=keep_snapshots)
    seeded.spawn(members)
    seeded.turns_up_to(events, days)
    seed.flush()


def forget_snapshots(seed: Seed) -> None:
    """Take the snapshots away."""
    with seed.engine.execution_options(writes=True).begin() as connection:
        connection.exec_driver_sql("DELETE FROM snapshots")
