"""What a handler sees of a run."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mobd.content import dump, load, texts_of, values_of
from mobd.v1 import agents_pb2


class Abandon(Exception):
    """Raise it in a turn to give its inputs up at once; whoever waits for them is told why."""


@dataclass(frozen=True)
class Session:
    """The transcript of a member, as the turn found it."""

    session_id: str
    #: How many messages it holds.
    message_count: int
    #: Lowercase hexadecimal SHA-256 of the canonical JSON of the array of its messages; empty if the server has not
    #: told it since the transcript grew.
    digest: str


class TurnInput:
    """One input of a turn."""

    def __init__(self, message: agents_pb2.RunInput) -> None:
        self._content = message.content
        #: The caller's name for it, the same in every attempt: the key for what is done outside.
        self.input_id = message.input_id
        #: The server's name for it.
        self.canonical_input_id = message.canonical_input_id
        #: peer_message.
        self.kind = message.kind
        #: Who delivered it.
        self.sender = message.sender
        #: How many runs were started with it, this one included.
        self.attempt = message.attempt

    @cached_property
    def content(self) -> list[Any]:
        """Its blocks: a str for text, a mobd.Image, or what JSON says."""
        return values_of(self._content)

    @cached_property
    def text(self) -> str:
        """Its text blocks, joined by line ends."""
        return texts_of(self._content)

    @cached_property
    def json(self) -> Any:
        """What its first JSON block says; None if it has none."""
        for block in self._content.blocks:
            if block.WhichOneof("block") == "value_json":
                return load(block.value_json)
        return None


class Turn:
    """One run: a member's inputs, to be answered with one output."""

    def __init__(self, mob_id: str, start: agents_pb2.StartRun, assign: agents_pb2.Assign, message_count: int) -> None:
        self._assign = assign
        #: The messages recorded so far, each as JSON text.
        self.messages_json: list[str] = []
        self.mob_id = mob_id
        self.member_id = start.member_id
        self.role = assign.role
        #: The instructions of the role's profile.
        self.instructions = assign.instructions
        #: Never used again.
        self.run_id = start.run_id
        #: The fence of the assignment that this run belongs to.
        self.executor_fence = start.executor_fence
        #: The number of the member's incarnation.
        self.generation = assign.generation
        #: The member's fence token.
        self.fence_token = assign.fence_token
        #: The trace of the first input.
        self.traceparent = start.traceparent
        digest = assign.digest if message_count == assign.message_count else ""
        self.session = Session(assign.session_id, message_count, digest)
        #: In order; they waited together.
        self.inputs = tuple(TurnInput(one) for one in start.inputs)
        #: The greatest attempt of the inputs: 1 at the first.
        self.attempt = attempt_of(start)

    @cached_property
    def text(self) -> str:
        """The text of all inputs, joined by line ends."""
        return "\n".join(one.text for one in self.inputs if one.text)

    @cached_property
    def profile(self) -> dict[str, Any]:
        """The profile of the role, as the definition has it."""
        profile = load(self._assign.profile_json)
        return profile if isinstance(profile, dict) else {}

    @cached_property
    def context(self) -> Any:
        """The member's free JSON; None if it has none."""
        return load(self._assign.context_json)

    def record(self, role: str, content: Any) -> None:
        """Add a message to the member's transcript; it is stored with the output, or not at all."""
        self.messages_json.append(dump({"role": role, "content": content}))


def attempt_of(start: agents_pb2.StartRun) -> int:
    """Return the greatest attempt of a run's inputs."""
    return max((one.attempt for one in start.inputs), default=1)
