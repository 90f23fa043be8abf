"""What a mob can be asked to do. `decide` turns each into events and an answer, or refuses.

Ids and hashes that come from a request are in the command; time, new ids and the set of connected agents come with the
`Context`. Nothing here is stored.
"""

from collections.abc import Container
from typing import Literal, Protocol

from msgspec import Raw, Struct

from mobd_server.machines.state import (
    NOTHING,
    Definition,
    Kind,
    Lane,
    OperationKind,
    Serve,
    Usage,
)


class Ids(Protocol):
    """Makes ids: never one twice, in the order of their creation."""

    def new(self, prefix: str) -> str:
        """Return a new id that begins with `prefix`."""


class Context(Struct, gc=False):
    """Everything that a decision may know beside the state and the command."""

    # Microseconds since 1970, UTC.
    now: int
    ids: Ids
    # The attachments that are connected and want work.
    connected: Container[str] = frozenset()
    principal: str = "anonymous"
    traceparent: str | None = None
    request_id: str | None = None
    # Hexadecimal SHA-256 of method and canonical request; given with request_id.
    request_hash: str | None = None
    # Decide, say what would be appended, and leave no trace.
    validate_only: bool = False
    # The run as whose agent the caller acts, and the fence of its executor; it must be in flight.
    acting: tuple[str, int] | None = None


class Command(Struct, gc=False):
    """What a mob is asked to do."""


class CreateMob(Command, gc=False):
    definition: Definition
    labels: dict[str, str]
    log_id: str
    start: bool = True


class StartMob(Command, gc=False):
    pass


class StopMob(Command, gc=False):
    pass


class ResumeMob(Command, gc=False):
    pass


class CompleteMob(Command, gc=False):
    pass


class ResetMob(Command, gc=False):
    pass


class DestroyMob(Command, gc=False):
    pass


class Continue(Command, gc=False):
    """Go on with what is pending or could not be done in one decision."""


class Wake(Command, gc=False):
    """Look at the clock: what is due by `Context.now`."""


class MemberSpec(Struct, frozen=True, gc=False):
    member_id: str
    role: str
    labels: dict[str, str] | None = None
    context: Raw | None = None
    # The canonical JSON of the content of the prompt that it begins with.
    initial_message: Raw | None = None


class SpawnMember(Command, gc=False):
    spec: MemberSpec


class SpawnMembers(Command, gc=False):
    specs: list[MemberSpec]


class EnsureMember(Command, gc=False):
    spec: MemberSpec


class RetireMember(Command, gc=False):
    """Retire a member and take it off the roster once it has drained; a member that is not there is no error."""

    member_id: str
    generation: int | None = None
    fence_token: int | None = None
    # Ask the run in flight to end at its next boundary.
    interrupt_first: bool = False


class RespawnMember(Command, gc=False):
    """Replace a member's incarnation: what the old one had is abandoned."""

    member_id: str
    generation: int | None = None
    fence_token: int | None = None
    initial_message: Raw | None = None


class RetireAllMembers(Command, gc=False):
    pass


class Deliver(Command, gc=False):
    """Deliver one input; `content` is the canonical JSON of its blocks."""

    member_id: str
    input_id: str
    content: Raw
    generation: int | None = None
    fence_token: int | None = None
    # None: as its kind is handled.
    handling_mode: Lane | None = None
    wake: bool = True
    supersession_key: str | None = None
    correlation_id: str | None = None
    kind: Kind = "peer_message"
    # Of a peer request: what it asks for.
    intent: str = ""
    # What its kind knows beside the content, as a JSON object.
    about: Raw = NOTHING


class DeliverBatch(Command, gc=False):
    deliveries: list[Deliver]


class Interrupt(Command, gc=False):
    """Ask the run in flight to end at its next boundary; never cancels hard."""

    member_id: str
    # Only this run, if given.
    run_id: str | None = None
    generation: int | None = None
    fence_token: int | None = None
    reason: str = ""


