"""`make mutation` itself: what has survived, which rows of the list are about it, and what a second run tries."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def load() -> Any:
    """Return the script, which is in no package."""
    spec = importlib.util.spec_from_file_location("mutation", ROOT / "scripts/mutation.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mutation = load()
CHANGE = mutation.Change("lanes.choose", "return a", "return b")
OTHER = mutation.Change("lanes.choose", "return a", "return None")
ELSEWHERE = mutation.Change("inbox.accept", "x = 1", "x = 2")


def test_a_change_is_named_by_its_function_and_the_lines_that_differ() -> None:
    old = ["def it(a):", "one = a + 1", "return one"]
    new = ["def it(a):", "one = a - 1", "return one"]
    assert mutation.difference("keys.find", old, new) == ("keys.find", "one = a + 1", "one = a - 1")


@pytest.mark.parametrize(
    ("mangled", "name"), [("x_choose", "choose"), ("x__private", "_private"), ("xǁSharingǁmembers", "Sharing.members")]
)
def test_functions_have_the_names_that_their_modules_know(mangled: str, name: str) -> None:
    assert mutation.plain(mangled) == name


@pytest.mark.parametrize(
    ("code", "verdict"),
    [(0, "survived"), (1, "killed"), (-11, "killed"), (33, "not covered"), (36, "timed out"), (-24, "timed out")],
)
def test_all_that_is_not_killed_must_be_listed(code: int, verdict: str) -> None:
    assert mutation.BY_CODE[code] == verdict
    unlisted, stale = mutation.judge([mutation.Mutant(CHANGE, verdict, 1.0)], [])
    assert bool(unlisted) == (verdict != "killed")
    assert not stale


def test_a_row_is_about_the_very_change_and_is_stale_when_that_is_killed() -> None:
    tried = [mutation.Mutant(CHANGE, "survived", 1.0), mutation.Mutant(OTHER, "killed", 1.0)]
    rows = [mutation.Accepted(one, "because") for one in (CHANGE, OTHER, ELSEWHERE)]
    unlisted, stale = mutation.judge(tried, rows)
    assert not unlisted
    # Nothing is said about modules that were not tried.
    assert [row.change for row in stale] == [OTHER]


def test_a_row_without_lines_is_about_all_that_no_test_reaches_in_a_function() -> None:
    row = mutation.Accepted(mutation.Change("lanes.choose", "", ""), "because")
    tried = [mutation.Mutant(CHANGE, "not covered", 0.0), mutation.Mutant(OTHER, "survived", 0.0)]
    unlisted, stale = mutation.judge(tried, [row])
    assert [one.change for one in unlisted] == [OTHER]
    assert not stale


def test_a_row_needs_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "survivors.toml"
    path.write_text('[[survivor]]\nwhere = "a.b"\nwas = "x"\nnow = "y"\nwhy = " "\n')
    with pytest.raises(SystemExit, match=r"survivors.toml: a.b has no reason"):
        mutation.read_list(path)


def test_every_listed_row_names_a_function_that_is_there() -> None:
    for row in mutation.read_list():
        module, _, function = row.change.where.partition(".")
        text = (ROOT / f"server/mobd_server/machines/{module}.py").read_text()
        assert f"def {function.rpartition('.')[2]}(" in text, row.change.where


def test_a_second_run_tries_what_survived_with_what_is_committed_now(tmp_path: Path) -> None:
    mutation.copy_tree(tmp_path)
    mutants = tmp_path / "mutants"
    machines = mutants / mutation.MACHINES
    machines.mkdir(parents=True)
    (mutants / "tests").mkdir()
    (mutants / "mutmut-stats.json").write_text("{}")
    (machines / "lanes.py").write_text("what mutmut made of it")
    (machines / "lanes.py.meta").write_text(json.dumps({"exit_code_by_key": {"a": 1, "b": 0, "c": 36, "d": None}}))
    (machines / "gone.py.meta").write_text(json.dumps({"exit_code_by_key": {"a": 1}}))
    (tmp_path / "tests/machines/test_lanes.py").write_text("as it was")
    mutation.renew(tmp_path)
    assert json.loads((machines / "lanes.py.meta").read_text())["exit_code_by_key"] == {
        "a": 1,
        "b": None,
        "c": None,
        "d": None,
    }
    assert sorted(path.name for path in machines.iterdir()) == ["lanes.py.meta"]
    assert not (mutants / "mutmut-stats.json").exists()
    assert "as it was" not in (tmp_path / "tests/machines/test_lanes.py").read_text()
