"""The lead: serves the member of role lead, and merges what the analysts found into one report.

python lead.py --target localhost:7780 --mob release-triage
"""

import argparse
from typing import Any

import mobd
import triage


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description="Serve the lead of a mob.")
    parser.add_argument("--target", default="localhost:7780")
    parser.add_argument("--mob", default="release-triage")
    args = parser.parse_args()
    agent = mobd.Agent(args.target, mob=args.mob, role="lead")

    @agent.turn
    async def lead(ctx: mobd.Turn) -> dict[str, Any]:
        part = triage.merge(part for one in ctx.inputs for block in one.content for part in block["parts"])
        return {"parts": [part], "report": triage.report(part)}

    agent.run()


if __name__ == "__main__":
    main()
