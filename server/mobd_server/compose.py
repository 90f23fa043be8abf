"""Puts the server together: the only module that knows all of its parts."""

import asyncio
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

from alembic.util import CommandError
from msgspec import Struct
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, make_wsgi_app
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import SQLAlchemyError

from mobd_server.actors.frames import Terms
from mobd_server.actors.hub import Hub
from mobd_server.actors.journal import Journal
from mobd_server.actors.publisher import Publisher
from mobd_server.actors.registry import Keep, Registry
from mobd_server.actors.upkeep import Keeping
from mobd_server.adapters.metrics.gauges import Gauges
from mobd_server.adapters.metrics.meters import Meters
from mobd_server.adapters.rpc.agents import AgentServicer
from mobd_server.adapters.rpc.bridge import BridgeServicer
from mobd_server.adapters.rpc.events import EventServicer
from mobd_server.adapters.rpc.handlers import Identify, MeterOf, anyone
from mobd_server.adapters.rpc.live import LiveServicer
from mobd_server.adapters.rpc.members import MemberServicer
from mobd_server.adapters.rpc.mobs import MobServicer
from mobd_server.adapters.rpc.operations import OperationServicer
from mobd_server.adapters.rpc.runs import RunServicer
from mobd_server.adapters.rpc.server import AddressTaken, RpcServer, Transport
from mobd_server.adapters.rpc.server_info import AgentListServicer, ServerServicer
from mobd_server.adapters.rpc.states import StateServicer
from mobd_server.adapters.sql import copies
from mobd_server.adapters.sql import engine as sql
from mobd_server.adapters.sql import migrate as schema
from mobd_server.adapters.sql.rebuilding import RebuilderProcess
from mobd_server.adapters.sql.remedies import remedy
from mobd_server.adapters.sql.store import SqlStore
from mobd_server.adapters.sql.writer import SqlWriter, write_nothing
from mobd_server.adapters.system import SystemClock, system_ids, system_jitter
from mobd_server.adapters.tokens import Tokens, TokensInvalid
from mobd_server.adapters.web import PortTaken, Web
from mobd_server.config import OFF, Config
from mobd_server.errors import MobdError
from mobd_server.ports import Clock, IdsFactory, Rebuilder, Store, Writer
from mobd_server.services.agents import Agents
from mobd_server.services.bridge import Bridge
from mobd_server.services.census import Census
from mobd_server.services.events import Events
from mobd_server.services.live import AgentEvents
from mobd_server.services.members import Members
from mobd_server.services.mobs import Mobs
from mobd_server.services.operations import Operations
from mobd_server.services.readiness import Readiness
from mobd_server.services.runs import Runs
from mobd_server.services.server import server_info
from mobd_server.services.state import States

log: Final = logging.getLogger(__name__)

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
# The exit code of a server that was told twice to end.
AT_ONCE: Final = 1


class CannotStart(Exception):
    """Something outside is not as it must be; the message says what to do, in a line."""


class Database(Struct):
    """An open database."""

    engine: Engine
    lock: sql.FileLock | None

    def close(self) -> None:
        """Give everything back."""
        self.engine.dispose()
        if self.lock is not None:
            self.lock.release()


class Rpc(Protocol):
    """What serves the services, see RpcServer: on the network, or within the process of a test."""

    async def start(self) -> str: ...

    async def serve(self) -> None: ...

    def set_serving(self, serving: bool) -> None: ...

    def ask_again(self) -> int: ...

    async def leave(self) -> None: ...

    async def stop(self, patience_s: float) -> None: ...


# Makes the Rpc of a server from its servicers, by the name of their service, who counts calls and who knows callers.
RpcOf = Callable[[dict[str, list[Any]], MeterOf, Identify], Rpc]


class Outside(Struct):
    """What a server stands on."""

    clock: Clock
    ids: IdsFactory
    jitter: Callable[[], float]
    store: Store
    writer: Writer
    rebuilder: Rebuilder
    new_log_id: Callable[[], str]
    rpc_of: RpcOf


class Server(Struct):
    """A server that listens, and its parts."""

    config: Config
    address: str
    registry: Registry
    publisher: Publisher
    hub: Hub
    journal: Journal
    rpc: Rpc
    rebuilder: Rebuilder
    readiness: Readiness
    metrics: CollectorRegistry
    # None: it is turned off.
    web: Web | None = None
    # None: everybody may come.
    tokens: Tokens | None = None


