"""Plays a scene, and says what the checker says; the last line is JSON.

    python -m tests.checker.run [--scene simulated|killed|…] [--seed 1] [--worlds 60] [--keep FOLDER]

simulated: worlds of tests/simulation, one after another until something is broken; killed, faulty: the workload on real
servers that are killed at any moment, or in the middle of what they do with a commit; uncommitted: always right before
it; two-servers: see there.

Exits with 0 if nothing is broken, 1 if something is, 2 if nothing could be judged.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

from tests.checker.checker import BadHistory, Verdict, broken, told
from tests.checker.history import Record, write
from tests.checker.two_servers import two_servers
from tests.checker.workload import Plan, Workload, faults
from tests.simulation.world import simulate
from tests.support.postgres import Cluster
from tests.support.processes import say

from mobd_server.adapters.sql import migrate
from mobd_server.adapters.sql.engine import database_url, open_engine

SCENES: Final = ("simulated", "killed", "faulty", "uncommitted", "two-servers")
LIMIT_S: Final = 220.0


async def play(scene: str, seed: int, folder: Path, url: str | None) -> list[Record]:
    """Return the history of a scene; `url` is an empty PostgreSQL database for the scene of two servers."""
    async with asyncio.timeout(LIMIT_S):
        if scene == "two-servers":
            return await two_servers(folder, url or "")
        plan = Plan(seed, seconds=5.0, kills=3, agent_kills=2)
        if scene == "faulty":
            plan.faults = faults(seed)
        if scene == "uncommitted":
            plan.faults = faults(seed, ["before_commit"])
        return await Workload(folder, url, plan).run()


def simulated(first: int, worlds: int) -> tuple[int, list[Verdict]]:
    """Play worlds until one is broken; return how many records were judged and what is broken.

    A world that failed before it could be read to its end is judged by nobody.
    """
    judged = 0
    for seed in range(first, first + worlds):
        records = simulate(seed).records
        try:
            verdicts = broken(records)
        except BadHistory:
            continue
        judged += len(records)
        if verdicts:
            say(f"world {seed}")
            return judged, verdicts
    return judged, []


def recorded(scene: str, seed: int, keep: Path | None) -> tuple[int, list[Verdict]]:
    """Play a scene with real processes; return how many records were judged and what is broken."""
    cluster = Cluster() if scene == "two-servers" else None
    try:
        with tempfile.TemporaryDirectory(prefix="checker-") as temporary:
            folder = keep or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            url = cluster.new_database() if cluster is not None else None
            if url is not None:
                engine = open_engine(database_url(None, url))
                migrate.upgrade(engine)
                engine.dispose()
            history = asyncio.run(play(scene, seed, folder, url))
            write(folder / "history.jsonl", history)
            return len(history), broken(history)
    finally:
        if cluster is not None:
            cluster.remove()


def main() -> int:
    """Play, check, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", choices=SCENES, default="killed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worlds", type=int, default=60)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    try:
        if options.scene == "simulated":
            judged, verdicts = simulated(options.seed, options.worlds)
        else:
            judged, verdicts = recorded(options.scene, options.seed, options.keep)
    except Exception as error:  # noqa: BLE001 whatever it is, this is no verdict
        say(f"{type(error).__name__}: {error}")
        return 2
    if verdicts:
        say(told(verdicts, 3))
    say(json.dumps({"records": judged, "broken": Counter(one.check for one in verdicts)}))
    return bool(verdicts)


if __name__ == "__main__":
    sys.exit(main())
