"""What every test may ask for: a database of its own, on each store."""

from collections.abc import Iterator

import pytest
from hypothesis import Phase, settings
from tests.support.postgres import Cluster, binary
from tests.support.settings import setting

from mobd_server.adapters.sql import migrate
from mobd_server.adapters.sql.engine import database_url, open_engine

# For `make mutation`: few examples, the same every time, and what fails is not made shorter.
settings.register_profile(
    "mutation", max_examples=10, derandomize=True, database=None, deadline=None, phases=(Phase.explicit, Phase.generate)
)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A PostgreSQL cluster; without one the test is skipped, or fails if MOBD_REQUIRE_POSTGRES is set."""
    if binary("initdb") is None:
        reason = "PostgreSQL is not installed (Debian: apt-get install postgresql)"
        if setting("MOBD_REQUIRE_POSTGRES"):
            pytest.fail(reason)
        pytest.skip(reason)
    cluster = Cluster()
    yield cluster
    cluster.remove()


@pytest.fixture
def empty_postgres_url(postgres: Cluster) -> str:
    """A database without a schema."""
    return postgres.new_database()


@pytest.fixture
def postgres_url(empty_postgres_url: str) -> str:
    """A database with the schema of this build."""
    engine = open_engine(database_url(None, empty_postgres_url))
    migrate.upgrade(engine)
    engine.dispose()
    return empty_postgres_url


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest) -> str | None:
    """The database of a server: None for SQLite in its data directory, or the URL of a migrated PostgreSQL one."""
    if request.param == "sqlite":
        return None
    url: str = request.getfixturevalue("postgres_url")
    return url
