"""What the documentation tells people to type, so that a test can do exactly that."""

import re
from pathlib import Path

from tests.support.processes import ROOT


def typed(page: Path | str, heading: str) -> list[list[str]]:
    """Return the commands of each shell block under a heading of the second level, line by line."""
    text = (ROOT / page).read_text()
    _, found, rest = text.partition(f"\n## {heading}\n")
    assert found, f"{page} has no heading {heading}"
    section, _, _ = rest.partition("\n## ")
    return [
        block.strip().splitlines() for block in re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    ]
