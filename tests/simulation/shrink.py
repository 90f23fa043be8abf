"""Fewer steps with which a world still fails."""

from collections.abc import Callable, Sequence
from typing import Final

from tests.simulation.plan import Step

MOST_TRIES: Final = 400


def shrink(steps: Sequence[Step], fails: Callable[[Sequence[Step]], bool]) -> list[Step]:
    """Return as few steps as are found with which `fails` is true: pieces are left out, ever smaller ones."""
    kept, tries = list(steps), 0
    size = max(1, len(kept) // 2)
    while tries < MOST_TRIES:
        at, shorter = 0, False
        while at < len(kept) and tries < MOST_TRIES:
            candidate = kept[:at] + kept[at + size :]
            tries += 1
            if fails(candidate):
                kept, shorter = candidate, True
            else:
                at += size
        if size == 1 and not shorter:
            break
        size = max(1, size // 2)
    return kept
