"""What the server is: version, limits and mode, as every part states its own."""

from importlib.metadata import version
from typing import Final

from msgspec import Struct

from mobd_server.machines import decision, inbox, roster, state
from mobd_server.services.definitions import MAX_LABEL_BYTES, MAX_LABELS
from mobd_server.services.json_text import MAX_NESTING

PROTOCOL: Final = 1
MESSAGE_BYTES: Final = 4 << 20
INPUT_BYTES: Final = 262_144
FEATURES: Final = ("deliver_batch", "event_streams", "input_streams", "request_ledger")


class ServerInfo(Struct, frozen=True):
    """See GetServerInfoResponse in server.proto."""

    node: str
    store: str
    auth_mode: str
    version: str
    limits: dict[str, int]
    protocol_min: int = PROTOCOL
    protocol_max: int = PROTOCOL
    features: tuple[str, ...] = FEATURES


def server_info(node: str, store: str, auth_mode: str, journal_slots: int) -> ServerInfo:
    """Return what this server is."""
    return ServerInfo(
        node=node,
        store=store,
        auth_mode=auth_mode,
        version=version("mobd"),
        limits={
            "message_bytes": MESSAGE_BYTES,
            "input_bytes": INPUT_BYTES,
            "inbox_inputs": inbox.QUEUE_INPUTS,
            "inbox_bytes": inbox.QUEUE_BYTES,
            "dedupe_keys": inbox.DEDUPE_KEYS,
            "dedupe_seconds": inbox.DEDUPE_US // 1_000_000,
            "requests": decision.REQUESTS,
            "requests_seconds": decision.REQUESTS_US // 1_000_000,
            "members": roster.MEMBERS,
            "labels": MAX_LABELS,
            "label_bytes": MAX_LABEL_BYTES,
            "json_nesting": MAX_NESTING,
            "attempts": state.MAX_ATTEMPTS,
            "receipts": state.RECEIPTS_KEPT,
            "journal_slots": journal_slots,
        },
    )
