"""What is counted while it happens. All of it runs on the loop, on the path of every call: plain numbers of Python.

A counter of the Prometheus client takes a lock and costs ten times as much. Here the loop alone writes, and the thread
of a scrape reads numbers that are whole at every moment; families of metrics are made of them when somebody asks.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from mobd_server.ports import Fate, Kind, Result

# Bounds of histograms, in seconds and in appends.
CALL_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
STORE_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SNAPSHOT_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
GROUP: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)

OK: Final = "OK"
# There from the beginning, at 0: a rate, and an alarm, sees the first of them only then.
EXPECTED: Final = (OK, "INTERNAL")
# Which method, by the labels of go-grpc-prometheus.
METHOD: Final = ("grpc_type", "grpc_service", "grpc_method")


class Distribution:
    """How often a value was within each of some bounds, and the sum of all values."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str] = ()) -> None:
        """Add what was counted to a family of metrics."""
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), list(self._counts), strict=True):
            total += count
            buckets.append((floatToGoString(bound), total))  # type: ignore[no-untyped-call]  # not annotated there
        family.add_metric(labels, buckets, self._sum)


class RpcMeter:
    """The calls of one method; see ports.CallMeter. What is sent once for each call is not counted twice."""

    __slots__ = ("_streams_in", "_streams_out", "codes", "labels", "seconds", "started", "streamed_in", "streamed_out")

    def __init__(self, method: str, kind: Kind) -> None:
        service, _, name = method.rpartition("/")
        self.labels = (kind, service, name)
        self.started = 0
        # Calls that ended, by their gRPC status.
        self.codes = dict.fromkeys(EXPECTED, 0)
        self.streamed_in = 0
        self.streamed_out = 0
        # None: how long a stream is open is up to who reads it.
        self.seconds = Distribution(CALL_S) if kind == "unary" else None
        self._streams_in = kind == "bidi_stream"
        self._streams_out = kind != "unary"

    def began(self) -> None:
        """Count a call that begins."""
        self.started += 1

    def received(self) -> None:
        """Count a message of a stream of the caller."""
        self.streamed_in += 1

    def sent(self) -> None:
        """Count a message of a stream to the caller."""
        self.streamed_out += 1

    def ended(self, code: str, seconds: float) -> None:
        """Count a call that ended with the gRPC status `code`, `seconds` after it began."""
        codes = self.codes
        codes[code] = codes.get(code, 0) + 1
        if self.seconds is not None:
            self.seconds.observe(seconds)

    @property
    def messages_in(self) -> int:
        """How many messages callers have sent."""
        return self.streamed_in if self._streams_in else self.started

    @property
    def messages_out(self) -> int:
        """How many messages were sent to callers."""
        return self.streamed_out if self._streams_out else self.codes[OK]


class Meters(Collector):
    """What one server has counted; also its ports.JournalMeter and ports.SnapshotMeter."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._rpcs: list[RpcMeter] = []
        self._fates: dict[Fate, int] = dict.fromkeys(get_args(Fate), 0)
        self._size = Distribution(GROUP)
        self._commit_s = Distribution(STORE_S)
        self._queue_s = Distribution(STORE_S)
        self._snapshots = {"written": 0, "failed": 0}
        self._snapshot_s = Distribution(SNAPSHOT_S)
        registry.register(self)

    def rpc(self, method: str, kind: Kind) -> RpcMeter:
        """Return the meter of a method of the protocol, such as mobd.v1.BridgeService/Deliver."""
        self._rpcs.append(RpcMeter(method, kind))
        return self._rpcs[-1]

    def group(self, results: Sequence[Result], queued_s: float, commit_s: float) -> None:
        """Count a group that returned; see ports.JournalMeter."""
        self._size.observe(len(results))
        self._queue_s.observe(queued_s)
        self._commit_s.observe(commit_s)
        fates = self._fates
        for result in results:
            fates[result.fate] += 1

    def snapshot_written(self, seconds: float) -> None:
        """Count a snapshot that is stored; see ports.SnapshotMeter."""
        self._snapshots["written"] += 1
        self._snapshot_s.observe(seconds)

    def snapshot_failed(self) -> None:
        """Count a snapshot that was not taken."""
        self._snapshots["failed"] += 1

    def describe(self) -> Iterable[Metric]:
        """Return nothing: what is there is not asked for at registration."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return what was counted until now."""
        yield from self._calls()
        appends = CounterMetricFamily("mobd_journal_appends", "Appends that returned, by their fate.", labels=["fate"])
        for fate, count in self._fates.items():
            appends.add_metric([fate], count)
        yield appends
        yield _histogram("mobd_journal_group_appends", "Appends in each commit.", self._size)
        yield _histogram(
            "mobd_journal_commit_seconds",
            "From the hand-over of a group to the writer until its results are back.",
            self._commit_s,
        )
        yield _histogram(
            "mobd_journal_queue_seconds",
            "How long the oldest append of each group had waited when the group was handed over.",
            self._queue_s,
        )
        snapshots = CounterMetricFamily(
            "mobd_snapshots", "Snapshots that are stored, or could not be taken.", labels=["outcome"]
        )
        for outcome, count in self._snapshots.items():
            snapshots.add_metric([outcome], count)
        yield snapshots
        yield _histogram(
            "mobd_snapshot_seconds",
            "From the beginning of a snapshot until it is stored; calls don't wait for it.",
            self._snapshot_s,
        )

    def _calls(self) -> Iterable[Metric]:
        started = CounterMetricFamily("grpc_server_started", "Calls that began.", labels=METHOD)
        handled = CounterMetricFamily(
            "grpc_server_handled", "Calls that ended, by their gRPC status.", labels=[*METHOD, "grpc_code"]
        )
        received = CounterMetricFamily("grpc_server_msg_received", "Messages that callers sent.", labels=METHOD)
        sent = CounterMetricFamily("grpc_server_msg_sent", "Messages that were sent to callers.", labels=METHOD)
        seconds = HistogramMetricFamily(
            "grpc_server_handling_seconds",
            "How long calls took that are answered once; streams are not in it.",
            labels=METHOD,
        )
        inside = GaugeMetricFamily("mobd_rpcs_in_flight", "Calls that began and have not ended.", labels=METHOD)
        for one in self._rpcs:
            # What ended first, so that no call is seen to end before it began.
            codes = one.codes.copy()
            began = one.started
            for code, count in codes.items():
                handled.add_metric([*one.labels, as_in_go(code)], count)
            started.add_metric(one.labels, began)
            inside.add_metric(one.labels, began - sum(codes.values()))
            received.add_metric(one.labels, one.messages_in)
            sent.add_metric(one.labels, one.messages_out)
            if one.seconds is not None:
                one.seconds.add_to(seconds, one.labels)
        return started, handled, received, sent, seconds, inside


def as_in_go(code: str) -> str:
    """Return the name of a gRPC status as Go's gRPC has it, for dashboards that know those: NOT_FOUND is NotFound."""
    if code == OK:
        return code
    return "Canceled" if code == "CANCELLED" else code.title().replace("_", "")


def _histogram(name: str, text: str, found: Distribution) -> Metric:
    family = HistogramMetricFamily(name, text)
    found.add_to(family)
    return family
