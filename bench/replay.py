"""Replay: how many events a second a reader gets of a log from its beginning.

The log is one of turns (accepted, started, settled) of 100 members, in the store and not in the server's memory of
published events. It is read with WatchEvents from cursor 0, by one reader and by four at the same time, and with
PollEvents, page after page. Every reader must get every event. Ratios are events to echoes.
"""

import subprocess
import sys
import time
from typing import Any

import team
from ground import Ground, prepared
from load import h2load_command, preloaded
from plan import Place, Plan, Round, Section, main, say
from seed import Seed, log_of

from mobd.v1 import events_pb2

WATCH_PATH = "/mobd.v1.EventService/WatchEvents"
POLL_PATH = "/mobd.v1.EventService/PollEvents"
MOB = "long"
EVENTS = 50_000
READERS = (1, 4)
PAGE = 10_000
DAYS = 10.0
PATIENCE_S = 300.0


def watched(ground: Ground, running: team.Running, events: int, readers: int) -> dict[str, float]:
    """Read the log with WatchEvents."""
    request = events_pb2.WatchEventsRequest(mob_id=MOB, start=events_pb2.EventStart(after_cursor=0))
    data, log = ground.place.folder / "replay.bin", ground.place.folder / "replay.log"
    data.write_bytes(team.framed(request))
    before = running.threads()
    subprocess.run(
        h2load_command(running.port, WATCH_PATH, data, readers, [f"-c{readers}", "-m1", "-t1"]),
        env=preloaded(ground.place.stamp, data, events=events, streams=readers, log=log),
        stdout=subprocess.DEVNULL,
        timeout=PATIENCE_S,
        check=True,
    )
    loop_us, others_us = running.spent(before, events * readers)
    first, *streams = [[int(word) for word in line.split()] for line in log.read_text().splitlines()]
    took = (max(stream[0] for stream in streams) - first[0]) / 1e9
    return {
        "per_second": events * readers / took,
        "events_per_message": events * readers / sum(stream[1] for stream in streams),
        "bytes_per_event": sum(stream[2] for stream in streams) / events / readers,
        "loop_us": loop_us,
        "others_us": others_us,
    }


def polled(running: team.Running, events: int) -> dict[str, float]:
    """Read the log with PollEvents. Events are counted afterwards: not a Python client is measured."""
    poll: Any = running.channel.unary_unary(
        POLL_PATH, request_serializer=events_pb2.PollEventsRequest.SerializeToString
    )
    before = running.threads()
    pages: list[bytes] = []
    cursor = 0
    took = 0.0
    while cursor < events:
        request = events_pb2.PollEventsRequest(mob_id=MOB, start=events_pb2.EventStart(after_cursor=cursor), limit=PAGE)
        began = time.monotonic()
        pages.append(poll(request))
        took += time.monotonic() - began
        cursor = events_pb2.PollEventsResponse.FromString(pages[-1]).next_cursor
    loop_us, others_us = running.spent(before, events)
    found = sum(len(events_pb2.PollEventsResponse.FromString(page).events) for page in pages)
    assert found == cursor, f"{found} events up to the cursor {cursor}"
    return {
        "per_second": found / took,
        "events_per_message": found / len(pages),
        "bytes_per_event": sum(map(len, pages)) / found,
        "loop_us": loop_us,
        "others_us": others_us,
    }


def measure(plan: Plan, place: Place) -> Section:
    """Measure every store."""
    events = plan.size(EVENTS, least=500)
    section = Section({"events": events, "members": 100}, [])
    with prepared(plan, place, uvloop=False, make=lambda site: fill(site, events)) as ground:
        for number in range(plan.rounds):
            found: Round = ground.echo_round()
            for store, running in ground.servers.items():
                for readers in READERS:
                    name = f"{store}, WatchEvents, {readers} reader{'s' if readers > 1 else ''}"
                    found[name] = watched(ground, running, events, readers)
                found[f"{store}, PollEvents"] = polled(running, events)
            section.rounds.append(found)
            say(f"replay, round {number + 1}: {team.conditions()}")
    return section


def fill(site: team.Site, events: int) -> None:
    """Make the log, before the server starts."""
    seed = Seed(site.folder, site.url)
    log_of(seed, MOB, events, days=DAYS, keep_snapshots=True)
    seed.close()


if __name__ == "__main__":
    sys.exit(main(__doc__, measure))
