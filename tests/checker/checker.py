"""The history checker: judges a history by what clients and agents saw and by the final log, and by nothing else.

It imports nothing of the server. `check` runs every check of CHECKS; each is a function from what was seen of one mob
to verdicts, and a history without verdicts is one that a correct service can have made.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from tests.checker.agents import stale_fences, told_is_logged
from tests.checker.answers import acknowledged_is_logged, fresh_answers, nothing_invented, true_reports
from tests.checker.finals import everything_ends, state_is_the_log
from tests.checker.history import Record
from tests.checker.members import linearizable
from tests.checker.seen import BadHistory, MobSeen, sort
from tests.checker.streams import streams_equal_log
from tests.checker.verdicts import UNDECIDED, Verdict, told

__all__ = ["CHECKS", "UNDECIDED", "BadHistory", "Verdict", "broken", "check", "told"]


def log_by_the_rules(seen: MobSeen) -> Iterator[Verdict]:
    """The log alone: gap-free, single ends, order of the lanes, attempts, fences, counts. Verdicts name the rule."""
    yield from seen.facts.breaches


CHECKS: Final[tuple[Callable[[MobSeen], Iterator[Verdict]], ...]] = (
    log_by_the_rules,
    everything_ends,
    state_is_the_log,
    acknowledged_is_logged,
    nothing_invented,
    true_reports,
    fresh_answers,
    streams_equal_log,
    told_is_logged,
    stale_fences,
    linearizable,
)


def check(records: Iterable[Record]) -> list[Verdict]:
    """Return every broken rule, and what could not be decided. Raises BadHistory if the records are no history."""
    return [verdict for seen in sort(records).values() for rule in CHECKS for verdict in rule(seen)]


def broken(records: Iterable[Record]) -> list[Verdict]:
    """Return every broken rule, without what could not be decided. Raises BadHistory like `check`."""
    return [one for one in check(records) if one.check != UNDECIDED]
