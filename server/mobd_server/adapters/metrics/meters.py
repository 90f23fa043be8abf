"""What is counted while it happens. All of it runs on the loop, on the path of every call: children are bound once."""

from collections import Counter as CountOf
from collections.abc import Sequence
from typing import Final, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from mobd_server.ports import Fate, Result

OK: Final = "OK"
CALL_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
STORE_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
GROUP: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class RpcMeter:
    """The calls of one method; see ports.CallMeter."""

    __slots__ = ("_codes", "_counter", "_method", "_ok", "_seconds")

    def __init__(self, counter: Counter, seconds: Histogram | None, method: str) -> None:
        self._counter = counter
        self._method = method
        # From the beginning, so that a rate is known from the first call on.
        self._ok = counter.labels(method, OK)
        self._codes = {OK: self._ok}
        self._seconds = seconds.labels(method) if seconds is not None else None

    def ended(self, code: str, seconds: float) -> None:
        """Count a call that ended with the gRPC status `code`, `seconds` after it began."""
        child = self._codes.get(code)
        if child is None:
            child = self._codes[code] = self._counter.labels(self._method, code)
        child.inc()
        if self._seconds is not None:
            self._seconds.observe(seconds)


class Meters:
    """The counters and histograms of one server; also its ports.JournalMeter."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # When each series began is of no use to anybody and would be a series more for each; it holds for the process.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library does not annotate it
        self._calls = Counter(
            "mobd_rpc_calls", "Calls that ended, by their gRPC status.", ["method", "code"], registry=registry
        )
        self._call_s = Histogram(
            "mobd_rpc_seconds",
            "How long calls took that are answered once; streams are not in it.",
            ["method"],
            registry=registry,
            buckets=CALL_S,
        )
        self._size = Histogram(
            "mobd_journal_group_appends", "Appends in each commit.", registry=registry, buckets=GROUP
        )
        self._commit_s = Histogram(
            "mobd_journal_commit_seconds",
            "From the hand-over of a group to the writer until its results are back.",
            registry=registry,
            buckets=STORE_S,
        )
        self._queue_s = Histogram(
            "mobd_journal_queue_seconds",
            "How long the oldest append of each group had waited when the group was handed over.",
            registry=registry,
            buckets=STORE_S,
        )
        appends = Counter("mobd_journal_appends", "Appends that returned, by their fate.", ["fate"], registry=registry)
        self._fates = {fate: appends.labels(fate) for fate in get_args(Fate)}

    def rpc(self, method: str, *, streams: bool) -> RpcMeter:
        """Return the meter of a method of the protocol, such as mobd.v1.BridgeService/Deliver."""
        return RpcMeter(self._calls, None if streams else self._call_s, method)

    def group(self, results: Sequence[Result], queued_s: float, commit_s: float) -> None:
        """Count a group that returned; see ports.JournalMeter."""
        self._size.observe(len(results))
        self._queue_s.observe(queued_s)
        self._commit_s.observe(commit_s)
        for fate, count in CountOf(one.fate for one in results).items():
            self._fates[fate].inc(count)
