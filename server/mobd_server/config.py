"""Every setting of the server: where it comes from, its unit and its default.

Settings come from the command line, then the environment (MOBD_LISTEN is `listen`), then files in /run/secrets
(mobd_database_password; MOBD_SECRETS_DIR names another directory), then a TOML file. A setting that mobd does not
know is refused: it is a typing error.
"""

import os
import re
import socket
import tomllib
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from mobd_server import faults

PREFIX: Final = "MOBD_"
CONFIG_VARIABLE: Final = "MOBD_CONFIG"
SECRETS: Final = Path("/run/secrets")
SECRETS_VARIABLE: Final = "MOBD_SECRETS_DIR"
# What turns a part of the server off.
OFF: Final = "off"
# Read by clients and agents, which may share an environment with the server.
CLIENT_VARIABLES: Final = frozenset({"MOBD_TARGET", "MOBD_HOST_ID", "MOBD_TOKEN"})
# Set by Kubernetes in every container beside a service that is named mobd.
_KUBERNETES: Final = re.compile(r"MOBD_(SERVICE_(HOST|PORT)|PORT)(_.*)?").fullmatch
_SQLITE: Final = re.compile(r"sqlite:///.+").fullmatch
_POSTGRESQL: Final = re.compile(r"postgres(ql)?(\+psycopg)?://.*").fullmatch
_WITHOUT_PASSWORD: Final = re.compile(r"postgres(ql)?(\+psycopg)?://[^:@/]+@.*").fullmatch


class ConfigInvalid(Exception):
    """Settings are wrong; the message is one line for each and says what would be right."""


