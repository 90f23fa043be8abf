"""The page of the events, from machines/events.py and the values that they carry."""

import ast
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import docs_api
import msgspec
from docs_markdown import code, table
from msgspec import inspect as types

from mobd_server.machines.events import EVENT_TYPES

# What a field means wherever it has no comment of its own: by its name, or by event and name where they differ.
MEANINGS: Final = {
    "about": "What the input's kind knows beside its content: intent, request_id, status, event_type.",
    "attachment_id": "The agent's attachment.",
    "attempts": "The attempt of each of those inputs, in their order; 1 is the first.",
    "boundary": "Where the inputs of a run are applied.",
    "by": "The newer input, by its canonical id.",
    "canonical_input_id": "The server's name of the input.",
    "canonical_input_ids": "The server's names of the inputs, in order.",
    "capacity": "How many runs the agent takes at a time.",
    "content": "What the input carries: blocks, in order.",
    "context": "Free JSON, for the agents that serve it.",
    "control_id": "The name of the request, by which the agent acknowledges it.",
    "correlation_id": "What ties the input to others, as its sender said.",
    "count": "How often the run was sent again, this time included.",
    "deadline": "When the next step against the run is due; 0: no step follows.",
    "definition": "What the mob is, in the canonical form.",
    "description": "What it is for, in the words of its author.",
    "detail": "Anything else that was used.",
    "digest": "Lowercase hexadecimal SHA-256 of the canonical JSON of the transcript's messages.",
    "display_name": "The operation's name for people.",
    "drives": "Whether the input makes its member run; one that does not is carried along by others.",
    "error": "What went wrong.",
    "exclusive": "Whether the run is the only one on its agent.",
    "execution": "How a run with the input is executed.",
    "executor_fence": "The fence of the assignment: a number that the mob never gives out twice.",
    "expect_peer_channel": "Whether a peer is expected that says when it can be spoken to.",
    "fence_token": "The fence token of the incarnation: never used twice within the mob.",
    "generation": "The number of the incarnation: 0 at the first spawn.",
    "handle": "How the peer is reached.",
    "hard": "Whether it ends at once, not at its next boundary.",
    "host_id": "Where the agent runs, as it says.",
    "id": "The name in the document.",
    "incarnation": "The agent's process: drawn anew at each start.",
    "initial_input_id": "The canonical id of the input that follows with its initial message.",
    "input_id": "The caller's name of the input.",
    "input_kind": "What the input is.",
    "input_tokens": "Tokens read.",
    "inputs_abandoned": "How many inputs were abandoned.",
    "inputs_pending_drain": "How many inputs are still run.",
    "instructions": "What agents of the role are told.",
    "intent": "What a terminal response asks for.",
    "is_error": "Whether the result is an error of the tool.",
    "labels": "Labels.",
    "lane": "In which lane the input waits.",
    "log_id": "The identity of the log.",
    "max_members": "How many members the agent serves.",
    "member_id": "The member.",
    "members": "How many members ended.",
    "message": "How far it has come, in words.",
    "message_count": "How many messages the transcript holds afterwards.",
    "operation_id": "The operation.",
    "operation_kind": "What the operation is.",
    "operation_registered.member_id": "The member that the operation is the life of, if it is one.",
    "outcome": "What became of the input.",
    "outcomes": "What became of each input of the run, in order.",
    "output": "What the turn returned.",
    "output_tokens": "Tokens written.",
    "owner": "The member in whose registry the operation is; not given: the mob's own.",
    "percent": "How far it has come, in percent.",
    "profiles": "The roles, by name.",
    "reason": "Why.",
    "result": "The operation's result.",
    "retry_at": "When the inputs are tried again; 0: at once, or not at all.",
    "role": "The role.",
    "run_cancel_requested.by": "Who asked.",
    "run_id": "The run.",
    "sender": "Who delivered the input.",
    "Serve.member_id": "One member by name.",
    "Serve.role": "Any member of a role.",
    "serves": "Whom the agent serves.",
    "session_id": "The transcript.",
    "stamp": "What was decided about how the input is run.",
    "state": "How the run ended.",
    "status": "How the operation ended.",
    "supersession_key": "While the input waits, a newer one of the same kind and key takes its place.",
    "until": "When what the member still has is abandoned.",
    "usage": "What the run used, as its agent said.",
}