def run(config: Config) -> None:
    """Run a server until a signal ends it. Raises CannotStart."""
    with asyncio.Runner(loop_factory=_loop_factory(config)) as runner:
        runner.run(_run(config))


def migrate(config: Config) -> tuple[str, str]:
    """Bring the database to the schema of this build; return the revisions before and after."""
    with _database(config) as database:
        before = schema.current(database.engine)
        schema.upgrade(database.engine)
        return before, schema.current(database.engine)


def backup(config: Config, target: Path) -> int:
    """Copy the SQLite database into a new file, also while a server runs; return how many mobs it has.

    The copy has what was acknowledged before the call. Its logs have new names. Raises CannotStart.
    """
    url = _url(config)
    if url.get_backend_name() != "sqlite":
        raise CannotStart(
            "mobd backup copies SQLite: for PostgreSQL use pg_dump, and run mobd new-log on what it becomes"
        )
    try:
        with _told(url), copies.copied(Path(url.database or ""), target) as engine:
            _check_schema(engine)
            return copies.rename_logs(engine, _new_log_id())
    except copies.CopyRefused as refused:
        raise CannotStart(str(refused)) from None


def new_log(config: Config) -> int:
    """Give the logs of a database that is a copy new names; return how many mobs it has. Raises CannotStart.

    No server may have it open. Of PostgreSQL, those are seen that connect as the same user.
    """
    with _database(config) as database:
        _check_schema(database.engine)
        if copies.others(database.engine):
            raise CannotStart("the database is in use by another mobd: end that first, or is this not the copy?")
        return copies.rename_logs(database.engine, _new_log_id())


@asynccontextmanager
async def serving(config: Config) -> AsyncIterator[Server]:
    """Serve within the block, and drain at its end. Raises CannotStart."""
    known = callers(config)
    with _database(config) as database:
        revision = _ready(database.engine)
        outside = _outside(config, database.engine)
        server, writer, store = assemble(config, outside, known), outside.writer, outside.store
        try:
            _begin_web(server)
            server.address = await server.rpc.start()
        except (AddressTaken, PortTaken) as taken:
            _end_web(server)
            writer.close()
            await store.close()
            name, value = (
                ("MOBD_LISTEN", config.listen)
                if isinstance(taken, AddressTaken)
                else ("MOBD_HTTP_LISTEN", config.http_listen)
            )
            raise CannotStart(f"{value} can't be listened on: {taken}; set {name} to a free one") from None
        _say_serving(server, database.engine, revision)
        try:
            await recover(server)
            _settle_heap()
            yield server
        finally:
            await drain(server)
            _end_web(server)
            await server.rebuilder.close()
            writer.close()
            await store.close()
            log.info("stopped", extra={"pid": os.getpid()})


async def _run(config: Config) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell() -> None:
        if told.is_set():
            # Whoever tells twice does not want to wait for anything.
            os._exit(AT_ONCE)
        told.set()

    for number in SIGNALS:
        loop.add_signal_handler(number, tell)
    # Whoever changes the tokens while the server starts must not end it.
    changed = asyncio.Event()
    if config.tokens_file is not None:
        loop.add_signal_handler(signal.SIGHUP, changed.set)
    async with serving(config) as server:
        if server.tokens is not None:
            loop.add_signal_handler(signal.SIGHUP, _read_again, server.tokens, server.rpc)
            if changed.is_set():
                _read_again(server.tokens, server.rpc)
        await told.wait()


def callers(config: Config) -> Tokens | None:
    """Return the callers that the settings name; None: everybody may come. Raises CannotStart."""
    if config.tokens_file is not None:
        try:
            return Tokens(config.tokens_file)
        except TokensInvalid as wrong:
            raise CannotStart(str(wrong)) from None
    if config.beyond_this_machine and not config.insecure_listen:
        raise CannotStart(
            f"MOBD_LISTEN is {config.listen}, where everybody who reaches this machine could do everything: set "
            "MOBD_TOKENS_FILE, or MOBD_INSECURE_LISTEN=true if only those can whom you trust"
        )
    return None


