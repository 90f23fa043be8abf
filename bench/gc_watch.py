"""A server whose garbage collections are timed; otherwise it is `mobd` as shipped.

On SIGUSR1 it collects everything and writes one line of JSON to the file in BENCH_GC: the longest pause since the last
one and how many there were, and how long this full collection took, in ms.
"""

import gc
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from mobd_server.__main__ import main


class Pauses:
    """What the collector did."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._began = 0
        self._took: list[int] = []
        gc.callbacks.append(self._note)

    def _note(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter_ns()
        else:
            self._took.append(time.perf_counter_ns() - self._began)

    def report(self, _number: int, _frame: Any) -> None:
        """Collect, and write."""
        before, self._took = self._took, []
        gc.collect()
        full = self._took.pop()
        self._took.clear()
        line = {"longest_ms": max(before, default=0) / 1e6, "pauses": len(before), "full_ms": full / 1e6}
        with self._file.open("a") as out:
            out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, Pauses(Path(os.environ["BENCH_GC"])).report)
    main()
