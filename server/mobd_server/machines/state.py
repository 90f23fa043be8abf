"""The state of one mob: what the events of its log add up to.

Plain values without behaviour and without cycles. Only `evolve` writes them, through an `Undo`. No meaning lies in the
order of a dict; orders are lists and numbers. Containers that most members never need are None until first use.
"""

from typing import Final, Literal

from msgspec import Raw, Struct

Phase = Literal["creating", "running", "stopped", "completed", "destroyed"]
# What a command that works in slices, or waits for runs in flight, still has to do.
Pending = Literal["none", "complete", "reset", "retire_all", "destroy"]
MemberState = Literal["initializing", "idle", "attached", "running", "retired", "stopped", "destroyed"]
# Whether a member belongs to the roster, or leaves it as soon as what it has is done.
Lifecycle = Literal["active", "retiring"]
Lane = Literal["queue", "steer"]
Kind = Literal[
    "prompt",
    "peer_message",
    "peer_request",
    "peer_response_progress",
    "peer_response_terminal",
    "flow_step",
    "external_event",
    "continuation",
    "operation",
]
# Where a run's inputs are applied, how the run is executed, and what a terminal response asks for (runtime §2.7).
Boundary = Literal["run_start", "run_checkpoint"]
Execution = Literal["content_turn", "resume_pending"]
Intent = Literal["none", "append_context_and_run"]
# Whether somebody asked to cancel a run, and how hard.
Cancel = Literal["none", "boundary", "hard"]
# Who asked: a caller, or the run's deadline. What only a deadline cancelled is a failed attempt and may be repeated.
CancelledBy = Literal["caller", "deadline"]
# What a mob's clock is looked at for: a pause of a member after a failure, a deadline of a run, the time for which a
# draining member may be without an agent.
Due = Literal["retry", "deadline", "drain"]
OperationKind = Literal["mob_member_child", "background_tool"]
OperationStatus = Literal[
    "provisioning", "running", "retiring", "completed", "failed", "aborted", "cancelled", "retired", "terminated"
]
# Where a member stands in the lists of those who wait: in none, for an agent, or for a free run of its agent.
Listed = Literal["none", "waiting", "ready"]

PHASES: Final[tuple[Phase, ...]] = ("creating", "running", "stopped", "completed", "destroyed")

MAX_ATTEMPTS: Final = 3
MAX_RESENDS: Final = 3
BACKOFF_US: Final = (1_000_000, 10_000_000)
RECEIPTS_KEPT: Final = 16
SUPERSEDED_KEPT: Final = 256
# Each step that follows a missed deadline: cancel at the boundary, cancel hard, give the attempt up.
DEADLINE_STEP_US: Final = 10_000_000
# For how long a draining member that lost its agent waits for another one.
DRAIN_US: Final = 60_000_000
OPERATIONS_KEPT: Final = 256
# The digest of a transcript without messages: SHA-256 of "[]".
EMPTY_DIGEST: Final = "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"


# No JSON at all. A default that is this object is left out when it is encoded, and comes back as this object; what is
# declared `Raw | None` can be written and not be read.
NOTHING: Final = Raw()


class Profile(Struct, frozen=True, gc=False, omit_defaults=True):
    """What a role is."""

    role: str
    instructions: str = ""
    labels: dict[str, str] = {}
    context: Raw = NOTHING
    # Intents of peer requests that never start a run by themselves.
    silent_intents: list[str] = []
    # How long a run may take, in seconds; 0: as long as it wants.
    run_timeout_s: int = 0


class Definition(Struct, frozen=True, gc=False, omit_defaults=True):
    """What a mob is, as stored: the canonical form of the document."""

    id: str = ""
    description: str = ""
    labels: dict[str, str] = {}
    profiles: dict[str, Profile] = {}


class Serve(Struct, frozen=True, gc=False, omit_defaults=True):
    """A standing interest of an agent: one member by name, or any of a role. Exactly one is given."""

    member_id: str | None = None
    role: str | None = None


