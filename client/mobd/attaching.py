"""One stream of an agent: what it says first, what it hears, and how it ends."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import grpc

from mobd import calls, errors, statuses
from mobd.holding import Frame, Held, Holding
from mobd.live import LiveBuffer
from mobd.outbox import Outbox
from mobd.v1 import agents_pb2, agents_pb2_grpc

Code = grpc.StatusCode

# How long a server may be silent before it has said what its lease is.
LEASE_S: Final = 30.0
# How long a server may take to end a stream after Detach.
DETACH_S: Final = 2.0
# What a stream can end with that another one would end with, too.
HOPELESS: Final = (
    Code.INVALID_ARGUMENT,
    Code.PERMISSION_DENIED,
    Code.UNAUTHENTICATED,
    Code.UNIMPLEMENTED,
)

log: Final = logging.getLogger("mobd.agent")


@dataclass(frozen=True)
class Interests:
    """Who the agent is and what it wants."""

    target: str
    mob_id: str
    serves: tuple[agents_pb2.Serve, ...]
    capacity: int
    max_members: int
    host_id: str
    incarnation: str
    steer: bool = False
    #: What the server knows the agent's owner by; empty: nothing is sent.
    token: str = field(default="", repr=False)


class Broken(Exception):
    """The stream ended and another one may do better, at the earliest after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Callbacks:
    """What a stream tells."""

    #: A run was accepted: begin its turn. Must not wait.
    begin: Callable[[Held], None]
    #: The greatest output of a run with its messages, in bytes.
    limit: Callable[[int], None]
    #: A run was settled.
    settled: Callable[[Held], None]
    #: A run is to end: at its boundary, or at once if the last is true. Must not wait.
    cancel: Callable[[Held, str, str, bool], None]
    #: A run has more inputs. Must not wait.
    steer: Callable[[Held, Iterable[agents_pb2.RunInput]], None]


class Superseded(Exception):
    """Another stream took this one's place."""


@dataclass
class Attachment:
    """What an agent knows of its attachment, over streams."""

    attachment_id: str = ""
    #: What was last said about it, so that nothing is said twice.
    said: str = ""

    def say(self, message: str, level: int = logging.INFO) -> None:
        """Tell people, once."""
        if message != self.said:
            self.said = message
            log.log(level, "%s", message)


