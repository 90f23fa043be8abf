"""Every benchmark runs and keeps what the page on performance looks for. How fast anything is, no test asks."""

import json
import re
import shutil
import subprocess
import sys
from math import isfinite
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"
NAMES = ["deliver", "batch", "round_trips", "fanout", "replay", "recovery", "memory", "growth", "state"]
LARGEST_ENTRY = 30_000
BEGIN = "<!-- what was learned: written by people -->"
END = "<!-- generated from here on: bench/report.py -->"

needs_a_load = pytest.mark.skipif(
    shutil.which("h2load") is None or shutil.which("cc") is None,
    reason="benchmarks need h2load and a C compiler (apt-get install nghttp2-client gcc libc6-dev)",
)


def run(script: str, *words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(BENCH / script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def tiny_entry(folder: Path, name: str) -> dict[str, Any]:
    done = run("run.py", "--tiny", "--only", name, "--history", folder)
    assert done.returncode == 0, done.stderr[-3_000:]
    (path,) = folder.glob("*.json")
    entry: dict[str, Any] = json.loads(path.read_text())
    return entry


@needs_a_load
@pytest.mark.timeout(300)  # seconds on an idle machine; benchmarks start many servers, one after the other
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_keeps_an_entry_from_which_the_page_is_made(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "history"
    entry = tiny_entry(folder, name)

    assert {"cpu", "cores", "python", "grpcio"} <= entry["machine"].keys()
    kept = entry["benchmarks"].pop(name)
    assert not entry["benchmarks"]
    assert len(kept["load"]) == 2
    for cell, metrics in kept["cells"].items():
        for metric, values in metrics.items():
            assert all(value is None or isfinite(value) for value in values), (cell, metric)
        rates = metrics.get("per_second", [1.0])
        assert all(rate > 0 for rate in rates), (cell, rates)

    page = tmp_path / "performance.md"
    page.write_text(f"{BEGIN}\nSlow is slow.\n{END}\n")
    done = run("report.py", "--history", folder, "--page", page)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert "Slow is slow." in text
    assert f"`make bench BENCH={name}`" in text
    assert all(f"| {cell} |" in text for cell in kept["cells"])
    # What is wanted of a benchmark that has run is found in what it measured, except for what a tiny run leaves out.
    missing = [line for line in text.splitlines() if "| not measured |" in line and re.search("[≥≤]", line)]
    assert [line for line in missing if "PostgreSQL" not in line and "uvloop" not in line] == []


def test_the_page_on_performance_is_what_the_newest_history_makes_of_it() -> None:
    done = run("report.py", "--check")

    assert done.returncode == 0, done.stderr


def test_the_history_stays_small() -> None:
    large = [path.name for path in (BENCH / "history").glob("*.json") if path.stat().st_size > LARGEST_ENTRY]

    assert not large