class Usage(Struct, frozen=True, gc=False, omit_defaults=True):
    """What a run used, as its agent said."""

    input_tokens: int = 0
    output_tokens: int = 0
    detail: Raw = NOTHING


class Stamp(Struct, frozen=True, gc=False):
    """What was decided about an input when it was accepted: only inputs with the same stamp share a run."""

    boundary: Boundary = "run_start"
    execution: Execution = "content_turn"
    intent: Intent = "none"


CONTENT_TURN: Final = Stamp()


class Input(Struct, gc=False, omit_defaults=True):
    """An input that has not ended."""

    canonical_input_id: str
    input_id: str
    key: str
    content: Raw
    size: int
    sender: str
    seq: int
    at: int
    traceparent: str | None = None
    # Runs started with it, those that were given back unharmed not counted. While it waits: failed attempts.
    attempts: int = 0
    # How many of those attempts ended because their agent was lost.
    losses: int = 0
    kind: Kind = "peer_message"
    lane: Lane = "queue"
    # Whether it makes a member run; one that does not is carried along by others.
    drives: bool = True
    stamp: Stamp = CONTENT_TURN
    supersession_key: str | None = None
    correlation_id: str | None = None
    # What its kind knows beside the content, as a JSON object: intent, request_id, status, event_type.
    about: Raw = NOTHING


class Many(Struct, gc=False):
    """What is remembered of many inputs that have ended: entries by key, and their keys in the order of their ends.

    machines/keys.py says what an entry is.
    """

    records: dict[str, bytes]
    order: bytearray


class Executor(Struct, gc=False):
    """The agent that serves a member."""

    attachment_id: str
    fence: int
    confirmed: bool = False


class Member(Struct, gc=False, omit_defaults=True):
    """One incarnation of a member."""

    member_id: str
    role: str
    generation: int
    fence_token: int
    session_id: str
    created_at: int
    state: MemberState = "initializing"
    labels: dict[str, str] | None = None
    context: Raw = NOTHING
    executor: Executor | None = None
    run_id: str | None = None
    # Waiting inputs by lane; `queue_bytes` are those of both.
    queue: list[Input] | None = None
    steer: list[Input] | None = None
    queue_bytes: int = 0
    # What is remembered of inputs that have not ended, by key, and of those that have (machines/keys.py).
    live: dict[str, bytes] | None = None
    ended: Many | bytes = b""
    # Inputs accepted up to this time (µs) may have been forgotten.
    forgotten_at: int = 0
    message_count: int = 0
    digest: str = EMPTY_DIGEST
    # Runs whose receipts are kept, oldest first.
    receipts: tuple[str, ...] = ()
    # The member's head input failed and is not tried again before this time (µs); 0 if it may run.
    retry_at: int = 0
    listed: Listed = "none"
    listed_at: int = 0
    # The event in which it last got work or finished some.
    active_seq: int = 0
    last_output: str = ""
    last_error: str = ""
    # How many inputs its retirement or destruction abandoned.
    inputs_abandoned: int = 0
    lifecycle: Lifecycle = "active"
    # Until when it may drain without an agent (µs); 0 while it has one, or does not drain.
    drain_until: int = 0
    # Its operation, and the canonical id of the input that it was spawned with.
    operation_id: str = ""
    initial_input_id: str = ""


class Former(Struct, gc=False):
    """What is remembered of a member that has left the roster, so that nothing delivered to it runs twice."""

    member_id: str
    role: str
    generation: int
    left_at: int
    ended: Many | bytes = b""
    forgotten_at: int = 0


class Run(Struct, gc=False):
    """A run in flight."""

    run_id: str
    member_id: str
    attachment_id: str
    host_id: str
    fence: int
    inputs: list[Input]
    attempts: list[int]
    seq: int
    at: int
    resent: int = 0
    exclusive: bool = False
    stamp: Stamp = CONTENT_TURN
    # Inputs that were steered into it, in order, with their attempts; no list until the first.
    steered: list[Input] | None = None
    steered_attempts: list[int] | None = None
    cancel: Cancel = "none"
    cancelled_by: CancelledBy = "caller"
    cancel_reason: str = ""
    # The newest request to cancel it, by which its agent acknowledges.
    control_id: str = ""
    # When it must have ended, or the next step against it is due (µs); 0: never.
    deadline: int = 0


