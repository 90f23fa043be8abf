"""What was decided, as prose: *.txt, replayed. `pytest tests/transcripts --rewrite` writes them anew."""

from pathlib import Path

import pytest
from tests.transcripts.scribe import rewritten

TRANSCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_everything_is_decided_as_it_was_written_down(path: Path, rewrite: bool) -> None:
    now = rewritten(path.read_text())
    if rewrite:
        path.write_text(now)
    assert path.read_text() == now


def test_there_are_transcripts() -> None:
    assert len(TRANSCRIPTS) >= 6
