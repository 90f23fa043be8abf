"""What decisions answer and what they release, as values.

An answer goes to the caller; those of mutations are stored as JSON beside the event, so that a repeated request gets
the same one. A reaction goes to an agent or back to the actor. Both are released only by the commit of their decision.
"""

from typing import Literal

from msgspec import Raw, Struct

from mobd_server.machines.state import (
    NOTHING,
    Kind,
    Lifecycle,
    MemberState,
    OperationKind,
    OperationStatus,
    Pending,
    Phase,
    Profile,
    Serve,
)


class Answer(Struct, gc=False, omit_defaults=True):
    """What a decision answers."""


class MobView(Answer, gc=False):
    """A mob as its callers see it; see Mob in mobs.proto."""

    mob_id: str
    phase: Phase
    pending: Pending
    labels: dict[str, str]
    # By state: idle, attached, running, destroyed.
    members: dict[str, int]
    head: int
    log_id: str
    definition: Raw
    created_at: int
    agents: int
    inputs_waiting: int
    cleanup_pending: bool = False
    active_run_count: int = 0


class MemberView(Answer, gc=False, tag="member"):
    """A member as its callers see it; see Member in members.proto."""

    mob_id: str
    member_id: str
    generation: int
    fence_token: int
    role: str
    state: MemberState
    session_id: str
    message_count: int
    digest: str
    created_at: int
    labels: dict[str, str] = {}
    context: Raw = NOTHING
    attachment_id: str | None = None
    host_id: str = ""
    run_id: str | None = None
    inputs_waiting: int = 0
    oldest_waiting_at: int = 0
    inputs_running: int = 0
    retry_at: int = 0
    last_output: str = ""
    last_error: str = ""
    lifecycle: Lifecycle = "active"
    # Of those that wait, how many are in the steer lane.
    inputs_steering: int = 0
    operation_id: str = ""
    initial_input_id: str = ""
    # Whether the input that it was spawned with has ended, or there was none.
    kickoff_complete: bool = True
    drain_until: int = 0


class MemberOutcome(Struct, frozen=True, gc=False):
    member_id: str
    inputs_abandoned: int
    inputs_pending_drain: int = 0


class MobReport(Answer, gc=False):
    """CompleteMob, ResetMob and RetireAllMembers: what was done so far. While `mob.pending` says so it goes on."""

    mob: MobView
    outcomes: list[MemberOutcome]


class Retired(Answer, gc=False):
    """A retirement: inputs that were abandoned, or that are still run. Never are both above zero."""

    inputs_abandoned: int = 0
    inputs_pending_drain: int = 0
    already: bool = False


class Destroyed(Answer, gc=False):
    """The destruction of one member's runtime."""

    inputs_abandoned: int = 0
    already: bool = False


class Respawned(Answer, gc=False):
    member: MemberView
    previous_generation: int
    previous_fence_token: int
    inputs_abandoned: int = 0


class CancelAnswer(Answer, gc=False):
    """`requested`: the run with `run_id` is asked to end. Else there was nothing to do."""

    outcome: Literal["requested", "nothing_to_interrupt", "already_terminal"]
    run_id: str = ""


class DestroyAnswer(Answer, gc=False):
    """A destruction: `done` is False for the answer of the decision that only began it."""

    mob: MobView
    outcomes: list[MemberOutcome]
    inputs_abandoned: int = 0
    done: bool = False
    already: bool = False


class SpawnRefusal(Struct, frozen=True, gc=False, tag="refused"):
    reason: str
    message: str


class SpawnedMembers(Answer, gc=False):
    """One entry for each spec, in order."""

    results: list[MemberView | SpawnRefusal]


class EnsuredMember(Answer, gc=False):
    member: MemberView
    spawned: bool


class Accepted(Answer, gc=False, tag="accepted"):
    input_id: str
    canonical_input_id: str
    attachment_id: str | None
    seq: int


class Deduplicated(Answer, gc=False, tag="deduplicated"):
    canonical_input_id: str
    terminal: bool


class Rejected(Answer, gc=False, tag="rejected"):
    cause: Literal[
        "not_ready", "queue_full", "stale_fence", "content_conflict", "input_forgotten", "handling_mode_invalid"
    ]
    reason: str
    state: MemberState | None = None
    generation: int | None = None
    fence_token: int | None = None
    retry_after_ms: int = 0
    canonical_input_id: str = ""


