"""Refuse files that have grown too long to read at a sitting: 500 lines of source, 600 of tests."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMITS = {"client": 500, "server": 500, "migrations": 500, "scripts": 500, "examples": 500, "bench": 500, "tests": 600}


def too_long() -> list[str]:
    """A line for each file past its limit."""
    return [
        f"{path.relative_to(ROOT)}: {lines} lines, {limit} allowed; split it by noun or phase"
        for folder, limit in LIMITS.items()
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "_pb2" not in path.name and (lines := len(path.read_text().splitlines())) > limit
    ]


if __name__ == "__main__":
    findings = too_long()
    print("\n".join(findings), end="\n" if findings else "", file=sys.stderr)
    sys.exit(bool(findings))
