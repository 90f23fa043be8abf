"""Settled round trips: a caller delivers, an agent in a process of its own runs it, the caller sees its settlement.

64 callers, each with a member of its own, deliver the next input as soon as the one before is settled. Three ways:
`one watcher`: all callers learn of settlements from one WatchEvents stream of the mob, as a service that follows its
team does; `a watch each`: every Deliver is followed by a WatchInput until the input has ended, as the client's `ask`
does; `client's agent`: as the first, with the agent of the client library instead of one that only speaks the protocol.

Ratios are round trips to echoes. The load generator and the agent share the cores with the server.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import team
from ground import DELIVER_PATH, IN_FLIGHT, Ground, deliver_body, prepared
from load import HERE, answered, h2load_command, percentile, preloaded
from plan import Place, Plan, Section, main, say
from team import conditions

from mobd.v1 import bridge_pb2, common_pb2, events_pb2, members_pb2, runs_pb2

WATCH_PATH = "/mobd.v1.BridgeService/WatchInput"
CALLERS = IN_FLIGHT
# Where the descriptors begin on which callers wait: nothing else is as high.
FIRST_FD = 512
RATE = 1_500.0
PATIENCE_S = 120.0
AGENTS = {"thin": "thin_agent.py", "sdk": "sdk_agent.py"}
# The cell, the mob (which says whose agent it is), and whether each caller watches for itself.
WAYS = {"one watcher": ("thin", False), "a watch each": ("thin", True), "client's agent": ("sdk", False)}
SHAPE = [f"-c{CALLERS}", f"-t{CALLERS}", "-m1"]


class Settlements:
    """Follows a mob's settlements, and lets the caller go on whose input was settled."""

    def __init__(self, running: team.Running, mob_id: str, wake: dict[str, int], wanted: int) -> None:
        self.times: list[float] = []
        self.failed: str | None = None
        self._wanted = wanted
        request = events_pb2.WatchEventsRequest(
            mob_id=mob_id, start=events_pb2.EventStart(after_cursor=running.head(mob_id))
        )
        request.filter.kinds.append("run_settled")
        self._call = running.events.WatchEvents(request)
        self._thread = threading.Thread(target=self._follow, args=[wake])
        self._thread.start()

    def _follow(self, wake: dict[str, int]) -> None:
        for part in self._call:
            now = time.monotonic()
            for event in part.page.events:
                if event.run_settled.state != runs_pb2.RUN_STATE_COMMITTED:
                    self.failed = str(event)
                self.times.append(now)
                os.write(wake[event.member_id], b"s")
            if len(self.times) >= self._wanted:
                return

    def rate(self) -> float:
        """Wait until all is settled, and return how many were a second."""
        self._thread.join(timeout=PATIENCE_S)
        self._call.cancel()
        assert len(self.times) == self._wanted, f"{len(self.times)} of {self._wanted} were settled"
        assert self.failed is None, self.failed
        later = [when for when in self.times if when > self.times[0]]
        return len(later) / (self.times[-1] - self.times[0]) if later else float(self._wanted)


@contextmanager
def descriptors() -> Iterator[dict[str, int]]:
    """Make a pipe for each caller; yield where to write, by member. Callers read from FIRST_FD on."""
    names = team.names(CALLERS)
    wake = {}
    for number, name in enumerate(names):
        read, wake[name] = os.pipe()
        os.dup2(read, FIRST_FD + number)
        os.close(read)
    try:
        yield wake
    finally:
        for number, name in enumerate(names):
            os.close(wake[name])
            os.close(FIRST_FD + number)


def watch_body(path: Path, mob_id: str, prefix: str, length: int) -> Path:
    """Write the body of a WatchInput, as long as that of the Deliver: an unknown field fills it up."""
    request = bridge_pb2.WatchInputRequest(mob_id=mob_id, member_id="m##", input_id=prefix + team.MARK)
    bare = request.SerializeToString()
    # A field with the number 100 and a length below 128 has three bytes in front of what it holds; a longer one, four.
    rest = length - 5 - len(bare)
    room = rest - 3 if rest - 3 < 128 else rest - 4
    size = bytes([room]) if room < 128 else bytes([room & 0x7F | 0x80, room >> 7])
    request.MergeFromString(b"\xa2\x06" + size + bytes(room))
    path.write_bytes(team.framed(request))
    assert path.stat().st_size == length
    return path


