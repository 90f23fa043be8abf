"""The threads that read, each with a connection that it keeps.

What reads once sees one state of the store anyway and needs no transaction: to take a connection from the pool, begin
and end costs ten times what it takes to read a row. A connection that turns out to be broken is replaced, and what read
on it reads again.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import local
from typing import Final, TypeVar

from sqlalchemy import Connection
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

THREADS: Final = 4

T = TypeVar("T")


class Readers:
    """A pool of threads. All of it but `close` may be used from the loop alone."""

    def __init__(self, engine: Engine) -> None:
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="mobd-read")
        # Statements are not part of a transaction; nothing is begun and nothing has to be ended.
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._kept = local()
        self._connections: set[Connection] = set()

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Return what `work` reads in one statement, or in several of which each may see another state.

        Raises what the driver does.
        """
        return await asyncio.get_running_loop().run_in_executor(self.pool, self._work, work)

    def _work(self, work: Callable[[Connection], T]) -> T:
        try:
            return work(self._mine())
        except DBAPIError as error:
            self._drop()
            if not error.connection_invalidated:
                raise
        # It broke since it was used last: a new one may not be.
        try:
            return work(self._mine())
        except DBAPIError:
            self._drop()
            raise

    def _mine(self) -> Connection:
        connection: Connection | None = getattr(self._kept, "connection", None)
        if connection is None:
            connection = self._kept.connection = self._engine.connect()
            self._connections.add(connection)
        return connection

    def _drop(self) -> None:
        connection: Connection = self._kept.connection
        self._kept.connection = None
        self._connections.discard(connection)
        _discard(connection)

    def close(self) -> None:
        """Wait for what is being read, and give all connections up."""
        self.pool.shutdown()
        while self._connections:
            _discard(self._connections.pop())


def _discard(connection: Connection) -> None:
    # Not back into the pool: those there are set up to begin and end.
    connection.invalidate()
    connection.close()
