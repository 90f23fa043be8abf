"""`make demo` as its reader sees it: real processes, a real kill, and a report that can be counted again."""

import os
import random
import re
import shutil
import signal
from pathlib import Path

import pytest
from tests.support.processes import ROOT, Process

import make_log

DEMO = "examples/release_triage/demo.py"
SHOWN = ("critical", "error", "warning")


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def run_demo(folder: Path, *arguments: str, demo: str = DEMO) -> tuple[int, str]:
    process = Process([demo, *arguments], {}, folder / "demo.out")
    try:
        code = await process.ended(90)
    finally:
        # Asked, not killed: it ends what it started.
        process.send(signal.SIGTERM)
        await process.ended()
    return code, process.output()


@pytest.mark.timeout(150)
@pytest.mark.asyncio
async def test_the_report_equals_an_independent_count_and_a_run_outlives_the_server(tmp_path: Path) -> None:
    seed = random.SystemRandom().randint(0, 1 << 30)
    log, truth = make_log.make(seed, 3_000 + seed % 1_000)
    (tmp_path / "any.log").write_text(log)
    code, out = await run_demo(tmp_path, "--log", str(tmp_path / "any.log"), "--work", "6")
    assert code == 0, f"seed {seed}\n{out}"

    assert f"{truth['lines']} lines, {truth['records']} records" in out, f"seed {seed}\n{out}"
    counted = re.findall(r"^ *\d+\. ([A-Z]+) ([\w-]+) x(\d+): .*\n    first at line (\d+)", out, re.MULTILINE)
    drawn = [one for one in truth["groups"] if one["level"] in SHOWN]
    assert [(level.lower(), component, int(count), int(line)) for level, component, count, line in counted] == [
        (one["level"], one["component"], one["count"], one["first_line"])
        for one in sorted(drawn, key=lambda one: (SHOWN.index(one["level"]), -one["count"], one["first_line"]))
    ], f"seed {seed}\n{out}"

    pids = re.findall(r"^server: pid (\d+) on ", out, re.MULTILINE)
    assert len(pids) >= 2
    assert len(set(pids)) == len(pids)
    assert not any(lives(int(pid)) for pid in pids)
    assert re.search(rf"^servers: {', '.join(pids)}", out, re.MULTILINE), out
    survivor = re.search(
        r"^survived the kill: (\S+) of (analyst-\d), begun at event (\d+), settled at (\d+)", out, re.MULTILINE
    )
    assert survivor, out
    run_id, member_id, begun, settled = survivor.groups()
    killed = out.index("killed with SIGKILL")
    started_line = re.search(rf"^ +{begun} run_started +{member_id} +{run_id}", out, re.MULTILINE)
    settled_line = re.search(rf"^ +{settled} run_settled +{member_id} +{run_id} +committed", out, re.MULTILINE)
    assert started_line
    assert settled_line
    assert started_line.start() < settled_line.start()
    assert killed < settled_line.start()
    assert len(re.findall(rf"run_started +{member_id} +{run_id}", out)) == 1


@pytest.mark.timeout(150)
@pytest.mark.asyncio
@pytest.mark.parametrize(("left_out", "role"), [("analysts", "analyst"), ("lead", "lead")])
async def test_without_its_agents_the_demo_fails_and_names_the_role(tmp_path: Path, left_out: str, role: str) -> None:
    log, _ = make_log.make(3, 300)
    (tmp_path / "any.log").write_text(log)
    code, out = await run_demo(tmp_path, "--log", str(tmp_path / "any.log"), "--without", left_out, "--work", "2")
    assert code == 1, out
    assert f"no agent serves role {role}" in out.splitlines()[-1]


@pytest.mark.timeout(60)
@pytest.mark.asyncio
async def test_agents_that_can_not_start_are_named_with_what_they_said(tmp_path: Path) -> None:
    copy = tmp_path / "release_triage"
    shutil.copytree((ROOT / DEMO).parent, copy)
    analyst = copy / "analyst.py"
    analyst.write_text(analyst.read_text().replace("import mobd\n", "import mobd_of_old\n"))
    code, out = await run_demo(tmp_path, demo=str(copy / "demo.py"))
    assert code == 1, out
    assert "No module named 'mobd_of_old'" in out
    assert "an agent of role analyst is missing" in out.splitlines()[-1]


@pytest.mark.timeout(60)
@pytest.mark.asyncio
async def test_a_log_that_is_not_there_is_named(tmp_path: Path) -> None:
    code, out = await run_demo(tmp_path, "--log", str(tmp_path / "none.log"))
    assert code == 1
    assert "none.log" in out