class UnknownMember(Answer, gc=False, tag="unknown_member"):
    member_id: str


Delivered = Accepted | Deduplicated | Rejected | UnknownMember


class BatchDelivered(Answer, gc=False):
    outcomes: list[Delivered]


class ServeOutcome(Struct, frozen=True, gc=False):
    serve: Serve
    assigned: int = 0
    waiting: str = ""


class Attached(Answer, gc=False):
    attachment_id: str
    resumed: bool
    log_id: str
    serves: list[ServeOutcome]


class AttachRefused(Answer, gc=False):
    cause: Literal["unknown_role", "mob_destroyed", "too_many_agents", "superseded"]
    message: str


class Done(Answer, gc=False):
    """The command changed something, or there was nothing to change."""

    changed: bool = True


class RunAnswer(Answer, gc=False):
    """What became of an agent's result: `conflict` means that the run was settled with another result."""

    disposition: Literal["committed", "duplicate", "requeued", "cancelled", "abandoned", "fenced", "conflict"]


class OperationView(Answer, gc=False):
    """An operation as its callers see it; see Operation in operations.proto. Also the JSON of its row."""

    operation_id: str
    kind: OperationKind
    owner: str
    status: OperationStatus
    display_name: str
    created_seq: int
    updated_seq: int
    created_at: int
    member_id: str = ""
    peer_ready: bool = False
    peer_handle: Raw = NOTHING
    progress_count: int = 0
    progress_message: str = ""
    progress_percent: int | None = None
    started_at: int = 0
    ended_at: int = 0
    result: Raw = NOTHING
    is_error: bool = False
    error: str = ""
    reason: str = ""
    completion_seq: int = 0


class Reaction(Struct, frozen=True, gc=False):
    """What a commit releases."""


class Again(Reaction, frozen=True, gc=False):
    """Ask the mob to `Continue`."""


class AgentReaction(Reaction, frozen=True, gc=False):
    """What goes to an agent."""

    attachment_id: str


class SendAssign(AgentReaction, frozen=True, gc=False):
    member_id: str
    fence: int
    confirmed: bool
    profile: Profile
    context: Raw | None
    generation: int
    fence_token: int
    session_id: str
    message_count: int
    digest: str


class SendUnassign(AgentReaction, frozen=True, gc=False):
    member_id: str
    fence: int
    reason: str


class RunInput(Struct, frozen=True, gc=False):
    canonical_input_id: str
    input_id: str
    content: Raw
    sender: str
    attempt: int
    kind: Kind = "peer_message"
    correlation_id: str = ""
    about: Raw = NOTHING


class SendStartRun(AgentReaction, frozen=True, gc=False):
    run_id: str
    fence: int
    member_id: str
    inputs: list[RunInput]
    traceparent: str | None
    # See state.Stamp.
    boundary: str = "run_start"
    execution: str = "content_turn"
    intent: str = "none"
    # By when it must end, by the server's clock (µs); 0: never.
    deadline: int = 0


class SendSteer(AgentReaction, frozen=True, gc=False):
    """More inputs for a run in flight. Sent again when the agent comes back: it knows those that it has."""

    run_id: str
    fence: int
    member_id: str
    inputs: list[RunInput]


class SendCancel(AgentReaction, frozen=True, gc=False):
    """End a run: at its next boundary, or at once if `hard`. Sent again when the agent comes back."""

    run_id: str
    fence: int
    member_id: str
    control_id: str
    hard: bool
    reason: str


class SendRetire(AgentReaction, frozen=True, gc=False):
    """A member that the agent serves is retired; with `drain` it still runs what it has."""

    member_id: str
    fence: int
    drain: bool


class SendSettled(AgentReaction, frozen=True, gc=False):
    run_id: str
    disposition: Literal["committed", "duplicate", "requeued", "cancelled", "abandoned", "fenced"]


class EndStream(AgentReaction, frozen=True, gc=False):
    """Say Goodbye to the agent's stream and end it."""

    reason: Literal["superseded", "revoked", "protocol"]
    message: str
