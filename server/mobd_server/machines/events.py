"""The facts of a mob's log. Each class is one kind in one version; its fields are the stored payload.

An event carries results (the chosen batch, ids, times), never inputs to compute them again. A changed meaning is a new
kind. Times are integers: microseconds since 1970, UTC.
"""

from typing import ClassVar, Final, Literal

from msgspec import Raw, Struct

from mobd_server.machines.state import (
    CONTENT_TURN,
    NOTHING,
    Boundary,
    CancelledBy,
    Definition,
    Kind,
    Lane,
    OperationKind,
    OperationStatus,
    Serve,
    Stamp,
    Usage,
)

Settled = Literal["committed", "failed", "cancelled", "lost", "released", "abandoned"]
# `returned` is a steered input that was not taken in: it waits again, and that was no attempt.
Ended = Literal["consumed", "requeued", "requeued_behind", "returned", "abandoned"]


class Event(Struct, frozen=True, gc=False, omit_defaults=True):
    """A fact."""

    kind: ClassVar[str] = ""
    v: ClassVar[int] = 1


class MobCreated(Event, frozen=True, gc=False):
    """The mob exists; it runs only after mob_started."""

    kind: ClassVar[str] = "mob_created"
    definition: Definition
    log_id: str
    labels: dict[str, str] = {}


class MobStarted(Event, frozen=True, gc=False):
    """The mob runs: what waits is dispatched."""

    kind: ClassVar[str] = "mob_started"


class MobStopped(Event, frozen=True, gc=False):
    """Nothing new is dispatched; runs in flight settle, and inputs wait."""

    kind: ClassVar[str] = "mob_stopped"


class MobResumed(Event, frozen=True, gc=False):
    """A stopped mob runs again."""

    kind: ClassVar[str] = "mob_resumed"


class MobDestroying(Event, frozen=True, gc=False):
    """The destruction was admitted; from here on only it goes on."""

    kind: ClassVar[str] = "mob_destroying"


class MobDestroyed(Event, frozen=True, gc=False):
    """The mob has ended for good; no event follows."""

    kind: ClassVar[str] = "mob_destroyed"
    members: int
    inputs_abandoned: int


class MobCompleting(Event, frozen=True, gc=False):
    """The completion was admitted: every member is retired, and the mob completes when the last one is gone."""

    kind: ClassVar[str] = "mob_completing"


class MobCompleted(Event, frozen=True, gc=False):
    """Every member has left the roster, and the mob has ended in order."""

    kind: ClassVar[str] = "mob_completed"


class MobResetting(Event, frozen=True, gc=False):
    """The reset was admitted: everything that the members had is abandoned, and they leave the roster."""

    kind: ClassVar[str] = "mob_resetting"


class MobCleanupBegun(Event, frozen=True, gc=False):
    """The reset takes the members off the roster."""

    kind: ClassVar[str] = "mob_cleanup_begun"


class MobCleanupFinished(Event, frozen=True, gc=False):
    """The reset has taken off the last member."""

    kind: ClassVar[str] = "mob_cleanup_finished"


class RetireAllBegun(Event, frozen=True, gc=False):
    """Every member is to be retired, a slice at a time."""

    kind: ClassVar[str] = "retire_all_begun"


class RetireAllFinished(Event, frozen=True, gc=False):
    """Every member was asked to retire; those with work drain."""

    kind: ClassVar[str] = "retire_all_finished"


class MemberSpawned(Event, frozen=True, gc=False):
    """A member is on the roster, with an operation and an empty transcript."""

    kind: ClassVar[str] = "member_spawned"
    member_id: str
    role: str
    generation: int
    fence_token: int
    session_id: str
    # Its operation, which begins with it, and whose registry that belongs to.
    operation_id: str
    owner: str = ""
    labels: dict[str, str] | None = None
    context: Raw = NOTHING
    # The canonical id of the input that follows with its initial message.
    initial_input_id: str = ""


class MemberRespawned(Event, frozen=True, gc=False):
    """The member has a new incarnation; the one before had neither agent, run nor waiting input left."""

    kind: ClassVar[str] = "member_respawned"
    member_id: str
    generation: int
    fence_token: int
    session_id: str
    operation_id: str
    owner: str = ""
    initial_input_id: str = ""
    # How many inputs of the incarnation before were abandoned.
    inputs_abandoned: int = 0


