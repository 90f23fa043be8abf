"""deploy/prometheus: each alarm sounds when it should and not before, as Prometheus itself evaluates it."""

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from msgspec import Struct
from tests.support.processes import ROOT, Process, free_port, until
from tests.support.served import Served
from tests.support.settings import setting

FOLDER = ROOT / "deploy" / "prometheus"
INSTANCE = 'instance="server:7781", job="mobd"'
# How often samples are taken, as in prometheus.yml.
EVERY = "15s"


class Case(Struct):
    """Samples that come every 15 s, and when an alarm sounds: never before `quiet`, and at `sounds`, if that is given.

    Values are written as promtool takes them: `0x8 1x20` is nine times 0 and then 21 times 1.
    """

    series: dict[str, str]
    quiet: str
    sounds: str = ""


def one(name: str, values: str, quiet: str, sounds: str = "", labels: str = "") -> Case:
    """A case of one series."""
    return Case({f"{name}{{{', '.join(filter(None, (labels, INSTANCE)))}}}": values}, quiet, sounds)


def appends(fate: str) -> list[Case]:
    """From the first append of a fate on, for five minutes."""
    name, labels = "mobd_journal_appends_total", f'fate="{fate}"'
    committed = one(name, "0+100x40", "8m", labels='fate="committed"')
    return [one(name, "0x16 1x30", "4m", "4m15s", labels), one(name, "3x60", "10m", labels=labels), committed]


CALLS = 'grpc_type="unary", grpc_service="mobd.v1.BridgeService", grpc_method="Deliver"'
CASES: dict[str, list[Case]] = {
    "MobdDown": [
        one("up", "1x8 0x20", "2m45s", "3m30s"),
        one("up", "1x4 0x2 1x20", "5m"),
        Case({'up{instance="localhost:9090", job="prometheus"}': "0x20"}, "5m"),
    ],
    "MobdHangs": [one("mobd_loop_answered", "1x8 0x20", "2m45s", "3m30s"), one("mobd_loop_answered", "1 0 1x20", "4m")],
    "MobdRestarts": [
        one("process_start_time_seconds", "10x3 20x3 30x3 40x60", "2m", "3m"),
        one("process_start_time_seconds", "10x3 20x3 30x60", "15m"),
        Case({'process_start_time_seconds{instance="localhost:9090", job="prometheus"}': "0+9x60"}, "14m"),
    ],
    "MobdNotReady": [one("mobd_ready", "1x4 0x40", "2m45s", "3m30s"), one("mobd_ready", "0x4 1x20", "4m")],
    "MobdStoreDown": [one("mobd_journal_down", "0x4 1x20", "1m45s", "2m30s"), one("mobd_journal_down", "0x40", "9m")],
    "MobdCommitsFailed": [*appends("unknown"), *appends("aborted")],
    "MobdFenced": appends("fenced"),
    "MobdAppendRefused": appends("offender"),
    "MobdCommitsLate": [
        one("mobd_journal_queue_age_seconds", "0.1x4 1.5x20", "1m45s", "2m30s"),
        one("mobd_journal_queue_age_seconds", "0.9x40", "9m"),
        one("mobd_journal_queue_age_seconds", "0 5 0 5 0 5 0 5 0 5 0", "2m"),
    ],
    "MobdJournalFills": [
        Case(
            {
                f"mobd_journal_appends_waiting{{{INSTANCE}}}": "3200x4 3300x8",
                f"mobd_journal_slots{{{INSTANCE}}}": "4096x12",
            },
            "1m",
            "1m15s",
        )
    ],
    "MobdInputWaits": [one("mobd_oldest_input_seconds", "0+15x40", "5m", "5m15s")],
    "MobdNoExecutor": [
        one("mobd_members_without_executor", "0x4 1x40", "6m", "6m30s"),
        one("mobd_members_without_executor", "1x10 0 1x16", "6m30s"),
    ],
    "MobdAgentsSilent": [
        one("mobd_agent_suspensions_total", "0x40 0+3x40", "11m", "20m"),
        one("mobd_agent_suspensions_total", "0+1x80", "20m"),
    ],
    "MobdQuarantine": [
        one("mobd_mobs_quarantined", "0x4 1x20", "1m", "1m15s", f'reason="{reason}"')
        for reason in ("unreadable", "format_newer")
    ],
    "MobdWatchLags": [
        one("mobd_watch_lag_events", "0x4 20000x60", "11m", "11m30s"),
        one("mobd_watch_lag_events", "9999x80", "20m"),
    ],
    "MobdBug": [
        one("grpc_server_handled_total", "0x16 1x30", "4m", "4m15s", f'grpc_code="Internal", {CALLS}'),
        one("grpc_server_handled_total", "0+9x40", "9m", labels=f'grpc_code="InvalidArgument", {CALLS}'),
        one("grpc_server_handled_total", "0+9x40", "9m", labels='grpc_code="Internal", grpc_service="other.Service"'),
    ],
    "MobdLoopLate": [
        one("mobd_loop_lag_seconds", "0x4 0.8x40", "6m", "6m30s"),
        one("mobd_loop_lag_seconds", "0.4x40", "9m"),
    ],
    "MobdSnapshotsFail": [
        one("mobd_snapshots_total", "0x4 1 2 3 4 5 6x30", "1m", "5m", 'outcome="failed"'),
        one("mobd_snapshots_total", "0+9x60", "14m", labels='outcome="written"'),
    ],
}


