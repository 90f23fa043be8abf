"""What anybody knew of a log at a moment: the newest event that an answer, a stream or an agent had told of before."""

from bisect import bisect_left

from tests.checker.facts import Facts
from tests.checker.history import AgentReceived, Plain, StreamEvent
from tests.checker.seen import MobSeen


def floors(seen: MobSeen) -> dict[str, int]:
    """Return, for each call and each stream by name, the newest event that somebody had seen before it was asked for.

    What two observers record at one value of the clock orders nothing, so only what is strictly earlier counts.
    """
    learned = sorted(_learned(seen))
    moments: list[int] = []
    highest: list[int] = []
    for at, seq in learned:
        if not highest or seq > highest[-1]:
            moments.append(at)
            highest.append(seq)
    asked = {call.invoked.call: call.invoked.at for call in seen.calls}
    asked.update((stream.opened.stream, stream.opened.at) for stream in seen.streams)
    found: dict[str, int] = {}
    for name, at in asked.items():
        place = bisect_left(moments, at)
        found[name] = highest[place - 1] if place else 0
    return found


def _learned(seen: MobSeen) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for call in seen.calls:
        # What was asked on trial has no place in the log, and a deleted mob has none either.
        if call.request.get("validate_only") or call.rpc == "DeleteMob":
            continue
        for answer in call.answers:
            told = answer.answer
            numbers = [told.get("cursor", 0), told.get("head", 0), told.get("input", {}).get("cursor", 0)]
            numbers.append(told.get("accepted", {}).get("cursor", 0))
            numbers.extend(one.get("accepted", {}).get("cursor", 0) for one in told.get("outcomes", []))
            found.append((answer.at, max(numbers)))
    for stream in seen.streams:
        for one in stream.came:
            seq = one.event.get("seq", 0) if isinstance(one, StreamEvent) else one.head
            found.append((one.at, seq))
    found.extend(
        (one.at, _told(seen.facts, one.frame, one.body)) for one in seen.frames if isinstance(one, AgentReceived)
    )
    # Who saw more than there is saw something that is not durable, which another check tells of.
    return [(at, min(seq, seen.facts.head)) for at, seq in found]


def _told(facts: Facts, frame: str, body: Plain) -> int:
    """Return the event that an agent must have been told of with a frame, or 0."""
    event: Plain | None = None
    run = facts.runs.get(body.get("run_id", ""))
    if frame == "assign":
        event = facts.fences.get(body.get("executor_fence", 0))
    elif frame == "start_run" and run is not None:
        event = run.event
    elif frame == "run_settled" and run is not None and body.get("disposition") != "RUN_DISPOSITION_FENCED":
        event = run.settled
    return int(event.get("seq", 0)) if event is not None else 0
