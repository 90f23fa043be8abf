"""What agents and the server say to each other on a stream, in domain words (api §5).

What a commit releases goes out as it is: SendAssign, SendStartRun, SendCancel and the like are frames already.
"""

from collections.abc import Callable
from typing import Final, Literal

from msgspec import Raw, Struct

from mobd_server.machines.answers import (
    SendAssign,
    SendCancel,
    SendRetire,
    SendSettled,
    SendStartRun,
    SendSteer,
    SendUnassign,
    ServeOutcome,
)
from mobd_server.machines.state import Serve, Usage


class Terms(Struct, frozen=True):
    """What the server promises agents and asks of them; see config.py."""

    heartbeat_s: float = 10.0
    lease_s: float = 30.0
    grace_s: float = 60.0
    accept_s: float = 10.0
    hello_s: float = 5.0
    message_bytes: int = 4 << 20
    output_bytes: int = 1 << 20


class Hello(Struct, frozen=True, gc=False):
    mob_id: str
    host_id: str
    incarnation: str
    serves: list[Serve]
    capacity: int
    max_members: int
    # The attachment that it had, and the runs that it holds.
    resume: str | None = None
    held: list[str] = []
    # It takes inputs into a run in flight.
    steers: bool = False


class Heartbeat(Struct, frozen=True, gc=False):
    run_ids: list[str]


class Assigned(Struct, frozen=True, gc=False):
    member_id: str
    fence: int


class Declined(Struct, frozen=True, gc=False):
    member_id: str
    fence: int
    reason: str = ""


class RunAccepted(Struct, frozen=True, gc=False):
    run_id: str
    fence: int


class RunResult(Struct, frozen=True, gc=False):
    run_id: str
    fence: int
    output: Raw
    messages: list[Raw] = []
    expected_message_count: int | None = None
    usage: Usage | None = None
    # Canonical ids of the steered inputs that the turn took in.
    steered: list[str] = []


class RunFailed(Struct, frozen=True, gc=False):
    run_id: str
    fence: int
    kind: Literal["error", "released", "cancelled"]
    message: str = ""
    retryable: bool = True
    steered: list[str] = []


class ControlAck(Struct, frozen=True, gc=False):
    control_id: str
    result: Literal["ok", "not_running", "failed"]
    message: str = ""


class RunProgress(Struct, frozen=True, gc=False):
    run_id: str
    fence: int
    message: str = ""
    percent: int | None = None
    # Makes what watchers are shown of it; called only if there are any. See live.LiveEvent.
    bodies: Callable[[], list[bytes]] = list


class RunEvents(Struct, frozen=True, gc=False):
    run_id: str
    fence: int
    bodies: Callable[[], list[bytes]] = list


class Drain(Struct, frozen=True, gc=False):
    pass


class Detach(Struct, frozen=True, gc=False):
    pass


AgentFrame = (
    Hello
    | Heartbeat
    | Assigned
    | Declined
    | RunAccepted
    | RunResult
    | RunFailed
    | ControlAck
    | RunProgress
    | RunEvents
    | Drain
    | Detach
)


class Welcome(Struct, frozen=True, gc=False):
    """`attachment_id` is empty while the agent waits for its mob."""

    attachment_id: str
    log_id: str
    serves: list[ServeOutcome]
    resumed: bool
    terms: Terms


class Reject(Struct, frozen=True, gc=False):
    cause: Literal["unknown_role", "mob_destroyed", "mob_unavailable", "too_many_agents"]
    message: str
    # None: to try again is useless.
    retry_after_s: float | None = None


class HeartbeatAck(Struct, frozen=True, gc=False):
    pass


class Resync(Struct, frozen=True, gc=False):
    mob_id: str


class Goodbye(Struct, frozen=True, gc=False):
    reason: Literal["superseded", "draining", "revoked", "protocol", "slow"]
    message: str
    retry_after_s: float | None = None


ServerFrame = (
    Welcome
    | Reject
    | SendAssign
    | SendUnassign
    | SendStartRun
    | SendSteer
    | SendCancel
    | SendRetire
    | SendSettled
    | HeartbeatAck
    | Resync
    | Goodbye
)

_FRAME_BYTES: Final = 256
_INPUT_BYTES: Final = 192


def size_of(frame: ServerFrame) -> int:
    """Return about how many bytes a frame holds by itself. A profile is shared by all that name it."""
    if isinstance(frame, SendStartRun | SendSteer):
        return _FRAME_BYTES + sum(_INPUT_BYTES + memoryview(one.content).nbytes for one in frame.inputs)
    if isinstance(frame, SendAssign) and frame.context is not None:
        return _FRAME_BYTES + memoryview(frame.context).nbytes
    return _FRAME_BYTES
