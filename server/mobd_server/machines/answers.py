"""What decisions answer and what they release, as values.

An answer goes to the caller; those of mutations are stored as JSON beside the event, so that a repeated request gets
the same one. A reaction goes to an agent or back to the actor. Both are released only by the commit of their decision.
"""

from typing import Literal

from msgspec import Raw, Struct

from mobd_server.machines.state import NOTHING, MemberState, Pending, Phase, Profile, Serve


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


class MemberOutcome(Struct, frozen=True, gc=False):
    member_id: str
    inputs_abandoned: int


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
    cause: Literal["not_ready", "queue_full", "stale_fence", "content_conflict", "input_forgotten"]
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

    disposition: Literal["committed", "duplicate", "requeued", "abandoned", "fenced", "conflict"]


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


class SendStartRun(AgentReaction, frozen=True, gc=False):
    run_id: str
    fence: int
    member_id: str
    inputs: list[RunInput]
    traceparent: str | None


class SendSettled(AgentReaction, frozen=True, gc=False):
    run_id: str
    disposition: Literal["committed", "duplicate", "requeued", "abandoned", "fenced"]


class EndStream(AgentReaction, frozen=True, gc=False):
    """Say Goodbye to the agent's stream and end it."""

    reason: Literal["superseded", "revoked", "protocol"]
    message: str