class Config(BaseSettings):
    """The settings of one server."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True)

    listen: str = Field("127.0.0.1:7780", description="Address and port for gRPC; port 0 takes any free one.")
    http_listen: str = Field(
        "127.0.0.1:7781", description="Address and port for /metrics, /healthz and /readyz over HTTP; off turns it off."
    )
    tokens_file: Path | None = Field(
        None, description="File of the tokens that callers must have (see `mobd token new`); not set: all may come."
    )
    insecure_listen: bool = Field(
        default=False, description="Whether gRPC may be listened for beyond this machine although all may come."
    )
    data_dir: Path = Field(Path("mobd-data"), description="Directory of the SQLite database and the lock file.")
    database_url: SecretStr | None = Field(
        None, description="postgresql://user:password@host/name, or sqlite:///path; not set: SQLite in data_dir."
    )
    database_password: SecretStr | None = Field(
        None, description="The password of a PostgreSQL user whom database_url names without one."
    )
    node: str = Field(default_factory=socket.gethostname, min_length=1, description="The name of this server.")
    loop: Literal["asyncio", "uvloop", "auto"] = Field(
        "asyncio", description="The event loop; auto takes uvloop if it is installed."
    )

    heartbeat_s: float = Field(10.0, gt=0, le=3600, description="How often agents send a heartbeat, in seconds.")
    lease_s: float = Field(30.0, gt=0, le=3600, description="Silence after which an agent is suspended, in seconds.")
    grace_s: float = Field(
        60.0, gt=0, le=86_400, description="How long a suspended agent keeps its members and runs, in seconds."
    )
    accept_s: float = Field(
        10.0, gt=0, le=3600, description="How long an agent may take to answer Assign and StartRun, in seconds."
    )
    hello_s: float = Field(5.0, gt=0, le=3600, description="How long an agent may take to say Hello, in seconds.")

    journal_slots: int = Field(4096, ge=16, le=1 << 20, description="Decisions that may wait for their commit.")
    drain_s: float = Field(20.0, ge=0, le=3600, description="How long calls may go on after SIGTERM, in seconds.")

    snapshot_events: int = Field(
        20_000, ge=100, le=10_000_000, description="Events behind a mob's newest snapshot with which the next is due."
    )
    snapshot_tail: int = Field(
        500, ge=1, le=10_000_000, description="Events behind it for which a mob that leaves memory gets one."
    )
    passivate_after_s: float = Field(
        900.0, ge=0, le=864_000, description="How long a mob at rest stays in memory unused, in seconds; 0 for ever."
    )

    keepalive_s: float = Field(30.0, ge=1, le=86_400, description="How often an idle connection is pinged, in seconds.")
    keepalive_timeout_s: float = Field(
        10.0, ge=1, le=3600, description="Silence after a ping that ends a connection, in seconds."
    )
    min_ping_interval_s: float = Field(
        10.0, ge=0, le=3600, description="A client that pings an idle connection more often is cut off, in seconds."
    )
    max_connection_age_s: float = Field(
        3600.0, ge=1, le=864_000, description="Age at which a connection is asked to end, in seconds."
    )
    max_connection_age_grace_s: float = Field(
        600.0, ge=0, le=864_000, description="How long its calls may then go on, in seconds."
    )
    reflection: bool = Field(default=True, description="Whether clients may ask for the protocol's description.")

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least level that is logged."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="How log lines look; auto is text on a terminal and JSON elsewhere."
    )

    @field_validator("listen")
    @classmethod
    def _an_address(cls, value: str) -> str:
        if not _is_address(value):
            raise ValueError("must be an address and a port such as 127.0.0.1:7780 or [::]:7780")
        return value

    @field_validator("http_listen")
    @classmethod
    def _an_address_or_off(cls, value: str) -> str:
        if value in ("", OFF):
            return OFF
        if not _is_address(value):
            raise ValueError(f"must be {OFF}, or an address and a port such as 127.0.0.1:7781 or [::]:7781")
        return value

    @field_validator("database_url", mode="after")
    @classmethod
    def _a_known_store(cls, value: SecretStr | None) -> SecretStr | None:
        url = value.get_secret_value() if value is not None else ""
        if url and not _SQLITE(url) and not _POSTGRESQL(url):
            raise ValueError("must begin with postgresql:// or sqlite:///")
        return value if url else None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.lease_s <= self.heartbeat_s:
            raise ValueError(f"lease_s ({self.lease_s:g}) must be greater than heartbeat_s ({self.heartbeat_s:g})")
        return self

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        url = self.database_url.get_secret_value() if self.database_url is not None else ""
        if self.database_password is not None and not _WITHOUT_PASSWORD(url):
            raise ValueError("database_password needs a database_url such as postgresql://user@host/name, without one")
        return self

    @property
    def host(self) -> str:
        """The address to listen on."""
        return self.listen.rpartition(":")[0]

    @property
    def beyond_this_machine(self) -> bool:
        """Whether others than this machine can reach the server."""
        if self.host == "localhost":
            return False
        try:
            return not ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            # Another name may lead anywhere, also one that looks like an address.
            return True


def _is_address(value: str) -> bool:
    host, _, port = value.rpartition(":")
    return bool(host) and port.isdecimal() and int(port) <= 65_535


def load(file: Path | None = None, **flags: Any) -> Config:
    """Return the settings; flags that are None were not given. Raises ConfigInvalid."""
    if file is None and os.environ.get(CONFIG_VARIABLE):
        file = Path(os.environ[CONFIG_VARIABLE])
    _refuse_unknown_variables()
    try:
        faults.check()
    except faults.FaultsInvalid as wrong:
        raise ConfigInvalid(str(wrong)) from None
    secrets = Path(os.environ.get(SECRETS_VARIABLE) or SECRETS)
    _check_secrets(secrets)

    class Loaded(Config):
        model_config = SettingsConfigDict(secrets_dir=secrets if secrets.is_dir() else None)

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 the signature is pydantic's
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            sources = [init_settings, env_settings]
            if secrets.is_dir():
                sources.append(file_secret_settings)
            if file is not None:
                sources.append(TomlConfigSettingsSource(settings_cls, file))
            return tuple(sources)

    try:
        if file is not None:
            # pydantic passes over a file that is not there.
            file.read_bytes()
        given = {name: value for name, value in flags.items() if value is not None}
        return Loaded(**given)
    except OSError as error:
        raise ConfigInvalid(f"the settings file {file} can't be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid(f"the settings file {file} is not TOML: {error}") from None
    except ValidationError as invalid:
        raise ConfigInvalid("\n".join(_line(error) for error in invalid.errors(include_url=False))) from None


def _refuse_unknown_variables() -> None:
    known = {PREFIX + name.upper() for name in Config.model_fields} | CLIENT_VARIABLES
    known |= {CONFIG_VARIABLE, SECRETS_VARIABLE, faults.VARIABLE}
    unknown = [name for name in os.environ if name.startswith(PREFIX) and name not in known and not _KUBERNETES(name)]
    if unknown:
        raise ConfigInvalid("\n".join(f"{name}: no such setting{_meant(name, known)}" for name in sorted(unknown)))


def _check_secrets(folder: Path) -> None:
    """Refuse a secret that can't be read, or that begins like a setting and is none; all others are somebody else's.

    One that a variable names, such as MOBD_TOKENS_FILE, is a file like any other.
    """
    if not folder.is_dir():
        return
    known = {PREFIX.lower() + name for name in Config.model_fields}
    wrong = []
    try:
        for file in sorted(folder.iterdir()):
            name = file.name.lower()
            if name in known:
                file.read_bytes()
            elif name.startswith(PREFIX.lower()) and str(file) not in os.environ.values():
                wrong.append(f"{file}: no such setting{_meant(name, known)}")
    except OSError as error:
        raise ConfigInvalid(
            f"the secret {error.filename} can't be read: {error.strerror}; make it readable for the user of mobd"
        ) from None
    if wrong:
        raise ConfigInvalid("\n".join(wrong))


def _line(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{name}: no such setting{_meant(name, set(Config.model_fields))}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{name} (or {PREFIX}{name.upper()}): {message}" if name else message


def _meant(name: str, known: set[str]) -> str:
    near = get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else "; `mobd check-config` lists those that there are"