class Stream:
    """One call of Attach, to be run once."""

    def __init__(
        self,
        interests: Interests,
        attachment: Attachment,
        holding: Holding,
        callbacks: Callbacks,
        live: LiveBuffer,
    ) -> None:
        self.outbox = Outbox(live)
        self._live = live
        self.attached = asyncio.Event()
        self._interests = interests
        self._attachment = attachment
        self._holding = holding
        self._callbacks = callbacks
        self._heartbeat_s = 0.0
        self._lease_s = LEASE_S
        self._welcome = asyncio.Event()
        self._heard_at = asyncio.get_running_loop().time()
        self._hearing: dict[str, Callable[[Any], None]] = {
            "welcome": self._welcomed,
            "reject": self._rejected,
            "assign": self._assigned,
            "unassign": holding.unassign,
            "start_run": self._started,
            "steer_run": self._steered,
            "cancel_at_boundary": partial(self._cancel, hard=False),
            "hard_cancel": partial(self._cancel, hard=True),
            "retire": self._retired,
            "run_settled": self._settled,
            "resync": self._asked_again,
            "goodbye": self._goodbye,
        }

    async def run(self, channel: grpc.aio.Channel, leave: asyncio.Event) -> None:
        """Serve until `leave` is set; raise Broken, Superseded or AgentStopped if the stream ends before."""
        self.outbox.put(self._hello())
        call = agents_pb2_grpc.AgentServiceStub(calls.authorized(channel, self._interests.token)).Attach(
            wait_for_ready=False
        )
        reader = asyncio.create_task(self._read(call))
        writer = asyncio.create_task(self._write(call))
        beats = asyncio.create_task(self._beat())
        watch = [asyncio.create_task(self._watch_outbox()), asyncio.create_task(leave.wait())]
        try:
            await asyncio.wait([reader, beats, *watch], return_when=asyncio.FIRST_COMPLETED)
            if leave.is_set() and self.attached.is_set() and not reader.done():
                self.outbox.put(Frame(detach=agents_pb2.Detach()))
                self.outbox.close()
                await asyncio.wait([reader], timeout=DETACH_S)
                return
            for task in (reader, beats, watch[0]):
                # One that is done has raised: none of them returns by itself.
                if task.done():
                    task.result()
        finally:
            for task in (reader, writer, beats, *watch):
                task.cancel()
            call.cancel()
            await asyncio.gather(reader, writer, beats, *watch, return_exceptions=True)

    # What is sent.

    def _hello(self) -> Frame:
        wants = self._interests
        hello = agents_pb2.Hello(
            mob_id=wants.mob_id,
            host_id=wants.host_id,
            incarnation=wants.incarnation,
            protocol=1,
            serves=wants.serves,
            capacity=wants.capacity,
            max_members=wants.max_members,
        )
        if wants.steer:
            hello.capabilities.steer = True
        if self._attachment.attachment_id:
            hello.resume.attachment_id = self._attachment.attachment_id
            hello.resume.run_ids.extend(self._holding.run_ids)
        return Frame(hello=hello)

    def _heartbeat(self) -> Frame:
        return Frame(heartbeat=agents_pb2.Heartbeat(run_ids=self._holding.run_ids))

    async def _write(self, call: Any) -> None:
        try:
            while (request := await self.outbox.take()) is not None:
                await call.write(request)
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            # The stream has ended; the reader hears why.
            return

    async def _watch_outbox(self) -> None:
        await self.outbox.overflowed.wait()
        raise Broken("the stream stands still: too much waits to be sent")

    async def _beat(self) -> None:
        """Send heartbeats, and break the stream if the server is silent for longer than its lease."""
        loop = asyncio.get_running_loop()
        while True:
            pause = self._heartbeat_s or self._lease_s
            asked_at = loop.time()
            try:
                async with asyncio.timeout(pause):
                    await self._welcome.wait()
                    self._welcome.clear()
                continue
            except TimeoutError:
                pass
            # What this loop was late is no silence of the server: what it said may wait to be read.
            self._heard_at += max(0.0, loop.time() - asked_at - pause)
            if loop.time() - self._heard_at > self._lease_s:
                raise Broken(f"{self._interests.target} was silent for {self._lease_s:g} s")
            if self._heartbeat_s:
                self.outbox.put(self._heartbeat())

    # What is heard.

    async def _read(self, call: Any) -> None:
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                self._heard_at = asyncio.get_running_loop().time()
                for frame in response.frames:
                    self._hear(frame)
        except grpc.aio.AioRpcError as failure:
            raise self._ended(statuses.of_rpc(failure)) from None
        raise Broken(f"{self._interests.target} ended the stream")

    def _ended(self, error: errors.Error) -> Exception:
        # grpc.aio overwrites the status of a stream that ended while something was written to it (grpc issue 36066):
        # then this is INTERNAL whatever the server said, and the next stream hears it again.
        if error.code in HOPELESS:
            return errors.AgentStopped(
                f"{self._interests.target} refuses this agent: {error}",
                reason=error.reason or "PROTOCOL",
                code=error.code,
            )
        # What gRPC says of a failed attempt ends with what the system said.
        why = error.message.rpartition(": ")[2] if error.message.startswith("failed to connect") else error.message
        return Broken(f"no connection to {self._interests.target}: {why}", error.retry_after)

    def _hear(self, frame: agents_pb2.ServerFrame) -> None:
        kind = frame.WhichOneof("frame") or ""
        # HeartbeatAck was heard by being read, and a newer server may say more.
        if kind in self._hearing:
            self._hearing[kind](getattr(frame, kind))

    def _assigned(self, assign: agents_pb2.Assign) -> None:
        self.outbox.put(self._holding.assign(assign))

    def _started(self, start: agents_pb2.StartRun) -> None:
        answers, held = self._holding.start(start)
        self.outbox.put(*answers)
        if held is not None:
            self._callbacks.begin(held)

    def _steered(self, steer: agents_pb2.SteerRun) -> None:
        held = self._holding.steer(steer)
        if held is not None:
            self._callbacks.steer(held, steer.inputs)

    def _asked_again(self, _: agents_pb2.Resync) -> None:
        self.outbox.put(self._heartbeat(), *self._holding.reports)

    def _welcomed(self, welcome: agents_pb2.Welcome) -> None:
        where = f"mob '{self._interests.mob_id}' on {self._interests.target}"
        if welcome.HasField("heartbeat"):
            self._heartbeat_s = welcome.heartbeat.ToMicroseconds() / 1e6
        if welcome.HasField("lease"):
            self._lease_s = welcome.lease.ToMicroseconds() / 1e6
        self._welcome.set()
        if not welcome.attachment_id:
            self._attachment.say(
                f"mob '{self._interests.mob_id}' does not exist on {self._interests.target} yet; waiting"
            )
            return
        self._attachment.attachment_id = welcome.attachment_id
        self._callbacks.limit(welcome.limits.output_bytes)
        self._holding.welcome()
        if self._holding.draining:
            self.outbox.put(Frame(drain=agents_pb2.Drain()))
        # What runs put out while there was no stream comes before their results.
        while waiting := self._live.take():
            self.outbox.put(*waiting)
        self.outbox.put(*self._holding.reports)
        self.outbox.attached()
        self.attached.set()
        self._attachment.say(f"attached to {where}: {_summary(welcome.serves)}")

    def _rejected(self, reject: agents_pb2.Reject) -> None:
        reason = agents_pb2.RejectReason.Name(reject.cause).removeprefix("REJECT_REASON_")
        if reject.HasField("retry_after"):
            message = f"mob '{self._interests.mob_id}' can't be served now: {reject.message}"
            raise Broken(message, reject.retry_after.ToMicroseconds() / 1e6)
        raise errors.AgentStopped(
            f"mob '{self._interests.mob_id}' on {self._interests.target} refuses this agent: {reject.message}",
            reason=reason,
        )

    def _goodbye(self, goodbye: agents_pb2.Goodbye) -> None:
        if goodbye.reason == agents_pb2.GOODBYE_REASON_SUPERSEDED:
            raise Superseded(goodbye.message)
        if goodbye.reason == agents_pb2.GOODBYE_REASON_PROTOCOL:
            raise errors.AgentStopped(
                f"{self._interests.target} ended the stream for a breach of the protocol: {goodbye.message}",
                reason="PROTOCOL",
            )
        if goodbye.reason == agents_pb2.GOODBYE_REASON_REVOKED:
            self._attachment.attachment_id = ""
        after = goodbye.retry_after.ToMicroseconds() / 1e6 if goodbye.HasField("retry_after") else None
        raise Broken(f"{self._interests.target} ended the stream: {goodbye.message}", after)

    def _cancel(self, cancel: agents_pb2.CancelAtBoundary | agents_pb2.HardCancel, *, hard: bool) -> None:
        ack, held = self._holding.control(cancel.control_id, cancel.run_id, cancel.executor_fence)
        if ack is not None:
            self.outbox.put(ack)
        if held is not None:
            self._callbacks.cancel(held, cancel.control_id, cancel.reason, hard)

    def _retired(self, retire: agents_pb2.Retire) -> None:
        log.info(
            "member '%s' is retired: %s",
            retire.member_id,
            "what it has is still run" if retire.drain else "it has no work",
        )

    def _settled(self, settled: agents_pb2.RunSettled) -> None:
        held = self._holding.settle(settled)
        if held is None:
            return
        member_id = held.start.member_id
        match settled.disposition:
            case agents_pb2.RUN_DISPOSITION_FENCED:
                log.warning(
                    "run %s of member '%s' is not this agent's any more: the attempt was lost while it was away, and "
                    "its output is not stored",
                    settled.run_id,
                    member_id,
                )
            case agents_pb2.RUN_DISPOSITION_CANCELLED:
                log.info("run %s of member '%s' is cancelled", settled.run_id, member_id)
            case agents_pb2.RUN_DISPOSITION_ABANDONED:
                log.warning("the inputs of run %s of member '%s' are given up", settled.run_id, member_id)
            case _:
                log.debug("run %s of member '%s' is settled", settled.run_id, member_id)
        self._callbacks.settled(held)


def _summary(serves: Iterable[agents_pb2.ServeStatus]) -> str:
    return "; ".join(_interest(one) for one in serves) or "ready"


def _interest(one: agents_pb2.ServeStatus) -> str:
    name = f"member '{one.serve.member_id}'" if one.serve.member_id else f"role '{one.serve.role}'"
    match one.WhichOneof("status"):
        case "waiting":
            return f"{name} waits: {one.waiting}"
        case "refused":
            return f"{name} is refused: {one.refused}"
        case _:
            return f"{name} served" if one.serve.member_id else f"{name} served, {one.assigned} members"
