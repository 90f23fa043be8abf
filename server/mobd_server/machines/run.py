"""Runs: how a batch was given to an agent, and everything that can become of it (runtime §3, §9.5).

A run is one dispatch of one batch; its id is never used again. Attempts are counted per input when a run starts and
taken back when a run is given back unharmed. Everything that an agent says of a run carries the fence of its
assignment; what does not match the run in flight changes nothing. A run that a caller asked to cancel and that ends
without a result is cancelled, however it ended, and its inputs are not run again.
"""

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import RunAnswer, SendSettled
from mobd_server.machines.draft import Draft
from mobd_server.machines.inbox import end_input
from mobd_server.machines.lanes import lane_of, put_back, take
from mobd_server.machines.member import TABLE, insert_sorted, relist, set_timer, unlist
from mobd_server.machines.placement import start_run
from mobd_server.machines.policy import shared
from mobd_server.machines.records import MessageRow, Record, RunRow, SessionRow
from mobd_server.machines.sharing import refill
from mobd_server.machines.state import (
    BACKOFF_US,
    EMPTY_DIGEST,
    MAX_ATTEMPTS,
    MAX_RESENDS,
    NOTHING,
    RECEIPTS_KEPT,
    Input,
    Member,
    Mob,
    Run,
    Usage,
)
from mobd_server.machines.undo import Undo

Cause = Literal["result", "final", "error", "lost", "released", "cancelled", "destroyed", "retired", "reset"]

# Why a run ended -> the state in which it settles.
SETTLED: Final[dict[Cause, e.Settled]] = {
    "result": "committed",
    "final": "failed",
    "error": "failed",
    "lost": "lost",
    "released": "released",
    "cancelled": "cancelled",
    "destroyed": "abandoned",
    "retired": "abandoned",
    "reset": "abandoned",
}

# Cause -> what becomes of each input of the batch, if the cause alone says it.
FIXED: Final[dict[Cause, e.Ended]] = {
    "result": "consumed",
    "final": "abandoned",
    "released": "requeued",
    "cancelled": "abandoned",
    "destroyed": "abandoned",
    "retired": "abandoned",
    "reset": "abandoned",
}

# (cause, the attempt was the last, other inputs wait in its lane) -> what becomes of each input of the batch.
OUTCOMES: Final[dict[tuple[Cause, bool, bool], e.Ended]] = {
    # An error goes behind the backlog, so that one bad input does not hold up the others.
    ("error", False, False): "requeued",
    ("error", False, True): "requeued_behind",
    ("error", True, False): "abandoned",
    ("error", True, True): "abandoned",
    # A lost agent is nobody's fault yet: the order is kept.
    ("lost", False, False): "requeued",
    ("lost", False, True): "requeued",
    ("lost", True, False): "abandoned",
    ("lost", True, True): "abandoned",
}

# What becomes of a steered input that the handler did not take in, or is not known to have taken in.
RETURNED: Final[dict[Cause, e.Ended]] = {
    "result": "returned",
    "final": "returned",
    "error": "returned",
    "released": "returned",
    "cancelled": "returned",
    # Whether the agent died of it can't be told: it counts like the others.
    "lost": "requeued",
    "destroyed": "abandoned",
    "retired": "abandoned",
    "reset": "abandoned",
}

# What a settled run's inputs may have become: a log that says otherwise is broken.
LEGAL: Final[frozenset[tuple[e.Settled, e.Ended]]] = frozenset(
    {
        ("committed", "consumed"),
        ("committed", "returned"),
        ("failed", "requeued"),
        ("failed", "requeued_behind"),
        ("failed", "returned"),
        ("failed", "abandoned"),
        ("cancelled", "abandoned"),
        ("cancelled", "returned"),
        ("lost", "requeued"),
        ("lost", "abandoned"),
        ("released", "requeued"),
        ("released", "returned"),
        ("abandoned", "abandoned"),
    }
)

_REASONS: Final[dict[Cause, str]] = {
    "result": "",
    "final": "given up by its agent",
    "error": f"max_attempts_exhausted: {MAX_ATTEMPTS} attempts failed",
    "lost": f"max_attempts_exhausted: {MAX_ATTEMPTS} attempts failed, the last with its agent lost",
    "released": "",
    "cancelled": "cancelled",
    "destroyed": "destroyed",
    "retired": "retired",
    "reset": "reset",
}

UNASKED: Final = "its agent says that it was cancelled, and nobody asked for that"
_PREVIEW: Final = 200
# The bytes of a fence in a packed receipt; what follows is the hash of the result.
_FENCE: Final = 8


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """The proof that a run was applied."""

    fence: int
    result_hash: bytes


