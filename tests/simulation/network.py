"""A network that is late, slow and breaks; and channels that take down what goes over them."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import grpc
from tests.checker.history import Recorder
from tests.checker.plain import plain
from tests.simulation.plan import PASSING

from mobd.system import System
from mobd_server.testing.loopback import Call, LoopbackChannel, Place
from mobd_server.testing.machine import SameLoop
from mobd_server.testing.network import Network, Node, here
from mobd_server.testing.virtual import VirtualClock

# Of all messages, so many are much later than the others.
LATE: Final = 0.03
LATE_S: Final = 2.0
USUAL_S: Final = 0.01


class SimNetwork(Network):
    """Messages take their time, each its own; links can be cut for a while."""

    def __init__(self, chance: random.Random, loop: asyncio.AbstractEventLoop) -> None:
        self._chance = chance
        self._loop = loop
        self._cut: dict[str, float] = {}
        self.healed = False
        # How often a connection breaks behind a message, and a call that was answered comes again.
        self._break_odds = chance.choice([0.0, 0.0, 0.005, 0.03])
        self._repeat_odds = chance.choice([0.0, 0.0, 0.03, 0.2])

    def delay(self, sender: Node | None, receiver: Node | None) -> float:
        """Return how long the next message takes: what is sent over a cut link arrives when it is whole again."""
        if sender is receiver:
            return 0.0
        drawn = self._chance.random()
        if self.healed:
            return drawn * USUAL_S
        delay = drawn * LATE_S if self._chance.random() < LATE else drawn * USUAL_S
        until = max((self._cut.get(node.name, 0.0) for node in (sender, receiver) if node is not None), default=0.0)
        return max(0.0, until - self._loop.time()) + delay

    def breaks(self) -> bool:
        """Whether the connection breaks here."""
        return not self.healed and self._chance.random() < self._break_odds

    def repeats(self) -> bool:
        """Whether the call that was answered comes again."""
        return not self.healed and self._chance.random() < self._repeat_odds

    def soon(self) -> float:
        """Return a moment in which what was sent may or may not have arrived."""
        return self._chance.random() * 3 * USUAL_S

    def cut(self, node: Node, seconds: float) -> None:
        """Let nothing reach a node or leave it for a while."""
        self._cut[node.name] = self._loop.time() + seconds

    def heal(self) -> None:
        """Be a good network from now on."""
        self.healed = True
        self._cut.clear()


class SimSystem(System):
    """The machine of whichever node asks."""

    loops_apart = False

    def __init__(self, place: Place, network: SimNetwork, clock: VirtualClock, recorder: Recorder, seed: int) -> None:
        self._place = place
        self._network = network
        self._clock = clock
        self._recorder = recorder
        self._seed = seed
        self._chances: dict[str, random.Random] = {}

    def chance(self) -> random.Random:
        """Return the randomness of this node, which what others do does not change."""
        node = here()
        name = node.name if node is not None else ""
        if name not in self._chances:
            self._chances[name] = random.Random(f"{self._seed}/{name}")
        return self._chances[name]

    def time_ms(self) -> int:
        return self._clock.now() // 1_000

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def random_bytes(self, count: int) -> bytes:
        return self.chance().randbytes(count)

    def random(self) -> float:
        return self.chance().random()

    def open_channel(self, target: str, options: Sequence[tuple[str, Any]]) -> Any:
        node = here()
        channel = LoopbackChannel(self._place, options)
        return RecordedChannel(channel, self._network, self._recorder, node.name if node else "test")

    def open_loop(self, name: str) -> SameLoop:
        return SameLoop()

    def start(self, name: str, work: Callable[[], None]) -> None:
        raise NotImplementedError("a world has no threads")


class RecordedChannel:
    """A channel whose calls are in the history."""

    def __init__(self, channel: LoopbackChannel, network: SimNetwork, recorder: Recorder, who: str) -> None:
        self._channel = channel
        self._network = network
        self._recorder = recorder
        self._who = who

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def unary_unary(self, path: str, *codec: Any, **codecs: Any) -> Any:
        method, rpc = self._channel.unary_unary(path, *codec, **codecs), path.rpartition("/")[2]

        async def once(request: Any, **how: Any) -> Any:
            mob = getattr(request, "mob_id", "")
            if not mob or mob in PASSING:
                return await self._told(rpc, method, request, how)
            name = self._recorder.invoked(self._who, rpc, mob, plain(request))
            try:
                made = method(request, **how)
                if self._network.breaks():
                    asyncio.get_running_loop().call_later(self._network.soon(), made.reset)
                answer = await made
            except grpc.aio.AioRpcError as error:
                self._recorder.failed(self._who, name, error.code().name, error.details() or "")
                raise
            except asyncio.CancelledError:
                self._recorder.failed(self._who, name, "CANCELLED")
                raise
            self._recorder.answered(self._who, name, plain(answer))
            return answer

        async def call(request: Any, **how: Any) -> Any:
            answer = await once(request, **how)
            return await once(request, **how) if self._network.repeats() else answer

        return call

    async def _told(self, rpc: str, method: Callable[..., Any], request: Any, how: dict[str, Any]) -> Any:
        """Make a call that is no part of what is judged."""
        try:
            answer = await method(request, **how)
        except grpc.aio.AioRpcError as error:
            self._recorder.note(self._who, f"{rpc} {plain(request)}: {error.code().name} {error.details()}")
            raise
        self._recorder.note(self._who, f"{rpc} {plain(request)}: {plain(answer)}")
        return answer

    def unary_stream(self, path: str, *codec: Any, **codecs: Any) -> Any:
        method, rpc = self._channel.unary_stream(path, *codec, **codecs), path.rpartition("/")[2]

        def call(request: Any, **how: Any) -> Any:
            kind = RecordedWatch if rpc == "WatchEvents" else RecordedStream
            return kind(method(request, **how), self._recorder, self._who, rpc, request)

        return call

    def stream_stream(self, path: str, *codec: Any, **codecs: Any) -> Any:
        method = self._channel.stream_stream(path, *codec, **codecs)
        return lambda *requests, **how: RecordedAttach(
            method(*requests, **how), self._network, self._recorder, self._who
        )


class RecordedStream:
    """A stream of answers."""

    def __init__(self, call: Call, recorder: Recorder, who: str, rpc: str, request: Any) -> None:
        self._call = call
        self._recorder = recorder
        self._who = who
        self._ended = False
        self._open(rpc, request)

    def _open(self, rpc: str, request: Any) -> None:
        self._name = self._recorder.invoked(self._who, rpc, request.mob_id, plain(request))

    def _answer(self, answer: Any) -> None:
        self._recorder.answered(self._who, self._name, plain(answer))

    def _end(self, code: str, why: str = "") -> None:
        if code not in ("OK", "CANCELLED"):
            self._recorder.failed(self._who, self._name, code, why)

    def _end_once(self, code: str, why: str = "") -> None:
        if not self._ended:
            self._ended = True
            self._end(code, why)

    async def read(self) -> Any:
        try:
            answer = await self._call.read()
        except grpc.aio.AioRpcError as error:
            self._end_once(error.code().name, error.details() or "")
            raise
        if answer is grpc.aio.EOF:
            self._end_once("OK")
        else:
            self._answer(answer)
        return answer

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (answer := await self.read()) is not grpc.aio.EOF:
            yield answer

    def cancel(self) -> bool:
        self._end_once("CANCELLED")
        return self._call.cancel()


class RecordedWatch(RecordedStream):
    """A stream of events."""

    def _open(self, rpc: str, request: Any) -> None:
        start, which = request.start, request.filter
        after = start.after_cursor if start.WhichOneof("start") == "after_cursor" else None
        self._name = self._recorder.opened(self._who, request.mob_id, after, which.kinds, which.member_ids)

    def _answer(self, answer: Any) -> None:
        for event in answer.page.events:
            self._recorder.event(self._who, self._name, plain(event))
        if answer.HasField("bookmark"):
            self._recorder.mark(self._who, self._name, answer.bookmark.cursor, answer.bookmark.head)

    def _end(self, code: str, why: str = "") -> None:
        self._recorder.ended(self._who, self._name, "CUT" if code == "CANCELLED" else code)


class RecordedAttach:
    """An agent's stream."""

    def __init__(self, call: Call, network: SimNetwork, recorder: Recorder, who: str) -> None:
        self._call = call
        self._network = network
        self._recorder = recorder
        self._who = who
        self._name = recorder.attached()
        self._mob = ""

    async def write(self, request: Any) -> None:
        for frame in request.frames:
            kind = frame.WhichOneof("frame")
            if kind == "hello":
                self._mob = frame.hello.mob_id
            if self._mob not in PASSING:
                self._recorder.sent(self._who, self._name, self._mob, kind, plain(getattr(frame, kind)))
        await self._call.write(request)
        if self._network.breaks():
            asyncio.get_running_loop().call_later(self._network.soon(), self._call.reset)

    async def read(self) -> Any:
        answer = await self._call.read()
        if answer is not grpc.aio.EOF:
            for frame in answer.frames:
                kind = frame.WhichOneof("frame")
                if self._mob not in PASSING:
                    self._recorder.received(self._who, self._name, self._mob, kind, plain(getattr(frame, kind)))
        return answer

    async def done_writing(self) -> None:
        await self._call.done_writing()

    def cancel(self) -> bool:
        return self._call.cancel()