class Attachment(Struct, gc=False):
    """An agent that is attached; whether it is connected is not a fact and not here."""

    attachment_id: str
    host_id: str
    incarnation: str
    capacity: int
    max_members: int
    serves: list[Serve]
    roles: list[str]
    names: list[str]
    seq: int
    at: int
    members: dict[str, int]
    runs: list[str]
    # Members with work that wait for a free run, sorted: (seq since when, member_id).
    ready: list[tuple[int, str]]
    # The run that must be alone on this agent, if there is one.
    exclusive: str | None = None
    # Whether it takes inputs into a run in flight.
    steers: bool = False


class Operation(Struct, gc=False, omit_defaults=True):
    """A long-lived operation: a member's life, or a tool that works in the background."""

    operation_id: str
    kind: OperationKind
    # Whose registry it belongs to: a member's id, or "" for the mob's own.
    owner: str
    display_name: str
    created_seq: int
    created_at: int
    # The member that it is the life of.
    member_id: str = ""
    status: OperationStatus = "provisioning"
    expect_peer_channel: bool = False
    peer_ready: bool = False
    peer_handle: Raw = NOTHING
    progress_count: int = 0
    progress_message: str = ""
    progress_percent: int | None = None
    updated_seq: int = 0
    started_at: int = 0
    ended_at: int = 0
    result: Raw = NOTHING
    is_error: bool = False
    error: str = ""
    reason: str = ""
    # Its place among those that ended: 1 is the first; 0 while it has not.
    completion_seq: int = 0


class Report(Struct, frozen=True, gc=False):
    """What the pending or last command that works in slices did to one member."""

    member_id: str
    inputs_abandoned: int = 0
    inputs_pending_drain: int = 0


class Ledger(Struct, gc=False):
    """A request that appended, by its caller's key; the answer is in the row at `seq`."""

    request_hash: str
    seq: int
    at: int


class Mob(Struct, gc=False):
    """The aggregate."""

    mob_id: str
    phase: Phase = "creating"
    # Flow runs only (api §8).
    active_run_count: int = 0
    cleanup_pending: bool = False
    pending: Pending = "none"
    log_id: str = ""
    created_at: int = 0
    labels: dict[str, str] = {}
    definition: Definition = Definition()
    head: int = 0
    # The last number given out as a fence; never repeated within the mob.
    fences: int = 0
    members: dict[str, Member] = {}
    attachments: dict[str, Attachment] = {}
    runs: dict[str, Run] = {}
    # The proofs that runs were applied, kept so that a result that is sent again is known: fence and hash, packed.
    receipts: dict[str, bytes] = {}
    # Incarnations of hosts whose place another one took, the newest last: they don't come back.
    superseded: list[tuple[str, str]] = []
    # Members with work and without an agent, by role, sorted: (seq since when, member_id).
    waiting: dict[str, list[tuple[int, str]]] = {}
    # What the clock must be looked at for, sorted: (µs, what, member_id or run_id).
    timers: list[tuple[int, Due, str]] = []
    # Members that are retired or leave, until they are off the roster or respawned; then what is remembered of members
    # that left.
    draining: dict[str, None] = {}
    former: dict[str, Former] = {}
    # Keys of `former`, in the order in which they left.
    left: list[str] = []
    operations: dict[str, Operation] = {}
    # Background operations that live, by owner.
    owned: dict[str, list[str]] = {}
    # Operations that ended and are still in memory, in the order of their ends; how many ever ended.
    completed: list[str] = []
    completions: int = 0
    requests: dict[str, Ledger] = {}
    # Keys of `requests`, oldest first.
    request_order: list[str] = []
    # What the pending or last command that works in slices did, by member.
    reports: dict[str, Report] = {}
    inputs_abandoned: int = 0
