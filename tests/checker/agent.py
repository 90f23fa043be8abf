"""An agent in a process of its own, on the real stub, that takes down every frame in a file that outlives its kill.

Arguments: server, mob, role, host, incarnation, seed, file. It behaves as agents do, good and bad: it takes its time,
fails, gives back, sends results twice, under a fence that is not its own, over a stream that broke, takes in some of
what is steered to it, and obeys cancels. A result is kept and sent again until the server says what became of it.
"""

import asyncio
import random
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import grpc
from tests.checker.history import Recorder
from tests.checker.plain import plain
from tests.support.served import channel

from mobd.v1 import agents_pb2, agents_pb2_grpc

BEAT_S: Final = 0.4
BACK_S: Final = 0.05


class RecordedAgent:
    """One agent process: the same host and incarnation on every stream that it opens."""

    def __init__(self, target: str, hello: agents_pb2.Hello, seed: str, recorder: Recorder) -> None:
        self._hello = hello
        self._who = f"{hello.host_id}/{hello.incarnation}"
        self._recorder = recorder
        self._draw = random.Random(seed)
        self._stub = agents_pb2_grpc.AgentServiceStub(channel(target))
        self._held: dict[str, agents_pb2.StartRun] = {}
        self._steered: dict[str, list[str]] = {}
        # What was reported of runs that are not settled to its knowledge.
        self._reports: dict[str, dict[str, Any]] = {}
        # How many results under a wrong fence were sent and not answered.
        self._stale: dict[str, int] = {}
        self._turns: dict[str, asyncio.Task[None]] = {}
        self._cancels: dict[str, asyncio.Event] = {}
        self._call: Any = None
        self._stream = ""
        self._writing = asyncio.Lock()

    async def serve(self) -> None:
        """Attach, and again whenever the stream ends, for ever."""
        while True:
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await self._once()
            self._call = None
            await asyncio.sleep(BACK_S)  # noqa: TID251 an agent waits before it comes back

    async def _once(self) -> None:
        hello = agents_pb2.Hello()
        hello.CopyFrom(self._hello)
        hello.resume.run_ids.extend(self._held)
        if not hello.resume.attachment_id:
            hello.ClearField("resume")
        self._stream = self._recorder.attached()
        call: Any = self._stub.Attach(wait_for_ready=True)
        self._call = call
        await self._send(hello=hello)
        beats = asyncio.ensure_future(self._beat(call))
        try:
            while (answer := await call.read()) is not grpc.aio.EOF:
                for frame in answer.frames:
                    await self._take(frame)
        except asyncio.CancelledError:
            # A stream that this agent itself broke off says so in this way; nobody cancels the task.
            if not call.cancelled():
                raise
        finally:
            beats.cancel()
            call.cancel()

    async def _beat(self, call: Any) -> None:
        while call is self._call:
            await asyncio.sleep(BEAT_S)  # noqa: TID251 a heartbeat has a rhythm
            await self._try(heartbeat=agents_pb2.Heartbeat(run_ids=list(self._held)))

    async def _send(self, **frame: Any) -> None:
        async with self._writing:
            ((kind, body),) = frame.items()
            self._recorder.sent(self._who, self._stream, self._hello.mob_id, kind, plain(body))
            await self._call.write(agents_pb2.AttachRequest(frames=[agents_pb2.AgentFrame(**frame)]))

    async def _try(self, **frame: Any) -> None:
        """Say something that is lost if there is no stream."""
        if self._call is not None:
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await self._send(**frame)

    async def _take(self, frame: agents_pb2.ServerFrame) -> None:
        kind = frame.WhichOneof("frame") or ""
        body = getattr(frame, kind)
        if kind == "heartbeat_ack":
            return
        self._recorder.received(self._who, self._stream, self._hello.mob_id, kind, plain(body))
        match kind:
            case "welcome" if body.attachment_id:
                self._hello.resume.attachment_id = body.attachment_id
                await self._again()
            case "resync":
                await self._again()
            case "assign":
                await self._assigned(body)
            case "start_run":
                await self._started(body)
            case "steer_run":
                known = self._steered.setdefault(body.run_id, [])
                known += [one.canonical_input_id for one in body.inputs if one.canonical_input_id not in known]
            case "cancel_at_boundary" | "hard_cancel":
                ack = agents_pb2.ControlAck(control_id=body.control_id, result=agents_pb2.CONTROL_RESULT_OK)
                await self._try(control_ack=ack)
                self._cancels.get(body.run_id, asyncio.Event()).set()
            case "run_settled":
                self._settled(body.run_id, fenced=body.disposition == agents_pb2.RUN_DISPOSITION_FENCED)

    async def _again(self) -> None:
        """Say what is held, and report again what is not settled."""
        await self._try(heartbeat=agents_pb2.Heartbeat(run_ids=list(self._held)))
        for report in list(self._reports.values()):
            await self._try(**report)

    def _settled(self, run_id: str, *, fenced: bool) -> None:
        if fenced and self._stale.get(run_id, 0):
            # The answer to what was not sent under the run's own fence.
            self._stale[run_id] -= 1
            return
        self._held.pop(run_id, None)
        self._reports.pop(run_id, None)
        turn = self._turns.pop(run_id, None)
        if turn is not None and not turn.done():
            self._cancels[run_id].set()

    async def _assigned(self, assign: agents_pb2.Assign) -> None:
        member_id, fence = assign.member_id, assign.executor_fence
        if self._draw.random() < 0.01:
            await self._try(declined=agents_pb2.Declined(member_id=member_id, executor_fence=fence, reason="not now"))
        else:
            await self._try(assigned=agents_pb2.Assigned(member_id=member_id, executor_fence=fence))

    async def _started(self, run: agents_pb2.StartRun) -> None:
        await self._try(run_accepted=agents_pb2.RunAccepted(run_id=run.run_id, executor_fence=run.executor_fence))
        if run.run_id in self._held:
            return
        self._held[run.run_id] = run
        self._cancels[run.run_id] = asyncio.Event()
        self._turns[run.run_id] = asyncio.ensure_future(self._turn(run))

    async def _turn(self, run: agents_pb2.StartRun) -> None:
        draw = self._draw
        cancelled = self._cancels[run.run_id]
        pause = draw.choice((0.0, 0.0, 0.002, 0.01, 0.05, 0.3))
        try:
            async with asyncio.timeout(pause):
                await cancelled.wait()
        except TimeoutError:
            pass
        if run.run_id not in self._held:
            return
        steered = self._steered.get(run.run_id, [])
        taken = steered[: draw.randint(0, len(steered))]
        fate = draw.random()
        first = all(one.attempt == 1 for one in run.inputs)
        if cancelled.is_set() and fate < 0.7:
            await self._report(run, self._failure(run, agents_pb2.FAILURE_KIND_CANCELLED, taken))
        elif first and fate < 0.05:
            await self._report(run, self._failure(run, agents_pb2.FAILURE_KIND_ERROR, taken))
        elif fate < 0.06:
            await self._report(run, self._failure(run, agents_pb2.FAILURE_KIND_ERROR, taken, retryable=False))
        elif first and fate < 0.09:
            await self._report(run, self._failure(run, agents_pb2.FAILURE_KIND_RELEASED, ()))
        else:
            await self._succeed(run, taken, fate)

    async def _succeed(self, run: agents_pb2.StartRun, taken: list[str], fate: float) -> None:
        if fate < 0.2:
            # What is not its fence is not its run: the server must say so and change nothing.
            wrong = run.executor_fence - 1 if fate < 0.15 and run.executor_fence > 1 else run.executor_fence + 1
            self._stale[run.run_id] = 1
            await self._try(run_result=self._result(run, taken, "stale", wrong))
            if fate < 0.12:
                await asyncio.sleep(0.02)  # noqa: TID251 so that the server has judged it before the right one comes
        await self._report(run, {"run_result": self._result(run, taken, "done", run.executor_fence)})
        if fate > 0.95:
            await self._try(run_result=self._result(run, taken, "done", run.executor_fence))
        if fate > 0.97 and self._call is not None:
            self._call.cancel()

    async def _report(self, run: agents_pb2.StartRun, report: dict[str, Any]) -> None:
        self._reports[run.run_id] = report
        await self._try(**report)

    def _result(self, run: agents_pb2.StartRun, taken: list[str], what: str, fence: int) -> agents_pb2.RunResult:
        return agents_pb2.RunResult(
            run_id=run.run_id, executor_fence=fence, output_json=f'"{what} {run.run_id}"', steered_input_ids=taken
        )

    def _failure(
        self, run: agents_pb2.StartRun, kind: Any, taken: Any, *, retryable: bool = True
    ) -> dict[str, agents_pb2.RunFailed]:
        failed = agents_pb2.RunFailed(
            run_id=run.run_id,
            executor_fence=run.executor_fence,
            kind=kind,
            message="as it goes",
            retryable=retryable,
            steered_input_ids=taken,
        )
        return {"run_failed": failed}


def main() -> None:
    """Serve until the process is killed."""
    target, mob, role, host, incarnation, seed, path = sys.argv[1:]
    hello = agents_pb2.Hello(
        mob_id=mob,
        host_id=host,
        incarnation=incarnation,
        protocol=1,
        serves=[agents_pb2.Serve(role=role)],
        capacity=3,
        max_members=8,
        capabilities=agents_pb2.Capabilities(steer=True),
    )
    with Path(path).open("a", encoding="utf-8") as out:
        recorder = Recorder(time.monotonic_ns, f"{host}-{incarnation}-", out)
        asyncio.run(_serve(target, hello, seed, recorder))


async def _serve(target: str, hello: agents_pb2.Hello, seed: str, recorder: Recorder) -> None:
    await RecordedAgent(target, hello, seed, recorder).serve()


if __name__ == "__main__":
    main()
