"""Migrations that are killed: each leaves all of its revisions or none, and the next one ends the work."""

import signal
from pathlib import Path

import pytest
from tests.support.processes import Process
from tests.support.served import Served

from mobd_server import faults
from mobd_server.adapters.sql import migrate
from mobd_server.adapters.sql.engine import database_url, open_engine

pytestmark = pytest.mark.asyncio

REVISIONS = len(list((Path(migrate.__file__).parents[4] / "migrations/mobd_migrations/versions").glob("[0-9]*.py")))


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without a schema."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'mobd.db'}"
    url: str = request.getfixturevalue("empty_postgres_url")
    return url


async def migrated(url: str, folder: Path, fault: str = "") -> int:
    """Run `mobd migrate` and return its exit code."""
    settings = {"MOBD_DATABASE_URL": url, "MOBD_DATA_DIR": str(folder / "data")}
    process = Process(
        ["-m", "mobd_server", "migrate"], {**settings, **({faults.VARIABLE: fault} if fault else {})}, folder / "log"
    )
    return await process.ended()


async def test_a_migration_that_is_killed_leaves_nothing_half_done_and_is_repeated(
    empty_url: str, tmp_path: Path
) -> None:
    assert REVISIONS
    engine = open_engine(database_url(None, empty_url))
    try:
        for revision in sorted({1, REVISIONS}):
            assert await migrated(empty_url, tmp_path, f"during_migration:crash@{revision}") == -signal.SIGKILL
            assert migrate.current(engine) == ""
        assert await migrated(empty_url, tmp_path) == 0
        assert migrate.current(engine) == migrate.head()
        assert migrate.drift(engine) == ""
    finally:
        engine.dispose()


async def test_a_server_that_is_killed_while_it_makes_its_database_makes_it_when_it_is_started_again(
    tmp_path: Path,
) -> None:
    served = Served(tmp_path, None, {faults.VARIABLE: "during_migration:crash"})
    assert await served.spawn().ended() == -signal.SIGKILL
    del served.settings[faults.VARIABLE]
    async with served:
        assert served.process.code is None
