"""Those who use a server under test: clients on raw stubs, watchers with a cursor, agents in processes of their own."""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # it has no stubs
from tests.support.processes import WAIT_S, Changes, Process, until
from tests.support.served import channel

from mobd.v1 import (
    agents_pb2_grpc,
    bridge_pb2,
    bridge_pb2_grpc,
    common_pb2,
    events_pb2,
    events_pb2_grpc,
    members_pb2,
    members_pb2_grpc,
    mobs_pb2,
    mobs_pb2_grpc,
    runs_pb2_grpc,
)

T = TypeVar("T")

MOB = "crew"
ROLE = "worker"
WORKER = "tests/faults/worker.py"
DEFINITION = json.dumps({"profiles": {ROLE: {"instructions": "Do what the input says."}}})
CALL_S = 20.0
PAUSE_S = 0.02


def content(**order: Any) -> common_pb2.Content:
    """Return an input's content that tells the worker what to do."""
    return common_pb2.Content(blocks=[common_pb2.Block(text=json.dumps(order))])


def _details(error: grpc.aio.AioRpcError) -> Iterator[Any]:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            yield from status_pb2.Status.FromString(value).details


def reason(error: grpc.aio.AioRpcError) -> str:
    """Return the reason in the error's ErrorInfo: empty if the server's own code did not make the error."""
    info = error_details_pb2.ErrorInfo()
    return next((str(info.reason) for detail in _details(error) if detail.Unpack(info)), "")


def pause_s(error: grpc.aio.AioRpcError) -> float:
    """Return how long to wait before the call is repeated: what the server asks for, or a moment."""
    retry = error_details_pb2.RetryInfo()
    asked = next((retry.retry_delay.ToTimedelta() for detail in _details(error) if detail.Unpack(retry)), None)
    return asked.total_seconds() if asked is not None else PAUSE_S


async def answered(call: Callable[[], Awaitable[T]], timeout_s: float = WAIT_S * 2) -> T:
    """Repeat one and the same call until the server answers it, as a caller must after UNAVAILABLE."""
    async with asyncio.timeout(timeout_s):
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
                    raise
                pause = pause_s(error)
            await asyncio.sleep(pause)  # noqa: TID251 a caller waits before it repeats a call


