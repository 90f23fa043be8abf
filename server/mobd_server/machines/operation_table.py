"""Which step is legal in which status of an operation (runtime §5.2)."""

from typing import Final, Literal

from mobd_server.machines.state import OperationStatus

Action = Literal[
    "provisioning_succeeded",
    "provisioning_failed",
    "abort_provisioning",
    "peer_ready",
    "report_progress",
    "complete",
    "fail",
    "cancel",
    "request_retire",
    "mark_retired",
    "terminate",
]

# (action, status before) -> status after. What is not here is refused (runtime §5.2; provisioning fails only while it
# goes on).
TABLE: Final[dict[tuple[Action, OperationStatus], OperationStatus]] = {
    ("provisioning_succeeded", "provisioning"): "running",
    ("provisioning_failed", "provisioning"): "failed",
    ("abort_provisioning", "provisioning"): "aborted",
    ("peer_ready", "running"): "running",
    ("peer_ready", "retiring"): "retiring",
    ("report_progress", "running"): "running",
    ("report_progress", "retiring"): "retiring",
    ("complete", "running"): "completed",
    ("complete", "retiring"): "completed",
    ("fail", "provisioning"): "failed",
    ("fail", "running"): "failed",
    ("fail", "retiring"): "failed",
    ("cancel", "provisioning"): "cancelled",
    ("cancel", "running"): "cancelled",
    ("cancel", "retiring"): "cancelled",
    ("request_retire", "running"): "retiring",
    ("mark_retired", "running"): "retired",
    ("mark_retired", "retiring"): "retired",
    ("terminate", "provisioning"): "terminated",
    ("terminate", "running"): "terminated",
    ("terminate", "retiring"): "terminated",
}

LIVE_STATUSES: Final[frozenset[OperationStatus]] = frozenset({"provisioning", "running", "retiring"})
