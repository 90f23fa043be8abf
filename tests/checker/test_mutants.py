"""The patches of tests/mutants say what they break and which checks must tell of it; that they do is `make
checker-mutants`.
"""

import subprocess
from pathlib import Path

import pytest
from tests.checker.run import SCENES
from tests.checker.test_broken import WAYS

PATCHES = sorted((Path(__file__).parents[1] / "mutants").glob("*.patch"))


def test_there_are_mutants_of_many_kinds() -> None:
    assert len(PATCHES) >= 12


@pytest.mark.parametrize("path", PATCHES, ids=[path.stem for path in PATCHES])
def test_a_mutant_says_what_it_breaks_where_it_shows_and_who_tells(path: Path) -> None:
    header, *changes = path.read_text().split("diff --git ")
    said = dict(line.split(": ", 1) for line in header.splitlines() if line)
    assert set(said) == {"Breaks", "Scene", "Checks"}
    assert said["Scene"] in SCENES
    assert {name.strip() for name in said["Checks"].split(",")} <= set(WAYS)
    root = path.parents[2]
    assert changes, "a mutant changes something"
    for change in changes:
        assert (root / change.split()[0].removeprefix("a/")).is_file()


@pytest.mark.parametrize("path", PATCHES, ids=[path.stem for path in PATCHES])
def test_a_mutant_fits_the_code(path: Path) -> None:
    told = subprocess.run(
        ["git", "apply", "--check", str(path)], cwd=path.parents[2], capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stderr) == (0, "")
