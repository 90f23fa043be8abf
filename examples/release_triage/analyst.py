"""An analyst: serves members of role analyst, and reads the chunks of the log that they are given.

python analyst.py --target localhost:7780 --mob release-triage
"""

import argparse
import time
from typing import Any

import mobd
import triage


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description="Serve analysts of a mob.")
    parser.add_argument("--target", default="localhost:7780")
    parser.add_argument("--mob", default="release-triage")
    parser.add_argument("--pace", type=float, default=0.0, help="take at least this many seconds for a turn")
    args = parser.parse_args()
    agent = mobd.Agent(args.target, mob=args.mob, role="analyst")

    @agent.turn
    def read(ctx: mobd.Turn) -> dict[str, Any]:
        # Inputs that waited together come together, as one turn.
        ready = time.monotonic() + args.pace
        parts = []
        for one in ctx.inputs:
            chunk, text = one.content
            parts.append(triage.analyse(text, chunk["first_line"], stamped=chunk["stamped"]))
        time.sleep(max(0.0, ready - time.monotonic()))
        return {"parts": triage.shrink(parts)}

    agent.run()


if __name__ == "__main__":
    main()