class RuntimeRetired(Event, frozen=True, gc=False):
    """The member's runtime accepts nothing more; what it counts as pending is still run."""

    kind: ClassVar[str] = "runtime_retired"
    member_id: str
    inputs_abandoned: int = 0
    inputs_pending_drain: int = 0


class MemberRetiring(Event, frozen=True, gc=False):
    """The member leaves the roster as soon as its runtime has drained."""

    kind: ClassVar[str] = "member_retiring"
    member_id: str


class MemberRetired(Event, frozen=True, gc=False):
    """The member has left the roster."""

    kind: ClassVar[str] = "member_retired"
    member_id: str
    generation: int
    # Former members that are remembered no longer.
    forgets: list[str] | None = None


class DrainSuspended(Event, frozen=True, gc=False):
    """A draining member has no agent; at `until` (µs) what it has is abandoned."""

    kind: ClassVar[str] = "drain_suspended"
    member_id: str
    until: int


class MemberDestroyed(Event, frozen=True, gc=False):
    """The member's runtime has ended for good; the member stays on the roster."""

    kind: ClassVar[str] = "member_destroyed"
    member_id: str
    inputs_abandoned: int


class AttachmentOpened(Event, frozen=True, gc=False):
    """An agent is attached and says whom it serves."""

    kind: ClassVar[str] = "attachment_opened"
    attachment_id: str
    host_id: str
    incarnation: str
    capacity: int
    max_members: int
    serves: list[Serve]
    # Whether the agent takes inputs into a run in flight.
    steers: bool = False


class AttachmentClosed(Event, frozen=True, gc=False):
    """The agent is gone: detached, lost, superseded or destroyed. It had no executor and no run left."""

    kind: ClassVar[str] = "attachment_closed"
    attachment_id: str
    reason: str


class ExecutorAssigned(Event, frozen=True, gc=False):
    """The member was given to an agent, which is asked to confirm."""

    kind: ClassVar[str] = "executor_assigned"
    member_id: str
    attachment_id: str
    executor_fence: int


class ExecutorConfirmed(Event, frozen=True, gc=False):
    """The agent serves the member."""

    kind: ClassVar[str] = "executor_confirmed"
    member_id: str
    attachment_id: str
    executor_fence: int


class ExecutorReleased(Event, frozen=True, gc=False):
    """The agent serves the member no longer, in order."""

    kind: ClassVar[str] = "executor_released"
    member_id: str
    attachment_id: str
    executor_fence: int
    reason: str = ""


class ExecutorLost(Event, frozen=True, gc=False):
    """The agent serves the member no longer: it is gone, or was fenced off."""

    kind: ClassVar[str] = "executor_lost"
    member_id: str
    attachment_id: str
    executor_fence: int
    reason: str = ""


class InputAccepted(Event, frozen=True, gc=False):
    """An input is stored."""

    kind: ClassVar[str] = "input_accepted"
    member_id: str
    input_id: str
    canonical_input_id: str
    content: Raw
    sender: str
    # Dedupe keys (hexadecimal) that this input pushed out.
    forgets: list[str] | None = None
    input_kind: Kind = "peer_message"
    lane: Lane = "queue"
    drives: bool = True
    stamp: Stamp = CONTENT_TURN
    supersession_key: str | None = None
    correlation_id: str | None = None
    about: Raw = NOTHING
    # It needs no run: it ended with its acceptance.
    consumed: bool = False


class InputSuperseded(Event, frozen=True, gc=False):
    """A newer input of the same kind and key took the place of a waiting one."""

    kind: ClassVar[str] = "input_superseded"
    member_id: str
    canonical_input_id: str
    by: str
    # Runs that were started with it.
    attempt: int = 0


class InputCoalesced(Event, frozen=True, gc=False):
    """A waiting input went up in a newer one of the same kind and key."""

    kind: ClassVar[str] = "input_coalesced"
    member_id: str
    canonical_input_id: str
    by: str
    # Runs that were started with it.
    attempt: int = 0


