"""Injections from outside: processes that are killed and stand still, wires that are cut and held, stores that fail."""

import asyncio
import os
import random
import resource
import signal
from collections.abc import Iterator
from functools import partial

import psycopg
from psycopg import sql
from tests.crash.injection import Injection
from tests.crash.stage import GRACE_S, LEASE_S, RECOVERY_S, Stage
from tests.support.postgres import Cluster
from tests.support.proxy import Proxy

# Processes.


async def kill_server(stage: Stage, draw: random.Random) -> str:
    """Kill the server at a random time, and perhaps its successor before it serves."""
    await stage.more(draw.randrange(1, 40))
    stage.served.kill9()
    twice = draw.random() < 0.3
    if twice:
        stage.served.spawn()
        await stage.pause(draw.random())
        stage.served.kill9()
    await stage.restart()
    return "and its successor" if twice else "once"


async def freeze_server(stage: Stage, draw: random.Random) -> str:
    """Let the server stand still for longer than leases and graces."""
    process = stage.served.process
    process.send(signal.SIGSTOP)
    try:
        await stage.pause(LEASE_S + GRACE_S + draw.random())
    finally:
        process.send(signal.SIGCONT)
    return "stood still"


async def replace_frozen_server(stage: Stage, draw: random.Random) -> str:
    """Let the server stand still, start another on its database, and let the first go on: it is fenced."""
    first = stage.served.process
    first.send(signal.SIGSTOP)
    try:
        await stage.second_server()
        await stage.more(draw.randrange(10, 40))
    finally:
        first.send(signal.SIGCONT)
    await stage.more(20)
    first.send(signal.SIGTERM)
    code = await first.ended()
    assert code == 0, first.output()[-2_000:]
    return "and went on"


async def starve_server(stage: Stage, draw: random.Random) -> str:
    """Let the server open nothing more for a while: no connection, no file, no process."""
    pid = stage.served.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    # Those that are open stay open.
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        stage.to_callers.cut()
        if draw.random() < 0.5:
            stage.to_agents.cut()
        await stage.pause(LEASE_S)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    return "and cut off"


async def end_server(stage: Stage, _: random.Random) -> str:
    """End the server in order, under load."""
    assert await stage.served.terminate() == 0, stage.served.process.output()[-2_000:]
    await stage.restart()
    return "in order"


async def kill_agent(stage: Stage, draw: random.Random) -> str:
    """Kill the agent with most at work."""
    victim = stage.victim(draw)
    calls = victim.in_flight()
    victim.kill9()
    victim.start()
    return f"{victim.name} with {calls} calls"


async def kill_everything(stage: Stage, draw: random.Random) -> str:
    """Kill all agents and the server with them."""
    stage.served.kill9()
    found = await kill_agents(stage, draw)
    await stage.restart()
    return found


async def kill_agents(stage: Stage, _: random.Random) -> str:
    """Kill all agents."""
    for agent in stage.agents:
        agent.kill9()
    for agent in stage.agents:
        agent.start()
    return "all"


async def freeze_agent(stage: Stage, draw: random.Random) -> str:
    """Let an agent stand still for longer than its lease and its grace: it is replaced, and then comes back."""
    victim = stage.victim(draw)
    victim.process.send(signal.SIGSTOP)
    try:
        await stage.pause(LEASE_S + GRACE_S + 1)
    finally:
        victim.process.send(signal.SIGCONT)
    return victim.name


# Wires.


def _wire(stage: Stage, name: str) -> Proxy:
    found = getattr(stage, name)
    assert isinstance(found, Proxy)
    return found


async def cut(name: str, stage: Stage, draw: random.Random) -> str:
    """Reset all connections, several times."""
    wire = _wire(stage, name)
    before = wire.cuts
    for _ in range(draw.randrange(1, 5)):
        wire.cut()
        await stage.pause(draw.random() * 0.3)
    return f"{wire.cuts - before} connections"


async def hold(name: str, stage: Stage, draw: random.Random, at_least_s: float = LEASE_S) -> str:
    """Let nothing through for longer than leases or graces, and then all that was held, or nothing of it."""
    wire = _wire(stage, name)
    seconds = at_least_s + draw.random() * (GRACE_S + 1)
    lost = draw.random() < 0.5
    wire.hold()
    try:
        await stage.pause(seconds)
        if lost:
            wire.cut()
    finally:
        wire.go_on()
    return f"{seconds:.1f} s, {'then cut' if lost else 'then let go on'}"