class Peer:
    """A client on a connection of its own. Its methods repeat what was UNAVAILABLE; its stubs don't."""

    def __init__(self, target: str, mob_id: str = MOB) -> None:
        self.mob_id = mob_id
        self.channel = channel(target)
        self.mobs = mobs_pb2_grpc.MobServiceStub(self.channel)
        self.members = members_pb2_grpc.MemberServiceStub(self.channel)
        self.bridge = bridge_pb2_grpc.BridgeServiceStub(self.channel)
        self.events = events_pb2_grpc.EventServiceStub(self.channel)
        self.runs = runs_pb2_grpc.RunServiceStub(self.channel)
        self.agents = agents_pb2_grpc.AgentServiceStub(self.channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.channel.close()

    async def create(self, members: Iterable[str]) -> None:
        """Make the mob, running, with these members."""
        definition = mobs_pb2.DefinitionDocument(json=DEFINITION)
        request = mobs_pb2.CreateMobRequest(mob_id=self.mob_id, definition=definition, request_id="create")
        await answered(lambda: self.mobs.CreateMob(request, wait_for_ready=True, timeout=CALL_S))
        specs = [members_pb2.MemberSpec(member_id=name, role=ROLE) for name in members]
        for at in range(0, len(specs), 500):
            spawn = members_pb2.SpawnMembersRequest(
                mob_id=self.mob_id, specs=specs[at : at + 500], request_id=f"spawn-{at}"
            )
            answer = await answered(partial(self.members.SpawnMembers, spawn, timeout=CALL_S))
            assert all(one.HasField("member") for one in answer.results)

    def delivery(self, member_id: str, input_id: str, **order: Any) -> bridge_pb2.DeliverRequest:
        return bridge_pb2.DeliverRequest(
            mob_id=self.mob_id, member_id=member_id, input_id=input_id, content=content(**order)
        )

    async def deliver(self, member_id: str, input_id: str, **order: Any) -> str:
        """Deliver until it is acknowledged and return the canonical id."""
        request = self.delivery(member_id, input_id, **order)
        answer = await answered(lambda: self.bridge.Deliver(request, wait_for_ready=True, timeout=CALL_S))
        return canonical(answer)

    async def end_of(self, member_id: str, input_id: str, timeout_s: float = WAIT_S * 2) -> bridge_pb2.Input:
        """Follow an input, over restarts, and return it when it has ended."""
        request = bridge_pb2.WatchInputRequest(mob_id=self.mob_id, member_id=member_id, input_id=input_id)

        async def follow() -> bridge_pb2.Input:
            last = bridge_pb2.Input()
            async for answer in self.bridge.WatchInput(request, wait_for_ready=True, timeout=timeout_s):
                last = answer.input
            assert last.state in (bridge_pb2.INPUT_STATE_CONSUMED, bridge_pb2.INPUT_STATE_ABANDONED), last
            return last

        return await answered(follow, timeout_s)

    async def log(self) -> list[events_pb2.Event]:
        """Read the whole log, page by page."""
        events: list[events_pb2.Event] = []
        cursor = 0
        while True:
            request = events_pb2.PollEventsRequest(
                mob_id=self.mob_id, start=events_pb2.EventStart(after_cursor=cursor), limit=5_000
            )
            page = await answered(partial(self.events.PollEvents, request, wait_for_ready=True, timeout=CALL_S))
            events.extend(page.events)
            cursor = page.next_cursor
            if cursor >= page.head:
                return events


def canonical(answer: bridge_pb2.DeliverResponse | bridge_pb2.DeliveryOutcome) -> str:
    """Return the canonical id of what was accepted, now or before."""
    match answer.WhichOneof("outcome"):
        case "accepted":
            return answer.accepted.canonical_input_id
        case "deduplicated":
            return answer.deduplicated.canonical_input_id
    raise AssertionError(f"not accepted: {answer}")


class Watcher:
    """Follows the log of a mob from its beginning, and from its own cursor after every break."""

    def __init__(self, peer: Peer, changes: Changes) -> None:
        self.cursor = 0
        self.seen: list[int] = []
        self.kinds: dict[str, int] = {}
        # How many streams broke, and whether there is one that has brought something.
        self.breaks = 0
        self.live = False
        self.consumed = 0
        self._peer = peer
        self._changes = changes
        self._task = asyncio.ensure_future(answered(self._once, 600))

    @property
    def runs(self) -> int:
        """How many runs are in flight, as far as it has come."""
        return self.kinds.get("run_started", 0) - self.kinds.get("run_settled", 0)

    async def _once(self) -> None:
        start = events_pb2.EventStart(after_cursor=self.cursor)
        request = events_pb2.WatchEventsRequest(mob_id=self._peer.mob_id, start=start)
        try:
            async for answer in self._peer.events.WatchEvents(request, wait_for_ready=True):
                for event in answer.page.events:
                    self.seen.append(event.seq)
                    self.cursor = event.seq
                    self.kinds[event.kind] = self.kinds.get(event.kind, 0) + 1
                    self.consumed += sum(one.outcome == "consumed" for one in event.run_settled.outcomes)
                self.live = True
                self._changes.tell()
        finally:
            self.breaks += self.live
            self.live = False

    async def reach(self, head: int, timeout_s: float = WAIT_S) -> None:
        """Return when it has come to `head`, or raise what stopped it."""
        await self._changes.until(
            lambda: self.cursor >= head or self._task.done(), f"event {head} at a watcher ({self.cursor})", timeout_s
        )
        if self._task.done():
            await self._task

    async def ended(self) -> None:
        """Return when the stream ended in order: after the last event of a destroyed mob."""
        async with asyncio.timeout(WAIT_S):
            await asyncio.shield(self._task)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@dataclass(frozen=True)
class Call:
    """One handler call, as the agent noted it: inputs are (input_id, canonical id, attempt)."""

    at: str
    pid: int
    run: str
    member: str
    fence: int
    inputs: tuple[tuple[str, str, int], ...]


class AgentProcess:
    """An agent in a process of its own, with a file of its own that outlives it."""

    def __init__(
        self,
        folder: Path,
        name: str,
        target: str,
        mob_id: str = MOB,
        *,
        capacity: int = 8,
        members: int = 100,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.book = folder / f"{name}.jsonl"
        self.log = folder / f"{name}.log"
        self.pids: list[int] = []
        self._argv = [WORKER, target, mob_id, ROLE, str(self.book), str(capacity), str(members)]
        self._settings = dict(settings or {})
        self._process: Process | None = None

    def start(self) -> Self:
        """Start it, for the first time or in the place of one that has ended."""
        assert self._process is None or self._process.code is not None
        self._process = Process(self._argv, self._settings, self.log)
        self.pids.append(self._process.pid)
        return self

    @property
    def process(self) -> Process:
        assert self._process is not None, f"agent {self.name} was never started"
        return self._process

    def kill9(self) -> None:
        self.process.kill()

    async def terminate(self, timeout_s: float = WAIT_S) -> int:
        """Ask it to end and return its exit code."""
        self.process.send(signal.SIGTERM)
        return await self.process.ended(timeout_s)

    async def supervise(self) -> None:
        """Start it again whenever it has ended, until this is cancelled."""
        while True:
            await until(lambda: self.process.code is not None, f"the end of agent {self.name}", 600)
            self.start()

    def notes(self) -> list[Call]:
        """Return what it has written: a line that its death cut short is no line."""
        if not self.book.exists():
            return []
        text = self.book.read_text()
        lines = text[: text.rfind("\n") + 1].splitlines()
        return [
            Call(one["at"], one["pid"], one["run"], one["member"], one["fence"], tuple(tuple(i) for i in one["inputs"]))
            for one in map(json.loads, lines)
        ]

    def calls(self) -> list[Call]:
        """Return its handler calls."""
        return [one for one in self.notes() if one.at == "call"]

    def in_flight(self) -> int:
        """Return how many handler calls of the process that runs now have begun and not ended."""
        notes = [one for one in self.notes() if one.pid == self.process.pid]
        return sum(1 if one.at == "call" else -1 for one in notes)

    async def called(self, count: int = 1) -> list[Call]:
        """Return its handler calls when there are at least `count`."""
        return await until(
            lambda: calls if len(calls := self.calls()) >= count else None,
            f"{count} handler calls of {self.name}\n{self.log.read_text() if self.log.exists() else ''}",
        )
