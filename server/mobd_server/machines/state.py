"""The state of one mob: what the events of its log add up to.

Plain values without behaviour and without cycles. Only `evolve` writes them, through an `Undo`. No meaning lies in the
order of a dict; orders are lists and numbers. Containers that most members never need are None until first use.
"""

from typing import Final, Literal

from msgspec import Raw, Struct

Phase = Literal["creating", "running", "stopped", "completed", "destroyed"]
Pending = Literal["none", "destroy"]
MemberState = Literal["initializing", "idle", "attached", "running", "retired", "stopped", "destroyed"]
# Where a member stands in the lists of those who wait: in none, for an agent, or for a free run of its agent.
Listed = Literal["none", "waiting", "ready"]

PHASES: Final[tuple[Phase, ...]] = ("creating", "running", "stopped", "completed", "destroyed")

MAX_ATTEMPTS: Final = 3
MAX_RESENDS: Final = 3
BACKOFF_US: Final = (1_000_000, 10_000_000)
RECEIPTS_KEPT: Final = 16
SUPERSEDED_KEPT: Final = 256


# No JSON at all. A default that is this object is left out when it is encoded, and comes back as this object; what is
# declared `Raw | None` can be written and not be read.
NOTHING: Final = Raw()


class Profile(Struct, frozen=True, gc=False, omit_defaults=True):
    """What a role is."""

    role: str
    instructions: str = ""
    labels: dict[str, str] = {}
    context: Raw = NOTHING


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


class Input(Struct, gc=False):
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


class Dedupe(Struct, gc=False):
    """What is remembered of every input of a member, live or ended; the rest is read from the event at `seq`."""

    content_hash: bytes
    canonical_input_id: str
    seq: int
    at: int
    # The event that ended it; 0 while it is live.
    end_seq: int = 0
    end_at: int = 0


class Executor(Struct, gc=False):
    """The agent that serves a member."""

    attachment_id: str
    fence: int
    confirmed: bool = False


class Member(Struct, gc=False):
    """One incarnation of a member."""

    member_id: str
    role: str
    generation: int
    fence_token: int
    session_id: str
    created_at: int
    state: MemberState = "initializing"
    labels: dict[str, str] | None = None
    context: Raw | None = None
    executor: Executor | None = None
    run_id: str | None = None
    queue: list[Input] | None = None
    queue_bytes: int = 0
    dedupe: dict[str, Dedupe] | None = None
    # Keys of ended inputs, in the order in which they ended.
    ended: list[str] | None = None
    # Inputs accepted up to this time (µs) may have been forgotten.
    forgotten_at: int = 0
    message_count: int = 0
    digest: str = ""
    # Runs whose receipts are kept, oldest first.
    receipts: list[str] | None = None
    # The member's head input failed and is not tried again before this time (µs); 0 if it may run.
    retry_at: int = 0
    listed: Listed = "none"
    listed_at: int = 0
    # The event in which it last got work or finished some.
    active_seq: int = 0
    last_output: str = ""
    last_error: str = ""
    # How many inputs its destruction abandoned.
    inputs_abandoned: int = 0


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


class Receipt(Struct, frozen=True, gc=False):
    """The proof that a run was applied, kept so that a result that is sent again is known."""

    member_id: str
    fence: int
    result_hash: bytes


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
    receipts: dict[str, Receipt] = {}
    # Incarnations of hosts whose place another one took, the newest last: they don't come back.
    superseded: list[tuple[str, str]] = []
    # Members with work and without an agent, by role, sorted: (seq since when, member_id).
    waiting: dict[str, list[tuple[int, str]]] = {}
    # Members whose head input is tried again at a time, sorted: (µs, member_id).
    retries: list[tuple[int, str]] = []
    requests: dict[str, Ledger] = {}
    # Keys of `requests`, oldest first.
    request_order: list[str] = []
    # What a destruction did.
    inputs_abandoned: int = 0
