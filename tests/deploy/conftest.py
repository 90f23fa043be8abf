"""The image, built once for all tests here, and what runs it."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.deploy.image import Builder
from tests.deploy.services import Database, Host, composed
from tests.support.postgres import Cluster


@pytest.fixture(scope="session")
def built() -> Iterator[Builder]:
    """The image, in a directory that another user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="mobd-image-"))
    folder.chmod(0o755)
    builder = Builder(folder)
    builder.build()
    yield builder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def alone(built: Builder, tmp_path: Path) -> Iterator[Host]:
    """The image without services beside it."""
    host = Host(built, tmp_path)
    yield host
    host.close()


@pytest.fixture
def database(postgres: Cluster, alone: Host) -> Iterator[Database]:
    """The service postgres; `postgres` is asked for because it knows whether PostgreSQL must be there."""
    service = composed()["services"]["postgres"]
    found = Database(alone.folder, service, alone.secret(service["secrets"][0]))
    yield found
    found.cluster.remove()


@pytest.fixture
def services(built: Builder, database: Database, alone: Host) -> Iterator[Host]:
    """The services that run the image, beside the service postgres."""
    host = Host(built, alone.folder, database.cluster)
    yield host
    host.close()
