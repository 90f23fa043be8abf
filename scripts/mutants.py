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

ROOT: Final = Path(__file__).parent.parent
MACHINES: Final = "server/mobd_server/machines"
ACTOR: Final = "server/mobd_server/actors/actor.py"
MEMORY: Final = "server/mobd_server/adapters/memory/store.py"
LANES: Final = "server/mobd_server/adapters/sql/lanes.py"
LEFT_OUT: Final = shutil.ignore_patterns(".*", "__pycache__", "dist", "node_modules")
TIMEOUT_S: Final = 180

T: Final = "tests/machines"
INBOX: Final = (f"{T}/test_inbox.py",)
ATTEMPTS: Final = (f"{T}/test_attempts.py",)
AGENTS: Final = (f"{T}/test_agents.py", f"{T}/test_mob.py")
DECISION: Final = (f"{T}/test_decision.py",)
ACTORS: Final = ("tests/actors/test_actor.py",)
STORES: Final = ("tests/stores/test_appending.py", "tests/actors/test_actor.py", "tests/actors/test_registry.py")

# file, name of the table -> the tests that walk it.
TABLES: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    (f"{MACHINES}/lifecycle.py", "TABLE"): (f"{T}/test_lifecycle.py",),
    (f"{MACHINES}/lifecycle.py", "NAMED"): (f"{T}/test_lifecycle.py",),
    (f"{MACHINES}/lifecycle.py", "EFFECTS"): (f"{T}/test_lifecycle.py",),
    (f"{MACHINES}/admission.py", "ADMITTED"): (f"{T}/test_admission.py",),
    (f"{MACHINES}/member.py", "TABLE"): (f"{T}/test_tables.py",),
    (f"{MACHINES}/run.py", "SETTLED"): (f"{T}/test_tables.py",),
    (f"{MACHINES}/run.py", "OUTCOMES"): (f"{T}/test_tables.py",),
    (f"{MACHINES}/run.py", "LEGAL"): (f"{T}/test_tables.py",),
}


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


RELEASED: Final = "while waiting and waiting[0][0] <= confirmed:"
HELD: Final = "if len(self._waiting) == 1 and self.mob.head == self.confirmed and not self._due:"
LOST: Final = " or not d.is_connected(attachment.attachment_id):\n        return\n    while"
WON: Final = "AND epoch = ? AND head = ?"

# The rules that are no rows of a table: the tests that hold them, the file, and name, text, text without the rule.
CHECKS: Final[list[tuple[tuple[str, ...], str, list[tuple[str, str, str]]]]] = [
    (
        INBOX,
        f"{MACHINES}/inbox.py",
        [
            ("dedupe: look-up", "        if seen is not None:\n", "        if False:\n"),
            ("dedupe: content", "if seen.content_hash == content_hash(", "if True or bool("),
            ("dedupe: what was forgotten", "if member.forgotten_at and ", "if False and "),
            ("fence: member, token", "command.fence_token != member.fence_token", "False"),
            ("fence: member, generation", "command.generation != member.generation", "False"),
        ],
    ),
    (
        ATTEMPTS,
        f"{MACHINES}/run.py",
        [
            ("fence: run, fence", " or run.fence != fence", ""),
            ("fence: run, agent", " or run.attachment_id != attachment_id", ""),
            ("fence: receipt", " or receipt.fence != command.fence", ""),
            ("fence: receipt, content", "if receipt.result_hash != command.result_hash:", "if False:"),
        ],
    ),
    (
        AGENTS,
        f"{MACHINES}/attachment.py",
        [
            ("fence: executor, fence", " and executor.fence == fence", ""),
            ("fence: executor, agent", "executor.attachment_id == attachment_id and ", ""),
        ],
    ),
    (
        AGENTS + ATTEMPTS,
        f"{MACHINES}/placement.py",
        [
            ("dispatch: phase", 'if mob.phase != "running" or ', "if "),
            ("dispatch: connected", LOST, LOST.removeprefix(" or not d.is_connected(attachment.attachment_id)")),
            ("dispatch: capacity", "len(attachment.runs) < attachment.capacity and ", ""),
            ("dispatch: alone", " and attachment.exclusive is None:", ":"),
        ],
    ),
    (
        AGENTS,
        f"{MACHINES}/member.py",
        [("dispatch: confirmed", '"ready" if member.executor.confirmed else "none"', '"ready"')],
    ),
    (
        DECISION,
        f"{MACHINES}/decision.py",
        [
            ("ledger: look-up", "        if seq:\n", "        if False:\n"),
            ("ledger: content", "if known.request_hash != context.request_hash:", "if False:"),
            ("replay: order", "if record.seq != state.head + 1:", "if False:"),
        ],
    ),
    (
        DECISION,
        f"{MACHINES}/draft.py",
        [
            ("rollback: state", "        self.undo.rollback()\n", ""),
            ("rollback: head", "        self.mob.head = self.base\n", ""),
        ],
    ),
    (
        ACTORS,
        ACTOR,
        [
            ("barrier: answers", RELEASED, "while waiting:"),
            ("barrier: reads", "if self.mob.head > self.confirmed:", "if False:"),
        ],
    ),
    (
        STORES,
        MEMORY,
        [
            ("append: epoch, memory", "log.epoch != append.epoch or ", ""),
            ("append: head, memory", " or log.head != append.base", ""),
        ],
    ),
    (
        STORES,
        LANES,
        [
            ("append: epoch, SQLite", WON, "AND (epoch = ? OR 1) AND head = ?"),
            ("append: head, SQLite", WON, "AND epoch = ? AND (head = ? OR 1)"),
            ("append: epoch, PostgreSQL", " AND mobs.epoch = v.epoch AND mobs.head", " AND mobs.head"),
            ("append: head, PostgreSQL", " AND mobs.head = v.base RETURNING", " RETURNING"),
        ],
    ),
]


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
        found.append(broken(f"{module}.{name} {' '.join(row.split())}", path, f"{row},", "", tests))
    if not found:
        raise Stale(f"{path}: no table {name}")
    # A row may be the beginning of another text; with its place it is itself.
    return [_located(mutant, source) for mutant in found]


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


def _located(mutant: Mutant, source: str) -> Mutant:
    """Widen an edit to the line before it, so that its text occurs once."""
    (edit,) = mutant.edits
    if source.count(edit.old) == 1:
        return mutant
    at = source.index(f"\n    {edit.old}") if source.count(f"\n    {edit.old}") == 1 else -1
    if at < 0:
        raise Stale(f"{edit.path}: more than one {edit.old}")
    return mutant._replace(edits=(Edit(edit.path, f"\n    {edit.old}", "\n"),))


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
