"""Send a server random requests over every method and stream, and see that each is answered as the protocol says.

    make fuzz REQUESTS=100000 [FROM=seed] [STORE=postgresql]      a run; the same seed makes the same run, nearly
    make fuzz ONLY=Service/Method:hex                              one call that a run has complained about
    make fuzz REPLAY=file                                          the calls that a run has kept, in their order

A run ends with 1 if a rule was broken: an error that is not in the catalogue or names a field that is not there, a line
in the server's log that tells of a failure, a server that is late with its health, that keeps memory which its state
does not explain, or whose mobs do not load any more. tests/fuzz has the rules.
"""

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from mobd_server.adapters.sql import migrate  # noqa: E402 behind the path that leads to it
from mobd_server.adapters.sql.engine import database_url, open_engine  # noqa: E402 behind the path that leads to it
from tests.fuzz.calls import case_from  # noqa: E402 behind the path that leads to it
from tests.fuzz.session import SETTINGS, Report, Run  # noqa: E402 behind the path that leads to it
from tests.support.postgres import Cluster  # noqa: E402 behind the path that leads to it
from tests.support.served import Served  # noqa: E402 behind the path that leads to it


async def fuzz(arguments: argparse.Namespace, folder: Path, url: str | None) -> Report:
    """Play what was asked for against a server of its own."""
    async with Served(folder, url, SETTINGS) as served:
        run = Run(served, arguments.seed or secrets.token_hex(4))
        if arguments.only:
            return await run.replay([case_from(arguments.only)])
        if arguments.replay:
            return await run.replay([case_from(line) for line in arguments.replay.read_text().splitlines()])
        print(f"seed {run.report.seed}", flush=True)
        began = time.perf_counter()
        report = await run.play(arguments.first, arguments.requests)
        print(f"{report.calls / (time.perf_counter() - began):.0f} calls a second")
        if report.wrong:
            print(f"the last calls are in {run.keep(Path(tempfile.gettempdir()))}: REPLAY=file makes them again")
        return report


def main() -> int:
    """Run, tell what was seen, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=20_000, help="how many calls")
    parser.add_argument("--seed", default="", help="what the calls are made from; one is chosen if there is none")
    parser.add_argument("--first", type=int, default=0, help="the number of the first call")
    parser.add_argument("--store", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--only", default="", help="a call, as a run has shown it")
    parser.add_argument("--replay", type=Path, help="a file of calls")
    arguments = parser.parse_args()
    cluster = Cluster() if arguments.store == "postgresql" else None
    try:
        with tempfile.TemporaryDirectory(prefix="mobd-fuzz-") as folder:
            report = asyncio.run(fuzz(arguments, Path(folder), migrated(cluster) if cluster else None))
    finally:
        if cluster is not None:
            cluster.remove()
    print(report.summary())
    for wrong in report.complaints:
        print(f"wrong: {wrong[:4_000]}")
    return 1 if report.wrong else 0


def migrated(cluster: Cluster) -> str:
    """Return a database with the schema of this build."""
    url = cluster.new_database()
    engine = open_engine(database_url(None, url))
    migrate.upgrade(engine)
    engine.dispose()
    return url


if __name__ == "__main__":
    sys.exit(main())
