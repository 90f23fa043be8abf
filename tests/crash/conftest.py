"""What crash tests share: a small disk, a cluster that may crash, and stages on them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.crash.stage import Stage
from tests.support.disks import Disk
from tests.support.postgres import Cluster
from tests.support.processes import say

SQLITE_MB = 64
POSTGRESQL_MB = 192

NewStage = Callable[[str, type[Stage]], Stage]


@pytest.fixture
def new_stage(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[NewStage]:
    """Make stages, each with a folder of its own; those on PostgreSQL share a cluster, which is made for the first."""
    with ExitStack() as stack:
        disks: dict[str, Disk | None] = {}
        clusters: list[Cluster] = []
        count = 0

        def disk(store: str, megabytes: int) -> Disk | None:
            if store not in disks:
                disks[store] = Disk.mount(megabytes)
                found = disks[store]
                if found is not None:
                    stack.callback(found.unmount)
                else:
                    say("NO DISK OF ITS OWN: mount is not permitted here, and no disk will be full")
            return disks[store]

        def make(store: str, kind: type[Stage]) -> Stage:
            nonlocal count
            count += 1
            folder = tmp_path / f"stage-{count}"
            if store == "sqlite":
                return kind(folder, None, disk(store, SQLITE_MB))
            if not clusters:
                request.getfixturevalue("postgres")
                found = disk(store, POSTGRESQL_MB)
                clusters.append(Cluster(found.folder if found is not None else None))
                stack.callback(clusters[0].remove)
            return kind(folder, clusters[0], disk(store, POSTGRESQL_MB))

        yield make
