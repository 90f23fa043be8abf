"""Change every expression of the machines in every small way, on a copy of the tree, and see whether the tests notice.

mutmut makes the changes and runs the tests that reach them; `mutants.py` beside this takes out whole rules, by hand.
What survives must be listed with a reason in tests/mutation/survivors.toml: an unlisted survivor ends this with 1. To
time out, or to be reached by no test, is to survive.

    python scripts/mutation.py [--modules lanes,inbox] [--tests PATH ...] [--thorough] [--jobs 2]
        [--keep FOLDER [--again]]

What is committed is what is tried. With `--keep` the copy stays, and a second run with it goes on where the first one
ended; with `--again` as well, the copy is brought to what is committed now, and what has survived in it is tried again,
and what is new, and every change of a function that is no longer what it was.
"""

import argparse
import ast
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent
LISTED: Final = ROOT / "tests/mutation/survivors.toml"
MACHINES: Final = "src/mobd_server/machines"
EXAMPLES: Final = "10"

KILLED, SURVIVED, TIMED_OUT, NOT_COVERED, NOT_TRIED, ODD = VERDICTS = (
    "killed",
    "survived",
    "timed out",
    "not covered",
    "not tried",
    "odd",
)
# mutmut's record of a mutant is the exit code of pytest, the signal that ended it, or a number of mutmut's own. A crash
# of the interpreter is as good as a failed test; 9 follows the processor limit's own signal.
BY_CODE: Final[dict[int | None, str]] = {
    None: NOT_TRIED,
    0: SURVIVED,
    1: KILLED,
    3: KILLED,
    5: NOT_COVERED,
    33: NOT_COVERED,
    -11: KILLED,
    **dict.fromkeys((-9, -24, 24, 36, 152, 255), TIMED_OUT),
}


class Change(NamedTuple):
    """What a mutant is: the lines of a function that it takes out and puts in, whatever their number and indent."""

    where: str
    was: str
    now: str


class Mutant(NamedTuple):
    """A change that was tried."""

    change: Change
    verdict: str
    seconds: float


class Accepted(NamedTuple):
    """A row of the list. Without lines it is about every change of a function that no test reaches."""

    change: Change
    why: str

    def covers(self, mutant: Mutant) -> bool:
        """Whether the row is about a mutant."""
        if not self.change.was and not self.change.now:
            return mutant.verdict == NOT_COVERED and mutant.change.where == self.change.where
        return mutant.change == self.change


def copy_tree(folder: Path) -> None:
    """Put what is committed into a folder, laid out as mutmut wants it."""
    packed = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    (folder / "server").rename(folder / "src")


def renew(folder: Path) -> None:
    """Bring a copy to what is committed now, and forget all that was found out in it but what was killed.

    mutmut itself forgets what it knows of a function that has changed.
    """
    mutants = folder / "mutants"
    for one in (folder / "src", folder / "tests", mutants / "tests"):
        shutil.rmtree(one)
    copy_tree(folder)
    # Which tests reach which function.
    (mutants / "mutmut-stats.json").unlink(missing_ok=True)
    for path in (mutants / "src").rglob("*"):
        if path.suffix == ".meta" and (folder / path.with_suffix("").relative_to(mutants)).exists():
            record: dict[str, Any] = json.loads(path.read_text())
            codes = record["exit_code_by_key"]
            for name, code in codes.items():
                codes[name] = code if BY_CODE.get(code) == KILLED else None
            path.write_text(json.dumps(record))
        elif path.is_file():
            path.unlink()


def configure(folder: Path, modules: list[str], tests: list[str], patience: float, *, thorough: bool) -> None:
    """Narrow the configuration in a copy down; `thorough` takes in the tests that are left out for their time."""
    path = folder / "pyproject.toml"
    text = path.read_text()
    if thorough:
        text = re.sub(r"^ *\"--deselect=.*\n", "", text, flags=re.MULTILINE)
    chosen = {"timeout_constant": repr(patience)}
    if modules:
        chosen["only_mutate"] = json.dumps([f"{MACHINES}/{one}.py" for one in modules])
    if tests:
        chosen["pytest_add_cli_args_test_selection"] = json.dumps(tests)
    for key, value in chosen.items():
        text, found = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
        if found != 1:
            sys.exit(f"pyproject.toml has {found} lines with {key}, not one")
    path.write_text(text)


def run(folder: Path, jobs: int) -> None:
    """Let mutmut make and try the mutants; what came of each is in the copy."""
    environment = {
        **os.environ,
        # The client is there for what conftest.py imports. Nothing of the tree itself may come before the mutants.
        "PYTHONPATH": os.pathsep.join(str(folder / one) for one in ("client", "migrations")),
        "PYTHONHASHSEED": "0",
        "MOBD_TEST_EXAMPLES": EXAMPLES,
    }
    command = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", str(jobs)]
    if subprocess.run(command, cwd=folder, env=environment, check=False).returncode:
        sys.exit("mutmut did not finish: see above")


def results(folder: Path) -> Iterator[Mutant]:
    """Yield what was tried, module by module."""
    for path in sorted((folder / "mutants" / MACHINES).glob("*.py.meta")):
        record: dict[str, Any] = json.loads(path.read_text())
        functions = read_functions(path.with_suffix(""))
        module = path.name.removesuffix(".py.meta")
        for name, code in record["exit_code_by_key"].items():
            changed = name.rpartition(".")[2]
            original = changed.partition("__mutmut_")[0]
            change = difference(
                f"{module}.{plain(original)}", functions[original + "__mutmut_orig"], functions[changed]
            )
            yield Mutant(change, BY_CODE.get(code, ODD), record["durations_by_key"].get(name) or 0.0)


