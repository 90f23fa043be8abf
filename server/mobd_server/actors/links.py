"""What an actor is called with, what it answers, and what it needs of those around it."""

from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from mobd_server.errors import MobdError
from mobd_server.machines.answers import AgentReaction, Answer
from mobd_server.machines.records import Append, Record
from mobd_server.ports import Result

if TYPE_CHECKING:
    from mobd_server.actors.actor import MobActor


class Call(Struct, gc=False):
    """Who asks, and under which name: what a decision knows of its caller."""

    principal: str = "anonymous"
    traceparent: str | None = None
    request_id: str | None = None
    # Hexadecimal SHA-256 of method and canonical request; given with request_id.
    request_hash: str | None = None
    # Decide, say what would be appended, and leave no trace.
    validate_only: bool = False
    # The run as whose agent the caller acts, and the fence of its executor.
    acting: tuple[str, int] | None = None


# Seen by the garbage collector, as few structs are: an error holds the frames that it passed, and they hold its reply.
class Reply(Struct):
    """What became of a command: either an answer or an error, and everything that it was computed from is durable.

    `cursor` is the head that it was computed from; of a replayed answer, the event that it was stored with.
    """

    answer: Answer | None = None
    error: MobdError | None = None
    cursor: int = 0
    replayed: bool = False
    append: Append | None = None
    # With `validate_only`: what would have been appended.
    would: Sequence[Record] = ()


Receiver = Callable[[Reply], None]


class Hub(Protocol):
    """The connections of agents, as actors and their registry see them."""

    def connected(self, mob_id: str) -> Container[str]:
        """Return the attachments that are connected and want work. Called for every decision."""

    def dispatch(self, mob_id: str, reactions: Sequence[AgentReaction]) -> None:
        """Send what a commit released, in this order; an attachment that is gone or away is passed over."""

    def loaded(self, actor: "MobActor") -> None:
        """Take note of a mob that was read from its log: its agents' connections and graces begin anew."""

    def idle(self, mob_id: str) -> bool:
        """Whether no agent is connected to the mob, suspended, or waits for it."""

    def mob_created(self, mob_id: str) -> None:
        """Take note that a mob is there that was not; its creation need not be durable yet."""

    def evicted(self, mob_id: str) -> None:
        """Take note that the mob is not in memory: what its agents say now can't be decided."""


class Appender(Protocol):
    """One incarnation of one mob, as the journal sees it.

    When a group returns, the journal calls each of these for all incarnations of the group before the next, all in
    one callback of the loop: first `committed` and `lost`, then `answer`, then `react`, then `leave`.
    """

    def committed(self, append: Append) -> None:
        """Publish an append that is durable."""

    def lost(self, append: Append, result: Result) -> None:
        """Take note of the first append that is not durable, or may not be. Nothing later will be."""

    def answer(self) -> None:
        """Release the answers whose barrier was reached; after `lost`, fail the others."""

    def react(self) -> None:
        """Release the reactions whose answers were released."""

    def leave(self) -> None:
        """Make room for the next incarnation; called only after `lost`."""
