"""Operations in the model: the guard table once more, and what the life of members does to theirs (runtime §5)."""

from dataclasses import dataclass
from typing import Final

from tests.machines.model_members import Members

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.records import Record
from mobd_server.machines.state import Mob

LIVE: Final = ("provisioning", "running", "retiring")
# Step -> from which statuses, to which; None is the same.
STEPS: Final[dict[str, tuple[tuple[str, ...], str | None]]] = {
    "provisioning_succeeded": (("provisioning",), "running"),
    "provisioning_failed": (("provisioning",), "failed"),
    "abort_provisioning": (("provisioning",), "aborted"),
    "peer_ready": (("running", "retiring"), None),
    "report_progress": (("running", "retiring"), None),
    "complete": (("running", "retiring"), "completed"),
    "fail": (LIVE, "failed"),
    "cancel": (LIVE, "cancelled"),
    "request_retire": (("running",), "retiring"),
    "mark_retired": (("running", "retiring"), "retired"),
}


@dataclass
class Operation:
    kind: str
    owner: str
    member_id: str
    expects_peer: bool
    status: str = "provisioning"
    peer_ready: bool = False
    progress: int = 0
    completion: int = 0


class Operations(Members):
    """The life of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: dict[str, Operation] = {}
        self.completions = 0
        # Those that the decision changed, and the member for whose run the caller acts.
        self.changed: set[str] = set()
        self.actor = ""

    # What must be answered.

    def registering(self, command: c.RegisterOperation) -> str:
        """Return what must become of a registration."""
        if not self.admits(c.RegisterOperation):
            return "refused"
        owner = self.members.get(command.owner or self.actor)
        if command.operation_id in self.operations:
            return "exists"
        if (command.owner or self.actor) and owner is None:
            return "unknown"
        return "transition" if owner is not None and owner.state == "destroyed" else "ok"

    def moving(self, command: c.MoveOperation) -> str:
        """Return what must become of a step."""
        operation = self.operations.get(command.operation_id)
        if not self.admits(c.MoveOperation):
            return "refused"
        if operation is None:
            return "unknown operation"
        if command.action == "peer_ready" and not operation.expects_peer:
            return "no peer"
        own = not operation.member_id or command.action in ("peer_ready", "report_progress")
        again = command.action == "peer_ready" and operation.peer_ready
        legal = operation.status in STEPS[command.action][0]
        return "ok" if own and legal and not again else "transition"

    # Events.

    def follow_operations(self, record: Record) -> None:
        """Move the operations that an event is about; the members are as they were before it."""
        event = record.event
        match event:
            case e.MemberSpawned():
                assert event.owner == self.actor
                self._begin(event)
            case e.MemberRespawned():
                assert event.owner == self.operations[self.members[event.member_id].operation_id].owner
                self._leave(event.member_id, "retired")
                self._begin(event)
            case e.ExecutorConfirmed():
                operation = self._own(event.member_id)
                if operation.status == "provisioning":
                    operation.status, operation.peer_ready = "running", True
                    self.changed.add(self.members[event.member_id].operation_id)
            case e.RuntimeRetired():
                self._retire(self.members[event.member_id].operation_id)
            case e.MemberRetired():
                self._leave(event.member_id, "retired")
            case e.MemberDestroyed():
                self._leave(event.member_id, "terminated")
            case e.MobDestroyed():
                for owner in sorted({one.owner for one in self.operations.values()}):
                    self._terminate(owner)

    def _own(self, member_id: str) -> Operation:
        return self.operations[self.members[member_id].operation_id]

    def _begin(self, event: e.MemberSpawned | e.MemberRespawned) -> None:
        assert event.operation_id not in self.operations, "who comes again has a new operation"
        self.operations[event.operation_id] = Operation(
            "mob_member_child", event.owner, event.member_id, expects_peer=True
        )
        self.changed.add(event.operation_id)

    def _retire(self, name: str) -> None:
        operation = self.operations[name]
        if operation.status == "provisioning":
            self._end(name, "aborted")
        elif operation.status == "running":
            operation.status = "retiring"
            self.changed.add(name)

    def _leave(self, member_id: str, how: str) -> None:
        name = self.members[member_id].operation_id
        operation = self.operations[name]
        if operation.status in LIVE:
            self._end(name, "aborted" if operation.status == "provisioning" else how)
        self._terminate(member_id)

    def _terminate(self, owner: str) -> None:
        for name, operation in self.operations.items():
            if operation.kind == "background_tool" and operation.owner == owner and operation.status in LIVE:
                self._end(name, "terminated")

    def _end(self, name: str, status: str) -> None:
        operation = self.operations[name]
        assert operation.status in LIVE, "the first end wins"
        self.completions += 1
        operation.status, operation.completion = status, self.completions
        self.changed.add(name)

    def _step(self, name: str, action: str) -> Operation:
        before, after = STEPS[action]
        operation = self.operations[name]
        assert operation.status in before
        operation.status = after or operation.status
        self.changed.add(name)
        return operation

    def _operation_registered(self, event: e.OperationRegistered, record: Record) -> None:
        assert event.operation_id not in self.operations
        self.operations[event.operation_id] = Operation(
            event.operation_kind, event.owner, event.member_id, event.expect_peer_channel
        )
        self.changed.add(event.operation_id)

    def _operation_started(self, event: e.OperationStarted, record: Record) -> None:
        self._step(event.operation_id, "provisioning_succeeded")

    def _operation_peer_ready(self, event: e.OperationPeerReady, record: Record) -> None:
        operation = self._step(event.operation_id, "peer_ready")
        assert operation.expects_peer
        assert not operation.peer_ready
        operation.peer_ready = True

    def _operation_progressed(self, event: e.OperationProgressed, record: Record) -> None:
        self._step(event.operation_id, "report_progress").progress += 1

    def _operation_retiring(self, event: e.OperationRetiring, record: Record) -> None:
        self._step(event.operation_id, "request_retire")

    def _operation_ended(self, event: e.OperationEnded, record: Record) -> None:
        if isinstance(self.command, c.MoveOperation):
            assert event.status == STEPS[self.command.action][1]
        else:
            assert isinstance(self.command, c.TerminateOwner)
            assert event.status == "terminated"
        self._end(event.operation_id, event.status)

    # States.

    def check_operations(self, mob: Mob) -> None:
        """Compare operations; a member that is neither retired nor destroyed has exactly one that lives."""
        assert {
            name: (
                one.kind,
                one.owner,
                one.member_id,
                one.status,
                one.peer_ready,
                one.progress_count,
                one.completion_seq,
            )
            for name, one in mob.operations.items()
        } == {
            name: (one.kind, one.owner, one.member_id, one.status, one.peer_ready, one.progress, one.completion)
            for name, one in self.operations.items()
        }
        ended = sorted((one.completion, name) for name, one in self.operations.items() if one.completion)
        assert [at for at, _ in ended] == list(range(1, self.completions + 1)), "the feed has no gap"
        assert (mob.completed, mob.completions) == ([name for _, name in ended], self.completions)
        live = [(one.member_id, name) for name, one in self.operations.items() if one.member_id and one.status in LIVE]
        active = {(i, one.operation_id) for i, one in self.members.items() if one.state == "active"}
        assert len(live) == len({member_id for member_id, _ in live})
        assert active <= set(live) <= {(i, one.operation_id) for i, one in self.members.items()}
        owned: dict[str, list[str]] = {}
        for name, one in self.operations.items():
            if one.kind == "background_tool" and one.status in LIVE:
                owned.setdefault(one.owner, []).append(name)
        assert mob.owned == owned
