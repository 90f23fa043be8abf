"""Streams of agents that may be anything: silent, mute, of no use, or dutiful for a while and then out of their mind.

What such a stream sends depends on what it was told, so it can't be made before it is opened; all that it sent is kept.
"""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from random import Random
from typing import Any, Final

import grpc
from tests.fuzz.calls import LIMIT_S, METHODS, SILENCE_S, outcome_of
from tests.fuzz.generating import Generator
from tests.fuzz.judging import Code, Outcome
from tests.fuzz.words import Words

from mobd.v1 import agents_pb2 as pb

ATTACH: Final = "AgentService/Attach"
PATH: Final = "/mobd.v1.AgentService/Attach"
FRAME: Final = pb.AgentFrame.DESCRIPTOR
REQUEST: Final = METHODS[ATTACH].input_type
MAX_SENT: Final = 12
# Stands for what is no answer: the server has let the stream stand that it should have ended.
OVERTAKEN: Final = "Internal error from Core"
NOT_ENDED: Final = b"\xff not ended"


class AttachCase:
    """One stream. `sent` grows while it is played."""

    def __init__(self, rng: Random, words: Words) -> None:
        self.sent: list[bytes] = []
        self._rng = rng
        self._words = words
        self._generator = Generator(rng, words)
        self._reading: asyncio.Future[Any] | None = None
        # How many of its answers a stream gives as an agent should.
        self._duty = rng.choice((0.0, 0.5, 0.9, 1.0, 1.0))

    async def play(self, channel: grpc.aio.Channel) -> Outcome:
        """Open a stream, send and read until something ends it; return what became of it."""
        opened: Any = channel.stream_stream(PATH)
        made = opened(timeout=LIMIT_S)
        answers: list[bytes] = []
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            await self._talk(made, answers)
            # A stream that is closed on this side, or has said nothing, is ended by the server.
            stays = not self.sent or self._rng.random() < 0.5
            if stays and self.sent:
                await made.done_writing()
            while stays and await self._next(made, answers, LIMIT_S):
                pass
            if stays and not made.done():
                answers.append(NOT_ENDED)
        impatient = not made.done()
        made.cancel()
        outcome = await outcome_of(made, answers)
        if outcome.message == OVERTAKEN:
            # The server ended the stream while it was written to: with what, this client does not tell.
            impatient, outcome.code = True, Code.CANCELLED
        outcome.impatient = impatient
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)
        return outcome

    async def _talk(self, made: Any, answers: list[bytes]) -> None:
        if self._rng.random() < 0.95:
            await self._send(made, self._begin())
        quiet = 0
        while self.sent and len(self.sent) < MAX_SENT and quiet < 3 and not made.done():
            answer = await self._next(made, answers, SILENCE_S)
            quiet = 0 if answer else quiet + 1
            for raw in self._reactions(answer):
                await self._send(made, raw)

    async def _next(self, made: Any, answers: list[bytes], silence_s: float) -> bytes:
        """Return the next answer; nothing if there was none for a while, or the stream has ended."""
        # A read that is cancelled would end the call.
        if self._reading is None:
            self._reading = asyncio.ensure_future(made.read())
        done, _ = await asyncio.wait([self._reading], timeout=silence_s)
        if not done:
            return b""
        answer = self._reading.result()
        self._reading = None
        if answer is grpc.aio.EOF:
            await made.code()
            return b""
        answers.append(answer)
        self._words.learn(pb.AttachResponse.FromString(answer))
        return bytes(answer)

    async def _send(self, made: Any, raw: bytes) -> None:
        self.sent.append(raw)
        await made.write(raw)

    def _begin(self) -> bytes:
        dice = self._rng.random()
        if dice < 0.12:
            return self._generator.raw(REQUEST)
        hello = self._generator.careful(pb.Hello.DESCRIPTOR)
        if dice < 0.9:
            # One that is taken.
            hello.mob_id = self._rng.choice(("alpha", "beta", "gamma", "delta"))
            del hello.serves[:]
            for role in ("worker", "lead"):
                hello.serves.add(role=role)
        request = pb.AttachRequest(frames=[pb.AgentFrame(hello=hello)])
        if dice > 0.95:
            request.frames.add(hello=hello)
        return request.SerializeToString()

    def _reactions(self, answer: bytes) -> Iterator[bytes]:
        """Yield what is sent after an answer: what an agent would send, or anything."""
        if answer and self._rng.random() < self._duty:
            dutiful = [frame for told in pb.AttachResponse.FromString(answer).frames for frame in self._dutiful(told)]
            if dutiful:
                yield pb.AttachRequest(frames=dutiful).SerializeToString()
            return
        if self._rng.random() < 0.3:
            yield self._generator.raw(REQUEST)
            return
        frames = [self._generator.careful(FRAME) for _ in range(self._rng.choice((1, 1, 2, 5)))]
        # A second Hello ends all the rest.
        kept = [frame for frame in frames if frame.WhichOneof("frame") != "hello" or self._rng.random() < 0.1]
        if kept:
            yield pb.AttachRequest(frames=kept).SerializeToString()

    def _dutiful(self, told: pb.ServerFrame) -> Iterator[pb.AgentFrame]:
        kind = told.WhichOneof("frame")
        if kind == "assign":
            assigned = pb.Assigned(member_id=told.assign.member_id, executor_fence=told.assign.executor_fence)
            yield pb.AgentFrame(assigned=assigned)
        elif kind == "start_run":
            run = told.start_run
            yield pb.AgentFrame(run_accepted=pb.RunAccepted(run_id=run.run_id, executor_fence=run.executor_fence))
            yield from self._about(run)
        elif kind == "steer_run":
            yield self._frame("run_result", told.steer_run.run_id, told.steer_run.executor_fence)
        elif kind in ("cancel_at_boundary", "hard_cancel"):
            control = getattr(told, kind)
            yield pb.AgentFrame(control_ack=pb.ControlAck(control_id=control.control_id, result=pb.CONTROL_RESULT_OK))
            yield self._frame("run_failed", control.run_id, control.executor_fence)

    def _about(self, run: pb.StartRun) -> Iterator[pb.AgentFrame]:
        kinds = ["run_events", "run_progress", "run_result", "run_failed"]
        for kind in self._rng.sample(kinds, self._rng.randrange(1, 4)):
            yield self._frame(kind, run.run_id, run.executor_fence)

    def _frame(self, kind: str, run_id: str, fence: int) -> pb.AgentFrame:
        """Return a frame about a run that is there."""
        descriptor = FRAME.fields_by_name[kind].message_type
        assert descriptor is not None
        body = self._generator.careful(descriptor)
        body.run_id, body.executor_fence = run_id, fence
        if kind == "run_result" and self._rng.random() < 0.7:
            body.ClearField("expected_message_count")
        frame = pb.AgentFrame()
        getattr(frame, kind).CopyFrom(body)
        return frame
