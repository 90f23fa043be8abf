"""Break one rule at a time on a copy of the tree, and see whether the tests notice.

Every row of every legality table is taken out once, and so are the checks that nothing else would miss: the dedupe
look-up, the fences, the barrier before an answer, the fence of an append. A change that no test notices survives, and
this ends with 1; so it does if a change no longer fits the code that it is about.

    python scripts/mutants.py [--list] [--jobs 2] [WORD ...]      only those whose name contains a word
"""

import argparse
import ast
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

from mutant_rules import ACTOR, ACTORS, CHECKS, HELD, RELEASED, TABLES

ROOT: Final = Path(__file__).parent.parent
LEFT_OUT: Final = shutil.ignore_patterns(".*", "__pycache__", "dist", "node_modules")
TIMEOUT_S: Final = 180


class Edit(NamedTuple):
    """Replace a text that occurs exactly once in a file."""

    path: str
    old: str
    new: str


class Mutant(NamedTuple):
    """A broken rule. `needs` is a program without which its tests are skipped."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    needs: str = ""


class Stale(Exception):
    """A change does not fit the code any more."""


def checks() -> list[Mutant]:
    """Return the rules that are no rows of a table."""
    found = [
        broken(name, path, old, new, tests, "initdb" if name.endswith("PostgreSQL") else "")
        for tests, path, edits in CHECKS
        for name, old, new in edits
    ]
    both = (Edit(ACTOR, RELEASED, "while waiting:"), Edit(ACTOR, HELD, "if not self._due:"))
    return [*found, Mutant("barrier: all", both, ACTORS)]


def broken(name: str, path: str, old: str, new: str, tests: tuple[str, ...], needs: str = "") -> Mutant:
    """Return a mutant of one edit."""
    return Mutant(name, (Edit(path, old, new),), tests, needs)


def rows(path: str, name: str, tests: tuple[str, ...]) -> list[Mutant]:
    """Return a mutant for each row of a literal table."""
    source = (ROOT / path).read_text()
    module = Path(path).stem
    found = []
    for first, last in _rows(ast.parse(source), name):
        start, end = (
            _offset(source, first.lineno, first.col_offset),
            _offset(source, last.end_lineno, last.end_col_offset),
        )
        row = source[start:end]
        if not source.startswith(",", end):
            raise Stale(f"{path}: a row of {name} does not end with a comma: {row}")
        # A row may occur more than once; with what stands before it it is itself.
        begin = start
        while source.count(source[begin : end + 1]) > 1:
            begin = source.rindex("\n", 0, begin)
        old, new = source[begin : end + 1], source[begin:start]
        found.append(broken(f"{module}.{name} {' '.join(row.split())}", path, old, new, tests))
    if not found:
        raise Stale(f"{path}: no table {name}")
    return found


def _rows(tree: ast.Module, name: str) -> list[tuple[ast.expr, ast.expr]]:
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            value = node.value
            if isinstance(value, ast.Call) and value.args:
                value = value.args[0]
            if isinstance(value, ast.Dict):
                return [(key, item) for key, item in zip(value.keys, value.values, strict=True) if key is not None]
            if isinstance(value, ast.Set):
                return [(item, item) for item in value.elts]
    return []


def _offset(source: str, line: int | None, column: int | None) -> int:
    lines = source.splitlines(keepends=True)
    return sum(len(one) for one in lines[: (line or 1) - 1]) + (column or 0)


def mutants() -> list[Mutant]:
    """Return every mutant, tables first."""
    found = [one for (path, name), tests in TABLES.items() for one in rows(path, name, tests)]
    return found + checks()


def mutated(text: str, edit: Edit) -> str:
    """Return `text` with the edit made. Raises Stale if it does not fit."""
    if text.count(edit.old) != 1:
        raise Stale(f"{edit.path}: {text.count(edit.old)} times, not once: {edit.old.strip()}")
    return text.replace(edit.old, edit.new)


def run_tests(tree: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Run tests in a copy; return pytest's exit code and its last words."""
    folders = [str(tree / one) for one in ("server", "client", "migrations")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    return done.returncode, done.stdout + done.stderr


def check_copy(tree: Path) -> None:
    """Make sure that a copy is what its tests import."""
    folders = os.pathsep.join(str(tree / one) for one in ("server", "client", "migrations"))
    told = subprocess.run(
        [sys.executable, "-c", "import mobd_server; print(mobd_server.__file__)"],
        env={**os.environ, "PYTHONPATH": folders},
        capture_output=True,
        text=True,
        check=True,
    )
    if not told.stdout.startswith(str(tree)):
        sys.exit(f"the copy in {tree} is not what is imported: {told.stdout}")


def verdict(tree: Path, mutant: Mutant) -> str:
    """Try one mutant in a copy, which is as before afterwards."""
    if mutant.needs and shutil.which(mutant.needs) is None and not list(Path("/usr/lib/postgresql").glob("*/bin")):
        return "skipped"
    before = {edit.path: (tree / edit.path).read_text() for edit in mutant.edits}
    after = dict(before)
    try:
        for edit in mutant.edits:
            after[edit.path] = mutated(after[edit.path], edit)
    except Stale as stale:
        print(stale, file=sys.stderr)
        return "stale"
    try:
        for path, text in after.items():
            (tree / path).write_text(text)
        code, words = run_tests(tree, mutant.tests)
    except subprocess.TimeoutExpired:
        return "caught"
    finally:
        for path, text in before.items():
            (tree / path).write_text(text)
    if code > 1:
        # No test ran: this is no proof of anything.
        print(words, file=sys.stderr)
        return "stale"
    return "caught" if code else "SURVIVED"


def try_all(chosen: list[Mutant], trees: list[Path]) -> dict[str, list[str]]:
    """Try mutants in as many copies as there are; return their names by verdict."""
    free: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for tree in trees:
        free.put(tree)

    def attempt(mutant: Mutant) -> tuple[Mutant, str, float]:
        tree, begun = free.get(), time.monotonic()
        try:
            return mutant, verdict(tree, mutant), time.monotonic() - begun
        finally:
            free.put(tree)

    by_verdict: dict[str, list[str]] = {}
    with ThreadPoolExecutor(len(trees)) as pool:
        for mutant, came_to, took in pool.map(attempt, chosen):
            print(f"{came_to:9} {took:5.1f} s  {mutant.name}", flush=True)
            by_verdict.setdefault(came_to, []).append(mutant.name)
    return by_verdict


def main() -> int:
    """Try what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    chosen = [one for one in mutants() if not options.words or any(word in one.name for word in options.words)]
    if options.list or not chosen:
        print("\n".join(one.name for one in chosen))
        return not chosen
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees = [Path(folder) / str(n) for n in range(options.jobs)]
        for tree in trees:
            shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
        check_copy(trees[0])
        tests = tuple(sorted({test for mutant in chosen for test in mutant.tests}))
        code, words = run_tests(trees[0], tests)
        if code:
            print(words)
            sys.exit("the tests fail on the unchanged tree")
        by_verdict = try_all(chosen, trees)
    print(", ".join(f"{len(names)} {came_to}" for came_to, names in sorted(by_verdict.items())))
    return bool(by_verdict.get("SURVIVED") or by_verdict.get("stale"))


if __name__ == "__main__":
    sys.exit(main())