class Result(msgspec.Struct, frozen=True, gc=False):
    """What a successful run brought."""

    output: msgspec.Raw = NOTHING
    usage: Usage | None = None
    message_count: int = 0
    digest: str = ""
    result_hash: str = ""


def current(mob: Mob, attachment_id: str, run_id: str, fence: int) -> Run | None:
    """Return the run in flight if this agent holds it under this fence."""
    run = mob.runs.get(run_id)
    if run is None or run.attachment_id != attachment_id or run.fence != fence:
        return None
    return run


def settle_run(d: Draft, command: c.SettleRun) -> RunAnswer:
    """An agent's result: settle the run in flight, or recognise a result that was settled before."""
    run = current(d.mob, command.attachment_id, command.run_id, command.fence)
    if run is None:
        return _late(d, command)
    member = d.mob.members[run.member_id]
    before = member.message_count
    count = command.message_count if command.messages else before
    digest = command.digest if command.messages else member.digest
    result = Result(command.output, command.usage, count, digest, command.result_hash.hex())
    settle(d, run, "result", result=result, taken=command.steered)
    if command.messages:
        d.messages.extend(
            MessageRow(member.session_id, before + at, run.run_id, bytes(message).decode())
            for at, message in enumerate(command.messages)
        )
        d.sessions.append(SessionRow(member.session_id, member.member_id, count, digest))
    d.react(SendSettled(command.attachment_id, command.run_id, "committed"))
    refill(d, d.mob.attachments[command.attachment_id], member)
    return RunAnswer("committed")


def _late(d: Draft, command: c.SettleRun) -> RunAnswer:
    receipt = _receipt(d.mob, command.run_id)
    if receipt is None or receipt.fence != command.fence:
        d.react(SendSettled(command.attachment_id, command.run_id, "fenced"))
        return RunAnswer("fenced")
    if receipt.result_hash != command.result_hash:
        return RunAnswer("conflict")
    d.react(SendSettled(command.attachment_id, command.run_id, "duplicate"))
    return RunAnswer("duplicate")


def fail_run(d: Draft, command: c.FailRun) -> RunAnswer:
    """An agent's failure, or its giving a run back."""
    cause: Cause = "error" if command.retryable else "final"
    message = command.message
    if command.kind == "released":
        cause = "released"
    elif command.kind == "cancelled":
        # An agent can't swallow inputs by claiming a cancel: only a caller's request ends them (runtime §9.5).
        cause = "error"
        run = d.mob.runs.get(command.run_id)
        if run is not None and run.cancel == "none":
            message = f"{UNASKED}: {message}" if message else UNASKED
    return _unsuccessful(d, command.attachment_id, command.run_id, command.fence, cause, message, command.steered)


def lose_run(d: Draft, command: c.LoseRun) -> RunAnswer:
    """The agent does not hold the run that it was given."""
    return _unsuccessful(d, command.attachment_id, command.run_id, command.fence, "lost", command.reason)


def _unsuccessful(
    d: Draft, attachment_id: str, run_id: str, fence: int, cause: Cause, error: str, taken: Sequence[str] = ()
) -> RunAnswer:
    run = current(d.mob, attachment_id, run_id, fence)
    if run is None:
        d.react(SendSettled(attachment_id, run_id, "fenced"))
        return RunAnswer("fenced")
    member = d.mob.members[run.member_id]
    disposition = disposition_of(settle(d, run, cause, error, taken=taken), run, cause)
    d.react(SendSettled(attachment_id, run_id, disposition))
    refill(d, d.mob.attachments[attachment_id], member)
    return RunAnswer(disposition)


def disposition_of(outcomes: list[e.Outcome], run: Run, cause: Cause) -> Literal["requeued", "cancelled", "abandoned"]:
    """Return what the agent of a run that brought no result is told."""
    if effective(run, cause) == "cancelled":
        return "cancelled"
    return "abandoned" if all(one.outcome == "abandoned" for one in outcomes) else "requeued"


def effective(run: Run, cause: Cause) -> Cause:
    """Return why a run really ends: one that a caller asked to cancel is cancelled, unless it brought a result."""
    asked = run.cancel != "none" and run.cancelled_by == "caller"
    return "cancelled" if asked and cause in ("final", "error", "lost", "released") else cause


