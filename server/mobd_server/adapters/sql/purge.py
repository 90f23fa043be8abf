"""Deleting a mob: a durable mark first, then its rows in slices, its row of `mobs` last.

The mark is a phase of this store alone. It survives a crash, so that a deletion that was begun is finished.
"""

from typing import Final

from sqlalchemy import Connection, Update, delete, select, update

from mobd_server.adapters.sql.tables import events, messages, mobs, operations, runs, sessions, snapshots
from mobd_server.errors import InvalidTransition, MobNotFound
from mobd_server.faults import ARMED, reach

DELETING: Final = "deleting"
# Rows that go in one transaction: few enough that those who append wait for milliseconds.
SLICE: Final = 2_000

# What a mob has beside its row of `mobs`, each with the column that tells its rows apart within the mob.
_PARTS: Final = (
    (snapshots, "id", 2),
    (events, "id", SLICE),
    (messages, "id", SLICE),
    (runs, "id", SLICE),
    (operations, "id", SLICE),
    (sessions, "session_id", SLICE),
)


def mark(connection: Connection, mob_id: str) -> None:
    """Let a destroyed mob be found no more. Raises MobNotFound and InvalidTransition."""
    query = _end(mob_id, DELETING).where(mobs.c.phase.in_(("destroyed", DELETING)))
    if connection.execute(query).rowcount == 0:
        phase = connection.execute(select(mobs.c.phase).where(mobs.c.mob_id == mob_id)).scalar()
        if phase is None:
            raise MobNotFound(f"mob '{mob_id}' does not exist", {"mob_id": mob_id})
        raise InvalidTransition("DeleteMob", phase, "deleted", ("destroyed",))


def destroy(connection: Connection, mob_id: str) -> None:
    """Make a mob destroyed without an event. Raises MobNotFound."""
    if connection.execute(_end(mob_id, "destroyed").where(mobs.c.phase != DELETING)).rowcount == 0:
        raise MobNotFound(f"mob '{mob_id}' does not exist", {"mob_id": mob_id})


def slice_of(connection: Connection, mob_id: str) -> bool:
    """Delete some rows of a marked mob; return whether there may be more."""
    # Held until the commit: the server of a deletion that stood still must not delete what has the name by then.
    if connection.execute(select(mobs.c.phase).where(mobs.c.mob_id == mob_id).with_for_update()).scalar() != DELETING:
        return False
    for table, key, count in _PARTS:
        column = table.c[key]
        some = select(column).where(table.c.mob_id == mob_id).limit(count)
        if connection.execute(delete(table).where(table.c.mob_id == mob_id, column.in_(some))).rowcount:
            if ARMED:
                reach("during_purge")
            return True
    connection.execute(delete(mobs).where(mobs.c.mob_id == mob_id, mobs.c.phase == DELETING))
    return False


def _end(mob_id: str, phase: str) -> Update:
    # Whoever has the mob in memory appends no more: its epoch is of the past.
    return update(mobs).where(mobs.c.mob_id == mob_id).values(epoch=mobs.c.epoch + 1, phase=phase, wake_at=None)