def _read_again(known: Tokens, rpc: Rpc) -> None:
    try:
        known.reload()
    except TokensInvalid as wrong:
        log.error("tokens_kept", extra={"error": str(wrong), "tokens": len(known)})  # noqa: TRY400 it says what to do
    else:
        ended = rpc.ask_again()
        log.info("tokens_read", extra={"file": str(known.file), "tokens": len(known), "streams_ended": ended})


def _settle_heap() -> None:
    """Take all that was imported and recovered out of the collector's rounds: it stays, and a full round over it
    would hold up every call for tens of milliseconds.
    """
    gc.collect()
    gc.freeze()


async def recover(server: Server) -> None:
    """Read what the mobs owe, and serve. Raises CannotStart."""
    readiness = server.readiness
    server.journal.on_change(lambda _: server.rpc.set_serving(not readiness.refusal()))
    try:
        await server.registry.recover()
    except MobdError as error:
        raise CannotStart(f"what the mobs owe can't be read: {error.message}") from None
    readiness.recovered = True
    if not readiness.refusal():
        await server.rpc.serve()


async def drain(server: Server) -> None:
    """Leave in an order in which nobody who still waits is left without an answer."""
    log.info("draining", extra={"drain_s": server.config.drain_s})
    server.readiness.leaving = True
    await server.rpc.leave()
    server.hub.drain()
    server.publisher.close()
    await server.rpc.stop(server.config.drain_s)
    await server.registry.drain()


def _outside(config: Config, engine: Engine) -> Outside:
    transport = Transport(
        listen=config.listen,
        keepalive_s=config.keepalive_s,
        keepalive_timeout_s=config.keepalive_timeout_s,
        min_ping_interval_s=config.min_ping_interval_s,
        max_connection_age_s=config.max_connection_age_s,
        max_connection_age_grace_s=config.max_connection_age_grace_s,
        reflection=config.reflection,
    )
    return Outside(
        SystemClock(),
        system_ids,
        system_jitter,
        SqlStore(engine),
        SqlWriter(engine),
        RebuilderProcess(engine.url.render_as_string(hide_password=False)),
        _new_log_id(),
        partial(RpcServer, transport),
    )


def assemble(config: Config, outside: Outside, known: Tokens | None) -> Server:
    """Return a server that does not listen yet, from all its parts."""
    clock, store, writer, rebuilder = outside.clock, outside.store, outside.writer, outside.rebuilder
    metrics = CollectorRegistry()
    meters = Meters(metrics)
    journal = Journal(writer, clock, config.journal_slots, meters)
    publisher = Publisher(store, clock)
    terms = Terms(config.heartbeat_s, config.lease_s, config.grace_s, config.accept_s, config.hello_s)
    hub = Hub(journal, store, clock, terms)
    keeping = Keeping(config.snapshot_events, config.snapshot_tail, config.passivate_after_s)
    keep = Keep(keeping, rebuilder, writer, meters)
    registry = Registry(store, journal, publisher, hub, clock, outside.ids, outside.jitter, keep)
    hub.begin(registry)
    servicers: dict[str, list[Any]] = {
        "MobService": [MobServicer(Mobs(registry, publisher, store, outside.new_log_id))],
        "MemberService": [MemberServicer(Members(registry, publisher, clock), hub)],
        "BridgeService": [BridgeServicer(Bridge(registry, publisher, store, hub, clock), hub)],
        "OperationService": [OperationServicer(Operations(registry, publisher, store, clock))],
        "RunService": [RunServicer(Runs(registry, store))],
        "AgentService": [AgentServicer(hub, clock.now), AgentListServicer(Agents(registry, hub))],
        "EventService": [
            EventServicer(Events(registry, publisher, store, clock)),
            StateServicer(States(registry, store, rebuilder)),
            LiveServicer(AgentEvents(registry, publisher, hub.live)),
        ],
        "ServerService": [ServerServicer(server_info(config.node, store.name, _auth(config), config.journal_slots))],
    }
    rpc = outside.rpc_of(servicers, meters.rpc, known.identify if known is not None else anyone)
    readiness = Readiness(journal, registry)
    _show(metrics, Census(registry, publisher, hub, journal, clock), readiness, config, store.name)
    return Server(config, "", registry, publisher, hub, journal, rpc, rebuilder, readiness, metrics, tokens=known)