@cache
def tool(name: str) -> str:
    """Return where promtool or prometheus is; without it a test is skipped, or fails under MOBD_REQUIRE_PROMTOOL."""
    found = shutil.which(name)
    if found is None:
        reason = f"{name} is not installed (Debian: the package prometheus): NO ALARM WAS TESTED"
        if setting("MOBD_REQUIRE_PROMTOOL"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def run(*arguments: str) -> str:
    done = subprocess.run([tool("promtool"), *arguments], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alarms.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def as_promtool_takes_it(name: str, case: Case) -> dict[str, Any]:
    """Return a case as one of promtool's tests."""
    rule = rules()[name]
    first = next(iter(case.series))
    labels = dict(part.split("=") for part in first[first.index("{") + 1 : -1].split(", "))
    alert = {
        "exp_labels": {**{label: value.strip('"') for label, value in labels.items()}, **rule["labels"]},
        "exp_annotations": rule["annotations"],
    }
    asked: list[dict[str, Any]] = [{"eval_time": case.quiet, "alertname": name, "exp_alerts": []}]
    if case.sounds:
        asked.append({"eval_time": case.sounds, "alertname": name, "exp_alerts": [alert]})
    series = [{"series": one, "values": values} for one, values in case.series.items()]
    return {"interval": EVERY, "input_series": series, "alert_rule_test": asked}


def test_every_alarm_has_a_case_in_which_it_sounds() -> None:
    assert {name for name, cases in CASES.items() if any(case.sounds for case in cases)} == rules().keys()


@pytest.mark.parametrize("name", CASES)
def test_an_alarm_sounds_when_it_should_and_not_before(name: str, tmp_path: Path) -> None:
    document = {
        "rule_files": [str(FOLDER / "alarms.yml")],
        "evaluation_interval": EVERY,
        "tests": [as_promtool_takes_it(name, case) for case in CASES[name]],
    }
    (tmp_path / "cases.yml").write_text(yaml.safe_dump(document))
    run("test", "rules", str(tmp_path / "cases.yml"))


def test_prometheus_takes_its_configuration_with_the_alarms() -> None:
    assert yaml.safe_load((FOLDER / "prometheus.yml").read_text())["rule_files"] == ["alarms.yml"]
    assert f"{len(rules())} rules found" in run("check", "config", str(FOLDER / "prometheus.yml"))


def test_an_alarm_says_how_urgent_it_is_and_what_it_means() -> None:
    for name, rule in rules().items():
        assert rule["labels"]["severity"] in {"critical", "warning"}, name
        assert rule["annotations"].keys() == {"summary"}, name


class Prometheus(Process):
    """Prometheus itself, with the configuration of the repository; it scrapes one server, and more often."""

    def __init__(self, folder: Path, target: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.log = folder / "prometheus.log"
        shutil.copy2(FOLDER / "alarms.yml", folder)
        text = (FOLDER / "prometheus.yml").read_text()
        for written, here in (("server:7781", target), ("localhost:9090", self.address), ("15s", "1s")):
            assert written in text
            text = text.replace(written, here)
        (folder / "prometheus.yml").write_text(text)
        argv = [
            tool("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={self.address}",
        ]
        with self.log.open("ab") as output:
            self._popen = subprocess.Popen(argv, cwd=folder, stdout=output, stderr=subprocess.STDOUT)

    def asked(self, path: str) -> Any:
        """Return what its API answers; None while it does not."""
        try:
            with urlopen(f"http://{self.address}/api/v1/{path}", timeout=10) as answer:
                return json.load(answer)["data"]
        except OSError:
            return None


@pytest.mark.asyncio
async def test_prometheus_scrapes_a_server_and_evaluates_every_alarm(tmp_path: Path) -> None:
    tool("prometheus")
    served = Served(tmp_path / "server", None, {"MOBD_HTTP_LISTEN": f"127.0.0.1:{free_port()}"})
    async with served:
        prometheus = Prometheus(tmp_path, served.settings["MOBD_HTTP_LISTEN"])
        try:
            ready = await until(lambda: (prometheus.asked("query?query=mobd_ready") or {}).get("result"), "a scrape")
            assert [(one["metric"]["job"], one["value"][1]) for one in ready] == [("mobd", "1")]

            def evaluated() -> list[dict[str, Any]]:
                found = [rule for group in prometheus.asked("rules")["groups"] for rule in group["rules"]]
                return found if all(rule["health"] != "unknown" for rule in found) else []

            found = await until(evaluated, "every alarm to be evaluated")
            assert {rule["name"] for rule in found} == rules().keys()
            assert {rule["health"] for rule in found} == {"ok"}, found
            # On a machine that is busy an alarm may be about to sound; none has reason to.
            assert not [rule["name"] for rule in found if rule["state"] == "firing"]
        finally:
            prometheus.kill()
