"""Runs: how a batch was given to an agent, and everything that can become of it (runtime §3, §9.5).

A run is one dispatch of one batch; its id is never used again. Attempts are counted per input when a run starts and
taken back when a run is given back unharmed. Everything that an agent says of a run carries the fence of its
assignment; what does not match the run in flight changes nothing.
"""

from typing import Final, Literal

import msgspec

from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import Done, RunAnswer, SendSettled
from mobd_server.machines.draft import Draft
from mobd_server.machines.inbox import end_input, put_back, take
from mobd_server.machines.member import TABLE, insert_sorted, relist, remove_sorted, unlist
from mobd_server.machines.placement import start_run
from mobd_server.machines.records import MessageRow, Record, RunRow, SessionRow
from mobd_server.machines.sharing import refill, serve_work
from mobd_server.machines.state import (
    BACKOFF_US,
    MAX_ATTEMPTS,
    MAX_RESENDS,
    NOTHING,
    RECEIPTS_KEPT,
    Input,
    Member,
    Mob,
    Receipt,
    Run,
    Usage,
)
from mobd_server.machines.undo import Undo

Cause = Literal["result", "final", "error", "lost", "released", "destroyed"]

# Why a run ended -> the state in which it settles.
SETTLED: Final[dict[Cause, e.Settled]] = {
    "result": "committed",
    "final": "failed",
    "error": "failed",
    "lost": "lost",
    "released": "released",
    "destroyed": "abandoned",
}

# (cause, the attempt was the last, other inputs wait) -> what becomes of each input of the run.
OUTCOMES: Final[dict[tuple[Cause, bool, bool], e.Ended]] = {
    ("result", False, False): "consumed",
    ("result", False, True): "consumed",
    ("result", True, False): "consumed",
    ("result", True, True): "consumed",
    ("final", False, False): "abandoned",
    ("final", False, True): "abandoned",
    ("final", True, False): "abandoned",
    ("final", True, True): "abandoned",
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
    ("released", False, False): "requeued",
    ("released", False, True): "requeued",
    ("released", True, False): "requeued",
    ("released", True, True): "requeued",
    ("destroyed", False, False): "abandoned",
    ("destroyed", False, True): "abandoned",
    ("destroyed", True, False): "abandoned",
    ("destroyed", True, True): "abandoned",
}

# What a settled run's inputs may have become: a log that says otherwise is broken.
LEGAL: Final[frozenset[tuple[e.Settled, e.Ended]]] = frozenset(
    {
        ("committed", "consumed"),
        ("failed", "requeued"),
        ("failed", "requeued_behind"),
        ("failed", "abandoned"),
        ("lost", "requeued"),
        ("lost", "abandoned"),
        ("released", "requeued"),
        ("abandoned", "abandoned"),
    }
)

_REASONS: Final[dict[Cause, str]] = {
    "result": "",
    "final": "given up by its agent",
    "error": f"max_attempts_exhausted: {MAX_ATTEMPTS} attempts failed",
    "lost": f"max_attempts_exhausted: {MAX_ATTEMPTS} attempts failed, the last with its agent lost",
    "released": "",
    "destroyed": "destroyed",
}

_PREVIEW: Final = 200
RETRIES_AT_ONCE: Final = 200


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
    settle(d, run, "result", result=Result(command.output, command.usage, count, digest, command.result_hash.hex()))
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
    receipt = d.mob.receipts.get(command.run_id)
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
    if command.kind == "released":
        cause = "released"
    return _unsuccessful(d, command.attachment_id, command.run_id, command.fence, cause, command.message)


def lose_run(d: Draft, command: c.LoseRun) -> RunAnswer:
    """The agent does not hold the run that it was given."""
    return _unsuccessful(d, command.attachment_id, command.run_id, command.fence, "lost", command.reason)


def _unsuccessful(d: Draft, attachment_id: str, run_id: str, fence: int, cause: Cause, error: str) -> RunAnswer:
    run = current(d.mob, attachment_id, run_id, fence)
    if run is None:
        d.react(SendSettled(attachment_id, run_id, "fenced"))
        return RunAnswer("fenced")
    member = d.mob.members[run.member_id]
    outcomes = settle(d, run, cause, error)
    gone = all(one.outcome == "abandoned" for one in outcomes)
    disposition: Literal["requeued", "abandoned"] = "abandoned" if gone else "requeued"
    d.react(SendSettled(attachment_id, run_id, disposition))
    refill(d, d.mob.attachments[attachment_id], member)
    return RunAnswer(disposition)


