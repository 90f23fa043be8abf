"""The changes that are made on purpose by hand: each must fit the code, or nobody learns that it is not caught."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def mutants() -> ModuleType:
    """The script of `make mutants`, which is in no package."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import mutants  # noqa: PLC0415 behind the path that leads to it
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    return mutants


def test_every_rule_is_found_where_it_is_to_be_taken_out(mutants: ModuleType) -> None:
    stale = []
    chosen = mutants.mutants()
    for mutant in chosen:
        texts = {edit.path: (ROOT / edit.path).read_text() for edit in mutant.edits}
        try:
            for edit in mutant.edits:
                texts[edit.path] = mutants.mutated(texts[edit.path], edit)
        except mutants.Stale as error:
            stale.append(f"{mutant.name}: {error}")
    assert not stale
    assert len(chosen) > 250


def test_every_rule_has_a_name_of_its_own_and_tests_that_are_there(mutants: ModuleType) -> None:
    chosen = mutants.mutants()
    assert len({mutant.name for mutant in chosen}) == len(chosen)
    assert all((ROOT / test.partition("::")[0]).exists() for mutant in chosen for test in mutant.tests)
