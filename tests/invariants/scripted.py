"""An agent made of frames: it says what a test tells it to say, keeps all that it was told, and survives every kill."""

import asyncio
from collections.abc import Iterable
from typing import Any, Self

import grpc
from tests.support.peers import MOB, ROLE
from tests.support.processes import Changes
from tests.support.served import channel

from mobd.v1 import agents_pb2, agents_pb2_grpc, runs_pb2

BEAT_S = 0.4
COMMITTED = agents_pb2.RUN_DISPOSITION_COMMITTED
DUPLICATE = agents_pb2.RUN_DISPOSITION_DUPLICATE
FENCED = agents_pb2.RUN_DISPOSITION_FENCED
CANCELLED = agents_pb2.RUN_DISPOSITION_CANCELLED
REQUEUED = agents_pb2.RUN_DISPOSITION_REQUEUED
ABANDONED = agents_pb2.RUN_DISPOSITION_ABANDONED
ERROR = agents_pb2.FAILURE_KIND_ERROR
CLAIMS_CANCELLED = agents_pb2.FAILURE_KIND_CANCELLED
RELEASED = agents_pb2.FAILURE_KIND_RELEASED
OK = agents_pb2.CONTROL_RESULT_OK


class Scripted:
    """One agent process as its server sees it: the same host and incarnation on every stream that it opens.

    By itself it takes members, accepts runs and sends heartbeats. Everything else waits for the test. Its streams end
    with the server; `attach` opens the next one, on which it resumes what it holds.
    """

    def __init__(
        self,
        target: str,
        *,
        mob_id: str = MOB,
        host_id: str = "host",
        incarnation: str = "1",
        serves: Iterable[agents_pb2.Serve] = (),
        capacity: int = 8,
        members: int = 100,
        steer: bool = False,
        beats: bool = True,
    ) -> None:
        self.attachment_id = ""
        # The runs that it holds, as it would tell.
        self.held: dict[str, agents_pb2.StartRun] = {}
        # Everything that it was ever told, in order, heartbeat answers left out.
        self.told: list[agents_pb2.ServerFrame] = []
        # How the last stream ended: None while it is open.
        self.ended: grpc.aio.AioRpcError | str | None = "never opened"
        # Whether it takes what it is given without being told to.
        self.confirms = True
        self.accepts = True
        self._hello = agents_pb2.Hello(
            mob_id=mob_id,
            host_id=host_id,
            incarnation=incarnation,
            protocol=1,
            serves=list(serves) or [agents_pb2.Serve(role=ROLE)],
            capacity=capacity,
            max_members=members,
            capabilities=agents_pb2.Capabilities(steer=steer),
        )
        self._beats = beats
        self._channel = channel(target)
        self._call: Any = None
        self._tasks: list[asyncio.Task[None]] = []
        self._changes = Changes()
        self._acks = 0
        self._beating = asyncio.Lock()
        # A stream takes one write at a time.
        self._writing = asyncio.Lock()
        # The frames that `next` has not returned.
        self._untold: list[agents_pb2.ServerFrame] = []

    async def attach(self, *, held: Iterable[str] | None = None) -> Self:
        """Open a stream, also in the place of one that has ended, and return when it is attached."""
        await self.dial(held=held)
        while not (await self.next("welcome")).attachment_id:
            pass
        return self

    async def dial(self, *, held: Iterable[str] | None = None) -> None:
        """Open a stream and say Hello: with the attachment of before, and the runs that are held."""
        await self.cut()
        hello = agents_pb2.Hello()
        hello.CopyFrom(self._hello)
        if self.attachment_id:
            runs = list(self.held) if held is None else list(held)
            hello.resume.CopyFrom(agents_pb2.Resume(attachment_id=self.attachment_id, run_ids=runs))
        # What an earlier stream left unread is history.
        self._untold.clear()
        self._call = agents_pb2_grpc.AgentServiceStub(self._channel).Attach(wait_for_ready=True)
        self.ended = None
        await self.send(hello=hello)
        self._tasks = [asyncio.ensure_future(self._read(self._call))]
        if self._beats:
            self._tasks.append(asyncio.ensure_future(self._beat_on()))

    async def cut(self) -> None:
        """Let the stream break, as a network would; the server is told nothing."""
        if self._call is not None:
            self._call.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._call, self._tasks = None, []
        self.ended = self.ended or "cut"

    async def close(self) -> None:
        """End for good."""
        await self.cut()
        await self._channel.close()

    async def send(self, **frame: Any) -> None:
        """Say one thing."""
        async with self._writing:
            await self._call.write(agents_pb2.AttachRequest(frames=[agents_pb2.AgentFrame(**frame)]))

    async def next(self, kind: str, **fields: Any) -> Any:
        """Return the first thing of a kind, with these fields, that was not returned before."""

        def find() -> agents_pb2.ServerFrame | None:
            for frame in self._untold:
                if frame.WhichOneof("frame") == kind:
                    one = getattr(frame, kind)
                    if all(getattr(one, name) == value for name, value in fields.items()):
                        return frame
            return None

        await self._changes.until(
            lambda: find() is not None or self.ended is not None,
            f"{kind} {fields}",
            state=lambda: f"told {[one.WhichOneof('frame') for one in self.told]}",
        )
        frame = find()
        assert frame is not None, f"the stream ended before {kind} {fields}: {self.ended}"
        self._untold.remove(frame)
        return getattr(frame, kind)

    def heard(self, kind: str) -> list[Any]:
        """Return everything of a kind that it was ever told."""
        return [getattr(one, kind) for one in self.told if one.WhichOneof("frame") == kind]

    async def beat(self) -> None:
        """Return when everything is here that left the server before this was called."""
        async with self._beating:
            acks = self._acks
            await self.send(heartbeat=agents_pb2.Heartbeat(run_ids=list(self.held)))
            await self._changes.until(lambda: self._acks > acks or self.ended is not None, "the answer to a heartbeat")
            assert self._acks > acks, f"the stream ended before the answer to a heartbeat: {self.ended}"

    async def gone(self) -> None:
        """Return when the server has ended the stream."""
        await self._changes.until(lambda: self.ended is not None, "the end of the stream")

    async def run(self, **fields: Any) -> agents_pb2.StartRun:
        """Return the next run."""
        run: agents_pb2.StartRun = await self.next("start_run", **fields)
        return run

    async def holds(self, member_id: str) -> agents_pb2.StartRun:
        """Return the run of a member that it holds, as soon as it does, also from an earlier stream."""

        def find() -> agents_pb2.StartRun | None:
            return next((run for run in self.held.values() if run.member_id == member_id), None)

        await self._changes.until(lambda: find() is not None, f"a run of {member_id}")
        found = find()
        assert found is not None
        return found

    async def result(
        self,
        run: agents_pb2.StartRun,
        output_json: str = '{"n":1}',
        *,
        messages: Iterable[str] = (),
        steered: Iterable[str] = (),
        fence: int = 0,
    ) -> None:
        """Send a result, and don't wait for what becomes of it. `fence` is sent in place of the run's own."""
        await self.send(
            run_result=agents_pb2.RunResult(
                run_id=run.run_id,
                executor_fence=fence or run.executor_fence,
                output_json=output_json,
                messages_json=list(messages),
                usage=runs_pb2.Usage(input_tokens=3),
                steered_input_ids=list(steered),
            )
        )

    async def settle(self, run: agents_pb2.StartRun, output_json: str = '{"n":1}', **more: Any) -> int:
        """Send a result and return what became of the run."""
        await self.result(run, output_json, **more)
        return await self.settled(run)

    async def fail(
        self,
        run: agents_pb2.StartRun,
        kind: "agents_pb2.FailureKind.ValueType" = ERROR,
        *,
        retryable: bool = True,
        steered: Iterable[str] = (),
    ) -> int:
        """Send a failure and return what became of the run."""
        await self.send(
            run_failed=agents_pb2.RunFailed(
                run_id=run.run_id,
                executor_fence=run.executor_fence,
                kind=kind,
                message="as the test said",
                retryable=retryable,
                steered_input_ids=list(steered),
            )
        )
        return await self.settled(run)

    async def settled(self, run: agents_pb2.StartRun) -> int:
        """Return what became of a run."""
        answer = await self.next("run_settled", run_id=run.run_id)
        return int(answer.disposition)

    async def acknowledge(self, control_id: str, result: "agents_pb2.ControlResult.ValueType" = OK) -> None:
        """Answer a request to cancel."""
        await self.send(control_ack=agents_pb2.ControlAck(control_id=control_id, result=result))

    async def _read(self, call: Any) -> None:
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                for frame in response.frames:
                    await self._take(frame)
                self._changes.tell()
            self.ended = "ended in order"
        except grpc.aio.AioRpcError as error:
            self.ended = error
        except (asyncio.CancelledError, asyncio.InvalidStateError):
            self.ended = self.ended or "cut"
        finally:
            self._changes.tell()

    async def _take(self, frame: agents_pb2.ServerFrame) -> None:
        kind = frame.WhichOneof("frame")
        if kind == "heartbeat_ack":
            self._acks += 1
            return
        self.told.append(frame)
        self._untold.append(frame)
        if kind == "welcome" and frame.welcome.attachment_id:
            self.attachment_id = frame.welcome.attachment_id
        elif kind == "run_settled":
            self.held.pop(frame.run_settled.run_id, None)
        elif kind == "assign" and self.confirms:
            one = frame.assign
            await self.send(assigned=agents_pb2.Assigned(member_id=one.member_id, executor_fence=one.executor_fence))
        elif kind == "start_run" and self.accepts:
            await self.accept(frame.start_run)

    async def accept(self, run: agents_pb2.StartRun) -> None:
        """Take a run."""
        self.held[run.run_id] = run
        await self.send(run_accepted=agents_pb2.RunAccepted(run_id=run.run_id, executor_fence=run.executor_fence))

    async def _beat_on(self) -> None:
        while self.ended is None:
            try:
                await self.beat()
            except (AssertionError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return
            await asyncio.sleep(BEAT_S)  # noqa: TID251 a heartbeat has a rhythm


def name(*member_ids: str) -> list[agents_pb2.Serve]:
    """Return the interest in these members alone."""
    return [agents_pb2.Serve(member_id=one) for one in member_ids]