def settled(ground: Ground, store: str, mob_id: str, prefix: str, count: int) -> dict[str, float]:
    """Let the callers go round, with one watcher for all of them."""
    running = ground.servers[store]
    data = deliver_body(ground.place.folder / "settled.bin", mob_id, CALLERS, prefix)
    log = ground.place.folder / "settled.log"
    with descriptors() as wake:
        before = running.threads()
        settlements = Settlements(running, mob_id, wake, count)
        done = subprocess.run(
            h2load_command(running.port, DELIVER_PATH, data, count, SHAPE),
            env=preloaded(ground.place.stamp, data, slots=CALLERS, wait=FIRST_FD, log=log),
            pass_fds=range(FIRST_FD, FIRST_FD + CALLERS),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        )
        answered(done.stdout, count)
        rate = settlements.rate()
        loop_us, others_us = running.spent(before, count)
    return numbers(rate, log, loop_us, others_us)


def asked(ground: Ground, store: str, mob_id: str, prefix: str, count: int) -> dict[str, float]:
    """Let the callers go round, each with a watch of its own."""
    running = ground.servers[store]
    folder = ground.place.folder
    data = deliver_body(folder / "asked.bin", mob_id, CALLERS, prefix)
    second = watch_body(folder / "watch.bin", mob_id, prefix, data.stat().st_size)
    log = folder / "asked.log"
    urls = folder / "urls.txt"
    urls.write_text("".join(f"http://127.0.0.1:{running.port}{path}\n" for path in (DELIVER_PATH, WATCH_PATH)))
    command = h2load_command(running.port, "", data, 2 * count, [*SHAPE, f"-i{urls}"])[:-1]
    before = running.threads()
    began = running.head(mob_id)
    env = preloaded(ground.place.stamp, data, slots=CALLERS, second=second, log=log)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    rate = answered(done.stdout, 2 * count) / 2
    loop_us, others_us = running.spent(before, count)
    # Accepted, started, settled.
    assert running.head(mob_id) - began == 3 * count, f"{running.head(mob_id) - began} events of {count} round trips"
    return numbers(rate, log, loop_us, others_us)


def numbers(rate: float, log: Path, loop_us: float, others_us: float) -> dict[str, float]:
    """Return the metrics of a cell."""
    took = sorted(int(line) / 1e6 for line in log.read_text().splitlines()) or [0.0]
    return {
        "per_second": rate,
        "p50_ms": percentile(took, 50),
        "p99_ms": percentile(took, 99),
        "loop_us": loop_us,
        "others_us": others_us,
    }


@contextmanager
def agents(ground: Ground) -> Iterator[None]:
    """Let every server have a mob for each agent, and start the agents; return when they serve all members."""
    with ExitStack() as stack:
        for running in ground.servers.values():
            for mob_id, script in AGENTS.items():
                running.create(mob_id, CALLERS)
                command = [sys.executable, str(HERE / script), f"127.0.0.1:{running.port}", mob_id]
                process = subprocess.Popen(command)
                stack.callback(process.wait)
                stack.callback(process.kill)
        for running in ground.servers.values():
            for mob_id in AGENTS:
                wait_until_served(running, mob_id)
        yield


def wait_until_served(running: team.Running, mob_id: str, patience_s: float = 30.0) -> None:
    """Return when an agent has said of every member that it serves it."""
    deadline = time.monotonic() + patience_s
    while True:
        found = running.members.ListMembers(members_pb2.ListMembersRequest(mob_id=mob_id, page_size=CALLERS))
        if all(one.executor == common_pb2.CONNECTIVITY_CONNECTED for one in found.members):
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"{mob_id}: no agent serves it:\n{found.members[0]}")
        time.sleep(0.05)


def measure(plan: Plan, place: Place) -> Section:
    """Measure all ways on every store."""
    section = Section({"callers": CALLERS, "agents": 1}, [])
    with prepared(plan, place, uvloop=False) as ground, agents(ground):
        count = -(-plan.count(RATE) // CALLERS) * CALLERS
        for number in range(plan.rounds):
            found = ground.echo_round()
            # Every caller has a connection of its own, which costs the server something by itself.
            found[f"echo, {CALLERS} connections"] = ground.echo_with(CALLERS)
            for store in plan.stores:
                for way, (mob_id, each) in WAYS.items():
                    go = asked if each else settled
                    found[f"{store}, {way}"] = go(ground, store, mob_id, f"{number}-{int(each)}-", count)
            section.rounds.append(found)
            say(f"round trips, round {number + 1}: {conditions()}")
    return section


if __name__ == "__main__":
    sys.exit(main(__doc__, measure))
