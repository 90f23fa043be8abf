"""The page of the errors, from errors.py, status.py, the client's classes, and the places that raise them."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import grpc
from docs_markdown import code, table

import mobd
from mobd import errors as client
from mobd.v1 import bridge_pb2
from mobd_server import errors
from mobd_server.adapters.rpc.status import DOMAIN, STATUS

Code = grpc.StatusCode

INTRO: Final = f"""# Errors

What mobd refuses is a gRPC status with a `google.rpc.ErrorInfo` (domain `{DOMAIN}`): a `reason`, which never changes
its meaning, and `metadata`, the facts that the message was made of. Compare reasons, not messages. A `BadRequest` comes
with broken rules, one violation for each (`violations_left_out` counts those that did not fit), and a `RetryInfo` where
the same call may succeed after a delay.

The Python client raises the class of the reason, under the class of its status, under `mobd.Error`. It repeats what is
UNAVAILABLE by itself, with the same ids, until the call's timeout is over.
"""

OUTCOMES: Final = """## A delivery that a member refuses

`Deliver` and `DeliverBatch` answer OK with a [DeliveryRejected](api.md#deliveryrejected): nothing is stored. The Python
client raises these, all of them under `mobd.DeliveryRejected`.
"""

CLIENTS: Final = """## What only the Python client says

No status of the server stands behind these.
"""

PLAIN: Final = """## Statuses without a reason of mobd

gRPC itself, or what stands between, can answer with any status. The client raises the class of the status.
"""


def page(root: Path) -> list[str]:
    """Return the lines of the page."""
    known = _details(root)
    rows = []
    kinds = sorted((kind for kind in STATUS if kind is not errors.MobdError), key=lambda one: (_code(one), one.reason))
    for kind in kinds:
        details = ", ".join(code(name) for name in known.get(kind.__name__, ()))
        rows.append((code(kind.reason), _code(kind), _first(kind), details, _again(kind), _class(kind)))
    lines = [*INTRO.splitlines(), "", *table(("reason", "status", "meaning", "details", "again", "Python"), rows)]
    lines += ["A detail may be missing where it does not apply.", ""]
    lines += [*OUTCOMES.splitlines(), "", *_outcomes()]
    server = {kind.reason for kind in STATUS}
    alone = [kind for kind in _clients() if _own(kind, server)]
    named = [(code(f"mobd.{one.__name__}"), _reason(one) and code(_reason(one)), _first(one)) for one in alone]
    lines += [*CLIENTS.splitlines(), "", *table(("Python", "reason", "meaning"), named)]
    plain = [
        (one.default_code.name, code(f"mobd.{one.__name__}"), _first(one))
        for one in _clients()
        if client.Error in one.__bases__ and one not in alone and not issubclass(one, client.DeliveryRejected)
    ]
    return [*lines, *PLAIN.splitlines(), "", *table(("status", "Python", "meaning"), sorted(plain))]


def _code(kind: type[errors.MobdError]) -> str:
    return STATUS[kind].name


def _first(kind: type) -> str:
    """Return the first paragraph of what a class says about itself."""
    text = (kind.__doc__ or "").partition("\n\n")[0].strip()
    if not text:
        raise SystemExit(f"{kind.__name__} has no docstring")
    return text


def _again(kind: type[errors.MobdError]) -> str:
    if issubclass(kind, errors.Unavailable):
        return f"after {kind.retry_after_s:g} s, with the same ids"
    return f"after {kind.retry_after_s:g} s" if issubclass(kind, errors.Exhausted) else "no"


def _clients() -> Iterator[type[client.Error]]:
    for name in mobd.__all__:
        one = getattr(mobd, name)
        if isinstance(one, type) and issubclass(one, client.Error):
            yield one


def _reason(kind: type[client.Error]) -> str:
    return kind.default_reason


def _own(kind: type[client.Error], server: set[str]) -> bool:
    """Tell whether only the client raises a class: neither a reason nor a status of the server is behind it."""
    if issubclass(kind, client.DeliveryRejected):
        return False
    return kind.default_code is Code.ABORTED or bool(_reason(kind) and _reason(kind) not in server)


def _class(kind: type[errors.MobdError]) -> str:
    found = [one for one in _clients() if _reason(one) == kind.reason and not issubclass(one, client.DeliveryRejected)]
    if len(found) != 1:
        raise SystemExit(f"the client has {len(found)} classes for {kind.reason}")
    return code(f"mobd.{found[0].__name__}")


def _outcomes() -> list[str]:
    """Return the table of the causes with which a member refuses a delivery."""
    rows = []
    for name in bridge_pb2.RejectCause.keys()[1:]:
        short = name.removeprefix("REJECT_CAUSE_")
        found = [one for one in _clients() if issubclass(one, client.DeliveryRejected) and _reason(one) == short]
        if len(found) != 1:
            raise SystemExit(f"the client has {len(found)} classes for {name}")
        rows.append((code(name), _first(found[0]), code(f"mobd.{found[0].__name__}")))
    return table(("cause", "meaning", "Python"), rows)


def _details(root: Path) -> dict[str, list[str]]:
    """Return the details of each error by the name of its class, in the order in which they are first named."""
    names = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.MobdError)
    }
    found: dict[str, list[str]] = {}
    for path in sorted((root / "server").rglob("*.py")):
        tree = ast.parse(path.read_text())
        for scope in ast.walk(tree):
            if isinstance(scope, ast.ClassDef) and scope.name in names:
                _add(found, scope.name, _keys_within(scope))
            if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
                for call in ast.walk(scope):
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in names:
                        _add(found, call.func.id, _given(call, scope))
    return found


def _add(found: dict[str, list[str]], name: str, keys: list[str]) -> None:
    known = found.setdefault(name, [])
    known += [key for key in keys if key not in known]


def _keys_within(scope: ast.ClassDef) -> list[str]:
    """Return the details that the class of an error makes itself."""
    dicts = (one for one in ast.walk(scope) if isinstance(one, ast.Dict))
    return [key for one in dicts for key in _keys(one)]


def _given(call: ast.Call, scope: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Return the details that a call gives, written there or given a name before."""
    if len(call.args) < 2:
        return []
    given = call.args[1]
    if isinstance(given, ast.Dict):
        return _keys(given)
    if isinstance(given, ast.Name):
        written = (
            one.value
            for one in ast.walk(scope)
            if isinstance(one, ast.Assign | ast.AnnAssign)
            and any(isinstance(t, ast.Name) and t.id == given.id for t in _targets(one))
        )
        return [key for one in written if isinstance(one, ast.Dict) for key in _keys(one)]
    return []


def _targets(one: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    return one.targets if isinstance(one, ast.Assign) else [one.target]


def _keys(one: ast.Dict) -> list[str]:
    return [key.value for key in one.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
