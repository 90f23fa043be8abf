"""How a database is opened: what may be one, what holds on every connection, who may have it."""

import os
from pathlib import Path

import pytest
from tests.stores.conftest import EngineOf

from mobd_server.adapters.sql.engine import FileLock, StoreInUse, StoreInvalid, database_url, durability


def test_without_a_url_the_database_is_a_file_in_the_data_directory(tmp_path: Path) -> None:
    assert database_url(tmp_path, None).database == str(tmp_path / "mobd.db")


def test_a_postgresql_url_needs_no_driver_in_it() -> None:
    assert database_url(None, "postgresql://me@host/db").drivername == "postgresql+psycopg"


@pytest.mark.parametrize(
    "url", ["mysql://host/db", "sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory", "x"]
)
def test_what_can_not_be_durable_is_refused(url: str) -> None:
    with pytest.raises(StoreInvalid):
        database_url(None, url)


@pytest.mark.parametrize(
    ("kind", "durable"),
    [
        ("sqlite", {"journal_mode": "wal", "synchronous": "FULL"}),
        ("postgresql", {"fsync": "on", "synchronous_commit": "on"}),
    ],
)
def test_what_makes_a_commit_durable_is_read_back(kind: str, durable: dict[str, str], engine_of: EngineOf) -> None:
    assert durability(engine_of(kind)) == durable


def test_a_database_is_locked_by_one_server_and_says_whose_it_is(tmp_path: Path) -> None:
    mine, other = FileLock(tmp_path / "mobd.db"), FileLock(tmp_path / "mobd.db")
    mine.acquire()
    with pytest.raises(StoreInUse, match=f"mobd.db is in use by another mobd .pid {os.getpid()}."):
        other.acquire()
    mine.release()
    other.acquire()
    other.release()
    assert not (tmp_path / "mobd.db").exists()
