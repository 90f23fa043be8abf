"""Bearer tokens: the file in which a server knows its callers, and making a token for one.

A line of the file is `principal:sha256:digest`; empty lines and those that begin with # are passed over. A principal
may have several lines, so that a token can be replaced without a moment in which neither is taken.

Plain SHA-256 is enough, because a token is 256 random bits and no password: nobody finds one by trying, however fast
the hash is. A slow hash would only make the first call of each caller slow.
"""

import os
import re
import secrets
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

from msgspec import Struct

from mobd_server.errors import TokenMissing, TokenUnknown

# By this people, and programs that look for leaked secrets, tell what it is.
PREFIX: Final = "mobd_"
RANDOM_BYTES: Final = 32
HASH: Final = "sha256"
# Header values whose callers are remembered.
REMEMBERED: Final = 1_024
# Written into every event as its source: the server's own name, and that of callers who are not known.
RESERVED: Final = frozenset({"mobd", "anonymous"})

_PRINCIPAL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@/+-]{0,127}").fullmatch
_DIGEST: Final = re.compile(r"[0-9a-f]{64}").fullmatch
_BEARER: Final = "bearer"


class TokensInvalid(Exception):
    """The file can't be read, or a line of it; the message names it and says what would be right."""


class Minted(Struct, frozen=True):
    """A new token, which is kept nowhere, and the line by which a server knows it."""

    token: str
    line: str


def mint(principal: str) -> Minted:
    """Return a new token for a principal. Raises TokensInvalid."""
    _check_principal(principal)
    token = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    return Minted(token, f"{principal}:{HASH}:{_digest(token)}")


def append(file: Path, line: str) -> None:
    """Add a line to a file, durably; a file that is not there is made, for its owner alone. Raises TokensInvalid."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b") as opened:
            whole = opened.seek(0, os.SEEK_END) == 0 or _ends_with_newline(descriptor)
            opened.write((b"" if whole else b"\n") + line.encode() + b"\n")
            opened.flush()
            os.fsync(descriptor)
    except OSError as error:
        raise TokensInvalid(f"the tokens file {file} can't be written: {error.strerror}") from None


def read(file: Path) -> dict[str, str]:
    """Return the principals of a file by the digests of their tokens. Raises TokensInvalid."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise TokensInvalid(f"the tokens file {file} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TokensInvalid(f"the tokens file {file} is no text") from None
    found = _parse(file, text.splitlines())
    if not found:
        raise TokensInvalid(f"the tokens file {file} has no token: mobd token new NAME --append {file}")
    return found


class Tokens:
    """The callers of a server, by the tokens that they send. For one loop."""

    def __init__(self, file: Path) -> None:
        """Read the file. Raises TokensInvalid."""
        self.file = file
        self._principals = read(file)
        # Only what was found: whoever guesses displaces nobody.
        self._remembered: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._principals)

    def reload(self) -> None:
        """Read the file again; if it is wrong, raise TokensInvalid, and what was read before stays."""
        self._principals = read(self.file)
        self._remembered = {}

    def identify(self, authorization: str | None) -> str:
        """Return who sends this value of the header `authorization`. Raises TokenMissing and TokenUnknown.

        Tokens are never compared: their digests are looked up. How long that takes tells nothing of a token, because
        nobody can choose the digest of what he tries.
        """
        if authorization is None:
            raise TokenMissing(
                "this server takes only callers with a token: set MOBD_TOKEN, or give token=, and get one from "
                "`mobd token new`"
            )
        known = self._remembered.get(authorization)
        return known if known is not None else self._look_up(authorization)

    def _look_up(self, authorization: str) -> str:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != _BEARER or not token.strip():
            raise TokenMissing('the authorization of this call has no token: it must be "Bearer " and the token')
        principal = self._principals.get(_digest(token.strip()))
        if principal is None:
            raise TokenUnknown("this server does not know the token: it may have been revoked, or be another server's")
        if len(self._remembered) >= REMEMBERED:
            self._remembered.clear()
        self._remembered[authorization] = principal
        return principal


def _digest(token: str) -> str:
    return sha256(token.encode(errors="replace")).hexdigest()


def _parse(file: Path, lines: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            principal, digest = _entry(line.strip())
        except TokensInvalid as wrong:
            raise TokensInvalid(f"line {number} of the tokens file {file} is wrong: {wrong}") from None
        if digest in found:
            raise TokensInvalid(f"line {number} of the tokens file {file} has the token of an earlier line")
        found[digest] = principal
    return found


def _entry(line: str) -> tuple[str, str]:
    # What a line holds is never told: it may be a token that somebody put there.
    parts = line.split(":")
    if len(parts) != 3 or parts[1] != HASH or not _DIGEST(parts[2]):
        raise TokensInvalid(f"it must be principal:{HASH}:digest, as `mobd token new` prints it")
    _check_principal(parts[0])
    return parts[0], parts[2]


def _check_principal(principal: str) -> None:
    if not _PRINCIPAL(principal):
        raise TokensInvalid("a principal has 1 to 128 letters, digits and ._@/+-, and begins with a letter or digit")
    if principal in RESERVED:
        raise TokensInvalid(f"{principal} is no name for a caller: mobd itself uses it")


def _ends_with_newline(descriptor: int) -> bool:
    return os.pread(descriptor, 1, os.fstat(descriptor).st_size - 1) == b"\n"
