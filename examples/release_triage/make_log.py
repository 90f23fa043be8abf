"""Write a log of a release that goes wrong, and the truth about it: what was drawn, not what can be read from it.

    python make_log.py --seed 7 --lines 4000 > release.log
    python make_log.py --seed 7 --lines 4000 --out release.log --truth truth.json

The same seed and number of lines give the same log.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A kind of message: how often it comes, between which parts (0 to 1) of the log, and what follows it."""

    level: str
    component: str
    text: str
    weight: float
    begin: float = 0.0
    end: float = 1.0
    trace: tuple[str, ...] = ()


KINDS = (
    Kind("INFO", "gateway", "GET /api/orders/{n} 200 in {ms} ms", 30),
    Kind("INFO", "gateway", "POST /api/checkout 201 in {ms} ms, request {id}", 14),
    Kind("INFO", "orders", "order {n} placed by customer {n}", 10),
    Kind("INFO", "worker", "job {id} finished in {ms} ms", 9),
    Kind("DEBUG", "cache", "hit session:{id}", 12),
    Kind("DEBUG", "cache", "miss session:{id}", 5),
    Kind("INFO", "auth", "token issued for user {n}", 6),
    Kind("INFO", "deploy", "instance {ip} took traffic on 4.2.{n}", 1.2, 0.28, 0.45),
    Kind("WARNING", "db-pool", "waited {ms} ms for a connection, {n} in use", 6, 0.34, 0.9),
    Kind("WARNING", "gateway", "retrying {ip} after timeout, attempt {n}", 3, 0.36, 0.9),
    Kind("WARNING", "cache", "evicted {n} keys under memory pressure", 1.2, 0.1, 1.0),
    Kind(
        "ERROR",
        "orders",
        "could not place order {n}: no connection within {ms} ms",
        5,
        0.40,
        0.88,
        (
            "Traceback (most recent call last):",
            '  File "/srv/orders/place.py", line 212, in place',
            "    with pool.connection(timeout=5.0) as connection:",
            "PoolTimeout: couldn't get a connection after 5.00 sec",
        ),
    ),
    Kind("ERROR", "gateway", "502 from orders at {ip}, request {id}", 4, 0.41, 0.88),
    Kind("ERROR", "billing", "charge {id} declined twice for order {n}", 0.8, 0.15, 1.0),
    Kind(
        "ERROR",
        "worker",
        "job {id} failed",
        1.5,
        0.43,
        0.95,
        (
            "Traceback (most recent call last):",
            '  File "/srv/worker/run.py", line 88, in run',
            "    order = orders[order_id]",
            "KeyError: 'shipping_window'",
        ),
    ),
    Kind("CRITICAL", "db-pool", "all {n} connections are held by idle transactions", 0.5, 0.47, 0.85),
    Kind("CRITICAL", "deploy", "error budget spent: rolling back to 4.1.{n}", 0.3, 0.84, 0.9),
)


def _fill(text: str, draw: random.Random) -> str:
    return text.format(
        n=draw.randint(1, 99_999),
        ms=draw.randint(1, 6_000),
        ip=f"10.0.{draw.randint(0, 3)}.{draw.randint(2, 250)}:{draw.choice((5432, 8080, 9000))}",
        id=f"{draw.randint(0, 9)}{draw.getrandbits(44):011x}",
    )


def _records(draw: random.Random, lines: int) -> Iterator[tuple[Kind, str]]:
    """Yield kinds and messages until the log is as long as asked."""
    weights = [kind.weight * draw.uniform(0.5, 1.5) for kind in KINDS]
    written = 0
    while written < lines:
        place = written / lines
        active = [w if k.begin <= place < k.end else 0.0 for k, w in zip(KINDS, weights, strict=True)]
        kind = draw.choices(KINDS, active)[0]
        if written + 1 + len(kind.trace) > lines:
            kind = KINDS[0]
        written += 1 + len(kind.trace)
        yield kind, _fill(kind.text, draw)


def make(seed: int, lines: int) -> tuple[str, dict[str, Any]]:
    """Return the log and the truth about it."""
    draw = random.Random(seed)
    at = datetime(2025, 3, 4, 9, 0, tzinfo=UTC)
    out: list[str] = []
    groups: dict[Kind, dict[str, Any]] = {}
    records = 0
    for kind, message in _records(draw, lines):
        at += timedelta(milliseconds=draw.randint(1, 900))
        stamp = f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03}Z"
        out.append(f"{stamp} {kind.level} {kind.component}: {message}")
        known = groups.setdefault(
            kind,
            {
                "level": kind.level.lower(),
                "component": kind.component,
                "count": 0,
                "first_line": len(out),
                "first_message": message,
            },
        )
        known["count"] += 1
        records += 1
        out.extend(kind.trace)
    return "\n".join(out) + "\n", {"lines": len(out), "records": records, "groups": list(groups.values())}


def main() -> None:
    """Write what the arguments ask for."""
    parser = argparse.ArgumentParser(description="Write a log of a release that goes wrong.")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--lines", type=int, default=4000)
    parser.add_argument("--out", type=Path, help="the log; standard output if not given")
    parser.add_argument("--truth", type=Path, help="write the truth here, as JSON")
    args = parser.parse_args()
    log, truth = make(args.seed, args.lines)
    if args.out:
        args.out.write_text(log)
    else:
        sys.stdout.write(log)
    if args.truth:
        args.truth.write_text(json.dumps(truth, indent=1) + "\n")


if __name__ == "__main__":
    main()