def settle(
    d: Draft, run: Run, cause: Cause, error: str = "", result: Result | None = None, taken: Sequence[str] = ()
) -> list[e.Outcome]:
    """End a run: an outcome for each input, the run's row, and a pause if what failed has nothing behind it.

    `taken` are the steered inputs that the handler took in, as the agent says.
    """
    member = d.mob.members[run.member_id]
    cause = effective(run, cause)
    backlog = bool(lane_of(member, run.inputs[0].lane)) or _returns(run, taken)
    # An agent that is lost with several runs was killed by one of them at most: only a run that was alone is counted as
    # its input's last attempt. The same attempt is made again, alone (`lanes.choose`).
    final = cause != "lost" or run.exclusive
    outcomes = [
        _outcome(cause, one, error, last=final and one.attempts >= MAX_ATTEMPTS, backlog=backlog) for one in run.inputs
    ]
    again = [one.attempt for one in outcomes if one.outcome == "requeued"]
    retry_at = d.context.now + BACKOFF_US[again[0] - 1] if cause == "error" and again else 0
    outcomes += _steered_outcomes(run, cause, error, taken)
    state = SETTLED[cause]
    facts = result or Result()
    started_at, now = run.at, d.context.now
    seq = d.emit(
        e.RunSettled(
            run.member_id,
            run.run_id,
            state,
            outcomes,
            output=facts.output,
            usage=facts.usage,
            error=error or (run.cancel_reason if cause == "cancelled" else ""),
            message_count=facts.message_count,
            digest=facts.digest,
            result_hash=facts.result_hash,
            retry_at=max(retry_at, member.retry_at) if retry_at else 0,
            boundary=run.stamp.boundary if state == "committed" else "run_start",
        ),
        run.member_id,
        run.run_id,
    )
    d.runs.append(
        RunRow(
            run_id=run.run_id,
            member_id=run.member_id,
            state=state,
            host_id=run.host_id,
            executor_fence=run.fence,
            started_seq=run.seq,
            settled_seq=seq,
            started_at=started_at,
            settled_at=now,
            inputs=_json([one.canonical_input_id for one in run.inputs]),
            attempts=_json(run.attempts),
            resent=run.resent,
            message_count=facts.message_count,
            digest=facts.digest,
        )
    )
    return outcomes


def _returns(run: Run, taken: Sequence[str]) -> bool:
    """Whether a steered input comes back to the lane of the batch unharmed: it must not wait for what failed there."""
    return run.inputs[0].lane == "steer" and any(one.canonical_input_id not in taken for one in run.steered or ())


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _outcome(cause: Cause, one: Input, error: str, *, last: bool, backlog: bool) -> e.Outcome:
    outcome = FIXED.get(cause) or OUTCOMES[cause, last, backlog]
    return e.Outcome(one.canonical_input_id, outcome, _reason(cause, outcome, error), one.attempts)


def _reason(cause: Cause, outcome: e.Ended, error: str) -> str:
    if outcome != "abandoned":
        return ""
    return f"{_REASONS[cause]}: {error}" if error else _REASONS[cause]


def _steered_outcomes(run: Run, cause: Cause, error: str, taken: Sequence[str]) -> list[e.Outcome]:
    """Return what becomes of steered inputs: those that were taken in, or are given up, share the fate of the batch."""
    outcomes: list[e.Outcome] = []
    sequence = 0
    for one in run.steered or ():
        name = one.canonical_input_id
        if name not in taken and RETURNED[cause] != "abandoned":
            outcomes.append(e.Outcome(name, RETURNED[cause], attempt=one.attempts))
            continue
        # What failed before is not steered, so that this attempt is never the last.
        fate = _outcome(cause, one, error, last=False, backlog=False)
        if fate.outcome == "consumed":
            sequence += 1
            fate = e.Outcome(name, "consumed", attempt=one.attempts, sequence=sequence)
        outcomes.append(fate)
    return outcomes


def resend(d: Draft, run: Run) -> None:
    """The run's agent came back without it: send it again, or call the attempt lost when that was tried enough.

    A run that is to be cancelled is not sent again.
    """
    count = run.resent + 1
    if run.cancel != "none":
        settle(d, run, "lost", "its agent came back without it")
        return
    if count >= MAX_RESENDS:
        settle(d, run, "lost", f"its agent came back {count} times without it")
        return
    d.emit(e.RunResent(run.member_id, run.run_id, count), run.member_id, run.run_id)
    d.react(start_run(run))