def settle(d: Draft, run: Run, cause: Cause, error: str = "", result: Result | None = None) -> list[e.Outcome]:
    """End a run: an outcome for each input, the run's row, and a pause if what failed has nothing behind it."""
    member = d.mob.members[run.member_id]
    backlog = bool(member.queue)
    # An agent that is lost with several runs was killed by one of them at most: only a run that was alone is counted as
    # its input's last attempt. The same attempt is made again, alone (`select_batch`).
    final = cause != "lost" or run.exclusive
    outcomes = [
        _outcome(cause, one, attempt, error, last=final and attempt >= MAX_ATTEMPTS, backlog=backlog)
        for one, attempt in zip(run.inputs, run.attempts, strict=True)
    ]
    again = [a for a, o in zip(run.attempts, outcomes, strict=True) if o.outcome == "requeued"]
    retry_at = d.context.now + BACKOFF_US[again[0] - 1] if cause == "error" and again else 0
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
            error=error,
            message_count=facts.message_count,
            digest=facts.digest,
            result_hash=facts.result_hash,
            retry_at=retry_at,
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


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _outcome(cause: Cause, one: Input, attempt: int, error: str, *, last: bool, backlog: bool) -> e.Outcome:
    outcome = OUTCOMES[cause, last, backlog]
    reason = ""
    if outcome == "abandoned":
        reason = f"{_REASONS[cause]}: {error}" if error else _REASONS[cause]
    return e.Outcome(one.canonical_input_id, outcome, reason, attempt)


def resend(d: Draft, run: Run) -> None:
    """The run's agent came back without it: send it again, or call the attempt lost when that was tried enough."""
    count = run.resent + 1
    if count >= MAX_RESENDS:
        settle(d, run, "lost", f"its agent came back {count} times without it")
        return
    d.emit(e.RunResent(run.member_id, run.run_id, count), run.member_id, run.run_id)
    d.react(start_run(run))


def wake(d: Draft, command: c.Wake) -> Done:
    """Let every member run whose pause is over."""
    due: list[str] = []
    for at, member_id in d.mob.retries:
        if at > d.context.now or len(due) >= RETRIES_AT_ONCE:
            break
        due.append(member_id)
    for member_id in due:
        d.emit(e.RetryDue(member_id), member_id)
        serve_work(d, d.mob.members[member_id])
    return Done(bool(due))


def started(mob: Mob, undo: Undo, record: Record, event: e.RunStarted) -> None:
    """Evolve: the first inputs of the queue are held by the run."""
    member = mob.members[event.member_id]
    attachment = mob.attachments[event.attachment_id]
    undo.touch(member)
    unlist(mob, undo, member)
    batch = take(undo, member, len(event.canonical_input_ids))
    if [one.canonical_input_id for one in batch] != event.canonical_input_ids:
        raise ValueError(f"run {event.run_id} holds inputs that are not the head of the queue")
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
    )
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
    member.run_id = None
    member.state = TABLE[member.state, "settle"]
    member.active_seq = record.seq
    _give_back(undo, member, run, record, event)
    if event.state == "committed":
        _keep_receipt(mob, undo, member, run, event)
    elif event.error:
        member.last_error = event.error[:_PREVIEW]
    if event.retry_at:
        member.retry_at = event.retry_at
        insert_sorted(undo, mob.retries, (event.retry_at, member.member_id))
    relist(mob, undo, member, record.seq)


def _give_back(undo: Undo, member: Member, run: Run, record: Record, event: e.RunSettled) -> None:
    front: list[Input] = []
    behind: list[Input] = []
    for one, result in zip(run.inputs, event.outcomes, strict=True):
        if (event.state, result.outcome) not in LEGAL or one.canonical_input_id != result.canonical_input_id:
            raise ValueError(f"run {run.run_id} {event.state} can't leave {one.canonical_input_id} {result.outcome}")
        if result.outcome in ("consumed", "abandoned"):
            end_input(undo, member, one.key, record)
            continue
        undo.touch(one)
        one.attempts -= event.state == "released" or one.attempts == MAX_ATTEMPTS
        one.losses += event.state == "lost"
        (behind if result.outcome == "requeued_behind" else front).append(one)
    put_back(undo, member, front, at_end=False)
    put_back(undo, member, behind, at_end=True)


def _keep_receipt(mob: Mob, undo: Undo, member: Member, run: Run, event: e.RunSettled) -> None:
    member.last_output = bytes(event.output).decode()[:_PREVIEW]
    member.last_error = ""
    member.message_count = event.message_count
    member.digest = event.digest
    if member.receipts is None:
        member.receipts = []
    undo.append(member.receipts, run.run_id)
    undo.put(mob.receipts, run.run_id, Receipt(member.member_id, run.fence, bytes.fromhex(event.result_hash)))
    if len(member.receipts) > RECEIPTS_KEPT:
        undo.drop(mob.receipts, member.receipts[0])
        undo.splice(member.receipts, 0, 1, ())


def retry_due(mob: Mob, undo: Undo, record: Record, event: e.RetryDue) -> None:
    """Evolve: the member's pause is over."""
    member = mob.members[event.member_id]
    undo.touch(member)
    remove_sorted(undo, mob.retries, (member.retry_at, member.member_id))
    member.retry_at = 0
    relist(mob, undo, member, record.seq)
