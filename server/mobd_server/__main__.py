"""`mobd` and `python -m mobd_server`: finds out whether the server is installed, and hands over to the command line."""

import os
import signal
import sys
from importlib.metadata import version
from types import FrameType

# What only the extra `server` brings: without it there is the client alone.
EXTRA = frozenset({"alembic", "grpc_health", "grpc_reflection", "msgspec", "psycopg", "pydantic", "pydantic_settings"})
EXTRA |= {"sqlalchemy", "structlog", "typer", "yaml"}

# What gRPC's core reads from the environment when it is loaded.
GRPC = {
    # It writes lines of its own about what is told in one of ours, such as a port that is taken.
    "GRPC_VERBOSITY": "NONE",
    # The server starts other programs and never forks otherwise. What gRPC would do in between to let a fork go on
    # with its calls crashes one start in eight on uvloop, which starts them by an ordinary fork.
    "GRPC_ENABLE_FORK_SUPPORT": "0",
}


def _end(number: int, _: FrameType | None) -> None:
    """End in order; a server that has not begun to serve has done so as soon as it ends."""
    sys.exit(0 if sys.argv[1:2] == ["serve"] else 128 + number)


def main() -> None:
    """Run the command line."""
    # The first process of a container is not ended by a signal that it does not handle: whoever stops a server that
    # still starts would wait until it is killed.
    signal.signal(signal.SIGTERM, _end)
    if sys.argv[1:] == ["--version"]:
        print(f"mobd {version('mobd')}")
        return
    os.environ.update({**GRPC, **os.environ})
    try:
        from mobd_server.cli import app  # noqa: PLC0415 it may not be there

        app()
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in EXTRA:
            raise
        print(f"mobd: {missing.name} is missing: pip install 'mobd[server]' installs the server", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
