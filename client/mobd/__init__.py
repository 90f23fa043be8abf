"""The light client and the agent SDK of mobd.

`Client` (asyncio) and `SyncClient` speak to a server; `Agent` serves members of a mob. What the server refuses is
raised as the class of its reason, under `Error`. Messages of the protocol are in `mobd.v1`.
"""

from typing import TYPE_CHECKING

from mobd.agent import Agent
from mobd.client import Client
from mobd.content import Image, blocks
from mobd.deliveries import Delivery, Draft, member_spec
from mobd.errors import (
    AgentStopped,
    AlreadyExists,
    AskTimeout,
    Cancelled,
    CommitUnknown,
    ContentConflict,
    CursorAhead,
    CursorTooOld,
    DataLoss,
    DeadlineExceeded,
    DecisionTooLarge,
    DefinitionInvalid,
    DeliveryForgotten,
    DeliveryRejected,
    DeliveryStale,
    Draining,
    Error,
    FailedPrecondition,
    FieldInvalid,
    HandlingModeInvalid,
    InputAbandoned,
    InputForgotten,
    InputNotFound,
    InputReplaced,
    Internal,
    InvalidArgument,
    InvalidTransition,
    JournalDown,
    JournalFull,
    LocalMember,
    LogChanged,
    MemberExists,
    MemberNotFound,
    MobExists,
    MobFormatNewer,
    MobFull,
    MobNotFound,
    MobQuarantined,
    MobReloading,
    NotFound,
    NotReady,
    OperationAmbiguous,
    OperationExists,
    OperationLimit,
    OperationNotFound,
    OperationTransition,
    OutOfRange,
    PeerNotExpected,
    PermissionDenied,
    ProfileNotFound,
    QueueFull,
    RequestConflict,
    ResourceExhausted,
    RunNotFound,
    SlowReader,
    StaleFence,
    TokenMissing,
    TokenUnknown,
    Unauthenticated,
    Unavailable,
    Undecodable,
    Unimplemented,
    Violation,
)
from mobd.ids import uuid7
from mobd.members import Waited
from mobd.output import CancelFlag
from mobd.states import MobState
from mobd.sync import SyncClient
from mobd.turn import Abandon, Session, Turn, TurnInput
from mobd.v1.bridge_pb2 import ExternalEvent, Input, PeerRequest, PeerResponse
from mobd.v1.common_pb2 import Acting, Content, Fence
from mobd.v1.events_pb2 import AgentEvent, Event
from mobd.v1.members_pb2 import Member, MemberSpec
from mobd.v1.mobs_pb2 import Mob
from mobd.v1.runs_pb2 import Run
from mobd.watches import AgentEventWatch, EventWatch

__all__ = [
    "Abandon",
    "Acting",
    "Agent",
    "AgentEvent",
    "AgentEventWatch",
    "AgentStopped",
    "AlreadyExists",
    "AskTimeout",
    "CancelFlag",
    "Cancelled",
    "Client",
    "CommitUnknown",
    "Content",
    "ContentConflict",
    "CursorAhead",
    "CursorTooOld",
    "DataLoss",
    "DeadlineExceeded",
    "DecisionTooLarge",
    "DefinitionInvalid",
    "Delivery",
    "DeliveryForgotten",
    "DeliveryRejected",
    "DeliveryStale",
    "Draft",
    "Draining",
    "Error",
    "Event",
    "EventWatch",
    "ExternalEvent",
    "FailedPrecondition",
    "Fence",
    "FieldInvalid",
    "HandlingModeInvalid",
    "Image",
    "Input",
    "InputAbandoned",
    "InputForgotten",
    "InputNotFound",
    "InputReplaced",
    "Internal",
    "InvalidArgument",
    "InvalidTransition",
    "JournalDown",
    "JournalFull",
    "LocalMember",
    "LogChanged",
    "Member",
    "MemberExists",
    "MemberNotFound",
    "MemberSpec",
    "Mob",
    "MobExists",
    "MobFormatNewer",
    "MobFull",
    "MobNotFound",
    "MobQuarantined",
    "MobReloading",
    "MobState",
    "NotFound",
    "NotReady",
    "OperationAmbiguous",
    "OperationExists",
    "OperationLimit",
    "OperationNotFound",
    "OperationTransition",
    "OutOfRange",
    "PeerNotExpected",
    "PeerRequest",
    "PeerResponse",
    "PermissionDenied",
    "ProfileNotFound",
    "QueueFull",
    "RequestConflict",
    "ResourceExhausted",
    "Run",
    "RunNotFound",
    "Session",
    "SlowReader",
    "StaleFence",
    "SyncClient",
    "TokenMissing",
    "TokenUnknown",
    "Turn",
    "TurnInput",
    "Unauthenticated",
    "Unavailable",
    "Undecodable",
    "Unimplemented",
    "Violation",
    "Waited",
    "blocks",
    "member_spec",
    "uuid7",
]


if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        if name == "__version__":
            # Reading the metadata takes longer than all of this package's own code: only who asks waits for it.
            from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 only whoever asks pays for it

            try:
                return version("mobd")
            except PackageNotFoundError:
                return "0+unknown"
        message = f"module 'mobd' has no attribute '{name}'"
        raise AttributeError(message)