INTRO: Final = """# Events

What can be in a mob's log, by kind and version. The stored payload is JSON; a field with its default may be left out.
A changed meaning is a new kind, and new kinds and fields may appear, so that readers pass over what they do not know.
Beside its payload an event has `seq`, `time`, and where they apply `member_id`, `run_id`, `request_id`, `principal` and
`traceparent`: see [Event](api.md#event). Times within payloads are microseconds since 1970, UTC.

The column *in the API* names the message in which `PollEvents` and `WatchEvents` bring the payload.
"""


def page(root: Path) -> list[str]:
    """Return the lines of the page."""
    brought = docs_api.anchors(root)
    unknown = brought.keys() - {kind.kind for kind in EVENT_TYPES}
    if unknown:
        raise SystemExit(f"the protocol has payloads of kinds that there are not: {', '.join(sorted(unknown))}")
    rows = [
        (f"[{one.kind}](#{one.kind})", str(one.v), _said(one).partition("\n\n")[0], brought.get(one.kind, ""))
        for one in EVENT_TYPES
    ]
    lines = [*INTRO.splitlines(), "", *table(("kind", "version", "meaning", "in the API"), rows)]
    used: set[str] = set()
    values: list[type] = []
    for one in EVENT_TYPES:
        lines += [f"## {one.kind}", "", _said(one), "", *_fields(one, used, values)]
    lines += ["# Values in events", ""]
    for value in values:
        lines += [f"## {value.__name__}", "", _said(value), "", *_fields(value, used, values)]
    if MEANINGS.keys() - used:
        raise SystemExit(f"docs_events.py explains what is not there: {', '.join(sorted(MEANINGS.keys() - used))}")
    return lines


def _said(kind: type) -> str:
    text = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
    if not text:
        raise SystemExit(f"{kind.__name__} has no docstring")
    return text


def _fields(kind: type, used: set[str], values: list[type]) -> list[str]:
    """Return the table of a struct's fields; the structs that they hold are added to `values`."""
    comments = _comments(kind)
    name = getattr(kind, "kind", kind.__name__)
    described = types.type_info(kind)
    assert isinstance(described, types.StructType)
    rows = []
    for field in described.fields:
        text = comments.get(field.name, "")
        for key in (f"{name}.{field.name}", field.name):
            if not text and key in MEANINGS:
                text = MEANINGS[key]
                used.add(key)
        if not text:
            raise SystemExit(f"say what {name}.{field.name} is: in a comment above it, or in docs_events.py")
        rows.append((code(field.encode_name), _type(field.type, values), _default(field), text))
    return table(("field", "type", "default", "meaning"), rows) if rows else ["It has no fields.", ""]


def _comments(kind: type) -> dict[str, str]:
    """Return the comments that stand above the fields of a struct, by field."""
    module = inspect.getmodule(kind)
    assert isinstance(module, ModuleType)
    source = inspect.getsource(module)
    lines = source.splitlines()
    found = next(one for one in ast.parse(source).body if isinstance(one, ast.ClassDef) and one.name == kind.__name__)
    comments: dict[str, str] = {}
    for one in found.body:
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            said: list[str] = []
            above = one.lineno - 2
            while lines[above].strip().startswith("#"):
                said.insert(0, lines[above].strip().removeprefix("#").strip())
                above -= 1
            comments[one.target.id] = " ".join(said)
    return comments


def _type(kind: types.Type, values: list[type]) -> str:
    match kind:
        case types.StrType():
            return "string"
        case types.IntType():
            return "integer"
        case types.BoolType():
            return "boolean"
        case types.RawType():
            return "JSON"
        case types.LiteralType(values=words):
            return ", ".join(code(str(word)) for word in words)
        case types.ListType(item_type=item):
            return f"list of {_type(item, values)}"
        case types.DictType(key_type=key, value_type=value):
            return f"map of {_type(key, values)} to {_type(value, values)}"
        case types.UnionType(types=some):
            return " or ".join(_type(one, values) for one in some if not isinstance(one, types.NoneType))
        case types.StructType(cls=struct):
            if struct not in values:
                values.append(struct)
            return f"[{struct.__name__}](#{struct.__name__.lower()})"
    raise SystemExit(f"docs_events.py does not know the type {kind}")


def _default(field: types.Field) -> str:
    value: Any = field.default
    if value is msgspec.NODEFAULT:
        return "" if field.default_factory is msgspec.NODEFAULT else "empty"
    if value is None or isinstance(value, msgspec.Raw) or value == "":
        return "not given"
    if isinstance(value, msgspec.Struct):
        return "all defaults"
    return code(str(value).lower() if isinstance(value, bool) else str(value))
