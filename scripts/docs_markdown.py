"""The few shapes of Markdown that the generated pages are made of."""

from collections.abc import Sequence


def cell(text: str) -> str:
    """Return a text as it may stand in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table; a column that is empty in every row is left out."""
    kept = [column for column in range(len(head)) if column == 0 or any(row[column] for row in rows)]
    lines = ["| " + " | ".join(head[column] for column in kept) + " |", "|" + "---|" * len(kept)]
    lines += ["| " + " | ".join(cell(row[column]) for column in kept) + " |" for row in rows]
    return [*lines, ""]


def code(text: str) -> str:
    """Return a text as code."""
    return f"`{text}`"


def size(count: int) -> str:
    """Return a number of bytes as people say it."""
    for power, unit in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= power and count % power == 0:
            return f"{count // power:,} {unit}"
    return f"{count:,} bytes"


def duration(milliseconds: int) -> str:
    """Return a duration as people say it."""
    for length, unit in ((3_600_000, "h"), (60_000, "min"), (1_000, "s")):
        if milliseconds >= length and milliseconds % length == 0:
            return f"{milliseconds // length:,} {unit}"
    return f"{milliseconds:,} ms"
