"""What people are told when mobd or its store fails: a bug, or the end of an incarnation."""

import logging
from typing import Final

from mobd_server.errors import CommitUnknown, Internal, MobdError, MobExists, MobReloading
from mobd_server.machines.commands import Ids
from mobd_server.machines.records import Append
from mobd_server.ports import Result

log: Final = logging.getLogger(__name__)


def internal(ids: Ids) -> Internal:
    """Return what the victim of a bug is told; whoever found it logs the rest under the same error id."""
    error_id = ids.new("err")
    return Internal(f"mobd failed; its log says more under error id {error_id}", {"error_id": error_id})


def reloading(mob_id: str) -> MobReloading:
    """Return the refusal of a mob whose incarnation has ended."""
    return MobReloading(f"mob '{mob_id}' is being read anew: repeat the call with the same ids", {"mob_id": mob_id})


class Loss:
    """Why an incarnation ended: the first append that was lost, and its result."""

    __slots__ = ("_append", "_head", "_ids", "_result")

    def __init__(self, append: Append, result: Result, ids: Ids) -> None:
        self._append = append
        self._result = result
        self._ids = ids
        # The head that the lost decision would have made. It is the first to wait for it.
        self._head = append.base + len(append.records)

    def error(self, barrier: int) -> MobdError:
        """Return the error of the next who waits for `barrier`; call it once for each, in order."""
        append, result = self._append, self._result
        own, self._head = barrier == self._head, 0 if barrier >= self._head else self._head
        if result.fate in ("unknown", "aborted"):
            return CommitUnknown(
                f"the store failed while a decision of mob '{append.mob_id}' was being stored: "
                "repeat the call with the same ids",
                {"mob_id": append.mob_id},
            )
        if own and result.fate == "offender":
            error = internal(self._ids)
            log.error("append_refused", extra={"mob_id": append.mob_id, "error": result.error, **error.details})
            return error
        if own and result.fate == "fenced" and append.create is not None:
            return MobExists(f"mob '{append.mob_id}' exists already", {"mob_id": append.mob_id})
        return reloading(append.mob_id)
