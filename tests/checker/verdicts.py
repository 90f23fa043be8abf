"""What a check says: which rule was broken, in a sentence, and the records that prove it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from tests.checker.history import Plain, Record, to_line

_CUT = 400
# The check of a verdict that is none: a search was given up. It proves nothing, neither way.
UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A broken rule. `evidence` cites records and events of the log, shortened."""

    check: str
    text: str
    evidence: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n    ".join((f"{self.check}: {self.text}", *self.evidence))


def cite(*them: Record | Plain | None) -> tuple[str, ...]:
    """Return records and events as they are cited."""
    return tuple(_one(one) for one in them if one is not None)


def _one(one: Record | Plain) -> str:
    if isinstance(one, dict):
        return f"event {one.get('seq', 0)}: {json.dumps(one)}"[:_CUT]
    return to_line(one)[:_CUT]


def told(verdicts: Iterable[Verdict], most: int = 20) -> str:
    """Return verdicts for people: the first `most`, and how many each check has."""
    them = list(verdicts)
    counts: dict[str, int] = {}
    for one in them:
        counts[one.check] = counts.get(one.check, 0) + 1
    head = ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "nothing"
    return "\n".join([f"broken: {head}", *(str(one) for one in them[:most])])
