"""From Python values to what an input carries, and back."""

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from mobd.v1 import common_pb2

MAX_NESTING: Final = 128

_SIGNATURES: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
)
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')


@dataclass(frozen=True)
class Image:
    """An image: its bytes, and its media type if the bytes don't tell (PNG, JPEG, GIF and WebP do)."""

    data: bytes
    media_type: str = ""


def blocks(*values: Any) -> common_pb2.Content:
    """Return content of several blocks, one for each value: text for a str, an image for an Image, else JSON."""
    return common_pb2.Content(blocks=[_block(value) for value in values])


def content_of(value: Any) -> common_pb2.Content:
    """Return what carries a value: a Content as it is, else one block, as `blocks` makes it."""
    return value if isinstance(value, common_pb2.Content) else blocks(value)


def values_of(content: common_pb2.Content) -> list[Any]:
    """Return the blocks of content as Python values: a str for text, an Image, or what JSON says."""
    return [_value(block) for block in content.blocks]


def texts_of(content: common_pb2.Content) -> str:
    """Return the text blocks of content, joined by line ends."""
    return "\n".join(block.text for block in content.blocks if block.WhichOneof("block") == "text")


def dump(value: Any) -> str:
    """Return a value as JSON text that the server takes; raise ValueError, saying why, if there is none."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("can't be JSON: it holds half of a surrogate pair") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"can't be JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"can't be JSON: it nests more than {MAX_NESTING} levels deep") from None
    if _nests_deeper(text):
        raise ValueError(f"can't be sent: it nests more than {MAX_NESTING} levels deep")
    return text


def load(text: str) -> Any:
    """Return what a JSON text says; None for an empty one."""
    return json.loads(text) if text else None


def _nests_deeper(text: str) -> bool:
    if text.count("[") + text.count("{") <= MAX_NESTING:
        return False
    depth = 0
    for character in _STRING.sub("", text):
        if character in "[{":
            depth += 1
            if depth > MAX_NESTING:
                return True
        elif character in "]}":
            depth -= 1
    return False


def _block(value: Any) -> common_pb2.Block:
    if isinstance(value, str):
        return common_pb2.Block(text=value)
    if isinstance(value, Image):
        media_type = value.media_type or _media_type(value.data)
        return common_pb2.Block(image=common_pb2.Image(media_type=media_type, data=value.data))
    if isinstance(value, bytes | bytearray):
        raise TypeError("bytes are no content by themselves: wrap an image in mobd.Image(data)")
    return common_pb2.Block(value_json=dump(value))


def _media_type(data: bytes) -> str:
    for signature, media_type in _SIGNATURES:
        if data.startswith(signature):
            return media_type
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    raise ValueError("the bytes don't tell what image they are: give mobd.Image(data, media_type)")


def _value(block: common_pb2.Block) -> Any:
    match block.WhichOneof("block"):
        case "text":
            return block.text
        case "value_json":
            return json.loads(block.value_json)
        case "image":
            return Image(block.image.data, block.image.media_type)
        case _:
            return None
