"""Between protobuf and the domain: mobs, definitions, members."""

from typing import Final

from mobd.v1 import common_pb2, members_pb2, mobs_pb2
from mobd_server.adapters.rpc.convert import MEMBER_STATES, content_from, json_from, json_to, time_to
from mobd_server.machines.answers import DestroyAnswer, MemberView, MobReport, MobView, SpawnRefusal
from mobd_server.machines.commands import MemberSpec
from mobd_server.machines.state import Pending
from mobd_server.ports import MobListing
from mobd_server.services.definitions import Diagnostic
from mobd_server.services.members import Until

PHASES: Final[dict[str, mobs_pb2.MobPhase.ValueType]] = {
    "creating": mobs_pb2.MOB_PHASE_CREATING,
    "running": mobs_pb2.MOB_PHASE_RUNNING,
    "stopped": mobs_pb2.MOB_PHASE_STOPPED,
    "completed": mobs_pb2.MOB_PHASE_COMPLETED,
    "destroyed": mobs_pb2.MOB_PHASE_DESTROYED,
}
PHASE_NAMES: Final[dict[int, str]] = {number: name for name, number in PHASES.items()}
PENDINGS: Final[dict[Pending, mobs_pb2.MobPending.ValueType]] = {
    "none": mobs_pb2.MOB_PENDING_UNSPECIFIED,
    "destroy": mobs_pb2.MOB_PENDING_DESTROY,
    "complete": mobs_pb2.MOB_PENDING_COMPLETE,
    "reset": mobs_pb2.MOB_PENDING_RESET,
    "retire_all": mobs_pb2.MOB_PENDING_RETIRE_ALL,
}
UNTILS: Final[dict[int, Until]] = {
    members_pb2.WAIT_UNTIL_KICKOFF_COMPLETE: "kickoff_complete",
    members_pb2.WAIT_UNTIL_READY: "ready",
    members_pb2.WAIT_UNTIL_FINAL: "final",
}
SEVERITIES: Final[dict[str, mobs_pb2.Severity.ValueType]] = {
    "warning": mobs_pb2.SEVERITY_WARNING,
    "error": mobs_pb2.SEVERITY_ERROR,
}


def mob_to(view: MobView) -> mobs_pb2.Mob:
    """Return a mob as callers see it."""
    return mobs_pb2.Mob(
        mob_id=view.mob_id,
        phase=PHASES[view.phase],
        pending=PENDINGS[view.pending],
        labels=view.labels,
        members=mobs_pb2.MemberCounts(
            total=sum(count for state, count in view.members.items() if state != "total"),
            idle=view.members.get("idle", 0),
            attached=view.members.get("attached", 0),
            running=view.members.get("running", 0),
            destroyed=view.members.get("destroyed", 0),
            retired=view.members.get("retired", 0),
        ),
        head=view.head,
        log_id=view.log_id,
        definition_json=json_to(view.definition),
        create_time=time_to(view.created_at),
        agents=view.agents,
        inputs_waiting=view.inputs_waiting,
        cleanup_pending=view.cleanup_pending,
    )


def listing_to(listing: MobListing) -> mobs_pb2.MobSummary:
    """Return a mob as it is listed."""
    return mobs_pb2.MobSummary(
        mob_id=listing.mob_id,
        phase=PHASES[listing.phase],
        labels=listing.labels,
        head=listing.head,
        log_id=listing.log_id,
        create_time=time_to(listing.created_at),
    )


def report_to(answer: DestroyAnswer | MobReport) -> common_pb2.MobReport:
    """Return what a command that works in slices has done so far."""
    return common_pb2.MobReport(
        members=len(answer.outcomes),
        inputs_abandoned=sum(one.inputs_abandoned for one in answer.outcomes),
        outcomes=[
            common_pb2.MemberOutcome(
                member_id=one.member_id,
                inputs_abandoned=one.inputs_abandoned,
                inputs_pending_drain=one.inputs_pending_drain,
            )
            for one in answer.outcomes
        ],
        inputs_pending_drain=sum(one.inputs_pending_drain for one in answer.outcomes),
    )


def diagnostic_to(diagnostic: Diagnostic) -> mobs_pb2.Diagnostic:
    """Return one finding about a definition."""
    return mobs_pb2.Diagnostic(
        code=diagnostic.code,
        message=diagnostic.message,
        location=diagnostic.location,
        severity=SEVERITIES[diagnostic.severity],
    )


def spec_from(spec: members_pb2.MemberSpec) -> MemberSpec:
    """Return what a new member is to be."""
    return MemberSpec(
        spec.member_id,
        spec.role,
        dict(spec.labels) or None,
        json_from(spec.context_json) if spec.context_json else None,
        content_from(spec.initial_message) if spec.HasField("initial_message") else None,
    )


def member_to(view: MemberView, executor: common_pb2.Connectivity.ValueType) -> members_pb2.Member:
    """Return a member as callers see it."""
    drained = view.state == "retired" and view.run_id is None and not view.inputs_waiting
    return members_pb2.Member(
        mob_id=view.mob_id,
        member_id=view.member_id,
        generation=view.generation,
        fence_token=view.fence_token,
        role=view.role,
        labels=view.labels,
        context_json=json_to(view.context),
        lifecycle=_lifecycle(view),
        state=MEMBER_STATES[view.state],
        executor=executor,
        host_id=view.host_id,
        current_run_id=view.run_id or "",
        inputs_waiting=view.inputs_waiting,
        oldest_waiting_time=time_to(view.oldest_waiting_at),
        session=members_pb2.SessionInfo(
            session_id=view.session_id, message_count=view.message_count, digest=view.digest
        ),
        last_output_preview=view.last_output,
        last_error=view.last_error,
        create_time=time_to(view.created_at),
        retry_time=time_to(view.retry_at),
        inputs_steering=view.inputs_steering,
        inputs_running=view.inputs_running,
        operation_id=view.operation_id,
        initial_input_id=view.initial_input_id,
        kickoff_complete=view.kickoff_complete,
        drain_time=time_to(view.drain_until),
        is_final=view.state == "destroyed" or drained,
    )


def _lifecycle(view: MemberView) -> members_pb2.MemberLifecycle.ValueType:
    if view.state == "destroyed":
        return members_pb2.MEMBER_LIFECYCLE_COMPLETED
    if view.lifecycle == "retiring":
        return members_pb2.MEMBER_LIFECYCLE_RETIRING
    return members_pb2.MEMBER_LIFECYCLE_ACTIVE


def refusal_to(refusal: SpawnRefusal) -> members_pb2.SpawnRefusal:
    """Return why one member of several was not spawned."""
    return members_pb2.SpawnRefusal(reason=refusal.reason, message=refusal.message)
