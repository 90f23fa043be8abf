"""A PostgreSQL cluster for one test session: its own directory, a loopback port, nothing shared with the machine's."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg
from tests.support.processes import free_port

GONE_S = 10.0


def binary(name: str) -> str | None:
    """Return where a program of PostgreSQL is, the newest version first."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    return str(found[-1]) if found else shutil.which(name)


class Cluster:
    """A running cluster. As root it runs as the user postgres, because PostgreSQL refuses to be root."""

    # Where it listens, and what its programs are started with.
    host = "127.0.0.1"
    prefix: Sequence[str] = ()

    def __init__(self, parent: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mobd-pg-", dir=parent))
        self.port = free_port()
        self._databases = 0
        # On a small disk it must not keep much of its log.
        self._keeping = "" if parent is None else " -c max_wal_size=64MB -c min_wal_size=32MB"
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        self._run("initdb", "-D", str(self.data), "-U", "mobd", "--auth=trust", "--no-sync")
        self._made()
        self.start()

    def _made(self) -> None:
        """Change its files before it is started for the first time."""

    @property
    def data(self) -> Path:
        """Where its files are."""
        return self.folder / "data"

    def start(self) -> None:
        """Start it, on the same port as ever."""
        options = f"-p {self.port} -k {self.folder} -c listen_addresses={self.host} -c max_connections=200"
        options += self._keeping
        self._run("pg_ctl", "-D", str(self.data), "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it; `immediate` is a crash."""
        self._run("pg_ctl", "-D", str(self.data), "-m", mode, "stop")

    @property
    def pid(self) -> int:
        """The process that all others of it come from."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        try:
            os.kill(self.pid, 0)
        except (FileNotFoundError, ProcessLookupError):
            return False
        return True

    def processes(self) -> list[int]:
        """Return all of its processes, the first one first."""
        first = self.pid
        of_it = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [first, *map(int, of_it)]

    def kill9(self) -> None:
        """End all of its processes at once, as a power cut would but for the disk."""
        # The first one goes first: it would start others in the place of those that are gone.
        pids = self.processes()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # As long as its number is taken, it can't be started again.
        deadline = time.monotonic() + GONE_S
        while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.01)  # noqa: TID251 nobody is told when a process is gone whose parent is another

    def _run(self, name: str, *arguments: str) -> None:
        program = binary(name)
        assert program is not None, f"{name} is not installed"
        command = [program, *arguments]
        if os.geteuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        subprocess.run([*self.prefix, *command], check=True, stdout=subprocess.DEVNULL, cwd=self.folder)

    def url(self, database: str) -> str:
        """Return the URL of a database."""
        return f"postgresql://mobd@{self.host}:{self.port}/{database}"

    def new_database(self) -> str:
        """Create an empty database and return its URL."""
        self._databases += 1
        name = f"mobd_{os.getpid()}_{self._databases}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Remove a database, also from those who are connected to it."""
        name = url.rpartition("/")[2]
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    def remove(self) -> None:
        """Stop it, if it runs, and remove its files."""
        if self.alive:
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
