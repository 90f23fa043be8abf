"""How many durable Delivers a second, as a ratio against a bare grpc.aio echo of the same message in the same run.

Every round starts a fresh `mobd serve` as shipped, measures echo and Deliver in turn with h2load over the same number
of connections, and ends with SIGKILL; then every input id that was acknowledged must be in the store.
"""

import argparse
import json
import platform
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

from load import (
    MEMBERS,
    Measured,
    Served,
    body,
    build_stamp,
    h2load,
    median,
    need_tools,
    serve_echo,
    serve_mobd,
)
from postgres import Cluster

ECHO = "/bench.Echo/Echo"
DELIVER = "/mobd.v1.BridgeService/Deliver"
TEXT = "x" * 140
WARM_UP = 2_000


def sqlite_ids(folder: Path) -> set[str]:
    """Return the input ids that the database of a killed server holds."""
    database = sqlite3.connect(folder / "mobd.db")
    try:
        rows = database.execute("SELECT payload FROM events WHERE kind = 'input_accepted'").fetchall()
    finally:
        database.close()
    return {json.loads(payload)["input_id"] for (payload,) in rows}


def durability(served: Served) -> str:
    """Return what the server said of the store when it opened it."""
    if served.folder is None:
        return "?"
    first: str = (served.folder / "server.log").read_text().splitlines()[0]
    try:
        said = json.loads(first)
    except ValueError:
        return first
    return ", ".join(f"{key}={said[key]}" for key in ("store", "synchronous", "fsync", "journal_mode") if key in said)


def check(missing: set[str], count: int) -> None:
    """Fail loudly if an acknowledged id is not in the store."""
    if missing:
        raise SystemExit(f"{len(missing)} of {count} acknowledged inputs are not in the store: {sorted(missing)[:3]}")


def one_round(
    store: str, cluster: Cluster | None, stamp: Path, folder: Path, options: argparse.Namespace
) -> tuple[dict[str, Measured], str]:
    """Measure echo and Deliver once, in turn, kill the server, and look for what it acknowledged."""
    data = body(folder, TEXT)
    url = cluster.new_database() if cluster is not None and store == "postgresql" else None
    settings = {"MOBD_LOG_FORMAT": "json", "MOBD_LOOP": options.loop}
    echo, mobd = serve_echo(), serve_mobd(url, settings)
    try:
        h2load(echo, ECHO, data, stamp, WARM_UP, options.concurrency)
        measured = {"echo": h2load(echo, ECHO, data, stamp, options.count, options.concurrency)}
        measured["deliver"] = h2load(mobd, DELIVER, data, stamp, options.count, options.concurrency)
        said = durability(mobd)
    finally:
        echo.kill()
        mobd.kill()
    found = cluster.input_ids(url) if cluster is not None and url is not None else sqlite_ids(mobd.folder or folder)
    check({f"{number:012}" for number in range(options.count)} - found, options.count)
    if mobd.folder is not None:
        shutil.rmtree(mobd.folder, ignore_errors=True)
    return measured, said


def row(name: str, runs: list[Measured], ratio: float | None) -> str:
    """Return one line of the table: medians."""
    shown = f"{ratio:.2f}" if ratio is not None else "1.00"
    fields = [
        f"{median([r.per_second for r in runs]):,.0f}",
        shown,
        f"{median([r.p50_ms for r in runs]):.1f} / {median([r.p99_ms for r in runs]):.1f}",
        f"{median([r.loop_us for r in runs]):.0f}",
        f"{median([r.others_us for r in runs]):.0f}",
    ]
    return f"| {name} | " + " | ".join(fields) + " |"


def main() -> int:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", action="append", choices=["sqlite", "postgresql"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=20_000, help="requests in each measurement")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--loop", default="asyncio", choices=["asyncio", "uvloop"])
    options = parser.parse_args()
    missing = need_tools()
    if missing:
        sys.stderr.write(f"bench: {missing}\n")
        return 2
    stores = options.store or ["sqlite", "postgresql"]
    folder = Path(tempfile.mkdtemp(prefix="mobd-bench-"))
    stamp = build_stamp(folder)
    cluster = Cluster.start(folder) if "postgresql" in stores else None
    try:
        print(f"machine: {platform.machine()}, Python {platform.python_version()}, {options.loop}")
        print(
            f"{options.rounds} rounds of {options.count} requests, {options.concurrency} in flight, {MEMBERS} members"
        )
        results: dict[str, list[dict[str, Measured]]] = {store: [] for store in stores}
        for number in range(options.rounds):
            for store in stores:
                measured, said = one_round(store, cluster, stamp, folder, options)
                results[store].append(measured)
                ratio = measured["deliver"].per_second / measured["echo"].per_second
                print(f"round {number + 1} {store}: {ratio:.2f} ({said}); every acknowledged id found after SIGKILL")
        print("\n| | per s | ratio | p50 / p99 ms | loop µs | other threads µs |\n|---|---|---|---|---|---|")
        for store, rounds in results.items():
            ratio = median([r["deliver"].per_second / r["echo"].per_second for r in rounds])
            print(row("echo", [r["echo"] for r in rounds], None))
            print(row(f"Deliver, {store}", [r["deliver"] for r in rounds], ratio))
    finally:
        if cluster is not None:
            cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
