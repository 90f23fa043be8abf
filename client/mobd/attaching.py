"""One stream of an agent: what it says first, what it hears, and how it ends."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import grpc

from mobd import errors, statuses
from mobd.holding import Frame, Held, Holding
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
    settled: Callable[[], None]


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
    ) -> None:
        self.outbox = Outbox()
        self.attached = asyncio.Event()
        self._interests = interests
        self._attachment = attachment
        self._holding = holding
        self._callbacks = callbacks
        self._heartbeat_s = 0.0
        self._lease_s = LEASE_S
        self._welcome = asyncio.Event()
        self._heard_at = asyncio.get_running_loop().time()

    async def run(self, channel: grpc.aio.Channel, leave: asyncio.Event) -> None:
        """Serve until `leave` is set; raise Broken, Superseded or AgentStopped if the stream ends before."""
        self.outbox.put(self._hello())
        call = agents_pb2_grpc.AgentServiceStub(channel).Attach(wait_for_ready=False)
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
        holding = self._holding
        match frame.WhichOneof("frame"):
            case "welcome":
                self._welcomed(frame.welcome)
            case "reject":
                self._rejected(frame.reject)
            case "assign":
                self.outbox.put(holding.assign(frame.assign))
            case "unassign":
                holding.unassign(frame.unassign)
            case "start_run":
                answers, held = holding.start(frame.start_run)
                self.outbox.put(*answers)
                if held is not None:
                    self._callbacks.begin(held)
            case "run_settled":
                self._settled(frame.run_settled)
            case "resync":
                self.outbox.put(self._heartbeat(), *holding.reports)
            case "goodbye":
                self._goodbye(frame.goodbye)
            case _:
                # HeartbeatAck, which was heard by being read, and what a newer server may say.
                pass

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
        self.outbox.put(*self._holding.reports)
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
            case agents_pb2.RUN_DISPOSITION_ABANDONED:
                log.warning("the inputs of run %s of member '%s' are given up", settled.run_id, member_id)
            case _:
                log.debug("run %s of member '%s' is settled", settled.run_id, member_id)
        self._callbacks.settled()


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
