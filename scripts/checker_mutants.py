"""Break the server in the ways of tests/mutants, one at a time on a clean copy, and see that the history checker tells.

Each patch begins with what it breaks, the scene that is played on the broken server, and the checks of which one must
tell: see tests/mutants/README.md. The unbroken copy is played first and must be told nothing of. This ends with 1 if a
mutant is missed or a patch does not apply any more.

    python scripts/checker_mutants.py [--list] [--jobs 2] [WORD ...]      only those whose name contains a word
"""

import argparse
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent
PATCHES: Final = ROOT / "tests" / "mutants"
TIMEOUT_S: Final = 240
# What happens between processes differs from run to run: a mutant is missed if none of these seeds shows it. Of
# simulated worlds each is the first of many.
SEEDS: Final = (1_000, 2_000, 3_000, 4_000)
GOOD: Final = ("simulated", "killed")


class Mutant(NamedTuple):
    """A patch with its header."""

    name: str
    path: Path
    breaks: str
    scene: str
    checks: frozenset[str]


class Stale(Exception):
    """A patch does not fit the code any more, or the runs say nothing."""


def mutants() -> list[Mutant]:
    """Return every mutant by the order of their numbers."""
    return [_mutant(path) for path in sorted(PATCHES.glob("*.patch"))]


def _mutant(path: Path) -> Mutant:
    header = dict(line.split(": ", 1) for line in path.read_text().split("diff --git")[0].splitlines() if ": " in line)
    checks = frozenset(name.strip() for name in header["Checks"].split(","))
    return Mutant(path.stem, path, header["Breaks"], header["Scene"], checks)


def copy(folder: Path) -> Path:
    """Return a clean copy of the last commit."""
    folder.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def apply(tree: Path, mutant: Mutant, *, back: bool = False) -> None:
    """Apply a patch to a copy, or take it back. Raises Stale if it does not fit."""
    # Little context must agree: other lines may change without making the patch stale.
    command = ["git", "apply", "-C1", "--recount", "--unidiff-zero", *(["-R"] if back else []), str(mutant.path)]
    # Not the repository that the copy may lie in.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.parent)}
    done = subprocess.run(command, cwd=tree, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise Stale(f"{mutant.path.name} does not apply: {done.stderr.strip()}")


def play(tree: Path, scene: str, seed: int) -> tuple[dict[str, int], str]:
    """Play a scene in a copy; return how often each check told of something, and the words."""
    folders = [str(tree), *(str(tree / one) for one in ("server", "client", "migrations"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "tests.checker.run", "--scene", scene, "--seed", str(seed)]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as late:
        return {}, f"not within {late.timeout} s"
    words = done.stdout + done.stderr
    if done.returncode > 1:
        return {}, words
    broken: dict[str, int] = json.loads(done.stdout.strip().splitlines()[-1])["broken"]
    return broken, words


def postgresql() -> bool:
    """Whether PostgreSQL is installed."""
    return shutil.which("initdb") is not None or bool(list(Path("/usr/lib/postgresql").glob("*/bin/initdb")))


def verdict(tree: Path, mutant: Mutant) -> tuple[str, str]:
    """Return what came of a mutant, with its proof."""
    if mutant.scene == "two-servers" and not postgresql():
        return "skipped", "PostgreSQL is not installed"
    try:
        apply(tree, mutant)
    except Stale as stale:
        return "STALE", str(stale)
    words = ""
    try:
        for seed in SEEDS:
            broken, words = play(tree, mutant.scene, seed)
            if mutant.checks & set(broken):
                told = ", ".join(f"{name} {count}" for name, count in sorted(broken.items()))
                return "CAUGHT", f"by {told} (seed {seed})"
    finally:
        apply(tree, mutant, back=True)
    return "MISSED", words


def check_good(tree: Path) -> None:
    """Make sure that the unbroken copy is imported, and that nothing is told of it. Raises Stale."""
    for scene in (*GOOD, *(["two-servers"] if postgresql() else [])):
        broken, words = play(tree, scene, SEEDS[0])
        if broken or '"records"' not in words:
            raise Stale(f"the unbroken copy, {scene}: {words}")


def main() -> int:
    """Try what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    chosen = [one for one in mutants() if not options.words or any(word in one.name for word in options.words)]
    if options.list or not chosen:
        print("\n".join(f"{one.name}: {one.breaks}" for one in chosen))
        return not chosen
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="checker-mutants-") as folder:
        free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        trees = [copy(Path(folder) / str(at)) for at in range(options.jobs)]
        try:
            check_good(trees[0])
        except Stale as stale:
            sys.exit(str(stale))
        for tree in trees:
            free.put(tree)

        def attempt(mutant: Mutant) -> tuple[Mutant, str, str, float]:
            tree, begun = free.get(), time.monotonic()
            try:
                return mutant, *verdict(tree, mutant), time.monotonic() - begun
            finally:
                free.put(tree)

        with ThreadPoolExecutor(options.jobs) as pool:
            for mutant, came_to, proof, took in pool.map(attempt, chosen):
                print(f"{came_to:7} {took:6.1f} s  {mutant.name}  {proof}", flush=True)
                counts[came_to] = counts.get(came_to, 0) + 1
    print(", ".join(f"{count} {came_to}" for came_to, count in sorted(counts.items())))
    return bool(counts.get("MISSED") or counts.get("STALE"))


if __name__ == "__main__":
    sys.exit(main())
