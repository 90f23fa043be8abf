"""Between protobuf and the domain: what several services speak of."""

from typing import Final, Literal, Protocol

import msgspec
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from msgspec import Raw, Struct

from mobd.v1 import agents_pb2, common_pb2, runs_pb2
from mobd_server.machines.state import NOTHING, Definition, Lane, MemberState, Serve, Usage

MEMBER_STATES: Final[dict[MemberState, common_pb2.MemberState.ValueType]] = {
    "initializing": common_pb2.MEMBER_STATE_INITIALIZING,
    "idle": common_pb2.MEMBER_STATE_IDLE,
    "attached": common_pb2.MEMBER_STATE_ATTACHED,
    "running": common_pb2.MEMBER_STATE_RUNNING,
    "retired": common_pb2.MEMBER_STATE_RETIRED,
    "stopped": common_pb2.MEMBER_STATE_STOPPED,
    "destroyed": common_pb2.MEMBER_STATE_DESTROYED,
}
LANES: Final[dict[Lane, common_pb2.HandlingMode.ValueType]] = {
    "queue": common_pb2.HANDLING_MODE_QUEUE,
    "steer": common_pb2.HANDLING_MODE_STEER,
}
LANE_NAMES: Final[dict[int, Lane]] = {number: name for name, number in LANES.items()}
MEMBER_STATE_NAMES: Final[dict[int, MemberState]] = {number: name for name, number in MEMBER_STATES.items()}


class Fenced(Protocol):
    """A request that may say which incarnation it means."""

    @property
    def fence(self) -> common_pb2.Fence:
        """The numbers."""

    def HasField(self, field_name: Literal["fence"], /) -> bool:  # noqa: N802 protobuf's name
        """Whether they are given."""


_JSON_SPACE: Final = " \t\r\n"
_encode: Final = msgspec.json.Encoder().encode


class _ImageBlock(Struct, gc=False):
    media_type: str
    data: bytes


class _Block(Struct, gc=False):
    text: str | None = None
    json: Raw = Raw()
    image: _ImageBlock | None = None


_decode_blocks: Final = msgspec.json.Decoder(list[_Block]).decode


def content_from(content: common_pb2.Content) -> Raw:
    """Return content as canonical JSON. A JSON block stays as it was written, but for the space around it."""
    blocks = content.blocks
    if len(blocks) == 1:
        # As it nearly always is: to go through a repeated field of messages ends with an exception.
        return Raw(_encode([_block_from(blocks[0])]))
    return Raw(_encode([_block_from(block) for block in blocks]))


def _block_from(block: common_pb2.Block) -> dict[str, object]:
    if text := block.text:
        return {"text": text}
    kind = block.WhichOneof("block")
    if kind == "text":
        return {"text": ""}
    if kind == "value_json":
        return {"json": json_from(block.value_json)}
    return {"image": {"media_type": block.image.media_type, "data": block.image.data}}


def content_to(content: Raw) -> common_pb2.Content:
    """Return content as callers see it."""
    to = common_pb2.Content()
    fill_content(to, content)
    return to


def fill_content(to: common_pb2.Content, content: Raw) -> None:
    """Write content as callers see it."""
    to.SetInParent()
    for block in _decode_blocks(content):
        shown = to.blocks.add()
        if block.text is not None:
            shown.text = block.text
        elif block.image is not None:
            shown.image.media_type = block.image.media_type
            shown.image.data = block.image.data
        else:
            shown.value_json = json_to(block.json)


def json_from(text: str) -> Raw:
    """Return a JSON text that was checked at the door."""
    return Raw(text.strip(_JSON_SPACE).encode())


def json_to(raw: Raw | None) -> str:
    """Return JSON as text, empty if there is none."""
    return bytes(raw).decode() if raw is not None else ""


def time_to(at: int) -> Timestamp | None:
    """Return a time (µs since 1970) as callers see it; 0 is no time."""
    if not at:
        return None
    return Timestamp(seconds=at // 1_000_000, nanos=at % 1_000_000 * 1_000)


def time_from(time: Timestamp) -> int:
    """Return a time as µs since 1970, not earlier than what was meant."""
    return time.seconds * 1_000_000 + -(-time.nanos // 1_000)


def duration_to(milliseconds: int) -> Duration:
    """Return a duration as callers see it."""
    return Duration(seconds=milliseconds // 1_000, nanos=milliseconds % 1_000 * 1_000_000)


def fence_from(request: Fenced) -> tuple[int | None, int | None]:
    """Return generation and fence token that a request means; None for what it does not say."""
    if not request.HasField("fence"):
        return None, None
    fence = request.fence
    return (
        fence.generation if fence.HasField("generation") else None,
        fence.fence_token if fence.HasField("fence_token") else None,
    )


def serve_to(serve: Serve) -> agents_pb2.Serve:
    """Return an agent's standing interest as callers see it."""
    if serve.member_id is not None:
        return agents_pb2.Serve(member_id=serve.member_id)
    return agents_pb2.Serve(role=serve.role or "")


def usage_to(usage: Usage | None) -> runs_pb2.Usage | None:
    """Return what a run used as callers see it."""
    if usage is None:
        return None
    return runs_pb2.Usage(
        input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, detail_json=json_to(usage.detail)
    )


def usage_from(usage: runs_pb2.Usage) -> Usage:
    """Return what an agent said that a run used."""
    detail = json_from(usage.detail_json) if usage.detail_json else NOTHING
    return Usage(usage.input_tokens, usage.output_tokens, detail)


def definition_to(definition: Definition) -> str:
    """Return a definition as it is stored: canonical JSON."""
    return msgspec.json.encode(definition, order="deterministic").decode()