def started(mob: Mob, undo: Undo, record: Record, event: e.RunStarted) -> None:
    """Evolve: the first inputs of the queue are held by the run."""
    member = mob.members[event.member_id]
    attachment = mob.attachments[event.attachment_id]
    undo.touch(member)
    unlist(mob, undo, member)
    batch = take(undo, member, event.lane, len(event.canonical_input_ids))
    if [one.canonical_input_id for one in batch] != event.canonical_input_ids:
        raise ValueError(f"run {event.run_id} holds inputs that are not the head of their lane")
    for one, attempt in zip(batch, event.attempts, strict=True):
        undo.touch(one)
        one.attempts = attempt
    run = Run(
        event.run_id,
        event.member_id,
        event.attachment_id,
        attachment.host_id,
        event.executor_fence,
        batch,
        event.attempts,
        record.seq,
        record.at,
        exclusive=event.exclusive,
        stamp=shared(event.stamp),
        deadline=event.deadline,
    )
    if event.deadline:
        insert_sorted(undo, mob.timers, (event.deadline, "deadline", event.run_id))
    undo.put(mob.runs, event.run_id, run)
    undo.append(attachment.runs, event.run_id)
    if event.exclusive:
        undo.touch(attachment)
        attachment.exclusive = event.run_id
    member.run_id = event.run_id
    member.state = TABLE[member.state, "start"]
    member.active_seq = record.seq


def resent(mob: Mob, undo: Undo, record: Record, event: e.RunResent) -> None:
    """Evolve: the run was sent once more."""
    run = mob.runs[event.run_id]
    undo.touch(run)
    run.resent = event.count


def settled(mob: Mob, undo: Undo, record: Record, event: e.RunSettled) -> None:
    """Evolve: the run is gone; its inputs ended or wait again."""
    run = mob.runs[event.run_id]
    member = mob.members[event.member_id]
    attachment = mob.attachments[run.attachment_id]
    undo.touch(member)
    undo.drop(mob.runs, event.run_id)
    at = attachment.runs.index(event.run_id)
    undo.splice(attachment.runs, at, at + 1, ())
    if attachment.exclusive == event.run_id:
        undo.touch(attachment)
        attachment.exclusive = None
    set_timer(mob, undo, "deadline", event.run_id, run.deadline)
    member.run_id = None
    member.state = TABLE[member.state, "settle"]
    member.active_seq = record.seq
    _give_back(undo, member, run, record, event)
    if event.state == "committed":
        _keep_receipt(mob, undo, member, run, event)
    elif event.error:
        member.last_error = event.error[:_PREVIEW]
    if event.retry_at:
        set_timer(mob, undo, "retry", member.member_id, member.retry_at, event.retry_at)
        member.retry_at = event.retry_at
    relist(mob, undo, member, record.seq)


def _give_back(undo: Undo, member: Member, run: Run, record: Record, event: e.RunSettled) -> None:
    front: list[Input] = []
    behind: list[Input] = []
    for one, result in zip([*run.inputs, *(run.steered or ())], event.outcomes, strict=True):
        if (event.state, result.outcome) not in LEGAL or one.canonical_input_id != result.canonical_input_id:
            raise ValueError(f"run {run.run_id} {event.state} can't leave {one.canonical_input_id} {result.outcome}")
        if result.outcome in ("consumed", "abandoned"):
            end_input(undo, member, one.key, record)
            continue
        undo.touch(one)
        uncounted = event.state == "released" or result.outcome == "returned"
        one.attempts -= uncounted or one.attempts == MAX_ATTEMPTS
        one.losses += event.state == "lost"
        (behind if result.outcome == "requeued_behind" else front).append(one)
    put_back(undo, member, front, at_end=False)
    put_back(undo, member, behind, at_end=True)


def _keep_receipt(mob: Mob, undo: Undo, member: Member, run: Run, event: e.RunSettled) -> None:
    member.last_output = bytes(event.output).decode()[:_PREVIEW]
    member.last_error = ""
    member.message_count = event.message_count
    # What is left out of a snapshot is told by its identity.
    member.digest = EMPTY_DIGEST if event.digest == EMPTY_DIGEST else event.digest
    undo.put(mob.receipts, run.run_id, run.fence.to_bytes(_FENCE) + bytes.fromhex(event.result_hash))
    if len(member.receipts) >= RECEIPTS_KEPT:
        undo.drop(mob.receipts, member.receipts[0])
    member.receipts = (*member.receipts[1 - RECEIPTS_KEPT :], run.run_id)


def _receipt(mob: Mob, run_id: str) -> Receipt | None:
    packed = mob.receipts.get(run_id)
    return Receipt(int.from_bytes(packed[:_FENCE]), packed[_FENCE:]) if packed is not None else None


def retry_due(mob: Mob, undo: Undo, record: Record, event: e.RetryDue) -> None:
    """Evolve: the member's pause is over."""
    member = mob.members[event.member_id]
    undo.touch(member)
    set_timer(mob, undo, "retry", member.member_id, member.retry_at)
    member.retry_at = 0
    relist(mob, undo, member, record.seq)
