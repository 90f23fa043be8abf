"""Log lines: their form, what they say of the call, and the catalogue of their names."""

import ast
import asyncio
import io
import json
import logging
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.rpc.conftest import settings, speaking
from tests.rpc.speaking import Speaker

from mobd.v1 import members_pb2
from mobd_server.actors.calling import begin, calling
from mobd_server.adapters import logs
from mobd_server.adapters.logs import set_up

ROOT = Path(__file__).parent.parent.parent
CODE = ROOT / "server" / "mobd_server"
LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}


class Terminal(io.StringIO):
    """Standard error as a person has it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    names = ("grpc", "asyncio", "alembic", "sqlalchemy")
    root, levels = logging.getLogger(), [logging.getLogger(name).level for name in names]
    level = root.level
    yield
    root.handlers = [one for one in root.handlers if one.get_name() != "mobd"]
    root.setLevel(level)
    for name, before in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(before)


class Said:
    """What is logged from now on, as `level` and `form` say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, form: logs.Format, *, terminal: bool = False) -> None:
        self.stream = Terminal() if terminal else io.StringIO()
        monkeypatch.setattr(sys, "stderr", self.stream)
        set_up("info", form)

    @property
    def text(self) -> str:
        # The test's own handler has left the name in each record a second time.
        return re.sub(r" ?\S*message\S*=\S+", "", self.stream.getvalue())

    @property
    def lines(self) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        for line in found:
            line.pop("message", None)
        return found


def test_off_a_terminal_each_line_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said(monkeypatch, "auto")
    logging.getLogger("mobd_server.x").warning("mob_evicted", extra={"mob_id": "m", "head": 3})
    logging.getLogger("mobd_server.x").debug("unheard")
    (line,) = said.lines
    stamp = line.pop("timestamp")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", stamp)
    assert line == {"event": "mob_evicted", "level": "warning", "logger": "mobd_server.x", "mob_id": "m", "head": 3}


def test_on_a_terminal_it_is_text_in_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said(monkeypatch, "auto", terminal=True)
    logging.getLogger("mobd_server.x").info("mob_deleted", extra={"mob_id": "m"})
    assert "\x1b[" in said.stream.getvalue()
    plain = re.sub(r"\x1b\[[\d;]*m", "", said.stream.getvalue())
    assert re.search(r"Z \[info +\] mob_deleted +\[mobd_server\.x\] .*mob_id=m\n$", plain)


@pytest.mark.parametrize(("form", "is_json"), [("json", True), ("text", False)])
def test_the_form_can_be_chosen(monkeypatch: pytest.MonkeyPatch, form: logs.Format, *, is_json: bool) -> None:
    said = Said(monkeypatch, form)
    logging.getLogger("mobd_server.x").info("mob_deleted", extra={"mob_id": "m"})
    assert said.text.startswith("{") is is_json
    assert "\x1b[" not in said.text


def test_a_trace_is_one_line_and_shows_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said(monkeypatch, "json")
    secret = "hunter" + "2"
    try:
        raise ValueError(len(secret))
    except ValueError:
        logging.getLogger("mobd_server.x").exception("call_failed")
    (line,) = said.lines
    assert "ValueError: 7" in line["exception"]
    assert secret not in said.text


def test_a_line_says_of_the_call_what_it_does_not_say_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said(monkeypatch, "json")
    log = logging.getLogger("mobd_server.x")
    call = begin("/mobd.v1.MobService/GetMob")
    call.principal, call.mob_id = "anonymous", "m"
    log.info("snapshot_written", extra={"mob_id": "other"})
    assert calling() is call
    call.ended = True
    assert calling() is None
    log.info("snapshot_written")
    inside, after = said.lines
    assert (inside["method"], inside["principal"]) == ("/mobd.v1.MobService/GetMob", "anonymous")
    assert inside["mob_id"] == "other"
    assert "request_id" not in inside
    assert not {"method", "principal", "mob_id"} & after.keys()


@pytest_asyncio.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Speaker]:
    async with speaking(settings(tmp_path)) as speaker:
        yield speaker


@pytest.mark.asyncio
async def test_a_line_within_a_call_names_it(peer: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    await peer.create("m", "a")
    said = Said(monkeypatch, "json")
    monkeypatch.setattr("mobd_server.actors.actor.decide", None)
    spec = members_pb2.MemberSpec(member_id="b", role="lead")
    request = members_pb2.SpawnMembersRequest(mob_id="m", specs=[spec], request_id="r-1")
    assert (await peer.refused(peer.members.SpawnMembers, request)).reason == "INTERNAL"
    monkeypatch.undo()
    (line,) = [line for line in said.lines if line["event"] == "decision_failed"]
    assert line["method"] == "/mobd.v1.MemberService/SpawnMembers"
    assert (line["principal"], line["mob_id"], line["request_id"]) == ("anonymous", "m", "r-1")
    assert "TypeError" in line["exception"]


@pytest.mark.asyncio
async def test_what_goes_on_after_a_call_does_not_name_it() -> None:
    seen: list[object] = []
    loop = asyncio.get_running_loop()
    fired = asyncio.Event()

    def fire() -> None:
        seen.append(calling())
        fired.set()

    async def answer() -> None:
        call = begin("/mobd.v1.MobService/GetMob")
        seen.append(calling())
        # It inherits the context of the call.
        loop.call_soon(fire)
        call.ended = True

    await asyncio.create_task(answer())
    await fired.wait()
    assert [one is None for one in seen] == [False, True]
    assert calling() is None


def found_in_code() -> dict[str, set[str]]:
    """Return every name that is logged, with its levels."""
    names: dict[str, set[str]] = {}
    for file in CODE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "log"
            ):
                first = node.args[0]
                assert isinstance(first, ast.Constant), f"{file.name}:{node.lineno}: a name that is made up"
                assert isinstance(first.value, str)
                assert re.fullmatch(r"[a-z][a-z_]+", first.value), f"{file.name}:{node.lineno}: {first.value}"
                names.setdefault(first.value, set()).add(LEVELS[node.func.attr])
    return names


def test_every_name_is_in_the_catalogue_with_its_levels_and_no_other() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    _, _, rest = page.partition("\n## Logs\n")
    section, _, _ = rest.partition("\n## ")
    rows = re.findall(r"^\| `(\w+)` \| ([a-z, ]+) \| \S", section, re.MULTILINE)
    assert len(rows) == len(dict(rows))
    assert {name: set(levels.split(", ")) for name, levels in rows} == found_in_code()


def test_an_answer_whose_caller_has_left_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said(monkeypatch, "json")
    core = logging.getLogger("grpc._cython.cygrpc")
    core.error("ExecuteBatchError raised in core by servicer method [%s]" % "/a/b")  # noqa: UP031 as gRPC does
    core.error("Unexpected [%s] raised by servicer method [%s]", "KeyError", "/a/b")
    assert [json.loads(line)["event"] for line in said.text.splitlines()] == [
        "Unexpected [KeyError] raised by servicer method [/a/b]"
    ]