class HardCancel(Command, gc=False):
    """End a run at once: an agent that does not answer is fenced off."""

    member_id: str
    run_id: str
    generation: int | None = None
    fence_token: int | None = None
    reason: str = ""


class RetireRuntime(Command, gc=False):
    """The bridge's Retire: the runtime accepts nothing more and drains; the member stays on the roster."""

    member_id: str
    generation: int | None = None
    fence_token: int | None = None


class DestroyRuntime(Command, gc=False):
    """The bridge's Destroy: everything is abandoned and the executor fenced; the member stays on the roster."""

    member_id: str
    generation: int | None = None
    fence_token: int | None = None


class Attach(Command, gc=False):
    """An agent said Hello. `held` are the runs that it says it still holds."""

    host_id: str
    incarnation: str
    capacity: int
    max_members: int
    serves: list[Serve]
    resume: str | None = None
    held: list[str] = []
    steers: bool = False


class Confirm(Command, gc=False):
    attachment_id: str
    member_id: str
    fence: int


class Decline(Command, gc=False):
    attachment_id: str
    member_id: str
    fence: int
    reason: str = ""


class SettleRun(Command, gc=False):
    """An agent's result. `digest` and `message_count` are those of the transcript with `messages` added."""

    attachment_id: str
    run_id: str
    fence: int
    output: Raw
    result_hash: bytes
    messages: list[Raw] = []
    message_count: int = 0
    digest: str = ""
    usage: Usage | None = None
    # The canonical ids of the steered inputs that it took in, in order.
    steered: list[str] = []


class FailRun(Command, gc=False):
    """An agent's failure, or its giving back."""

    attachment_id: str
    run_id: str
    fence: int
    kind: Literal["error", "cancelled", "released"]
    message: str = ""
    retryable: bool = True
    steered: list[str] = []


class CancelUnsent(Command, gc=False):
    """The hub took back a run that its agent was never sent, because it is to be cancelled."""

    attachment_id: str
    run_id: str
    fence: int


class FenceOff(Command, gc=False):
    """The agent did not acknowledge a hard cancel, or could not obey it: take the run and the member from it."""

    attachment_id: str
    run_id: str
    fence: int
    control_id: str
    reason: str


class ReportRunProgress(Command, gc=False):
    """An agent's progress with a run in flight: the progress of its member's operation."""

    attachment_id: str
    run_id: str
    fence: int
    message: str = ""
    percent: int | None = None


class LoseRun(Command, gc=False):
    """The hub found that the agent does not hold the run: not accepted in time, or missing from two heartbeats."""

    attachment_id: str
    run_id: str
    fence: int
    reason: str


class DrainAttachment(Command, gc=False):
    """The agent wants no more work: give its idle members to others."""

    attachment_id: str


class CloseAttachment(Command, gc=False):
    """The agent is gone: `detached` gives its runs back unharmed, `lost` ends their attempts."""

    attachment_id: str
    reason: Literal["detached", "lost"]


class RegisterOperation(Command, gc=False):
    """Register an operation in the registry of `owner`: a member's id, or "" for the mob's own."""

    operation_id: str
    display_name: str
    owner: str = ""
    kind: OperationKind = "background_tool"
    # Of a member's life: the member.
    member_id: str = ""
    expect_peer_channel: bool = False
    # It runs already: nothing has to be prepared.
    running: bool = False
    # The store knows one of that name, which ended so long ago that the state does not.
    taken: bool = False


class MoveOperation(Command, gc=False):
    """Take one step of runtime §5.2 with an operation; what else is given belongs to the step."""

    operation_id: str
    action: Literal[
        "provisioning_succeeded",
        "provisioning_failed",
        "abort_provisioning",
        "peer_ready",
        "report_progress",
        "complete",
        "fail",
        "cancel",
        "request_retire",
        "mark_retired",
    ]
    message: str = ""
    percent: int | None = None
    handle: Raw = NOTHING
    result: Raw = NOTHING
    is_error: bool = False


class TerminateOwner(Command, gc=False):
    """End every operation of an owner's registry."""

    owner: str
    reason: str
