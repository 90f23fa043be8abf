"""Writing and reading snapshots, on a connection that has begun."""

from sqlalchemy import Connection, delete, insert, select

from mobd_server.adapters.sql.purge import DELETING
from mobd_server.adapters.sql.tables import mobs, snapshots
from mobd_server.machines.snapshot import superfluous
from mobd_server.ports import GONE, Snapshot


def newest(connection: Connection, mob_id: str, at_most: int) -> Snapshot | None:
    """Return the newest snapshot that was taken at `at_most` or before."""
    query = select(*[snapshots.c[name] for name in Snapshot.__struct_fields__])
    query = query.where(snapshots.c.mob_id == mob_id, snapshots.c.seq <= at_most)
    row = connection.execute(query.order_by(snapshots.c.seq.desc()).limit(1)).mappings().first()
    return Snapshot(**row) if row is not None else None


def write(connection: Connection, mob_id: str, log_id: str, snapshot: Snapshot, spacing: int) -> str:
    """Store a snapshot and drop those that are superfluous beside it; return why it was not stored, or ""."""
    # The lock keeps a deletion from passing by, which would leave the snapshot behind.
    query = select(mobs.c.head, mobs.c.log_id).where(mobs.c.mob_id == mob_id, mobs.c.phase != DELETING)
    row = connection.execute(query.with_for_update()).first()
    if row is None or row.log_id != log_id:
        return GONE
    if row.head < snapshot.seq:
        return f"the log ends at {row.head}"
    mine = snapshots.c.mob_id == mob_id
    connection.execute(delete(snapshots).where(mine, snapshots.c.seq == snapshot.seq))
    columns = {name: getattr(snapshot, name) for name in Snapshot.__struct_fields__}
    connection.execute(insert(snapshots).values(mob_id=mob_id, **columns))
    seqs = list(connection.execute(select(snapshots.c.seq).where(mine).order_by(snapshots.c.seq)).scalars())
    connection.execute(delete(snapshots).where(mine, snapshots.c.seq.in_(superfluous(seqs, spacing))))
    return ""
