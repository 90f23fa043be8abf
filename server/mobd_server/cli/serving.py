"""The commands that run on the server's side."""

import logging
from pathlib import Path
from typing import Any, Final

from mobd_server import compose, faults
from mobd_server.adapters import logs
from mobd_server.cli.settings import fail, load_settings

log: Final = logging.getLogger(__name__)


def serve(file: Path | None, **flags: Any) -> None:
    """Run a server until it is told to end."""
    config = load_settings(file, **flags)
    logs.set_up(config.log_level, config.log_format)
    if faults.ARMED:
        log.warning("faults_armed", extra={"faults": faults.check()})
    try:
        compose.run(config)
    except compose.CannotStart as reason:
        fail(str(reason))


def backup(file: Path | None, target: Path) -> None:
    """Copy the database."""
    config = load_settings(file)
    try:
        found = compose.backup(config, target)
    except compose.CannotStart as reason:
        fail(str(reason))
    print(f"{target} has {found} mobs, and their logs have new names")


def new_log(file: Path | None) -> None:
    """Give the logs of a copy new names."""
    config = load_settings(file)
    try:
        found = compose.new_log(config)
    except compose.CannotStart as reason:
        fail(str(reason))
    print(f"the logs of {found} mobs have new names")


def migrate(file: Path | None) -> None:
    """Bring the database to the schema of this version."""
    config = load_settings(file)
    try:
        before, after = compose.migrate(config)
    except compose.CannotStart as reason:
        fail(str(reason))
    if before == after:
        print(f"the database is at revision {after} already")
    else:
        print(f"the database went from revision {before or 'nothing'} to {after}")
