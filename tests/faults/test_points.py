"""Fault points: what MOBD_FAULT may say, what it does, and that nothing of it is there unasked."""

import asyncio
import re
import signal
from pathlib import Path

import pytest
from tests.faults.conftest import World
from tests.support.processes import ROOT, Process, until
from tests.support.served import Served

from mobd_server import faults

CODE = [*(ROOT / "server").rglob("*.py"), *(ROOT / "migrations").rglob("*.py")]


def test_each_point_is_in_the_code_and_asks_first_whether_anything_is_armed() -> None:
    texts = [path.read_text() for path in CODE if path.name != "faults.py"]
    calls = [name for text in texts for name in re.findall(r"\breach\(\"(\w+)\"\)", text)]
    guarded = [
        name for text in texts for name in re.findall(r"^ +if ARMED:\n +reach\(\"(\w+)\"\)$", text, re.MULTILINE)
    ]
    assert sorted(calls) == sorted(guarded)
    assert set(calls) == set(faults.POINTS)


def test_nothing_is_armed_without_the_variable() -> None:
    assert not faults.ARMED
    assert faults.check() == ""


@pytest.mark.parametrize(
    ("text", "happens"),
    [
        ("before_commit:fail", [1]),
        ("before_commit:fail@3", [3]),
        ("before_commit:fail*2", [1, 2]),
        ("before_commit:fail@2*2", [2, 3]),
        ("before_commit:fail@4*", [4, 5, 6]),
        ("before_commit:fail@2, before_commit:fail@5", [2, 5]),
        ("after_commit:fail*", []),
    ],
)
def test_a_fault_happens_when_it_is_to(text: str, happens: list[int]) -> None:
    happened: list[str] = []
    reach = faults.make_reach(faults.parse(text), {"fail": lambda fault: happened.append(fault.point)})
    found = []
    for time in range(1, 7):
        before = len(happened)
        reach("before_commit")
        if len(happened) > before:
            found.append(time)
    assert found == happens


def test_a_stall_has_a_time() -> None:
    [short, long] = faults.parse("before_answer:stall=250ms,after_commit:stall=2s@3")
    assert (short.pause_s, long.pause_s, long.first) == (0.25, 2.0, 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nowhere:crash", "there is no point nowhere; there are before_commit, after_commit"),
        ("before_answer:fail", "before_answer can't fail; it can crash, stop, stall"),
        ("before_commit:explode", "before_commit can't explode; it can crash, stop, stall, fail"),
        ("before_commit", "must look like point:action"),
        ("before_commit:crash@0", "must look like point:action"),
        ("before_commit:stall", "stall needs a time"),
        ("before_commit:crash=2s", "stall needs a time"),
    ],
)
def test_what_is_not_legal_is_refused_with_what_is(text: str, says: str) -> None:
    with pytest.raises(faults.FaultsInvalid, match=re.escape(says)):
        faults.parse(text)


@pytest.mark.asyncio
async def test_a_server_with_a_point_that_is_not_there_does_not_start(alone: World) -> None:
    process = Served(alone.folder, None, {"MOBD_FAULT": "nowhere:crash"}).spawn()
    assert await process.ended() == 1
    assert process.output().startswith("mobd: MOBD_FAULT: there is no point nowhere; there are before_commit")
    assert len(process.output().splitlines()) == 1


@pytest.mark.asyncio
async def test_a_server_that_is_armed_says_so_and_does_what_it_was_told(alone: World) -> None:
    served = await alone.serve(MOBD_FAULT="before_answer:crash@3")
    assert "faults_armed" in served.process.output()
    assert "before_answer:crash@3" in served.process.output()
    peer = await alone.peer(served)
    await peer.create(["ada"])
    delivering = peer.bridge.Deliver(peer.delivery("ada", "one"))
    assert await served.process.ended() == -signal.SIGKILL
    delivering.cancel()


@pytest.mark.asyncio
async def test_a_server_that_is_told_to_stand_still_goes_on_when_it_is_told_to(alone: World) -> None:
    served = await alone.serve(MOBD_FAULT="after_commit:stop")
    peer = await alone.peer(served)
    creating = asyncio.ensure_future(peer.create(["ada"]))
    state = Path(f"/proc/{served.process.pid}/stat")
    try:
        await until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "the server to stand still")
    finally:
        served.process.send(signal.SIGCONT)
    await creating


@pytest.mark.asyncio
async def test_other_commands_refuse_it_too(tmp_path: Path) -> None:
    settings = {"MOBD_DATA_DIR": str(tmp_path / "data"), "MOBD_FAULT": "nowhere:crash"}
    process = Process(["-m", "mobd_server", "migrate"], settings, tmp_path / "migrate.log")
    assert await process.ended() == 1
    assert "there is no point nowhere" in process.output()
