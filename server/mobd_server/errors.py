"""Everything that mobd refuses or fails with, in domain words.

Each error has a stable `reason`, which clients compare, a sentence for people, and `details`: the facts that the
sentence was made of, by name. `adapters/rpc/status.py` maps each class to a status; a test holds that table total.
Sources of the rules: api §9, core §17.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar


class MobdError(Exception):
    """The root. Never raised itself."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, details: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, str] = dict(details or {})


class Refused(MobdError):
    """A legal "no" of a machine: nothing was changed, nothing was stored."""


class InvalidTransition(Refused):
    """The phase does not admit the command."""

    reason = "INVALID_TRANSITION"

    def __init__(self, command: str, source: str, target: str, allowed: Sequence[str]) -> None:
        legal = ", ".join(allowed) or "no phase"
        super().__init__(
            f"{command} is not legal while the mob is {source}: legal in {legal}",
            {"from": source, "to": target, "allowed": ",".join(allowed)},
        )


class StaleFence(Refused):
    """The caller means another incarnation."""

    reason = "STALE_FENCE"


class LocalMember(Refused):
    """The server hosts the member itself: no bridge leads to it."""

    reason = "LOCAL_MEMBER"


class RequestConflict(Refused):
    """The request id was used before with other content."""

    reason = "REQUEST_CONFLICT"


class MobExists(Refused):
    """The mob_id is taken."""

    reason = "MOB_EXISTS"


class MemberExists(Refused):
    """The member_id is taken."""

    reason = "MEMBER_EXISTS"


class ProfileNotFound(Refused):
    """The definition has no such role."""

    reason = "PROFILE_NOT_FOUND"


class MobFull(Refused):
    """The mob has as many members as it may have."""

    reason = "MOB_FULL"


class OperationExists(Refused):
    """The operation_id is taken."""

    reason = "OPERATION_EXISTS"


class OperationTransition(Refused):
    """The operation's status does not allow the step."""

    reason = "OPERATION_TRANSITION"


class PeerNotExpected(Refused):
    """The operation has no peer."""

    reason = "PEER_NOT_EXPECTED"


class OperationLimit(Refused):
    """As many operations live as may."""

    reason = "OPERATION_LIMIT"


class OperationAmbiguous(Refused):
    """The member would have two operations that live."""

    reason = "OPERATION_AMBIGUOUS"


class NotFound(MobdError):
    """What was asked for does not exist. Never raised itself."""


class MobNotFound(NotFound):
    """No mob of that name."""

    reason = "MOB_NOT_FOUND"


class MemberNotFound(NotFound):
    """No member of that name."""

    reason = "MEMBER_NOT_FOUND"


class InputNotFound(NotFound):
    """No input of that name."""

    reason = "INPUT_NOT_FOUND"


class InputForgotten(NotFound):
    """The input is older than what the server still remembers."""

    reason = "INPUT_FORGOTTEN"


class RunNotFound(NotFound):
    """No run of that name."""

    reason = "RUN_NOT_FOUND"


class OperationNotFound(NotFound):
    """No operation of that name."""

    reason = "OPERATION_NOT_FOUND"


class Violation:
    """One broken rule of a request: the path of the field, what would be legal, and the name of the rule."""

    __slots__ = ("code", "description", "field")

    def __init__(self, field: str, description: str, code: str) -> None:
        self.field = field
        self.description = description
        self.code = code


class FieldInvalid(MobdError):
    """Fields of the request break their rules."""

    reason = "FIELD_INVALID"

    def __init__(self, violations: Sequence[Violation]) -> None:
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        super().__init__(f"{first.field}: {first.description}{more}")
        self.violations = tuple(violations)


class DefinitionInvalid(FieldInvalid):
    """The definition has errors; each is a violation whose field is a path into the document."""

    reason = "DEFINITION_INVALID"


class Undecodable(MobdError):
    """The bytes of the request are no message."""

    reason = "UNDECODABLE"


class CursorTooOld(MobdError):
    """The log does not reach back that far."""

    reason = "CURSOR_TOO_OLD"


class CursorAhead(MobdError):
    """The log has not come that far."""

    reason = "CURSOR_AHEAD"


class LogChanged(MobdError):
    """The cursor belongs to another log."""

    reason = "LOG_CHANGED"


class Exhausted(MobdError):
    """Something bounded is full; the same call may succeed later."""

    reason = "RESOURCE_EXHAUSTED"
    retry_after_s: float = 1.0


class JournalFull(Exhausted):
    """Every journal slot is taken."""

    reason = "JOURNAL_FULL"
    retry_after_s = 0.1


class SlowReader(Exhausted):
    """The reader of a stream was too slow; go on from the cursor in the details."""

    reason = "SLOW_READER"
    retry_after_s = 0.1


class Unavailable(MobdError):
    """Not now, and what became of the call may be unknown: repeat it with the same ids."""

    reason = "UNAVAILABLE"
    retry_after_s: float = 1.0


class CommitUnknown(Unavailable):
    """The store failed while the decision was being committed."""

    reason = "COMMIT_UNKNOWN"


class MobReloading(Unavailable):
    """The mob is being read anew."""

    reason = "MOB_RELOADING"
    retry_after_s = 0.2


class JournalDown(Unavailable):
    """The store does not answer; nothing is accepted until it does."""

    reason = "JOURNAL_DOWN"


class Draining(Unavailable):
    """The server shuts down."""

    reason = "DRAINING"


class MobQuarantined(MobdError):
    """The mob's log can't be folded; it stays readable by PollEvents."""

    reason = "MOB_QUARANTINED"


class MobFormatNewer(MobdError):
    """The mob's log holds events of a newer mobd."""

    reason = "MOB_FORMAT_NEWER"


class DecisionTooLarge(Refused):
    """The command would append more than one decision may."""

    reason = "DECISION_TOO_LARGE"


class TokenMissing(MobdError):
    """The server takes only callers with a token, and the call has none."""

    reason = "TOKEN_MISSING"


class TokenUnknown(MobdError):
    """The call has a token that the server does not know."""

    reason = "TOKEN_UNKNOWN"


class Internal(MobdError):
    """A bug. The details hold an error id and nothing else."""

    reason = "INTERNAL"
