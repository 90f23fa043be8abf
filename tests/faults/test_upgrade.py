"""A database of the first migration, with data, under a server of this build: as docs/operations.md says to upgrade."""

import asyncio
from collections.abc import Sequence

import pytest
from msgspec import Struct
from sqlalchemy import inspect
from tests.faults import ledger
from tests.faults.conftest import World
from tests.faults.test_start_refused import refused
from tests.support.pages import typed
from tests.support.peers import Peer
from tests.support.processes import Process
from tests.support.served import Served

from mobd.v1 import events_pb2
from mobd_server.adapters.sql import migrate
from mobd_server.adapters.sql.engine import database_url, open_engine

pytestmark = pytest.mark.asyncio

FIRST = "0001"
MEMBERS = ("ada", "bob")
# What the page says to type.
[[MIGRATE, SERVE]] = typed("docs/operations.md", "Upgrade")


class Past(Struct):
    """What was there before the upgrade: canonical ids by member and input, and the log."""

    names: dict[tuple[str, str], str]
    log: Sequence[events_pb2.Event]


async def left_behind(world: World, served: Served) -> Past:
    """Do some work, end the server, and leave what its first version could have left: the tables that it had."""
    async with Peer(served.target) as peer:
        await peer.create(MEMBERS)
        agent = world.agent(served, "agent")
        names = {(one, f"{one}-{n}"): await peer.deliver(one, f"{one}-{n}", n=1) for one in MEMBERS for n in range(5)}
        await asyncio.gather(*(peer.end_of(*one) for one in names))
        assert await agent.terminate() == 0
        names["ada", "waits"] = await peer.deliver("ada", "waits", n=1)
        log = await peer.log()
    assert await served.terminate() == 0
    engine = open_engine(database_url(served.data, served.settings.get("MOBD_DATABASE_URL")))
    try:
        migrate.downgrade(engine, FIRST)
        assert migrate.current(engine) == FIRST
        assert not {"operations", "snapshots"} & set(inspect(engine).get_table_names())
    finally:
        engine.dispose()
    return Past(names, log)


async def typed_in(world: World, served: Served, line: str) -> str:
    """Return what a command of the page prints, with the settings of the server."""
    program, *arguments = line.split()
    assert program == "mobd"
    process = Process(["-m", "mobd_server", *arguments], served.settings, world.folder / "typed.log")
    assert await process.ended() == 0, process.output()
    return process.output().splitlines()[-1]


async def goes_on(world: World, served: Served, past: Past) -> None:
    """Check that all is there, and that the member whose input waited gets it."""
    assert SERVE == "mobd serve"
    await served.restart()
    async with Peer(served.target) as peer:
        before = await peer.log()
        assert before[: len(past.log)] == past.log
        for (member_id, input_id), name in past.names.items():
            assert await peer.deliver(member_id, input_id, n=1) == name
        agent = world.agent(served, "later")
        assert (await peer.end_of("ada", "waits")).canonical_input_id == past.names["ada", "waits"]
        past.names["bob", "new"] = await peer.deliver("bob", "new", n=1)
        await peer.end_of("bob", "new")
        assert {call.member for call in agent.calls()} == set(MEMBERS)
        log = await peer.log()
    ledger.check_gap_free(log)
    ledger.check_runs(log)
    ledger.check_consumed_once(log, past.names)


async def test_a_database_of_the_first_version_is_served_after_it_was_migrated(world: World) -> None:
    served = await world.serve()
    past = await left_behind(world, served)
    assert await typed_in(world, served, MIGRATE) == f"the database went from revision {FIRST} to {migrate.head()}"
    assert await typed_in(world, served, MIGRATE) == f"the database is at revision {migrate.head()} already"
    await goes_on(world, served, past)


async def test_a_file_of_the_first_version_is_migrated_by_the_server(alone: World) -> None:
    served = await alone.serve()
    await goes_on(alone, served, await left_behind(alone, served))


async def test_a_postgresql_database_of_the_first_version_is_refused_and_left_alone(on_postgresql: World) -> None:
    served = await on_postgresql.serve()
    past = await left_behind(on_postgresql, served)
    served.folder /= "refused"
    said = await refused(served)
    assert f"is at revision {FIRST} and this mobd needs {migrate.head()}: run mobd migrate" in said
    assert (
        await typed_in(on_postgresql, served, MIGRATE) == f"the database went from revision {FIRST} to {migrate.head()}"
    )
    await goes_on(on_postgresql, served, past)


async def test_a_backup_by_another_version_is_refused(alone: World) -> None:
    served = await alone.serve()
    await left_behind(alone, served)
    target = alone.folder / "backup.db"
    process = Process(["-m", "mobd_server", "backup", str(target)], served.settings, alone.folder / "backup.log")
    assert await process.ended() == 1
    assert f"is at revision {FIRST}" in process.output()
    assert len(process.output().splitlines()) == 1
    assert not target.exists()
