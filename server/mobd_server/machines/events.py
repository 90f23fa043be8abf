"""The facts of a mob's log. Each class is one kind in one version; its fields are the stored payload.

An event carries results (the chosen batch, ids, times), never inputs to compute them again. A changed meaning is a new
kind. Times are integers: microseconds since 1970, UTC.
"""

from typing import ClassVar, Final, Literal

from msgspec import Raw, Struct

from mobd_server.machines.state import NOTHING, Definition, Serve, Usage

Settled = Literal["committed", "failed", "lost", "released", "abandoned"]
Ended = Literal["consumed", "requeued", "requeued_behind", "abandoned"]


class Event(Struct, frozen=True, gc=False, omit_defaults=True):
    """A fact."""

    kind: ClassVar[str] = ""
    v: ClassVar[int] = 1


class MobCreated(Event, frozen=True, gc=False):
    kind: ClassVar[str] = "mob_created"
    definition: Definition
    log_id: str
    labels: dict[str, str] = {}


class MobStarted(Event, frozen=True, gc=False):
    kind: ClassVar[str] = "mob_started"


class MobStopped(Event, frozen=True, gc=False):
    kind: ClassVar[str] = "mob_stopped"


class MobResumed(Event, frozen=True, gc=False):
    kind: ClassVar[str] = "mob_resumed"


class MobDestroying(Event, frozen=True, gc=False):
    """The destruction was admitted; from here on only it goes on."""

    kind: ClassVar[str] = "mob_destroying"


class MobDestroyed(Event, frozen=True, gc=False):
    kind: ClassVar[str] = "mob_destroyed"
    members: int
    inputs_abandoned: int


class MemberSpawned(Event, frozen=True, gc=False):
    kind: ClassVar[str] = "member_spawned"
    member_id: str
    role: str
    generation: int
    fence_token: int
    session_id: str
    labels: dict[str, str] | None = None
    context: Raw = NOTHING


class MemberDestroyed(Event, frozen=True, gc=False):
    kind: ClassVar[str] = "member_destroyed"
    member_id: str
    inputs_abandoned: int


class AttachmentOpened(Event, frozen=True, gc=False):
    kind: ClassVar[str] = "attachment_opened"
    attachment_id: str
    host_id: str
    incarnation: str
    capacity: int
    max_members: int
    serves: list[Serve]


class AttachmentClosed(Event, frozen=True, gc=False):
    """The agent is gone: detached, lost, superseded or destroyed. It had no executor and no run left."""

    kind: ClassVar[str] = "attachment_closed"
    attachment_id: str
    reason: str


class ExecutorAssigned(Event, frozen=True, gc=False):
    kind: ClassVar[str] = "executor_assigned"
    member_id: str
    attachment_id: str
    executor_fence: int


class ExecutorConfirmed(Event, frozen=True, gc=False):
    kind: ClassVar[str] = "executor_confirmed"
    member_id: str
    attachment_id: str
    executor_fence: int


class ExecutorReleased(Event, frozen=True, gc=False):
    kind: ClassVar[str] = "executor_released"
    member_id: str
    attachment_id: str
    executor_fence: int
    reason: str = ""


class ExecutorLost(Event, frozen=True, gc=False):
    kind: ClassVar[str] = "executor_lost"
    member_id: str
    attachment_id: str
    executor_fence: int
    reason: str = ""


class InputAccepted(Event, frozen=True, gc=False):
    kind: ClassVar[str] = "input_accepted"
    member_id: str
    input_id: str
    canonical_input_id: str
    content: Raw
    sender: str
    # Dedupe keys (hexadecimal) that this input pushed out.
    forgets: list[str] | None = None


class InputAbandoned(Event, frozen=True, gc=False):
    """Waiting inputs were given up, outside a run."""

    kind: ClassVar[str] = "input_abandoned"
    member_id: str
    canonical_input_ids: list[str]
    reason: str


class RunStarted(Event, frozen=True, gc=False):
    """The first inputs of the member's queue were taken as one batch and given to its agent."""

    kind: ClassVar[str] = "run_started"
    member_id: str
    run_id: str
    attachment_id: str
    executor_fence: int
    canonical_input_ids: list[str]
    attempts: list[int]
    exclusive: bool = False


class RunResent(Event, frozen=True, gc=False):
    kind: ClassVar[str] = "run_resent"
    member_id: str
    run_id: str
    count: int


class Outcome(Struct, frozen=True, gc=False, omit_defaults=True):
    """What became of one input of a run."""

    canonical_input_id: str
    outcome: Ended
    reason: str = ""
    # Which attempt of the input this run was.
    attempt: int = 0


class RunSettled(Event, frozen=True, gc=False):
    """A run ended. With `committed` the output, the receipt and the transcript's new length are given."""

    kind: ClassVar[str] = "run_settled"
    member_id: str
    run_id: str
    state: Settled
    outcomes: list[Outcome]
    output: Raw = NOTHING
    usage: Usage | None = None
    error: str = ""
    message_count: int = 0
    digest: str = ""
    # Hexadecimal SHA-256 of output and messages: a result that is sent again is compared with it.
    result_hash: str = ""
    retry_at: int = 0


class RetryDue(Event, frozen=True, gc=False):
    """The pause after a failed attempt is over."""

    kind: ClassVar[str] = "retry_due"
    member_id: str


EVENT_TYPES: Final[tuple[type[Event], ...]] = (
    MobCreated,
    MobStarted,
    MobStopped,
    MobResumed,
    MobDestroying,
    MobDestroyed,
    MemberSpawned,
    MemberDestroyed,
    AttachmentOpened,
    AttachmentClosed,
    ExecutorAssigned,
    ExecutorConfirmed,
    ExecutorReleased,
    ExecutorLost,
    InputAccepted,
    InputAbandoned,
    RunStarted,
    RunResent,
    RunSettled,
    RetryDue,
)
BY_KIND: Final[dict[tuple[str, int], type[Event]]] = {(t.kind, t.v): t for t in EVENT_TYPES}
