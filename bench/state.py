"""What GetState costs in a long log, and whom it holds up.

The state is asked for at places in one log, while another process delivers to another mob of the same server, one input
after the other; what it waits for is compared with what it waits for while nobody asks.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import msgspec
import team
from load import median
from msgspec import Struct
from postgres import Cluster
from seed import Seed, forget_snapshots, log_of

from mobd.v1 import bridge_pb2, bridge_pb2_grpc, common_pb2, events_pb2

PLACES = (0.01, 0.25, 0.5, 0.75, 1.0)
DAYS = 10.0
QUIET_S = 5.0
# For how long a state is asked for, again and again.
ASKING_S = 2.0
# Between two probes.
PAUSE_S = 0.002
# Enough for what nobody takes to find room.
MEMBERS = 1_000


class Waits(Struct):
    """How long probes took, in milliseconds."""

    count: int
    p50: float
    p99: float
    longest: float


class Asked(Struct):
    """GetState at one place: seconds for one, how much came, and what the others waited meanwhile."""

    seconds: float
    sections: int
    bytes: int
    waits: Waits


def until_closed(stopped: threading.Event) -> None:
    sys.stdin.read()
    stopped.set()


def probe(port: int, prefix: str) -> None:
    """Deliver, one input after the other, until the input is closed; then write how long each took."""
    took = []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = bridge_pb2_grpc.BridgeServiceStub(channel)
        content = common_pb2.Content(blocks=[common_pb2.Block(text=team.TEXT)])
        members = team.names(MEMBERS)
        stopped = threading.Event()
        threading.Thread(target=until_closed, args=[stopped]).start()
        # The first takes the time of a connection.
        stub.Deliver(
            bridge_pb2.DeliverRequest(mob_id=probed(port), member_id=members[0], input_id=prefix, content=content)
        )
        print("ready", flush=True)
        number = 0
        while not stopped.is_set():
            request = bridge_pb2.DeliverRequest(
                mob_id=probed(port),
                member_id=members[number % MEMBERS],
                input_id=f"{prefix}-{number:09}",
                content=content,
            )
            began = time.perf_counter()
            stub.Deliver(request)
            took.append((time.perf_counter() - began) * 1_000)
            number += 1
            time.sleep(PAUSE_S)
    print(json.dumps(took))


class Probe:
    """A probe that runs in a process of its own."""

    def __init__(self, port: int, prefix: str) -> None:
        command = [sys.executable, __file__, "--probe", str(port), prefix]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()
        time.sleep(0.1)

    def end(self) -> Waits:
        """Stop it and return what it waited."""
        out, _ = self._process.communicate("")
        took = sorted(json.loads(out))
        return Waits(len(took), took[len(took) // 2], took[len(took) * 99 // 100], took[-1])


def ask(running: team.Running, cursor: int | None, prefix: str, at_least_s: float = ASKING_S) -> Asked:
    """Ask for a state, and again for as long as `at_least_s`, while a probe runs."""
    watched = Probe(running.port, prefix)
    took: list[float] = []
    sections, size = 0, 0
    while sum(took) < at_least_s or not took:
        sections = size = 0
        began = time.monotonic()
        for part in running.events.GetState(events_pb2.GetStateRequest(mob_id="long", at_cursor=cursor)):
            sections += len(part.sections.sections)
            size += part.ByteSize()
        took.append(time.monotonic() - began)
    time.sleep(0.1)
    return Asked(median(took), sections, size, watched.end())


@contextmanager
def serving(site: team.Site) -> Iterator[team.Running]:
    """Serve, with a mob to probe whose log begins with this server, and take no snapshots meanwhile."""
    with site.serving(snapshot_events=10_000_000, passivate_after_s=0) as running:
        running.create(probed(running.port), MEMBERS)
        yield running


def probed(port: int) -> str:
    """Return the mob that is probed on the server at `port`."""
    return f"probe-{port}"


def measure(site: team.Site, events: int, rounds: int) -> dict[str, list[Asked]]:
    """Look at the probe alone, then ask at every place; last load the mob, which asks for its state of now."""
    found: dict[str, list[Asked]] = {}
    with serving(site) as running:
        # The process that folds is started at its first use.
        ask(running, 1, "warm")
        for number in range(rounds):
            alone = Probe(running.port, f"{number}-alone")
            time.sleep(QUIET_S)
            found.setdefault("nobody asks", []).append(Asked(0, 0, 0, alone.end()))
            for place in PLACES:
                found.setdefault(f"{place:.0%}", []).append(ask(running, int(events * place), f"{number}-{place}"))
            team.say(f"round {number + 1}: {team.conditions()}")
    for number in range(rounds):
        with serving(site) as running:
            found.setdefault("now, not in memory", []).append(ask(running, None, f"{number}-load", 0.0))
            found.setdefault("now, in memory", []).append(ask(running, None, f"{number}-now"))
    return found


def row(name: str, asked: list[Asked]) -> list[str]:
    """Return a line of the table."""
    asks = asked[0].sections > 0
    return [
        name,
        team.middle([one.seconds for one in asked], "{:.2f}") if asks else "",
        f"{asked[0].sections:,}" if asks else "",
        f"{asked[0].bytes / 1e6:.2f}" if asks else "",
        f"{median([one.waits.p50 for one in asked]):.1f} / {median([one.waits.p99 for one in asked]):.1f}",
        team.middle([one.waits.longest for one in asked], "{:.0f}"),
    ]


def of_store(
    options: argparse.Namespace, store: str, folder: Path, cluster: Cluster | None
) -> dict[str, dict[str, list[Asked]]]:
    """Measure one store."""
    site = team.Site(folder, store, cluster)
    seed = Seed(site.folder, site.url)
    log_of(seed, "long", options.events, days=DAYS, keep_snapshots=True)
    seed.close()
    team.say(f"{store}: the log is there")
    found = {"snapshots": measure(site, options.events, options.rounds)}
    if options.bare:
        seed = Seed(site.folder, site.url)
        forget_snapshots(seed)
        seed.close()
        found["no snapshot"] = measure(site, options.events, options.bare)
    return found


def main() -> int:
    """Run all of it and print the tables."""
    parser = team.options_of(__doc__, stores="sqlite")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--bare", type=int, default=1, help="rounds without any snapshot; 0: leave them out")
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        probe(int(options.probe[0]), options.probe[1])
        return 0
    stores = options.store or ["sqlite"]
    numbers = {}
    head = ["s", "sections", "MB", "a Deliver meanwhile: p50 / p99 ms", "longest ms"]
    with team.workplace(stores) as (folder, cluster):
        for store in stores:
            found = of_store(options, store, folder, cluster)
            for what, asked in found.items():
                team.table([f"{store}, {what}", *head], [row(name, one) for name, one in asked.items()])
            numbers[store] = msgspec.to_builtins(found)
    team.write_json(options.json, numbers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