def read_functions(path: Path) -> dict[str, list[str]]:
    """Return the lines of every function that mutmut wrote, without their own names and indents."""
    text = path.read_text()
    lines = text.splitlines()
    return {
        node.name: [one.strip().replace(node.name, "it") for one in lines[node.lineno - 1 : node.end_lineno]]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and "__mutmut_" in node.name
    }


def plain(name: str) -> str:
    """Return the name of a function as its module knows it."""
    return name[1:].strip("ǁ").replace("ǁ", ".") if "ǁ" in name else name.removeprefix("x_")


def difference(where: str, old: list[str], new: list[str]) -> Change:
    """Return what differs between a function and its mutant."""
    lines = list(difflib.unified_diff(old, new, n=0, lineterm=""))[2:]
    was = "\n".join(one[1:] for one in lines if one.startswith("-"))
    now = "\n".join(one[1:] for one in lines if one.startswith("+"))
    return Change(where, was, now)


def read_list(path: Path = LISTED) -> list[Accepted]:
    """Return the survivors that are known, or end: a row without a reason is none."""
    rows = tomllib.loads(path.read_text()).get("survivor", [])
    for row in rows:
        if not row.get("why", "").strip():
            sys.exit(f"{path.name}: {row.get('where')} has no reason")
    return [Accepted(Change(row["where"], row.get("was", ""), row.get("now", "")), row["why"]) for row in rows]


def judge(tried: list[Mutant], listed: list[Accepted]) -> tuple[list[Mutant], list[Accepted]]:
    """Return the survivors that no row is about, and the rows of the modules tried that no survivor is about."""
    survivors = [one for one in tried if one.verdict != KILLED]
    unlisted = [one for one in survivors if not any(row.covers(one) for row in listed)]
    modules = {module_of(one.change) for one in tried}
    stale = [
        row for row in listed if module_of(row.change) in modules and not any(row.covers(one) for one in survivors)
    ]
    return unlisted, stale


def module_of(change: Change) -> str:
    """Return the module of a change."""
    return change.where.partition(".")[0]


def table(tried: Iterable[Mutant]) -> str:
    """Return the counts by module, and how long their mutants took."""
    counts: dict[str, Counter[str]] = {}
    seconds: Counter[str] = Counter()
    for one in tried:
        for name in (module_of(one.change), "all"):
            counts.setdefault(name, Counter())[one.verdict] += 1
            seconds[name] += round(1000 * one.seconds)
    lines = [f"{'module':16} {'mutants':>8} " + " ".join(f"{one:>11}" for one in VERDICTS) + f" {'seconds':>8}"]
    for name in sorted(counts, key=lambda name: (name == "all", name)):
        found = counts[name]
        row = " ".join(f"{found[one]:11}" for one in VERDICTS)
        lines.append(f"{name:16} {found.total():8} {row} {seconds[name] / 1000:8.0f}")
    return "\n".join(lines)


def as_row(mutant: Mutant) -> str:
    """Return the row that would accept a mutant, but for its reason."""
    # What TOML calls a basic string is what JSON calls a string.
    keys = "\n".join(
        f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in mutant.change._asdict().items()
    )
    return f'# {mutant.verdict}\n[[survivor]]\n{keys}\nwhy = ""\n'


def report(folder: Path) -> int:
    """Print what came of the mutants in a copy; 1 if one survived that is not listed."""
    tried = list(results(folder))
    unlisted, stale = judge(tried, read_list())
    for one in unlisted:
        print(as_row(one))
    for row in stale:
        print(f"listed, but killed or gone: {' | '.join(row.change)}")
    print(table(tried))
    print(
        f"{len(unlisted)} survivors are not in {LISTED.relative_to(ROOT)}, {len(stale)} rows there are to be taken out"
    )
    return bool(unlisted)


def main() -> int:
    """Try what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", default="", help="names of modules in machines/, with commas; all if not given")
    parser.add_argument("--tests", nargs="+", default=[], help="only these, which must reach what is changed")
    parser.add_argument("--thorough", action="store_true", help="run the slowest tests too: ten times as long")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--patience", type=float, default=5.0, help="seconds that a mutant has beside what tests take")
    parser.add_argument("--keep", type=Path, help="work here, and go on with what is here")
    parser.add_argument("--again", action="store_true", help="try what survived there again, and what has changed")
    options = parser.parse_args()
    if options.again and options.keep is None:
        parser.error("--again goes with --keep: there must be something that survived")
    modules = [one for one in options.modules.split(",") if one]
    for one in modules:
        if not (ROOT / "server/mobd_server/machines" / f"{one}.py").is_file():
            parser.error(f"no module {one}")
    folder: Path = options.keep.resolve() if options.keep else Path(tempfile.mkdtemp(prefix="mutation-"))
    try:
        if not (folder / "src").exists():
            folder.mkdir(parents=True, exist_ok=True)
            copy_tree(folder)
        elif options.again:
            renew(folder)
        configure(folder, modules, options.tests, options.patience, thorough=options.thorough)
        run(folder, options.jobs)
        return report(folder)
    finally:
        if not options.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
