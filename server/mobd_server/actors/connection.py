"""One stream of one agent: what waits to be sent to it, and where it stands."""

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Literal

from mobd_server.actors.bell import Bell
from mobd_server.actors.frames import HeartbeatAck, Hello, ServerFrame, Welcome, size_of
from mobd_server.actors.links import Call
from mobd_server.machines.answers import SendAssign, SendCancel, SendRetire, SendStartRun, SendSteer
from mobd_server.ports import Clock

if TYPE_CHECKING:
    from mobd_server.actors.crew import Crew
    from mobd_server.actors.presence import Presence

# new        it has not said Hello
# waiting    its mob is not there, or not in memory: somebody attaches it when it is
# attaching  its mob was asked, and the answer is not durable yet
# attached   it is the stream of its attachment
# ended      nothing more is read from it; what is left to send is sent
State = Literal["new", "waiting", "attaching", "attached", "ended"]

OUTBOX_BYTES: Final = 1 << 20
# What leaves in one message.
TAKE_BYTES: Final = 1 << 18
TAKE_FRAMES: Final = 256


# What overtakes the rest, and what of its own member it waits for all the same.
Control = SendCancel | SendRetire
_ORDERED: Final = (SendAssign, SendStartRun, SendSteer)


class Connection:
    """A stream. The hub and the crew write its fields; the transport reads what is to be sent by `take`."""

    __slots__ = (
        "_ack",
        "_answer",
        "_bell",
        "_bytes",
        "_error",
        "_frames",
        "attachment_id",
        "call",
        "crew",
        "draining",
        "due",
        "held",
        "hello",
        "leaving",
        "missed",
        "parked",
        "presence",
        "state",
        "unread",
    )

    def __init__(self, clock: Clock, principal: str) -> None:
        self.state: State = "new"
        self.call = Call(principal)
        self.hello: Hello | None = None
        self.crew: Crew | None = None
        self.presence: Presence | None = None
        # The attachment that its last Welcome named.
        self.attachment_id = ""
        # It was told that it waits.
        self.parked = False
        # The runs that the agent holds, as far as is known here.
        self.held: set[str] = set()
        # The agent wants no more work; the agent has said Detach.
        self.draining = False
        self.leaving = False
        # When its Hello, later its next frame, must be here.
        self.due = 0.0
        # What it sent is not read now: its silence means nothing.
        self.unread = False
        # It sent something that could not be decided, and must send it again.
        self.missed = False
        self._frames: deque[tuple[int, ServerFrame]] = deque()
        self._bytes = 0
        self._ack = False
        self._error: Exception | None = None
        self._bell = Bell(clock)
        self._answer = Bell(clock)

    @property
    def full(self) -> bool:
        """Whether more waits to be sent than an agent may leave waiting."""
        return self._bytes >= OUTBOX_BYTES

    def send(self, *frames: ServerFrame) -> None:
        """Let frames wait to be sent. What one commit releases is never cut in two: ask `full` before it."""
        if self.state == "ended":
            return
        for frame in frames:
            size = size_of(frame)
            self._bytes += size
            self._frames.append((size, frame))
        self._bell.ring()

    def send_control(self, frame: Control) -> None:
        """Let a frame that controls a member overtake what waits, but not what that member must be told before it.

        Frames that overtake keep their own order.
        """
        if self.state == "ended":
            return
        place = len(self._frames)
        for _, waiting in reversed(self._frames):
            if isinstance(waiting, Control | Welcome):
                break
            if isinstance(waiting, _ORDERED) and waiting.member_id == frame.member_id:
                break
            place -= 1
        size = size_of(frame)
        self._bytes += size
        self._frames.insert(place, (size, frame))
        self._bell.ring()

    def take_back(self, run_id: str) -> bool:
        """Take a run, with what was steered into it, from what waits to be sent; return whether it was there.

        Then the agent has never heard of it.
        """
        if not any(isinstance(frame, SendStartRun) and frame.run_id == run_id for _, frame in self._frames):
            return False
        kept = [
            (size, frame)
            for size, frame in self._frames
            if not (isinstance(frame, SendStartRun | SendSteer) and frame.run_id == run_id)
        ]
        self._frames.clear()
        self._frames.extend(kept)
        self._bytes = sum(size for size, _ in kept)
        return True

    def acknowledge(self) -> None:
        """Answer a heartbeat. One answer at a time is enough: an agent that sends only these can't fill the outbox."""
        if not self._ack:
            self._ack = True
            self.send(HeartbeatAck())

    def become(self, state: State) -> None:
        """Move to another state, and let the reader of the stream know."""
        if self.state != "ended":
            self.state = state
            self._answer.ring()

    def end(self, last: ServerFrame | None = None, error: Exception | None = None) -> None:
        """End the stream after what waits to be sent and `last`: with `error`, or in order. Harmless if repeated."""
        if self.state == "ended":
            return
        if last is not None:
            self.send(last)
        self._error = error
        self.become("ended")
        self._bell.ring()

    def drop(self) -> None:
        """Forget what waits to be sent."""
        self._frames.clear()
        self._bytes = 0
        self._ack = False

    async def take(self) -> list[ServerFrame]:
        """Return what is to be sent next, as soon as there is something. Nothing: the stream ends in order.

        Raises what ended the stream, when the rest was sent.
        """
        while not self._frames and self.state != "ended":
            await self._bell.wait(None)
        taken = list(self._take())
        if not taken and self._error is not None:
            raise self._error
        return taken

    async def answered(self) -> None:
        """Return when the mob has answered whether the agent is attached."""
        while self.state == "attaching":
            await self._answer.wait(None)

    def _take(self) -> Iterable[ServerFrame]:
        count = taken = 0
        while self._frames and count < TAKE_FRAMES and taken < TAKE_BYTES:
            size, frame = self._frames.popleft()
            count += 1
            taken += size
            self._bytes -= size
            if type(frame) is HeartbeatAck:
                self._ack = False
            yield frame
