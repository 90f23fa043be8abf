"""Fan-out: how many events a second reach watchers, over all their WatchEvents streams.

Watchers, each with a connection of its own, follow one mob live; inputs are delivered to it, and every watcher must get
every event. The rate is of events that came to a watcher, from the first to the last one, deliveries included; its
ratio is to echoes. In `at leisure` one input is delivered at a time: how long it takes from the call of Deliver until
the last of the watchers has the event.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import team
from ground import DELIVER_PATH, IN_FLIGHT, Ground, batch_body, deliver_body, prepared
from load import h2load_command, percentile, preloaded
from msgspec import Struct
from plan import Place, Plan, Section, main, say
from team import conditions

from mobd.v1 import events_pb2

BATCH_PATH = "/mobd.v1.BridgeService/DeliverBatch"
WATCH_PATH = "/mobd.v1.EventService/WatchEvents"
MEMBERS = 1_000
EACH = 32
BATCHES_IN_FLIGHT = 4
# Events to all watchers that a round is cut to, at first.
RATE = 30_000.0
# A member's queue holds 1,000.
QUEUE = 960
LEISURELY = 60
PAUSE_S = 0.03
PATIENCE_S = 120.0


class Way(Struct, frozen=True):
    """Who watches, and how it is delivered."""

    watchers: int
    batches: bool = False
    # All inputs are delivered to one member, and all watchers ask for the events of that one.
    member: bool = False


WAYS = {
    "16 watchers, Deliver": Way(16),
    "16 watchers, batches": Way(16, batches=True),
    "100 watchers, batches": Way(100, batches=True),
    "100 watchers of one member": Way(100, batches=True, member=True),
}
LEISURE = "100 watchers, at leisure"


class Watchers:
    """A process that watches a mob over many streams, from before its newest event on."""

    def __init__(self, ground: Ground, running: team.Running, mob_id: str, way: Way, events: int) -> None:
        head = running.head(mob_id)
        request = events_pb2.WatchEventsRequest(
            mob_id=mob_id, start=events_pb2.EventStart(after_cursor=head - (MEMBERS if way.member else 1))
        )
        if way.member:
            request.filter.member_ids.append(team.names(MEMBERS)[0])
        folder = ground.place.folder
        data = folder / "watchers.bin"
        data.write_bytes(team.framed(request))
        self._log, self.each = folder / "watchers.log", folder / "each.log"
        ready, told = os.pipe()
        shape = [f"-c{way.watchers}", "-m1", "-t1"]
        asked = {"events": events + 1, "streams": way.watchers, "ready": told, "log": self._log, "each": self.each}
        self._process = subprocess.Popen(
            h2load_command(running.port, WATCH_PATH, data, way.watchers, shape),
            env=preloaded(ground.place.stamp, data, **asked),
            pass_fds=[told],
            stdout=subprocess.DEVNULL,
        )
        os.close(told)
        if os.read(ready, 1) != b"r":
            raise SystemExit("the watchers ended before they began")
        os.close(ready)

    def wait(self) -> tuple[float, list[int], list[int]]:
        """Wait until all have all. Return how long it took since the first new event, and what each stream was."""
        code = self._process.wait(timeout=PATIENCE_S)
        first, *streams = [[int(word) for word in line.split()] for line in self._log.read_text().splitlines()]
        assert code == 0, f"the watchers ended with {code}"
        took = (max(stream[0] for stream in streams) - first[0]) / 1e9
        return took, [stream[1] for stream in streams], [stream[2] for stream in streams]

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.wait()


def feed(ground: Ground, running: team.Running, mob_id: str, way: Way, events: int) -> None:
    """Deliver as many inputs."""
    path = ground.place.folder / "feed.bin"
    if way.batches:
        data = batch_body(path, mob_id, EACH, MEMBERS, one=team.names(MEMBERS)[0] if way.member else None)
        ground.load(running, BATCH_PATH, data, events // EACH, BATCHES_IN_FLIGHT)
    else:
        ground.load(running, DELIVER_PATH, deliver_body(path, mob_id, MEMBERS), events, IN_FLIGHT)


def one_cell(ground: Ground, running: team.Running, mob_id: str, way: Way) -> dict[str, float]:
    """Watch a new mob while inputs are delivered to it."""
    running.create(mob_id, MEMBERS)
    events = ground.plan.count(RATE / way.watchers, least=BATCHES_IN_FLIGHT * EACH) // EACH * EACH
    events = min(events, QUEUE) if way.member else events
    watchers = Watchers(ground, running, mob_id, way, events)
    try:
        before = running.threads()
        feed(ground, running, mob_id, way, events)
        took, messages, sizes = watchers.wait()
    finally:
        watchers.kill()
    came = events * way.watchers
    loop_us, others_us = running.spent(before, came)
    return {
        "per_second": came / took,
        "inputs_per_second": events / took,
        "events_per_message": (events + 1) / (sum(messages) / len(messages)),
        "bytes_per_event": sum(sizes) / len(sizes) / (events + 1),
        "loop_us": loop_us,
        "others_us": others_us,
    }


def at_leisure(ground: Ground, running: team.Running, mob_id: str) -> dict[str, float]:
    """Deliver one input at a time, and see when the last watcher has it."""
    running.create(mob_id, MEMBERS)
    events = LEISURELY if ground.plan.seconds else 4
    watchers = Watchers(ground, running, mob_id, Way(100), events)
    try:
        sent = []
        for number in range(events):
            sent.append(time.monotonic_ns())
            running.deliver(mob_id, team.names(MEMBERS)[number], f"leisurely-{number}")
            time.sleep(PAUSE_S)
        watchers.wait()
    finally:
        watchers.kill()
    return lags(watchers.each, sent)


def lags(each: Path, sent: list[int]) -> dict[str, float]:
    """Return how long after its call everybody had an event. The first event was there before."""
    had = [int(line) for line in each.read_text().splitlines()][1:]
    lag = sorted((arrived - called) / 1e6 for called, arrived in zip(sent, had, strict=True))
    return {"p50_ms": percentile(lag, 50), "p99_ms": percentile(lag, 99)}


def measure(plan: Plan, place: Place) -> Section:
    """Measure all ways on the first store: what watchers get was committed before, and comes from memory."""
    store = plan.stores[0]
    settings = {"members": MEMBERS, "store": store, "inputs_in_a_batch": EACH}
    section = Section(settings, [])
    with prepared(plan, place, stores=[store], uvloop=True) as ground:
        for number in range(plan.rounds):
            found = ground.echo_round()
            for cell, running in ground.servers.items():
                for way, asked in WAYS.items():
                    mob_id = f"{way.replace(',', '').replace(' ', '-')}-{number}"
                    found[way + cell.removeprefix(store)] = one_cell(ground, running, mob_id, asked)
            found[LEISURE] = at_leisure(ground, ground.servers[store], f"leisure-{number}")
            section.rounds.append(found)
            say(f"fan-out, round {number + 1}: {conditions()}")
    return section


if __name__ == "__main__":
    sys.exit(main(__doc__, measure))
