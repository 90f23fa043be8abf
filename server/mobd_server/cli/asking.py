"""The commands that ask a server: for people who look."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc

import mobd
from mobd.v1 import agents_pb2, bridge_pb2, common_pb2, events_pb2, members_pb2, mobs_pb2

DEFAULT_TARGET: Final = "localhost:7780"
HEALTH_TIMEOUT_S: Final = 5.0
# Who looks does not want to wait for a server that is not there.
PATIENCE_S: Final = 10.0
# A longer fact of an event is cut in its line.
SHOWN: Final = 100


def ask_health(target: str | None) -> None:
    """Exit with 1 unless the server serves."""
    where = target or _own_address()
    with grpc.insecure_channel(where) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=HEALTH_TIMEOUT_S
            )
        except grpc.RpcError as error:
            _fail(f"{where} does not answer: {error.code().name}")
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        _fail(f"{where} is {status}")
    print(f"{where} is {status}")


def show_mobs(target: str | None, mob_id: str | None, *, as_json: bool) -> None:
    """Print mobs, or the members and agents of one."""
    _run(_show_mob(target, mob_id, as_json=as_json) if mob_id else _show_mobs(target, as_json=as_json))


def send_input(target: str | None, mob_id: str, member_id: str, text: str, input_id: str | None, *, wait: bool) -> None:
    """Deliver a text and print what becomes of it."""
    _run(_send(target, mob_id, member_id, sys.stdin.read() if text == "-" else text, input_id, wait=wait))


def follow_events(target: str | None, mob_id: str, after: int, *, follow: bool, as_json: bool) -> None:
    """Print the log of a mob."""
    _run(_events(target, mob_id, after, follow=follow, as_json=as_json))


async def _show_mobs(target: str | None, *, as_json: bool) -> None:
    async with mobd.Client(target, timeout=PATIENCE_S) as client:
        found = [mob async for mob in client.list_mobs()]
    if as_json:
        _print_json(found)
        return
    rows = [
        (
            mob.mob_id,
            _word(mobs_pb2.MobPhase.Name(mob.phase)),
            str(mob.head),
            _when(mob.create_time),
            _pairs(mob.labels),
        )
        for mob in found
    ]
    _print_table(("MOB", "PHASE", "EVENTS", "CREATED", "LABELS"), rows)


async def _show_mob(target: str | None, mob_id: str, *, as_json: bool) -> None:
    async with mobd.Client(target, timeout=PATIENCE_S) as client:
        members = [member async for member in client.list_members(mob_id, include_retiring=True)]
        agents = [agent async for agent in client.list_agents(mob_id)]
    if as_json:
        _print_json([*members, *agents])
        return
    _print_table(("MEMBER", "ROLE", "STATE", "AGENT", "WAITING", "RUN", "LAST"), [_member_row(one) for one in members])
    print()
    _print_table(("AGENT", "HOST", "STATE", "SERVES", "MEMBERS", "RUNS"), [_agent_row(one) for one in agents])


def _member_row(member: members_pb2.Member) -> Sequence[str]:
    state = _word(common_pb2.MemberState.Name(member.state))
    executor = _word(common_pb2.Connectivity.Name(member.executor))
    last = f"error: {member.last_error}" if member.last_error else member.last_output_preview
    agent = f"{member.host_id} ({executor})" if member.host_id else "-"
    return (
        member.member_id,
        member.role,
        state,
        agent,
        str(member.inputs_waiting),
        member.current_run_id or "-",
        _short(last, 40),
    )


def _agent_row(agent: agents_pb2.Agent) -> Sequence[str]:
    state = "draining" if agent.draining else _word(common_pb2.Connectivity.Name(agent.connectivity))
    serves = ", ".join(serve.member_id or f"role {serve.role}" for serve in agent.serves)
    return (
        agent.attachment_id,
        agent.host_id,
        state,
        serves,
        f"{agent.members}/{agent.max_members}",
        f"{agent.runs}/{agent.capacity}",
    )


async def _send(
    target: str | None, mob_id: str, member_id: str, text: str, input_id: str | None, *, wait: bool
) -> None:
    async with mobd.Client(target, timeout=PATIENCE_S) as client:
        delivery = await client.deliver(mob_id, member_id, text, input_id=input_id)
        _note(f"input {delivery.input_id} is stored as {delivery.canonical_input_id}")
        if not wait:
            return
        last = bridge_pb2.Input()
        async with aclosing(client.watch_input(mob_id, member_id, delivery.input_id)) as states:
            async for state in states:
                if state.waiting_reason:
                    _note(f"waiting: {state.waiting_reason}")
                last = state
    if last.state == bridge_pb2.INPUT_STATE_ABANDONED:
        _fail(f"the input was given up: {last.reason}")
    if last.replaced_by:
        _fail(f"input {last.replaced_by} took its place")
    print(last.output_json)


async def _events(target: str | None, mob_id: str, after: int, *, follow: bool, as_json: bool) -> None:
    async with mobd.Client(target, timeout=PATIENCE_S) as client:
        log = _follow(client, mob_id, after) if follow else _log(client, mob_id, after)
        async with aclosing(log) as found:
            async for event in found:
                print(_json_line(event) if as_json else _event_line(event), flush=follow)


async def _follow(client: mobd.Client, mob_id: str, after: int) -> AsyncGenerator[events_pb2.Event, None]:
    async with client.watch_events(mob_id, after=after) as events:
        async for event in events:
            yield event


async def _log(client: mobd.Client, mob_id: str, after: int) -> AsyncGenerator[events_pb2.Event, None]:
    while True:
        page = await client.poll_events(mob_id, after=after)
        for event in page.events:
            yield event
        if page.next_cursor >= page.head:
            return
        after = page.next_cursor


def _event_line(event: events_pb2.Event) -> str:
    kind = event.WhichOneof("payload")
    facts = MessageToDict(getattr(event, kind), preserving_proto_field_name=True) if kind else {}
    facts = {"member_id": event.member_id, "run_id": event.run_id, **facts}
    said = " ".join(f"{key}={_short(_text(value), SHOWN)}" for key, value in facts.items() if value)
    return f"{event.seq:>7}  {_when(event.time)}  {event.kind:<18}  {said}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short(text: str, limit: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _when(time: Timestamp) -> str:
    moment = datetime.fromtimestamp(time.seconds, tz=UTC).astimezone()
    return f"{moment:%Y-%m-%d %H:%M:%S}.{time.nanos // 1_000_000:03}"


def _word(name: str) -> str:
    """Return what people call an enum value: MEMBER_STATE_IDLE is idle."""
    return name.rpartition("_")[2].lower()


def _pairs(labels: Any) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _json_line(message: Any) -> str:
    return json.dumps(MessageToDict(message, preserving_proto_field_name=True), ensure_ascii=False)


def _print_json(messages: Sequence[Any]) -> None:
    for message in messages:
        print(_json_line(message))


def _own_address() -> str:
    """Return where a server with this process's environment listens, as it is reached from here."""
    host, _, port = os.environ.get("MOBD_LISTEN", DEFAULT_TARGET).rpartition(":")
    return f"{ {'0.0.0.0': '127.0.0.1', '[::]': '[::1]'}.get(host, host) }:{port}"  # noqa: S104 compared, not bound


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        asyncio.run(work)
    except mobd.Error as refused:
        _fail(refused.message)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe has left; nothing can be told to it, not even at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _note(message: str) -> None:
    print(message, file=sys.stderr)


def _fail(message: str) -> NoReturn:
    print(f"mobd: {message}", file=sys.stderr)
    sys.exit(1)
