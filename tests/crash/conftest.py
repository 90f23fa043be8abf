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

        def cluster(disk: Disk | None) -> Cluster:
            if not clusters:
                request.getfixturevalue("postgres")
                clusters.append(Cluster(disk.folder if disk is not None else None))
                stack.callback(clusters[0].remove)
            return clusters[0]

        def make(store: str, kind: type[Stage]) -> Stage:
            nonlocal count
            count += 1
            found = disk(store, SQLITE_MB if store == "sqlite" else POSTGRESQL_MB)
            stage = kind(tmp_path / f"stage-{count}", None if store == "sqlite" else cluster(found), found)
            # Every third of them on the other loop, which is installed with the server's extra.
            stage.settings["MOBD_LOOP"] = "asyncio" if count % 3 else "auto"
            return stage

        yield make
