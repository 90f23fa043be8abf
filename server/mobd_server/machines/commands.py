"""What a mob can be asked to do. `decide` turns each into events and an answer, or refuses.

Ids and hashes that come from a request are in the command; time, new ids and the set of connected agents come with the
`Context`. Nothing here is stored.
"""

from collections.abc import Container
from typing import Literal, Protocol

from msgspec import Raw, Struct

from mobd_server.machines.state import Definition, Serve, Usage


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


class SpawnMember(Command, gc=False):
    spec: MemberSpec


class SpawnMembers(Command, gc=False):
    specs: list[MemberSpec]


class EnsureMember(Command, gc=False):
    spec: MemberSpec


class Deliver(Command, gc=False):
    """Deliver one input; `content` is the canonical JSON of its blocks."""

    member_id: str
    input_id: str
    content: Raw
    generation: int | None = None
    fence_token: int | None = None


class DeliverBatch(Command, gc=False):
    deliveries: list[Deliver]


class Attach(Command, gc=False):
    """An agent said Hello. `held` are the runs that it says it still holds."""

    host_id: str
    incarnation: str
    capacity: int
    max_members: int
    serves: list[Serve]
    resume: str | None = None
    held: list[str] = []


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


class FailRun(Command, gc=False):
    """An agent's failure, or its giving back."""

    attachment_id: str
    run_id: str
    fence: int
    kind: Literal["error", "released"]
    message: str = ""
    retryable: bool = True


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
