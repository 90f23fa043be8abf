"""The schema's history: up, down and up again, on both databases, by several processes at once."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import inspect
from sqlalchemy.engine import Engine

from mobd_server.adapters.sql import migrate
from mobd_server.adapters.sql.engine import database_url, open_engine
from mobd_server.adapters.sql.tables import METADATA


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A database without a schema."""
    url = request.getfixturevalue("empty_postgres_url") if request.param == "postgresql" else None
    engine = open_engine(database_url(tmp_path, url))
    yield engine
    engine.dispose()


def test_an_empty_database_has_no_revision(empty: Engine) -> None:
    assert migrate.current(empty) == ""


def test_upgrading_brings_every_table_and_leaves_no_drift(empty: Engine) -> None:
    migrate.upgrade(empty)
    assert migrate.current(empty) == migrate.head()
    assert set(METADATA.tables) <= set(inspect(empty).get_table_names())
    assert migrate.drift(empty) == ""


def test_upgrading_twice_changes_nothing(empty: Engine) -> None:
    migrate.upgrade(empty)
    migrate.upgrade(empty)
    assert migrate.current(empty) == migrate.head()


def test_what_was_upgraded_can_be_taken_back_and_upgraded_again(empty: Engine) -> None:
    migrate.upgrade(empty)
    migrate.downgrade(empty, "base")
    assert inspect(empty).get_table_names() == ["alembic_version"]
    migrate.upgrade(empty)
    assert migrate.drift(empty) == ""


def test_a_column_too_many_is_drift(empty: Engine) -> None:
    migrate.upgrade(empty)
    with empty.execution_options(writes=True).begin() as connection:
        connection.exec_driver_sql("ALTER TABLE mobs ADD COLUMN stray TEXT")
    assert "stray" in migrate.drift(empty)


UPGRADE = """
import sys
from mobd_server.adapters.sql import migrate
from mobd_server.adapters.sql.engine import database_url, open_engine
migrate.upgrade(open_engine(database_url(None, sys.argv[1])))
"""


def test_processes_that_upgrade_at_once_all_succeed(empty: Engine) -> None:
    url = empty.url.render_as_string(hide_password=False)
    started = [subprocess.Popen([sys.executable, "-c", UPGRADE, url], stderr=subprocess.PIPE) for _ in range(4)]
    errors = [process.communicate(timeout=60)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0, 0], errors
    assert migrate.drift(empty) == ""
