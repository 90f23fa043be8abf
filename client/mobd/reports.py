"""What an agent reports of a run: its output, or how it failed. Reports keep the limits, whatever a handler does."""

from typing import Any, Final

from mobd import rules
from mobd.content import dump
from mobd.turn import Turn
from mobd.v1 import agents_pb2

# Said in messages for people; the server decides.
ATTEMPTS: Final = 3


_OUTPUT: Final = rules.of(agents_pb2.RunResult.DESCRIPTOR, "output_json").max_bytes
_MESSAGES: Final = rules.of(agents_pb2.RunResult.DESCRIPTOR, "messages_json")
_FAILURE: Final = rules.of(agents_pb2.RunFailed.DESCRIPTOR, "message").max_bytes
_ACK: Final = rules.of(agents_pb2.ControlAck.DESCRIPTOR, "message").max_bytes


def result(turn: Turn, value: Any, limit: int) -> agents_pb2.AgentFrame:
    """Return the report of an output; raise ValueError, saying why, if it can't be one."""
    try:
        output = dump(value)
    except ValueError as error:
        raise ValueError(f"what it returned {error}") from None
    sizes = [len(one.encode()) for one in turn.messages_json]
    size = len(output.encode())
    if size > _OUTPUT:
        raise ValueError(f"what it returned is {size} bytes of JSON: at most {_OUTPUT} may be")
    if len(sizes) > _MESSAGES.max_items:
        raise ValueError(f"it recorded {len(sizes)} messages: at most {_MESSAGES.max_items} may be")
    if max(sizes, default=0) > _MESSAGES.items.max_bytes:
        raise ValueError(f"it recorded a message of {max(sizes)} bytes: at most {_MESSAGES.items.max_bytes} may be")
    if limit and size + sum(sizes) > limit:
        raise ValueError(f"what it returned and recorded is {size + sum(sizes)} bytes of JSON: at most {limit} may be")
    return agents_pb2.AgentFrame(
        run_result=agents_pb2.RunResult(
            run_id=turn.run_id,
            executor_fence=turn.executor_fence,
            output_json=output,
            messages_json=turn.messages_json,
            expected_message_count=turn.session.message_count if sizes else None,
            steered_input_ids=turn.steered_input_ids,
        )
    )


def failure(turn: Turn, message: str, *, retryable: bool) -> agents_pb2.AgentFrame:
    """Return the report of a failed attempt."""
    report = _failed(turn.run_id, turn.executor_fence, agents_pb2.FAILURE_KIND_ERROR, message, retryable=retryable)
    report.run_failed.steered_input_ids.extend(turn.steered_input_ids)
    return report


def cancelled(turn: Turn) -> agents_pb2.AgentFrame:
    """Return the report of a turn that ended because it was asked to."""
    kind = agents_pb2.FAILURE_KIND_CANCELLED
    report = _failed(turn.run_id, turn.executor_fence, kind, turn.cancelled.reason, retryable=True)
    report.run_failed.steered_input_ids.extend(turn.steered_input_ids)
    return report


def control_ack(
    control_id: str, result: "agents_pb2.ControlResult.ValueType", message: str = ""
) -> agents_pb2.AgentFrame:
    """Return the answer to a request to cancel a run."""
    return agents_pb2.AgentFrame(
        control_ack=agents_pb2.ControlAck(control_id=control_id, result=result, message=rules.clean(message, _ACK))
    )


def release(run_id: str, fence: int, message: str) -> agents_pb2.AgentFrame:
    """Return the report of a run that is given back unharmed: that is no attempt."""
    return _failed(run_id, fence, agents_pb2.FAILURE_KIND_RELEASED, message, retryable=True)


def _failed(
    run_id: str, fence: int, kind: "agents_pb2.FailureKind.ValueType", message: str, *, retryable: bool
) -> agents_pb2.AgentFrame:
    return agents_pb2.AgentFrame(
        run_failed=agents_pb2.RunFailed(
            run_id=run_id,
            executor_fence=fence,
            kind=kind,
            message=rules.clean(message, _FAILURE),
            retryable=retryable,
        )
    )