def _show(metrics: CollectorRegistry, census: Census, readiness: Readiness, config: Config, store: str) -> None:
    """Add to `metrics` what is counted when somebody asks."""
    build = {"version": version_of("mobd"), "store": store}
    metrics.register(Gauges(census, readiness, config.journal_slots, build, asyncio.get_running_loop()))
    ProcessCollector(registry=metrics)
    GCCollector(registry=metrics)


def _begin_web(server: Server) -> None:
    if server.config.http_listen != OFF:
        loop, refusal = asyncio.get_running_loop(), server.readiness.refusal
        server.web = Web(server.config.http_listen, make_wsgi_app(server.metrics), refusal, loop)


def _end_web(server: Server) -> None:
    if server.web is not None:
        server.web.close()


@contextmanager
def _database(config: Config) -> Iterator[Database]:
    """Open the database, and say in a line what is wrong with it if that can't be."""
    url = _url(config)
    try:
        lock = None
        if url.get_backend_name() == "sqlite":
            file = Path(url.database or "")
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = sql.FileLock(file)
            lock.acquire()
        database = Database(sql.open_engine(url), lock)
    except sql.StoreInUse as error:
        raise CannotStart(str(error)) from None
    except OSError as error:
        raise CannotStart(f"{error.filename}: {error.strerror}; set MOBD_DATA_DIR to a directory to write in") from None
    try:
        with _told(url):
            yield database
    finally:
        database.close()


def _url(config: Config) -> URL:
    """Return where the database is. Raises CannotStart."""
    secret = config.database_url
    try:
        url = sql.database_url(config.data_dir, secret.get_secret_value() if secret is not None else None)
    except sql.StoreInvalid as error:
        raise CannotStart(str(error)) from None
    if config.database_password is not None:
        url = url.set(password=config.database_password.get_secret_value())
    return url


@contextmanager
def _told(url: URL) -> Iterator[None]:
    """Say in a line what a database failed with."""
    try:
        yield
    except CommandError as error:
        raise CannotStart(f"the database {url.render_as_string()} is of a newer mobd: run that one ({error})") from None
    except SQLAlchemyError as error:
        said = _cause(error)
        raise CannotStart(f"the database {url.render_as_string()} does not answer: {said}{remedy(said)}") from None


def _new_log_id() -> Callable[[], str]:
    # Of no load: no load could have given such an id.
    ids = system_ids(0)
    return lambda: ids.new("log")


def _ready(engine: Engine) -> str:
    """Return the revision of the database, which is that of this build. A file is brought there; others are not.

    Raises if nothing can be written: a server that only finds that out later takes calls that it can't answer.
    """
    if engine.dialect.name == "sqlite":
        schema.upgrade(engine)
    revision = _check_schema(engine)
    write_nothing(engine)
    return revision


def _check_schema(engine: Engine) -> str:
    """Return the revision of the database. Raises CannotStart if it is not that of this build."""
    needed, found = schema.head(), schema.current(engine)
    if found != needed:
        raise CannotStart(
            f"the database is at revision {found or 'none'} and this mobd needs {needed}: run mobd migrate"
        )
    return found


def _cause(error: SQLAlchemyError) -> str:
    """Return the first line of what the driver said."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


def _say_serving(server: Server, engine: Engine, revision: str) -> None:
    config, address = server.config, server.address
    log.info(
        "serving",
        extra={
            "address": address,
            "http": server.web.address if server.web is not None else OFF,
            "store": engine.dialect.name,
            "schema": revision,
            **sql.durability(engine),
            "auth": _auth(config),
            "data_dir": str(config.data_dir.resolve()),
            "node": config.node,
            "pid": os.getpid(),
        },
    )
    if config.beyond_this_machine:
        # Nothing is encrypted: who can read the traffic has the tokens, too.
        log.warning("open_to_others", extra={"address": address, "auth": _auth(config), "encrypted": False})


def _auth(config: Config) -> str:
    """Return how callers are known."""
    return "none" if config.tokens_file is None else "tokens"


def _loop_factory(config: Config) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if config.loop == "asyncio" or (config.loop == "auto" and find_spec("uvloop") is None):
        return None
    try:
        import uvloop  # noqa: PLC0415 an extra of its own
    except ModuleNotFoundError:
        raise CannotStart(
            "loop is uvloop, which is not installed: pip install 'mobd[uvloop]', or set MOBD_LOOP=asyncio"
        ) from None
    return uvloop.new_event_loop
