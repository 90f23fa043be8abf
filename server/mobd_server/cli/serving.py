"""The commands that run on the server's side."""

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

from mobd_server import compose
from mobd_server.adapters import logs
from mobd_server.config import PREFIX, Config, ConfigInvalid, load
from mobd_server.services.definitions import schema as definition_schema


def serve(file: Path | None, **flags: Any) -> None:
    """Run a server until it is told to end."""
    config = _load(file, **flags)
    logs.set_up(config.log_level, config.log_format)
    try:
        compose.run(config)
    except compose.CannotStart as reason:
        _fail(str(reason))


def migrate(file: Path | None) -> None:
    """Bring the database to the schema of this version."""
    config = _load(file)
    try:
        before, after = compose.migrate(config)
    except compose.CannotStart as reason:
        _fail(str(reason))
    if before == after:
        print(f"the database is at revision {after} already")
    else:
        print(f"the database went from revision {before or 'nothing'} to {after}")


def check_config(file: Path | None) -> None:
    """Show each setting as a line of TOML, under what it is for."""
    config = _load(file)
    for name, field in Config.model_fields.items():
        print(f"# {field.description}  [{PREFIX}{name.upper()}]")
        value = getattr(config, name)
        print(f"# {name} is not set\n" if value is None else f"{name} = {_toml(value)}\n")


def schema() -> None:
    """Print the JSON Schema of definitions."""
    print(json.dumps(definition_schema(), indent=2))


def _toml(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool | int | float) else json.dumps(str(value))


def _load(file: Path | None, **flags: Any) -> Config:
    try:
        return load(file, **flags)
    except ConfigInvalid as wrong:
        _fail(str(wrong))


def _fail(message: str) -> NoReturn:
    for line in message.splitlines():
        print(f"mobd: {line}", file=sys.stderr)
    sys.exit(1)