class InputAbandoned(Event, frozen=True, gc=False):
    """Waiting inputs were given up, outside a run."""

    kind: ClassVar[str] = "input_abandoned"
    member_id: str
    canonical_input_ids: list[str]
    reason: str
    # Of each of them, the runs that were started with it; left out where none was started with any.
    attempts: list[int] = []


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
    # From which lane the batch was taken, and the stamp that its inputs share.
    lane: Lane = "queue"
    stamp: Stamp = CONTENT_TURN
    # When it must have ended (µs); 0: never.
    deadline: int = 0


class RunSteered(Event, frozen=True, gc=False):
    """Inputs of the steer lane were given to the run in flight."""

    kind: ClassVar[str] = "run_steered"
    member_id: str
    run_id: str
    canonical_input_ids: list[str]
    attempts: list[int]


class RunCancelRequested(Event, frozen=True, gc=False):
    """A run is to end: at its next boundary, or at once if `hard`. A deadline names when it takes its next step."""

    kind: ClassVar[str] = "run_cancel_requested"
    member_id: str
    run_id: str
    control_id: str
    hard: bool = False
    by: CancelledBy = "caller"
    reason: str = ""
    deadline: int = 0


class RunResent(Event, frozen=True, gc=False):
    """The run was sent again to its agent, which did not have it."""

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
    # With consumed: the boundary at which it was applied; 0 is the run's own, 1 and more those of steered inputs.
    sequence: int = 0


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
    # With `committed`: where the run's own inputs were applied, by their stamp.
    boundary: Boundary = "run_start"


class RetryDue(Event, frozen=True, gc=False):
    """The pause after a failed attempt is over."""

    kind: ClassVar[str] = "retry_due"
    member_id: str


class OperationRegistered(Event, frozen=True, gc=False):
    """An operation exists, provisioning."""

    kind: ClassVar[str] = "operation_registered"
    operation_id: str
    operation_kind: OperationKind
    owner: str
    display_name: str
    member_id: str = ""
    expect_peer_channel: bool = False


class OperationStarted(Event, frozen=True, gc=False):
    """The operation runs."""

    kind: ClassVar[str] = "operation_started"
    operation_id: str


class OperationPeerReady(Event, frozen=True, gc=False):
    """The operation's peer can be spoken to."""

    kind: ClassVar[str] = "operation_peer_ready"
    operation_id: str
    handle: Raw = NOTHING


class OperationProgressed(Event, frozen=True, gc=False):
    """The operation has come further."""

    kind: ClassVar[str] = "operation_progressed"
    operation_id: str
    message: str = ""
    percent: int | None = None


class OperationRetiring(Event, frozen=True, gc=False):
    """The operation drains: its member retires."""

    kind: ClassVar[str] = "operation_retiring"
    operation_id: str


class OperationEnded(Event, frozen=True, gc=False):
    """The operation has ended, as its status says."""

    kind: ClassVar[str] = "operation_ended"
    operation_id: str
    status: OperationStatus
    result: Raw = NOTHING
    is_error: bool = False
    error: str = ""
    reason: str = ""


EVENT_TYPES: Final[tuple[type[Event], ...]] = (
    MobCreated,
    MobStarted,
    MobStopped,
    MobResumed,
    MobDestroying,
    MobDestroyed,
    MobCompleting,
    MobCompleted,
    MobResetting,
    MobCleanupBegun,
    MobCleanupFinished,
    RetireAllBegun,
    RetireAllFinished,
    MemberSpawned,
    MemberRespawned,
    RuntimeRetired,
    MemberRetiring,
    MemberRetired,
    DrainSuspended,
    MemberDestroyed,
    AttachmentOpened,
    AttachmentClosed,
    ExecutorAssigned,
    ExecutorConfirmed,
    ExecutorReleased,
    ExecutorLost,
    InputAccepted,
    InputSuperseded,
    InputCoalesced,
    InputAbandoned,
    RunStarted,
    RunSteered,
    RunCancelRequested,
    RunResent,
    RunSettled,
    RetryDue,
    OperationRegistered,
    OperationStarted,
    OperationPeerReady,
    OperationProgressed,
    OperationRetiring,
    OperationEnded,
)
BY_KIND: Final[dict[tuple[str, int], type[Event]]] = {(t.kind, t.v): t for t in EVENT_TYPES}
