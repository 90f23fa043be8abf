"""An agent that speaks the protocol and does nothing else: what it is sent in one message it answers in one.

A run costs it next to nothing, so that what is measured is the server. It serves the role `worker` of one mob.
"""

import asyncio
import os
import sys

import grpc

from mobd.v1 import agents_pb2, agents_pb2_grpc

BEAT_S = 5.0


def answers(frame: agents_pb2.ServerFrame) -> list[agents_pb2.AgentFrame]:
    """Return what is to be said to one frame."""
    if frame.HasField("start_run"):
        start = frame.start_run
        accepted = agents_pb2.RunAccepted(run_id=start.run_id, executor_fence=start.executor_fence)
        result = agents_pb2.RunResult(run_id=start.run_id, executor_fence=start.executor_fence, output_json='"done"')
        return [agents_pb2.AgentFrame(run_accepted=accepted), agents_pb2.AgentFrame(run_result=result)]
    if frame.HasField("assign"):
        given = frame.assign
        assigned = agents_pb2.Assigned(member_id=given.member_id, executor_fence=given.executor_fence)
        return [agents_pb2.AgentFrame(assigned=assigned)]
    if frame.HasField("reject"):
        raise SystemExit(frame.reject.message)
    return []


async def main(target: str, mob_id: str) -> None:
    """Serve until the stream ends."""
    async with grpc.aio.insecure_channel(target) as channel:
        call = agents_pb2_grpc.AgentServiceStub(channel).Attach()
        name = f"thin-{os.getpid()}"
        hello = agents_pb2.Hello(mob_id=mob_id, host_id=name, incarnation=name, protocol=1, capacity=256)
        hello.max_members = 1_000
        hello.serves.add(role="worker")
        await call.write(agents_pb2.AttachRequest(frames=[agents_pb2.AgentFrame(hello=hello)]))

        # A stream takes one message at a time.
        turn = asyncio.Lock()

        async def write(frames: list[agents_pb2.AgentFrame]) -> None:
            async with turn:
                await call.write(agents_pb2.AttachRequest(frames=frames))

        async def beat() -> None:
            while True:
                await asyncio.sleep(BEAT_S)
                await write([agents_pb2.AgentFrame(heartbeat=agents_pb2.Heartbeat())])

        beats = asyncio.create_task(beat())
        async for message in call:
            frames = [answer for frame in message.frames for answer in answers(frame)]
            if frames:
                await write(frames)
        beats.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
