"""What the model of a mob knows, and what can be told from it: which inputs go next, and where a member must be listed.

Written from the reference (runtime §1, §2, §3; decisions 8, 13, 15, 16, 17), not from the machines.
"""

from dataclasses import dataclass, field
from typing import Final

from mobd_server.machines import commands as c

SECOND: Final = 1_000_000
DAY: Final = 86_400 * SECOND
BATCH: Final = 64
# How long a run of each role may take, in seconds; and what a role's peer requests may ask for without waking it.
TIMEOUTS: Final = {"analyst": 0, "lead": 20}
SILENT: Final = {"analyst": ["hush"], "lead": list[str]()}

# Boundary, execution kind, terminal intent.
Stamp = tuple[str, str, str]


@dataclass
class Input:
    member_id: str
    input_id: str
    content: bytes
    order: int
    kind: str
    lane: str
    drives: bool
    stamp: Stamp
    key: str | None
    # waiting, running (of the batch), steered (into a run), or how it ended.
    state: str = "waiting"
    attempts: int = 0
    was_lost: bool = False
    failed: bool = False
    ended_at: int = 0


@dataclass
class Member:
    role: str
    fence: int
    generation: int
    operation_id: str
    lanes: dict[str, list[str]] = field(default_factory=lambda: {"steer": [], "queue": []})
    run: str | None = None
    paused_until: int = 0
    drain_until: int = 0
    # active, retired, destroyed; and whether it leaves the roster.
    state: str = "active"
    leaving: bool = False
    # Attachment and fence.
    executor: tuple[str, int] | None = None
    confirmed: bool = False
    known: dict[str, str] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    forgotten_at: int = 0
    receipts: list[str] = field(default_factory=list)

    @property
    def waiting(self) -> list[str]:
        return [*self.lanes["steer"], *self.lanes["queue"]]


@dataclass
class Former:
    generation: int
    left_at: int
    known: dict[str, str]
    ended: list[str]
    forgotten_at: int


@dataclass
class Run:
    member_id: str
    attachment_id: str
    fence: int
    inputs: list[str]
    exclusive: bool
    lane: str
    deadline: int
    # How many inputs there had been when it started.
    since: int
    resent: int = 0
    steered: list[str] = field(default_factory=list)
    # "", boundary, hard; who asked; by which request.
    cancel: str = ""
    by: str = ""
    control_id: str = ""


@dataclass
class Agent:
    host: str
    incarnation: str
    capacity: int
    max_members: int
    roles: list[str | None]
    names: list[str | None]
    steers: bool
    members: dict[str, int] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    # Members that it gave back or that were taken from it: it is not asked again at once.
    declined: set[str] = field(default_factory=set)

    def serves(self, member_id: str, member: Member) -> bool:
        return member_id in self.names or member.role in self.roles


class Facts:
    """What a mob is after the events that were applied."""

    def __init__(self) -> None:
        self.phase = "creating"
        self.pending = "none"
        self.cleanup = False
        self.fences = 0
        self.seen_fences: set[int] = set()
        self.members: dict[str, Member] = {}
        self.former: dict[str, Former] = {}
        self.inputs: dict[str, Input] = {}
        self.runs: dict[str, Run] = {}
        self.agents: dict[str, Agent] = {}
        # What the pending or last command over all members did to each.
        self.reports: dict[str, tuple[int, int]] = {}
        # How many inputs the member had that the command is about.
        self.had = 0
        # The agent from which an idle member was sent away, so that another one can be served there.
        self.room_made = ""
        # Results that were committed: run -> fence and hash.
        self.receipts: dict[str, tuple[int, bytes]] = {}
        self.accepted_at: dict[str, int] = {}
        self.run_ids: set[str] = set()
        # The command that is being applied, and who is connected for it.
        self.command: c.Command = c.Continue()
        self.connected: set[str] = set()

    # What goes next.

    def wakes(self, member: Member, lane: str) -> bool:
        """Whether anything in a lane makes the member run."""
        waiting = member.lanes[lane]
        return bool(waiting) and (member.state == "retired" or any(self.inputs[one].drives for one in waiting))

    def next_lane(self, member: Member) -> str | None:
        """Return the lane from which the member runs next, if it has something to run now."""

        def blocked(lane: str) -> bool:
            # After a failure the head waits for its time; the other lane need not.
            return bool(member.paused_until and self.inputs[member.lanes[lane][0]].attempts)

        if member.lanes["steer"] and not blocked("steer"):
            return "steer" if self.wakes(member, "steer") or self.wakes(member, "queue") else None
        if member.lanes["queue"] and not blocked("queue"):
            return "queue" if self.wakes(member, "queue") else None
        return None

    def next_batch(self, member: Member, lane: str) -> list[str]:
        """Return the inputs of the next run: a prefix of the lane (runtime §2.10)."""
        waiting = [self.inputs[one] for one in member.lanes[lane]]
        if waiting[0].attempts:
            return member.lanes[lane][:1]
        draining = member.state == "retired"
        driver = next((one for one in waiting if one.drives or draining), waiting[0])
        count = 0
        for one in waiting[:BATCH]:
            alike = one.stamp == waiting[0].stamp if lane == "steer" else one.stamp[1:] == waiting[0].stamp[1:]
            prompt = lane == "queue" and one.kind == "prompt"
            if one.attempts or not alike or (prompt and count and driver.kind != "prompt"):
                break
            count += 1
            if prompt:
                break
        return member.lanes[lane][:count]

    def goes_alone(self, member: Member) -> bool:
        """Whether the member's next run must be the only one of its agent."""
        lane = self.next_lane(member)
        if lane is None:
            return False
        head = self.inputs[member.lanes[lane][0]]
        return head.attempts == 2 and head.was_lost

    def place_of(self, member: Member) -> str:
        """Return the list in which a member must be."""
        if member.run is not None or self.next_lane(member) is None:
            return "none"
        if member.executor is None:
            return "waiting"
        return "ready" if member.confirmed else "none"

    def is_idle(self, member: Member) -> bool:
        """Whether a member has an agent for nothing: no run, and nothing that would make one."""
        return member.confirmed and member.run is None and not any(self.wakes(member, lane) for lane in member.lanes)

    def dispatches(self) -> bool:
        return self.phase == "running" and self.pending in ("none", "complete", "retire_all")

    # What is admitted.

    def admits(self, command: type[c.Command]) -> bool:
        """Whether the mob's phase admits a command, and nothing that is pending forbids it (api §7)."""
        if self.pending not in ("none", "complete", "retire_all"):
            return False
        ending = (c.Interrupt, c.HardCancel, c.RetireMember, c.RetireRuntime, c.DestroyRuntime, c.MoveOperation)
        if self.pending != "none" and command not in ending:
            return False
        if command in (c.ResetMob, c.MoveOperation, c.TerminateOwner):
            return self.phase in ("running", "stopped", "completed")
        if command in (c.Interrupt, c.RetireMember, c.RetireRuntime, c.DestroyRuntime, c.RetireAllMembers):
            return self.phase in ("running", "stopped")
        return self.phase == "running"
