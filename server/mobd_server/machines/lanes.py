"""The two lanes of waiting inputs, and the choice of what a member runs next (runtime §2.10).

The steer lane goes first. A batch is a prefix of one lane whose inputs have the same stamp, with at most one prompt,
which is its last. Passive inputs never start a run and ride along in order; a draining member runs everything.
"""

from typing import Final

from msgspec import Struct

from mobd_server.machines.state import MAX_ATTEMPTS, Input, Lane, Member
from mobd_server.machines.undo import Undo

# One batch; bounded so that losing every run of an agent fits one decision.
BATCH_INPUTS: Final = 64
BATCH_BYTES: Final = 1 << 20


class Batch(Struct, frozen=True, gc=False):
    """The first `count` inputs of a lane. An exclusive one must be alone on its agent."""

    lane: Lane
    count: int
    exclusive: bool = False


def lane_of(member: Member, lane: Lane) -> list[Input] | None:
    """Return the inputs that wait in a lane."""
    return member.steer if lane == "steer" else member.queue


def waiting(member: Member) -> list[Input]:
    """Return all inputs that wait, in the order in which their lanes are looked at."""
    return [*(member.steer or ()), *(member.queue or ())]


def count_waiting(member: Member) -> int:
    """Return how many inputs wait."""
    return len(member.steer or ()) + len(member.queue or ())


def ready_lane(member: Member) -> Lane | None:
    """Return the lane that the member's next run takes from, or None if nothing makes it run.

    While a failed input waits for its next attempt, a lane is passed over unless its head has not failed.
    """
    steer, queue = member.steer, member.queue
    paused = member.retry_at != 0
    if steer and not (paused and steer[0].attempts):
        # Whatever woke the member, this lane is looked at first.
        return "steer" if _driven(member, steer) or _driven(member, queue) else None
    if queue and not (paused and queue[0].attempts) and _driven(member, queue):
        return "queue"
    return None


def has_work(member: Member) -> bool:
    """Whether anything that waits makes the member run, now or after a pause."""
    return _driven(member, member.steer) or _driven(member, member.queue)


def _driven(member: Member, inputs: list[Input] | None) -> bool:
    if not inputs:
        return False
    if member.state == "retired":
        return True
    # The first nearly always does.
    if inputs[0].drives:
        return True
    return any(one.drives for one in inputs)


def choose(member: Member) -> Batch:
    """Return the next batch of a member that has something to run.

    An input with a failed attempt goes alone. One whose last attempt this is, after its agent was lost with it, also
    lets no other run be beside it: then either it is what kills the agent, or it survives, and no other member's input
    is counted for it.
    """
    lane = ready_lane(member)
    inputs = lane_of(member, lane) if lane is not None else None
    if lane is None or not inputs:
        raise ValueError(f"member {member.member_id} has nothing to run")
    head = inputs[0]
    if head.attempts:
        return Batch(lane, 1, head.losses > 0 and head.attempts == MAX_ATTEMPTS - 1)
    return Batch(lane, _steered(inputs) if lane == "steer" else _queued(member, inputs))


def _steered(inputs: list[Input]) -> int:
    count, size, stamp = 0, 0, inputs[0].stamp
    for one in inputs[:BATCH_INPUTS]:
        size += one.size
        if one.attempts or one.stamp != stamp or (count and size > BATCH_BYTES):
            break
        count += 1
    return count


def _queued(member: Member, inputs: list[Input]) -> int:
    head = inputs[0].stamp
    draining = member.state == "retired"
    driver = next((one for one in inputs if one.drives or draining), inputs[0])
    count, size = 0, 0
    for one in inputs[:BATCH_INPUTS]:
        stamp, is_prompt = one.stamp, one.kind == "prompt"
        if one.attempts or (stamp.execution, stamp.intent) != (head.execution, head.intent):
            break
        # A batch is never empty: a passive prompt at the head goes alone, and the driver behind it follows.
        if is_prompt and count and driver.kind != "prompt":
            break
        size += one.size
        if count and size > BATCH_BYTES:
            break
        count += 1
        if is_prompt:
            break
    return count


def steerable(member: Member, held: int, held_bytes: int) -> int:
    """Return how many inputs a run in flight that holds `held` inputs may take in: all that steer, or none.

    One that failed before, or that asks for a run of its own, keeps its place and those behind it.
    """
    steer = member.steer
    if not steer or held + len(steer) > BATCH_INPUTS or held_bytes + sum(one.size for one in steer) > BATCH_BYTES:
        return 0
    for one in steer:
        if one.attempts or one.stamp.boundary != "run_checkpoint" or one.stamp.execution != "content_turn":
            return 0
    return len(steer) if _driven(member, steer) else 0


def add(undo: Undo, member: Member, one: Input) -> None:
    """Put an input at the end of its lane; the member is touched."""
    if one.lane == "steer":
        if member.steer is None:
            member.steer = []
        undo.append(member.steer, one)
    else:
        if member.queue is None:
            member.queue = []
        undo.append(member.queue, one)
    member.queue_bytes += one.size


def take(undo: Undo, member: Member, lane: Lane, count: int) -> list[Input]:
    """Remove and return the first inputs of a touched member's lane."""
    inputs = lane_of(member, lane)
    if inputs is None or len(inputs) < count:
        raise ValueError(f"member {member.member_id} has no {count} inputs in lane {lane}")
    taken = inputs[:count]
    undo.splice(inputs, 0, count, ())
    _taken(member, lane, taken)
    return taken


def take_one(undo: Undo, member: Member, canonical_input_id: str) -> Input:
    """Remove and return one waiting input of a touched member."""
    lanes: tuple[Lane, Lane] = ("queue", "steer")
    for lane in lanes:
        inputs = lane_of(member, lane) or []
        for at, one in enumerate(inputs):
            if one.canonical_input_id == canonical_input_id:
                undo.splice(inputs, at, at + 1, ())
                _taken(member, lane, (one,))
                return one
    raise ValueError(f"input {canonical_input_id} does not wait")


def _taken(member: Member, lane: Lane, taken: "list[Input] | tuple[Input, ...]") -> None:
    member.queue_bytes -= sum(one.size for one in taken)
    if not lane_of(member, lane):
        if lane == "steer":
            member.steer = None
        else:
            member.queue = None


def put_back(undo: Undo, member: Member, inputs: list[Input], *, at_end: bool) -> None:
    """Put inputs that a run held back into their lanes, in their order; the member is touched."""
    lanes: tuple[Lane, Lane] = ("queue", "steer")
    for lane in lanes:
        back = [one for one in inputs if one.lane == lane]
        if not back:
            continue
        if lane_of(member, lane) is None:
            if lane == "steer":
                member.steer = []
            else:
                member.queue = []
        there = lane_of(member, lane)
        assert there is not None
        at = len(there) if at_end else 0
        undo.splice(there, at, at, back)
        member.queue_bytes += sum(one.size for one in back)