# Stores.


def _cluster(stage: Stage) -> Cluster:
    assert stage.cluster is not None
    return stage.cluster


async def crash_postgresql(stage: Stage, draw: random.Random) -> str:
    """Let PostgreSQL crash, by its own hand or by kill -9, and start it again."""
    cluster = _cluster(stage)
    by_kill = draw.random() < 0.5
    await asyncio.to_thread(cluster.kill9 if by_kill else cluster.stop)
    await stage.pause(draw.random() * 2)
    await asyncio.to_thread(cluster.start)
    return "kill -9" if by_kill else "immediate"


async def freeze_postgresql(stage: Stage, _: random.Random) -> str:
    """Let all of PostgreSQL stand still for a while."""
    pids = _cluster(stage).processes()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        await stage.pause(LEASE_S + GRACE_S)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    return f"{len(pids)} processes"


async def make_read_only(stage: Stage, _: random.Random) -> str:
    """Let the database be read-only, as that of a standby is, until the server says that it does not serve."""
    await _set_read_only(stage, yes=True)
    try:
        await stage.served.serving(RECOVERY_S, yes=False)
    finally:
        await _set_read_only(stage, yes=False)
    return "until it said so"


async def _set_read_only(stage: Stage, *, yes: bool) -> None:
    url = _cluster(stage).url("postgres")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        change = sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = {}")
        await connection.execute(change.format(sql.Identifier(stage.database), sql.Literal("on" if yes else "off")))
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
        await connection.execute(end, [stage.database])


async def fill_disk(stage: Stage, _: random.Random) -> str:
    """Let the store's disk be full until the server says that it does not serve."""
    assert stage.disk is not None
    taken = stage.disk.fill()
    try:
        await stage.served.serving(RECOVERY_S, yes=False)
    finally:
        stage.disk.free()
        if stage.cluster is not None and not stage.cluster.alive:
            await asyncio.to_thread(stage.cluster.start)
    return f"{taken >> 20} MB taken"


async def kill_server_on_full_disk(stage: Stage, draw: random.Random) -> str:
    """Fill the store's disk, kill the server, and start it: it waits for room, or says that there is none."""
    assert stage.disk is not None
    stage.disk.fill()
    try:
        await stage.pause(draw.random())
        stage.served.kill9()
        before = stage.served.log.stat().st_size
        process = stage.served.spawn()
        await stage.pause(draw.random() * 4)
    finally:
        stage.disk.free()
        if stage.cluster is not None and not stage.cluster.alive:
            await asyncio.to_thread(stage.cluster.start)
    if process.code is None:
        return "it waited"
    said = stage.served.log.read_bytes()[before:].decode().strip().splitlines()
    assert said[-1].startswith("mobd: "), said
    await stage.restart()
    return said[-1]


def injections() -> Iterator[Injection]:
    """Return all of them."""
    yield Injection("server: killed", kill_server, quick=True)
    yield Injection("server: ended", end_server, quick=True)
    yield Injection("server: frozen", freeze_server)
    yield Injection("server: out of descriptors", starve_server)
    yield Injection("server: frozen, replaced", replace_frozen_server, store="postgresql")
    yield Injection("agent: killed", kill_agent, quick=True)
    yield Injection("agents: all killed", kill_agents, quick=True)
    yield Injection("server and agents: killed", kill_everything, quick=True)
    yield Injection("agent: frozen", freeze_agent)
    for name, wire in (("callers", "to_callers"), ("agents", "to_agents")):
        yield Injection(f"wire to {name}: cut", partial(cut, wire), quick=True)
        yield Injection(f"wire to {name}: held", partial(hold, wire))
    yield Injection("wire to store: cut", partial(cut, "to_store"), quick=True, store="postgresql")
    yield Injection("wire to store: held", partial(hold, "to_store"), store="postgresql")
    # Longer than a transaction may wait for its next statement.
    yield Injection("wire to store: held long", partial(hold, "to_store", at_least_s=10.5), store="postgresql")
    yield Injection("store: crashed", crash_postgresql, store="postgresql")
    yield Injection("store: frozen", freeze_postgresql, store="postgresql")
    yield Injection("store: read-only", make_read_only, store="postgresql")
    yield Injection("store: disk full", fill_disk, needs_disk=True)
    yield Injection("store: disk full, server killed", kill_server_on_full_disk, needs_disk=True)
