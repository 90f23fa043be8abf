"""What was measured, kept: one small file of JSON for each run, with the machine, the settings and all raw rounds."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
from plan import Plan, Section

FOLDER = Path(__file__).parent / "history"
ROOT = Path(__file__).parent.parent
LIBRARIES = ("grpcio", "protobuf", "msgspec", "sqlalchemy", "psycopg", "uvloop")
QUICK = "-quick"
# The figures that mean anything.
DIGITS = 4


class Kept(msgspec.Struct):
    """What one benchmark found, with one list for each metric of each cell: a value for each round, or none."""

    settings: dict[str, Any]
    cells: dict[str, dict[str, list[float | None]]]
    # How long it took, in seconds; the load average of one minute before and after.
    seconds: float
    load: tuple[float, float]

    @classmethod
    def of(cls, section: Section, seconds: float, load: tuple[float, float]) -> "Kept":
        """Pack a section."""
        cells: dict[str, dict[str, list[float | None]]] = {}
        for cell in section.cells():
            metrics = dict.fromkeys(name for one in section.rounds for name in one.get(cell, {}))
            cells[cell] = {name: [_short(one.get(cell, {}).get(name)) for one in section.rounds] for name in metrics}
        return cls(section.settings, cells, round(seconds, 1), load)

    def section(self) -> Section:
        """Unpack it."""
        count = max((len(values) for cell in self.cells.values() for values in cell.values()), default=0)
        rounds = [
            {
                cell: {name: values[number] for name, values in metrics.items() if values[number] is not None}
                for cell, metrics in self.cells.items()
            }
            for number in range(count)
        ]
        return Section(self.settings, msgspec.convert(rounds, list[dict[str, dict[str, float]]]))


class Entry(msgspec.Struct):
    """One run."""

    utc: str
    commit: str
    # The code was not that of the commit.
    changed: bool
    quick: bool
    command: str
    machine: dict[str, str]
    plan: Plan
    benchmarks: dict[str, Kept]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def machine() -> dict[str, str]:
    """Return what may matter of this machine and of what is installed."""
    model = next((line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "?")
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    found = {
        "cpu": model,
        "cores": str(os.cpu_count()),
        "memory": f"{memory / 2**20:.0f} GiB",
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
    }
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def begin(plan: Plan, command: str, *, quick: bool) -> Entry:
    """Return an entry for a run that begins now."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    changed = bool(_git("status", "--porcelain", "--", "server", "client/mobd", "migrations"))
    return Entry(now, _git("rev-parse", "--short=8", "HEAD") or "unknown", changed, quick, command, machine(), plan, {})


def write(entry: Entry, folder: Path = FOLDER) -> Path:
    """Write an entry, or write it again with more in it."""
    folder.mkdir(exist_ok=True)
    when = entry.utc.replace("-", "").replace(":", "")
    path = folder / f"{when}-{entry.commit}{QUICK if entry.quick else ''}.json"
    path.write_bytes(msgspec.json.encode(entry).replace(b'},"', b'},\n"') + b"\n")
    return path


def read(folder: Path = FOLDER) -> list[Entry]:
    """Return all entries of full runs, the oldest first."""
    found = [path for path in sorted(folder.glob("*.json")) if not path.stem.endswith(QUICK)]
    return [msgspec.json.decode(path.read_bytes(), type=Entry) for path in found]


def newest(entries: list[Entry]) -> dict[str, Entry]:
    """Return for each benchmark the newest entry that has it."""
    return {name: entry for entry in entries for name in entry.benchmarks}
