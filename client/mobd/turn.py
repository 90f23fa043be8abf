"""What a handler sees of a run."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mobd import system
from mobd.content import dump, load, texts_of, values_of
from mobd.output import Output, Put
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
        #: What it is: prompt, peer_message, peer_request, peer_response_progress, peer_response_terminal,
        #: external_event, continuation, operation; new kinds may appear.
        self.kind = message.kind
        #: Who delivered it.
        self.sender = message.sender
        #: How many runs were started with it, this one included.
        self.attempt = message.attempt
        #: What ties it to other inputs, as its sender said; empty if that is nothing.
        self.correlation_id = message.correlation_id
        self._about_json = message.about_json

    @cached_property
    def about(self) -> dict[str, Any]:
        """What its kind knows beside the content."""
        about = load(self._about_json)
        return about if isinstance(about, dict) else {}

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


class Turn(Output):
    """One run: a member's inputs, to be answered with one output."""

    def __init__(
        self,
        mob_id: str,
        start: agents_pb2.StartRun,
        assign: agents_pb2.Assign,
        message_count: int,
        put: Put = lambda *_: None,
    ) -> None:
        super().__init__(start.run_id, start.executor_fence, put)
        self._assign = assign
        self._lock = threading.Lock()
        self._steered: dict[str, TurnInput] = {}
        self._untaken: list[TurnInput] = []
        #: The canonical ids of the inputs that were steered into the run and taken, in order.
        self.steered_input_ids: list[str] = []
        #: The messages recorded so far, each as JSON text.
        self.messages_json: list[str] = []
        self.mob_id = mob_id
        self.member_id = start.member_id
        self.role = assign.role
        #: The instructions of the role's profile.
        self.instructions = assign.instructions
        #: The number of the member's incarnation.
        self.generation = assign.generation
        #: The member's fence token.
        self.fence_token = assign.fence_token
        #: The trace of the first input.
        self.traceparent = start.traceparent
        #: Where its inputs are applied (run_start, run_checkpoint), how it is executed (content_turn, resume_pending),
        #: and what a terminal response asks for (none, append_context_and_run).
        self.boundary = start.boundary
        self.execution = start.execution
        self.intent = start.intent
        #: When the run must have ended, by `time.monotonic()`, which is also the clock of asyncio; None: never.
        self.deadline: float | None = None
        if start.HasField("time_left"):
            self.deadline = system.current().monotonic() + start.time_left.ToMicroseconds() / 1e6
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

    @property
    def time_left(self) -> float | None:
        """How many seconds the run may still take, 0 if they are over; None if it may take as long as it wants."""
        return None if self.deadline is None else max(0.0, self.deadline - system.current().monotonic())

    def take_steered(self) -> list[TurnInput]:
        """Return the inputs that came for the run since the last call, in order; see `Agent(steer=True)`.

        They are the run's from now on and end with it. What is not taken is run afterwards.
        """
        with self._lock:
            taken, self._untaken = self._untaken, []
            self.steered_input_ids += [one.canonical_input_id for one in taken]
        return taken

    def steer(self, inputs: Iterable[agents_pb2.RunInput]) -> None:
        """Give the run more inputs; it knows those that it was given before."""
        with self._lock:
            for one in inputs:
                if one.canonical_input_id not in self._steered:
                    self._steered[one.canonical_input_id] = fresh = TurnInput(one)
                    self._untaken.append(fresh)

    def record(self, role: str, content: Any) -> None:
        """Add a message to the member's transcript; it is stored with the output, or not at all."""
        self.messages_json.append(dump({"role": role, "content": content}))


def attempt_of(start: agents_pb2.StartRun) -> int:
    """Return the greatest attempt of a run's inputs."""
    return max((one.attempt for one in start.inputs), default=1)
