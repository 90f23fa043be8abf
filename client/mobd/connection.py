"""The connection of an agent: streams one after the other, on a loop of its own, until it leaves.

Nothing here waits for a handler, and no handler runs here. What other threads call says so.
"""

import asyncio
import logging
from typing import Final

import grpc

from mobd import calls, system
from mobd.attaching import Attachment, Broken, Callbacks, Interests, Stream, Superseded
from mobd.errors import AgentStopped
from mobd.holding import Frame, Held, Holding
from mobd.live import LiveBuffer
from mobd.turns import Turns
from mobd.v1 import agents_pb2, agents_pb2_grpc

log: Final = logging.getLogger("mobd.agent")


class Connection:
    """Made and used on its own loop, except where noted."""

    def __init__(
        self, interests: Interests, *, reconnect_s: tuple[float, float], blocked_s: float, drain_s: float | None
    ) -> None:
        self._interests = interests
        self._pauses = calls.Pauses(*reconnect_s)
        self._blocked_s = blocked_s
        self._drain_s = drain_s
        self._attachment = Attachment()
        self._holding = Holding()
        #: What turns put out; for any thread. Whoever puts the first event calls `wake`.
        self.live = LiveBuffer()
        self._stream: Stream | None = None
        self._leave = asyncio.Event()
        self._turns: Turns

    async def run(self, turns: Turns) -> None:
        """Serve until everything is done after a drain, or until told to leave; raise AgentStopped if it can't be."""
        self._turns = turns
        watchdog = asyncio.create_task(self._watch_loop())
        try:
            while not self._leave.is_set():
                pause = await self._one_stream()
                try:
                    async with asyncio.timeout(pause):
                        await self._leave.wait()
                except TimeoutError:
                    pass
        finally:
            watchdog.cancel()
            await asyncio.gather(watchdog, return_exceptions=True)

    def finish(self, run_id: str, report: Frame) -> None:
        """Keep the report of a run until it is settled, and send it."""
        if self._holding.finish(run_id, report) and self._stream is not None and self._stream.attached.is_set():
            # What comes after the result is of a run that is over.
            self._stream.outbox.put(*self.live.take_run(run_id), report)

    def acknowledge(self, run_id: str, ack: Frame) -> None:
        """Answer a request to cancel a run."""
        self._holding.acknowledge(run_id, ack)
        if self._stream is not None and self._stream.attached.is_set():
            self._stream.outbox.put(ack)

    def wake(self) -> None:
        """Send live output, which there is now."""
        if self._stream is not None:
            self._stream.outbox.wake()

    def drain(self, hint: str = "") -> None:
        """Take no more runs, and leave when those that are held are settled. `hint` is told to people."""
        if self._holding.draining:
            return
        self._holding.draining = True
        held = len(self._holding.runs)
        log.info("draining: %s%s", f"{_runs(held)} to finish first" if held else "nothing is in flight", hint)
        if self._stream is not None and self._stream.attached.is_set():
            self._stream.outbox.put(Frame(drain=agents_pb2.Drain()))
        if self._drain_s is not None:
            asyncio.get_running_loop().call_later(self._drain_s, self.leave)
        self._leave_if_done()

    def leave(self) -> None:
        """Leave at once; what is held is given back."""
        held = sum(one.report is None for one in self._holding.runs.values())
        if held and not self._leave.is_set():
            log.warning("leaving: %s given back, to run again", _runs(held))
        self._leave.set()

    def _leave_if_done(self) -> None:
        if self._holding.draining and not self._holding.runs:
            self._leave.set()

    async def _one_stream(self) -> float:
        """Run one stream to its end and return how long to wait before the next, in seconds."""
        self._stream = stream = Stream(
            self._interests,
            self._attachment,
            self._holding,
            Callbacks(self._turns.begin, self._limited, self._settled, self._turns.cancel_run, self._turns.steer),
            self.live,
        )
        channel = system.current().open_channel(
            self._interests.target, [*calls.KEEPALIVE, *calls.SIZES, ("grpc.use_local_subchannel_pool", 1)]
        )
        try:
            await stream.run(channel, self._leave)
        except Broken as broken:
            if stream.attached.is_set():
                self._pauses.reset()
            self._lost(str(broken))
            return self._pauses.next_s(broken.retry_after)
        except Superseded as superseded:
            if not await self._is_own(channel):
                raise AgentStopped(
                    f"another agent attached to mob '{self._interests.mob_id}' with host_id "
                    f"'{self._interests.host_id}' and took this one's place ({superseded}): give each agent a host_id "
                    "of its own, with host_id= or MOBD_HOST_ID",
                    reason="SUPERSEDED",
                ) from None
            return self._pauses.next_s()
        finally:
            self._stream = None
            await channel.close()
        return 0.0

    async def _is_own(self, channel: grpc.aio.Channel) -> bool:
        """Whether the stream that took the place of this one was opened by this agent too, and came late."""
        request = agents_pb2.ListAgentsRequest(mob_id=self._interests.mob_id, page_size=1000)
        try:
            stub = agents_pb2_grpc.AgentServiceStub(calls.authorized(channel, self._interests.token))
            answer = await stub.ListAgents(request, timeout=5.0)
        except grpc.aio.AioRpcError:
            return False
        mine = self._interests
        return any(one.host_id == mine.host_id and one.incarnation == mine.incarnation for one in answer.agents)

    def _settled(self, held: Held) -> None:
        if held.report is None:
            self._turns.disown(held)
        self._leave_if_done()

    def _limited(self, output_bytes: int) -> None:
        self._turns.output_bytes = output_bytes

    def _lost(self, why: str) -> None:
        held = len(self._holding.runs)
        going_on = f"; {_runs(held)} in flight, kept" if held else ""
        self._attachment.say(f"{why}{going_on}; trying again", logging.WARNING)

    async def _watch_loop(self) -> None:
        """Name what blocks the loop that turns run on."""
        while system.current().loops_apart:
            await asyncio.sleep(self._blocked_s / 2)
            if not self._turns.on_loop:
                continue
            answered = self._turns.ping()
            done, _ = await asyncio.wait([answered], timeout=self._blocked_s)
            if not done:
                log.warning(
                    "%s has blocked the event loop for %g s. Heartbeats go on and the run is kept, but no other turn "
                    "runs meanwhile: make it a plain def, or use await asyncio.to_thread(...)",
                    self._turns.blocker(),
                    self._blocked_s,
                )
                await answered


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
