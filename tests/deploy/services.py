"""Does what an engine does with docker-compose.yml, without containers: the services' commands run in the image's root.

Names of services become 127.0.0.1, ports those that are free, and /run/secrets a directory of the test. All else is
taken as it is written: command, environment, user, secrets, order, health checks, signals and how long they may take.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import psycopg
import yaml
from psycopg import sql
from tests.deploy.image import Builder, as_user
from tests.support.postgres import Cluster, binary
from tests.support.processes import ROOT, Process, free_port, until

_ANYWHERE: Final = re.compile(r"\b0\.0\.0\.0:(\d+)")
_DURATION: Final = re.compile(r"(?:(\d+)m)?(?:(\d+)s)?")
SECRETS: Final = "/run/secrets"


def composed() -> dict[str, Any]:
    """Return docker-compose.yml, which has nothing in it that compose would replace."""
    text = (ROOT / "docker-compose.yml").read_text()
    assert "$" not in text, "variables are not known here"
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def seconds(duration: str) -> float:
    """Return a duration such as 1m30s in seconds."""
    found = _DURATION.fullmatch(duration)
    assert found is not None, duration
    return int(found[1] or 0) * 60 + int(found[2] or 0)


class Container(Process):
    """A process of an image: its user, its environment and nothing else."""

    def __init__(self, argv: list[str], builder: Builder, settings: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                argv,
                cwd=builder.path("."),
                env={"HOME": "/", "TMPDIR": str(builder.root / "tmp"), **settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                **as_user(builder.image.user),
            )


class Host:
    """Runs the image, alone or as a service of docker-compose.yml."""

    def __init__(self, builder: Builder, folder: Path, cluster: Cluster | None = None) -> None:
        self.builder = builder
        self.folder = folder
        self.services: dict[str, dict[str, Any]] = composed()["services"]
        self.ports = {port: free_port() for port in builder.image.ports}
        self._cluster = cluster
        self._running: list[Container] = []

    def target(self, port: int) -> str:
        """Return where a port of the image is reached from here."""
        return f"127.0.0.1:{self.ports[port]}"

    def settings(self, more: Mapping[str, str]) -> dict[str, str]:
        """Return the image's environment and `more`, with ports and hosts as they are here."""
        found = {
            name: _ANYWHERE.sub(lambda at: f"0.0.0.0:{self.ports[int(at[1])]}", value)
            for name, value in self.builder.settings(more).items()
        }
        if self._cluster is not None:
            at = f"@127.0.0.1:{self._cluster.port}/"
            found = {name: value.replace("@postgres/", at) for name, value in found.items()}
        return {**found, "MOBD_SECRETS_DIR": self.builder.inside(SECRETS)}

    def run(
        self, command: list[str] | None = None, more: Mapping[str, str] | None = None, name: str = "image"
    ) -> Container:
        """Start the image's entry point with a command, or with its own."""
        image = self.builder.image
        argv = [*image.entrypoint, *(image.command if command is None else command)]
        self._running.append(Container(argv, self.builder, self.settings(more or {}), self.folder / f"{name}.log"))
        return self._running[-1]

    def start(self, name: str) -> Container:
        """Start a service that runs the image, with the secrets that it is given and no others."""
        service = self.services[name]
        mounted = Path(self.builder.inside(SECRETS))
        shutil.rmtree(mounted, ignore_errors=True)
        mounted.mkdir(parents=True)
        for secret in service.get("secrets", []):
            shutil.copy2(self.secret(secret), mounted / secret)
        return self.run(service.get("command"), service.get("environment"), name)

    def secret(self, name: str) -> Path:
        """Return the file of a secret, made by the Makefile if it is not there yet."""
        file = self.folder / str(composed()["secrets"][name]["file"])
        make = ["make", "--silent", "-f", str(ROOT / "Makefile"), str(file.relative_to(self.folder))]
        subprocess.run(make, cwd=self.folder, check=True, timeout=60)
        return file

    def health(self, name: str | None = None) -> int:
        """Return the exit code of the image's health check, with the settings of a service."""
        more = self.services[name].get("environment") if name is not None else None
        return self.builder.call(self.builder.image.healthcheck, self.settings(more or {})).returncode

    async def healthy(self, container: Container, name: str | None = None) -> None:
        """Return when the health check passes, within its start period."""
        patience = seconds(self.builder.image.health_terms["start-period"])

        def passes() -> bool:
            assert container.code is None, container.output()
            return self.health(name) == 0

        await until(passes, f"health\n{container.output()}", patience)

    async def stop(self, container: Container, patience_s: float) -> int:
        """Stop a container as an engine does; one that takes longer would be killed. Returns its exit code."""
        container.send(signal.Signals[self.builder.image.stop_signal])
        return await container.ended(patience_s)

    def close(self) -> None:
        """End what still runs, and take away what was written."""
        for container in self._running:
            if container.code is None:
                container.kill()
        shutil.rmtree(self.builder.inside(SECRETS), ignore_errors=True)
        for volume in self.builder.image.volumes:
            for path in self.builder.path(volume).iterdir():
                path.unlink()


class Database:
    """The service postgres: a server of this machine that is set up as the entry point of its image does it."""

    def __init__(self, host_folder: Path, service: Mapping[str, Any], password: Path) -> None:
        self.cluster = Cluster()
        self.folder = host_folder
        self._service = service
        settings = dict(service["environment"])
        user, database = settings.pop("POSTGRES_USER"), settings.pop("POSTGRES_DB")
        assert settings.pop("POSTGRES_PASSWORD_FILE") == f"{SECRETS}/{service['secrets'][0]}"
        assert not settings, f"what does the image make of {settings}?"
        with psycopg.connect(self.cluster.url("postgres"), autocommit=True) as connection:
            self._set_up(connection, user, database, password.read_text().strip())

    def _set_up(self, connection: psycopg.Connection, user: str, database: str, password: str) -> None:
        name = sql.Identifier(user)
        if user != connection.info.user:
            connection.execute(sql.SQL("CREATE ROLE {} SUPERUSER LOGIN").format(name))
        connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(password)))
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(database), name))
        # From here on nobody gets in without the password.
        (self.cluster.data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        connection.execute("SELECT pg_reload_conf()")

    def health(self, port: int | None = None) -> int:
        """Return the exit code of the service's health check, here or against another port."""
        kind, *argv = self._service["healthcheck"]["test"]
        assert kind == "CMD", "the shell form is not needed"
        program = binary("pg_isready")
        assert program is not None
        path = f"{Path(program).parent}:{os.environ['PATH']}"
        settings = {"PATH": path, "PGPORT": str(port or self.cluster.port)}
        timeout_s = seconds(self._service["healthcheck"]["timeout"])
        return subprocess.run(argv, env=settings, timeout=timeout_s, check=False).returncode
