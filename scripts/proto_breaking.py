"""Compare the wire protocol with the one before the change, and refuse what breaks clients.

The change is what the working tree adds to HEAD; when that leaves proto/ alone, it is the last commit that touched
proto/. Before 1.0 a breaking change passes when the same change adds a line with the word "breaking" to the
Unreleased section of CHANGELOG.md; from 1.0 on it never does.
"""

import argparse
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUF = Path(sys.executable).parent / "buf"


def git(*arguments: str) -> str | None:
    """What git prints, or None when it fails."""
    result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stdout if result.returncode == 0 else None


def baseline() -> str | None:
    """The commit before the change, or None when the protocol has no history yet."""
    if not git("ls-tree", "HEAD", "proto/"):
        return None
    if git("status", "--porcelain", "--", "proto"):
        return "HEAD"
    touched = (git("log", "-1", "--format=%H", "--", "proto") or "").strip()
    return f"{touched}^" if touched and git("ls-tree", f"{touched}^", "proto/") else None


def admissions(changelog: str) -> set[str]:
    """The entries that say "breaking", in any section: what was Unreleased in the change may be a release by now."""
    _, _, sections = changelog.partition("\n## ")
    return {line.strip() for line in sections.splitlines() if "breaking" in line.lower()}


def breaks(against: str) -> str:
    """What buf finds broken since the commit `against`, one finding a line; nothing when all is well."""
    with tempfile.TemporaryDirectory() as scratch:
        archive = subprocess.run(["git", "archive", against, "proto"], cwd=ROOT, capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", scratch], input=archive.stdout, check=True)
        (Path(scratch) / "buf.yaml").write_bytes((ROOT / "buf.yaml").read_bytes())
        command = [str(BUF), "breaking", str(ROOT), "--against", scratch]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode not in {0, 100}:
        sys.exit(f"buf breaking failed:\n{result.stderr}")
    return result.stdout


def main() -> int:
    """Exit 1 with buf's findings when the change breaks clients without saying so."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--against", metavar="COMMIT", help="compare with this commit")
    given: str | None = parser.parse_args().against
    against = given or baseline()
    if against is None:
        print("proto: no earlier version to compare with")
        return 0
    findings = breaks(against)
    if not findings:
        return 0
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    before = git("show", f"{against}:CHANGELOG.md") or ""
    admitted = admissions((ROOT / "CHANGELOG.md").read_text()) - admissions(before)
    if version.startswith("0.") and admitted:
        print(f"proto: breaking since {against}, and CHANGELOG.md says so")
        return 0
    print(findings, end="", file=sys.stderr)
    remedy = (
        'say so in CHANGELOG.md: a line with the word "breaking" under [Unreleased]'
        if version.startswith("0.")
        else "a released protocol keeps its promises: add to it, or start mobd.v2"
    )
    print(f"proto: this breaks clients built against {against}; {remedy}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
