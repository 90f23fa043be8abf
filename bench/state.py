"""What GetState costs in a long log, and whom it holds up.

The state is asked for at places in one log, while another process delivers one input after the other to another mob of
the same server; what it waits for is compared with what it waits for while nobody asks.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import team
from load import median, percentile
from plan import Numbers, Place, Plan, Section, main, say
from seed import Seed, forget_snapshots, log_of

from mobd.v1 import bridge_pb2, bridge_pb2_grpc, common_pb2, events_pb2

EVENTS = 300_000
PLACES = (0.01, 0.5, 0.75, 1.0)
DAYS = 10.0
# Between two probes.
PAUSE_S = 0.002
# Enough for what nobody takes to find room.
MEMBERS = 1_000


def until_closed(stopped: threading.Event) -> None:
    sys.stdin.read()
    stopped.set()


def probe(port: int, prefix: str) -> None:
    """Deliver, one input after the other, until the input is closed; then write how long each took, in ms."""
    took: list[float] = []
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
        while not stopped.is_set() or not took:
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

    def end(self) -> Numbers:
        """Stop it and return what it waited."""
        out, _ = self._process.communicate("")
        took = sorted(json.loads(out))
        return {"p50_ms": percentile(took, 50), "p99_ms": percentile(took, 99), "longest_ms": took[-1]}


class Asking:
    """One server whose mob `long` is asked for, for so long at each place."""

    def __init__(self, running: team.Running, seconds: float) -> None:
        self._running = running
        self._seconds = seconds
        self._asked = 0

    def at(self, cursor: int | None, *, once: bool = False) -> Numbers:
        """Ask for the state after a cursor, again and again, while a probe runs."""
        self._asked += 1
        watched = Probe(self._running.port, f"{self._asked}-{time.time_ns()}")
        took: list[float] = []
        size = 0
        while not took or (sum(took) < self._seconds and not once):
            began = time.monotonic()
            request = events_pb2.GetStateRequest(mob_id="long", at_cursor=cursor)
            size = sum(part.ByteSize() for part in self._running.events.GetState(request))
            took.append(time.monotonic() - began)
        return {"state_s": median(took), "size_mb": size / 1e6, **watched.end()}

    def nobody(self) -> Numbers:
        """Only let a probe run."""
        alone = Probe(self._running.port, f"alone-{time.time_ns()}")
        time.sleep(self._seconds)
        return alone.end()


@contextmanager
def serving(site: team.Site) -> Iterator[team.Running]:
    """Serve, with a mob to probe whose log begins with this server, and take no snapshots meanwhile."""
    with site.serving(snapshot_events=10_000_000, passivate_after_s=0) as running:
        running.create(probed(running.port), MEMBERS)
        yield running


def probed(port: int) -> str:
    """Return the mob that is probed on the server at `port`."""
    return f"probe-{port}"


def one_round(site: team.Site, events: int, seconds: float, suffix: str) -> dict[str, Numbers]:
    """Look at the probe alone, then ask at every place; last load the mob, which asks for its state of now."""
    found = {}
    with serving(site) as running:
        asking = Asking(running, seconds)
        # The process that folds is started at its first use.
        asking.at(1, once=True)
        found[f"nobody asks{suffix}"] = asking.nobody()
        for place in PLACES if seconds else PLACES[:1]:
            found[f"at {place:.0%}{suffix}"] = asking.at(int(events * place))
        found[f"now, not in memory{suffix}"] = asking.at(None, once=True)
        found[f"now, in memory{suffix}"] = asking.at(None)
    return found


def measure(plan: Plan, place: Place) -> Section:
    """Measure the first store: with the snapshots that a server takes, and once without any."""
    site = team.Site(place.folder, plan.stores[0], place.cluster)
    events = plan.size(EVENTS, least=500)
    seed = Seed(site.folder, site.url)
    log_of(seed, "long", events, days=DAYS, keep_snapshots=True)
    seed.close()
    section = Section({"store": site.store, "events": events, "members": 100}, [])
    for number in range(plan.repeats):
        section.rounds.append(one_round(site, events, plan.seconds, ""))
        say(f"state, round {number + 1}: {team.conditions()}")
    if not plan.seconds:
        return section
    seed = Seed(site.folder, site.url)
    forget_snapshots(seed)
    seed.close()
    section.rounds[0] |= one_round(site, events, plan.seconds, ", no snapshot")
    return section


if __name__ == "__main__":
    if sys.argv[1:2] == ["--probe"]:
        probe(int(sys.argv[2]), sys.argv[3])
    else:
        sys.exit(main(__doc__, measure))
