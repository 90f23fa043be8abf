"""The whole state of a mob as its readers see it: one section for each thing in it, in a fixed order."""

from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Struct

from mobd_server.machines.operation import name_of
from mobd_server.machines.state import Input, Mob
from mobd_server.machines.views import view_member, view_mob

__all__ = ["Part", "parts", "weight"]

_encode: Final = msgspec.json.Encoder(order="deterministic").encode


class Part(Struct, gc=False):
    """What a section is about, which one of its kind, and its value as JSON text."""

    kind: str
    id: str
    value: str


def weight(mob: Mob) -> int:
    """Return how many things the state holds: what it costs to write it down grows with this."""
    return (
        len(mob.members)
        + len(mob.attachments)
        + len(mob.operations)
        + sum(len(member.queue or ()) + len(member.steer or ()) for member in mob.members.values())
        + sum(len(run.inputs) + len(run.steered or ()) for run in mob.runs.values())
    )


def parts(mob: Mob) -> Iterator[Part]:
    """Yield the mob, then members, inputs, runs, attachments and operations, each kind in the order of its ids.

    Inputs are those that wait or run; `requests` is how many requests are remembered.
    """
    yield _part("mob", mob.mob_id, view_mob(mob))
    for member_id in sorted(mob.members):
        yield _part("member", member_id, view_member(mob, mob.members[member_id]))
    yield from sorted(_inputs(mob), key=lambda part: part.id)
    for run_id in sorted(mob.runs):
        run = msgspec.structs.asdict(mob.runs[run_id])
        for name in ("inputs", "steered"):
            run[name] = [one.canonical_input_id for one in run[name] or ()]
        yield _part("run", run_id, run)
    for attachment_id in sorted(mob.attachments):
        yield _part("attachment", attachment_id, mob.attachments[attachment_id])
    for operation_id in sorted(mob.operations):
        operation = mob.operations[operation_id]
        shown = msgspec.structs.replace(operation, display_name=name_of(mob, operation))
        yield _part("operation", operation_id, shown)
    yield _part("requests", mob.mob_id, {"count": len(mob.requests)})


def _inputs(mob: Mob) -> Iterator[Part]:
    for member in mob.members.values():
        for waiting in (*(member.queue or ()), *(member.steer or ())):
            yield _input(waiting, member.member_id, "waiting", None)
    for run in mob.runs.values():
        for running in (*run.inputs, *(run.steered or ())):
            yield _input(running, run.member_id, "running", run.run_id)


def _input(one: Input, member_id: str, state: str, run_id: str | None) -> Part:
    # By way of JSON: what was left out of the input has no form of its own.
    value = msgspec.json.decode(_encode(one), type=dict[str, msgspec.Raw])
    return _part("input", one.canonical_input_id, {**value, "member_id": member_id, "state": state, "run_id": run_id})


def _part(kind: str, name: str, value: object) -> Part:
    return Part(kind, name, _encode(value).decode())
