"""Names for the identities that cross a boundary. They are `str` or `int` at run time."""

from typing import Final, NewType

MobId = NewType("MobId", str)
MemberId = NewType("MemberId", str)
InputId = NewType("InputId", str)
RunId = NewType("RunId", str)
AttachmentId = NewType("AttachmentId", str)
LogId = NewType("LogId", str)
Epoch = NewType("Epoch", int)
Cursor = NewType("Cursor", int)

ID_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
RESERVED_PREFIX: Final = "__flow_"
