"""What is counted when somebody asks: the numbers of the census, fetched from the loop by the thread of a scrape."""

import asyncio
import time
from collections.abc import Iterable
from concurrent.futures import TimeoutError as NotInTime
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mobd_server.services.census import Census, Numbers
from mobd_server.services.readiness import Readiness

# How long a scrape waits for the loop before it goes without what the loop knows.
PATIENCE_S: Final = 5.0


class Gauges(Collector):
    """Asks a server's loop for its numbers, once in each scrape. Not for use on the loop: it would wait for itself."""

    def __init__(
        self,
        census: Census,
        readiness: Readiness,
        slots: int,
        build: dict[str, str],
        loop: asyncio.AbstractEventLoop,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._census = census
        self._readiness = readiness
        self._slots = slots
        self._build = build
        self._loop = loop
        self._patience_s = patience_s

    def describe(self) -> Iterable[Metric]:
        """Return nothing: what is there is not asked for at registration."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of now; without an answer of the loop, that there was none, and nothing else of it."""
        yield _labelled("mobd_build_info", "What runs; always 1.", tuple(self._build), {tuple(self._build.values()): 1})
        asked_at = time.monotonic()
        asking = asyncio.run_coroutine_threadsafe(self._ask(asked_at), self._loop)
        try:
            lag_s, ready, numbers = asking.result(self._patience_s)
        except NotInTime:
            asking.cancel()
            yield _gauge("mobd_loop_answered", "Whether the loop answered this scrape in time.", 0)
            return
        yield _gauge("mobd_loop_answered", "Whether the loop answered this scrape in time.", 1)
        yield _gauge("mobd_loop_lag_seconds", "How long this scrape waited for its turn on the loop.", lag_s)
        yield _gauge("mobd_ready", "Whether the server takes work.", ready)
        yield from self._journal(numbers)
        yield from _mobs(numbers)
        yield from _peers(numbers)

    async def _ask(self, asked_at: float) -> tuple[float, bool, Numbers]:
        lag_s = time.monotonic() - asked_at
        return lag_s, not self._readiness.refusal(), await self._census.numbers()

    def _journal(self, found: Numbers) -> Iterable[Metric]:
        yield _gauge("mobd_journal_down", "Whether the store does not answer.", found.down)
        yield _gauge("mobd_journal_slots", "Appends that may wait at most; the setting journal_slots.", self._slots)
        yield _gauge(
            "mobd_journal_appends_waiting", "Appends that are queued or being committed.", found.appends_waiting
        )
        yield _gauge(
            "mobd_journal_queue_age_seconds", "Since when the oldest of these appends waits.", found.append_age_s
        )


def _mobs(found: Numbers) -> Iterable[Metric]:
    yield _gauge("mobd_mobs_loaded", "Mobs in memory.", found.mobs)
    yield _labelled(
        "mobd_mobs_quarantined",
        "Mobs that were asked for and can't be loaded here.",
        ("reason",),
        {("unreadable",): found.unreadable, ("format_newer",): found.newer},
    )
    yield _gauge("mobd_members", "Members of the mobs in memory.", found.members)
    yield _gauge(
        "mobd_members_without_executor", "Members of running mobs that have inputs and no agent.", found.unserved
    )
    yield _gauge("mobd_runs_in_flight", "Runs that were started and have not ended.", found.runs)
    yield _labelled(
        "mobd_operations",
        "Operations that have not ended.",
        ("state",),
        {(status,): count for status, count in found.operations.items()},
    )
    yield _gauge("mobd_inputs_waiting", "Inputs of running mobs that wait for a run.", found.inputs_waiting)
    yield _gauge("mobd_oldest_input_seconds", "Since when the oldest of these inputs waits.", found.oldest_input_s)


def _peers(found: Numbers) -> Iterable[Metric]:
    yield _labelled(
        "mobd_agents",
        "Agents that are attached: here and taking work, silent or away, here and wanting no more work.",
        ("state",),
        {
            ("connected",): found.agents_connected,
            ("suspended",): found.agents_suspended,
            ("draining",): found.agents_draining,
        },
    )
    suspended = CounterMetricFamily(
        "mobd_agent_suspensions", "How often the lease of an agent ended, or its mob was read anew without it."
    )
    suspended.add_metric((), found.suspensions)
    yield suspended
    yield _gauge("mobd_agent_streams", "Streams of agents that are open.", found.streams)
    yield _labelled(
        "mobd_watches",
        "Those who follow the log of a mob, and those who wait for something to become true.",
        ("kind",),
        {("events",): found.followers, ("condition",): found.waiters},
    )
    yield _gauge("mobd_watch_lag_events", "Events that the follower farthest behind has not taken yet.", found.lag)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, float(value))


def _labelled(name: str, text: str, labels: tuple[str, ...], values: dict[tuple[str, ...], float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family
