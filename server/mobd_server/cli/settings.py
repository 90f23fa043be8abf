"""The commands about settings, tokens and definitions; they don't need the server."""

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

from mobd_server.adapters import tokens
from mobd_server.config import PREFIX, Config, ConfigInvalid, load
from mobd_server.services.definitions import schema as definition_schema


def check_config(file: Path | None) -> None:
    """Show each setting as a line of TOML, under what it is for."""
    from mobd_server import compose  # noqa: PLC0415 slow to load, and only this needs it

    config = load_settings(file)
    try:
        compose.callers(config)
    except compose.CannotStart as reason:
        fail(str(reason))
    for name, field in Config.model_fields.items():
        print(f"# {field.description}  [{PREFIX}{name.upper()}]")
        value = getattr(config, name)
        print(f"# {name} is not set\n" if value is None else f"{name} = {_toml(value)}\n")


def schema() -> None:
    """Print the JSON Schema of definitions."""
    print(json.dumps(definition_schema(), indent=2))


def new_token(principal: str, file: Path | None) -> None:
    """Make a token. It alone goes to standard output, so that it can be sent where it is to be."""
    try:
        made = tokens.mint(principal)
        if file is not None:
            tokens.append(file, made.line)
    except tokens.TokensInvalid as wrong:
        fail(str(wrong))
    print(made.token)
    if file is None:
        print(f"the line for the tokens file: {made.line}", file=sys.stderr)
    else:
        print(f"{file} has its line; a server that runs reads it on SIGHUP", file=sys.stderr)


def _toml(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool | int | float) else json.dumps(str(value))


def load_settings(file: Path | None, **flags: Any) -> Config:
    """Return the settings, or end with a line for each that is wrong."""
    try:
        return load(file, **flags)
    except ConfigInvalid as wrong:
        fail(str(wrong))


def fail(message: str) -> NoReturn:
    """End with a message."""
    for line in message.splitlines():
        print(f"mobd: {line}", file=sys.stderr)
    sys.exit(1)
