"""The page of the settings, from config.py and the command line."""

from inspect import signature
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from docs_markdown import code, table
from pydantic.fields import FieldInfo

from mobd_server import config
from mobd_server.cli import serve
from mobd_server.config import CONFIG_VARIABLE, PREFIX, SECRETS, Config

BESIDE: Final = {
    "MOBD_TARGET": "Where clients, agents and the command line find the server; `localhost:7780` if it is not set.",
    "MOBD_HOST_ID": "The `host_id` of an agent, unless its program names one; random per process if neither does.",
    "MOBD_TOKEN": "The token by which a server knows clients, agents and the command line, unless they are given one.",
    "MOBD_CONFIG": "The TOML file with settings; `--config` goes before it.",
    "MOBD_SECRETS_DIR": f"The directory of files with settings, instead of `{SECRETS}`.",
}
BOUNDS: Final = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}

INTRO: Final = f"""# Settings

Every setting of the server. A value is taken from the first of these that has it: the flag of `mobd serve`, the
environment variable, a file in `{SECRETS}` whose name is the variable's in lower case, the key in the TOML file
(`--config`, or `{CONFIG_VARIABLE}`). A variable that begins with `{PREFIX}` and is no setting is refused, and so is an
unknown key. `mobd check-config` shows what is in force, as the TOML file that would set it.

The key in the TOML file is the setting's name.
"""


def page(_: Path) -> list[str]:
    """Return the lines of the page."""
    flags = _flags()
    rows = [
        (
            code(name),
            code(PREFIX + name.upper()),
            code(flags[name]) if name in flags else "",
            _default(field),
            _legal(field),
            field.description or "",
        )
        for name, field in Config.model_fields.items()
    ]
    lines = [*INTRO.splitlines(), ""]
    lines += table(("setting", "environment", "flag", "default", "must be", "meaning"), rows)
    lines += ["`lease_s` must be greater than `heartbeat_s`.", "", "## Beside the server", ""]
    # The names of variables that are no settings are constants of config.py.
    there = config.CLIENT_VARIABLES | {value for name, value in vars(config).items() if name.endswith("_VARIABLE")}
    if there - BESIDE.keys():
        raise SystemExit(f"say in docs_settings.py what these are for: {', '.join(sorted(there - BESIDE.keys()))}")
    lines += ["These are no settings of the server; they may stand in its environment.", ""]
    return lines + table(("environment", "meaning"), [(code(name), BESIDE[name]) for name in BESIDE if name in there])


def _flags() -> dict[str, str]:
    """Return the flag of each setting that `mobd serve` takes: its parameters are named for them."""
    return {name: f"--{name.replace('_', '-')}" for name in signature(serve).parameters}


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        # Only the name of the host is made where the server starts.
        return "the host's name"
    if field.default is None:
        return "not set"
    if isinstance(field.default, bool):
        return code(str(field.default).lower())
    if isinstance(field.default, float):
        return code(f"{field.default:g}")
    return code(str(field.default))


def _legal(field: FieldInfo) -> str:
    kind: Any = field.annotation
    if get_origin(kind) is Literal:
        return ", ".join(code(str(one)) for one in get_args(kind))
    words = [
        f"{word} {int(getattr(bound, name)):,}"
        for bound in field.metadata
        for name, word in BOUNDS.items()
        if getattr(bound, name, None) is not None
    ]
    return ", ".join(words)
