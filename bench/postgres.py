"""A PostgreSQL cluster of one benchmark: its own directory, a loopback port, fsync and synchronous commit on."""

import os
import shutil
import subprocess
from pathlib import Path

import psycopg
from load import free_port


def _binary(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}")) or [Path(shutil.which(name) or name)]
    return str(found[-1])


class Cluster:
    """A running cluster."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.databases = 0

    @classmethod
    def start(cls, parent: Path) -> "Cluster":
        """Make a cluster below `parent` and start it. As root it runs as the user postgres, who may not be root."""
        folder = parent / "pg"
        folder.mkdir()
        parent.chmod(0o755)
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        cls._run(["initdb", "-D", str(folder), "-U", "mobd", "--auth=trust", "--no-sync"])
        port = free_port()
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
        cls._run(["pg_ctl", "-D", str(folder), "-w", "-l", str(folder / "log"), "-o", options, "start"])
        return cls(folder, port)

    @staticmethod
    def _run(command: list[str]) -> None:
        full = [_binary(command[0]), *command[1:]]
        if os.geteuid() == 0:
            full = ["runuser", "-u", "postgres", "--", *full]
        subprocess.run(full, check=True, stdout=subprocess.DEVNULL)

    def _url(self, database: str) -> str:
        return f"postgresql://mobd@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Create a database and return its URL."""
        self.databases += 1
        name = f"bench{self.databases}"
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self._url(name)

    def stop(self) -> None:
        """Stop the cluster."""
        self._run(["pg_ctl", "-D", str(self.folder), "-m", "immediate", "stop"])
