"""The command line as a person uses it: processes of their own, what they print, and how they end."""

import asyncio
import json
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec import Struct
from tests.rpc.conftest import settings, speaking
from tests.rpc.speaking import RawAgent, Speaker
from tests.support.processes import environment

pytestmark = pytest.mark.asyncio

TIMEOUT_S = 30.0


class Said(Struct):
    """How a command ended."""

    code: int
    out: str
    err: str


async def start(*argv: str, **variables: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "mobd_server",
        *argv,
        env=environment({"COLUMNS": "200", **variables}),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(*argv: str, text: str = "", **variables: str) -> Said:
    process = await start(*argv, **variables)
    async with asyncio.timeout(TIMEOUT_S):
        out, err = await process.communicate(text.encode())
    assert process.returncode is not None
    return Said(process.returncode, out.decode(), err.decode())


@pytest_asyncio.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Speaker]:
    async with speaking(settings(tmp_path)) as speaker:
        yield speaker


async def mobd(peer: Speaker, *argv: str, text: str = "") -> Said:
    return await run(*argv, text=text, MOBD_TARGET=peer.server.address)


async def test_the_version_is_said() -> None:
    said = await run("--version")
    assert (said.code, said.out.split()[0]) == (0, "mobd")


async def test_the_help_names_every_command() -> None:
    said = await run("--help")
    assert said.code == 0
    for command in ("serve", "migrate", "check-config", "healthcheck", "ps", "send", "events", "schema"):
        assert f" {command} " in said.out


async def test_settings_are_checked_and_shown() -> None:
    said = await run("check-config", MOBD_LEASE_S="45", MOBD_DATABASE_URL="postgresql://u:hunter2@h/d")
    assert said.code == 0
    assert "lease_s = 45.0" in said.out
    assert "hunter2" not in said.out
    wrong = await run("check-config", MOBD_LEASE_S="5")
    assert (wrong.code, wrong.out) == (1, "")
    assert wrong.err == "mobd: lease_s (5) must be greater than heartbeat_s (10)\n"


async def test_what_check_config_shows_is_a_settings_file(tmp_path: Path) -> None:
    shown = await run("check-config", MOBD_LEASE_S="45", MOBD_REFLECTION="false")
    file = tmp_path / "mobd.toml"
    file.write_text(shown.out)
    assert (await run("check-config", "--config", str(file))).out == shown.out


async def test_the_schema_of_definitions_is_printed() -> None:
    said = await run("schema")
    assert "profiles" in json.loads(said.out)["properties"]


async def test_a_database_is_migrated_once(tmp_path: Path) -> None:
    first = await run("migrate", MOBD_DATA_DIR=str(tmp_path))
    assert (first.code, "went from revision nothing" in first.out) == (0, True)
    second = await run("migrate", MOBD_DATA_DIR=str(tmp_path))
    assert (second.code, "already" in second.out) == (0, True)


async def test_a_token_is_printed_once_and_lets_its_bearer_in(tmp_path: Path) -> None:
    made = await run("token", "new", "alice", "--append", str(tmp_path / "tokens"))
    token = made.out.strip()
    assert made.code == 0
    assert token not in made.err
    assert token not in (tmp_path / "tokens").read_text()
    shown = await run("token", "new", "bob")
    assert shown.err.strip().partition(": ")[2].startswith("bob:sha256:")
    assert shown.out.strip() not in shown.err
    async with speaking(settings(tmp_path, tokens_file=tmp_path / "tokens")) as peer:
        asked = ("ps", "--target", peer.server.address)
        assert (await run(*asked, MOBD_TOKEN=token)).code == 0
        for variables, says in ({}, "set MOBD_TOKEN"), ({"MOBD_TOKEN": shown.out.strip()}, "does not know the token"):
            said = await run(*asked, **variables)
            assert (said.code, said.out) == (1, "")
            assert says in said.err
            assert len(said.err.splitlines()) == 1
        assert (await run("healthcheck", "--target", peer.server.address)).code == 0


@pytest.mark.parametrize("principal", ["mobd", "a:b", "", "a b"])
async def test_a_name_that_no_caller_may_have_is_refused(principal: str, tmp_path: Path) -> None:
    said = await run("token", "new", "--append", str(tmp_path / "tokens"), "--", principal)
    assert (said.code, said.out) == (1, "")
    assert not (tmp_path / "tokens").exists()


async def test_a_token_that_is_damaged_is_told_in_a_line() -> None:
    said = await run("ps", MOBD_TOKEN="two words")
    assert said.code == 1
    assert len(said.err.splitlines()) == 1
    assert "the token is damaged" in said.err


async def test_a_database_of_a_newer_build_is_left_alone(tmp_path: Path) -> None:
    await run("migrate", MOBD_DATA_DIR=str(tmp_path))
    with closing(sqlite3.connect(tmp_path / "mobd.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.commit()
    said = await run("serve", MOBD_LISTEN="127.0.0.1:0", MOBD_DATA_DIR=str(tmp_path))
    assert (said.code, said.out) == (1, "")
    assert "is of a newer mobd: run that one" in said.err
    assert len(said.err.splitlines()) == 1
    assert said.err.count("\n") == 1


async def test_a_database_that_does_not_answer_is_named_without_its_password() -> None:
    said = await run("serve", MOBD_DATABASE_URL="postgresql://u:hunter2@127.0.0.1:1/x")
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert "127.0.0.1:1/x does not answer" in said.err
    assert "hunter2" not in said.err


async def test_health_is_an_exit_code(peer: Speaker) -> None:
    healthy = await run("healthcheck", MOBD_LISTEN=peer.server.address)
    assert (healthy.code, healthy.out) == (0, f"{peer.server.address} is SERVING\n")
    nobody = await run("healthcheck", "--target", "127.0.0.1:1")
    assert nobody.code == 1
    assert nobody.err.startswith("mobd: 127.0.0.1:1 does not answer")


async def test_mobs_members_and_agents_are_shown(peer: Speaker) -> None:
    await peer.create("m", "a", labels={"team": "qa"})
    await peer.create("n", start=False)
    await peer.deliver("a", "i")
    mobs = (await mobd(peer, "ps")).out.splitlines()
    assert mobs[0].split() == ["MOB", "PHASE", "EVENTS", "CREATED", "LABELS"]
    assert mobs[1].split()[:3] == ["m", "running", "4"]
    assert mobs[1].endswith("team=qa")
    assert mobs[2].split()[:2] == ["n", "creating"]
    async with RawAgent(peer, host_id="kitchen") as agent:
        await agent.accept_run()
        shown = (await mobd(peer, "ps", "m")).out
    assert "kitchen (connected)" in shown
    assert "role lead" in shown
    assert "running" in shown
    lines = (await mobd(peer, "ps", "--json")).out.splitlines()
    assert [json.loads(line)["mob_id"] for line in lines] == ["m", "n"]


async def test_a_refusal_is_one_line(peer: Speaker) -> None:
    said = await mobd(peer, "ps", "nowhere")
    assert (said.code, said.out, said.err) == (1, "", "mobd: mob 'nowhere' does not exist\n")


async def test_a_text_is_sent_and_answered(peer: Speaker) -> None:
    await peer.create("m", "a")
    async with RawAgent(peer) as agent:
        sending = asyncio.ensure_future(mobd(peer, "send", "m", "a", "-", text="from a pipe"))
        run_ = await agent.accept_run()
        assert run_.inputs[0].content.blocks[0].text == "from a pipe"
        await agent.succeed(run_, '{"n": 3}')
        said = await sending
    assert (said.code, said.out) == (0, '{"n": 3}\n')


async def test_a_text_is_sent_and_left(peer: Speaker) -> None:
    await peer.create("m", "a")
    said = await mobd(peer, "send", "m", "a", "hello", "--no-wait", "--input-id", "i")
    assert (said.code, said.out) == (0, "")
    assert said.err.startswith("input i is stored as in-")


async def test_a_log_is_printed_and_followed(peer: Speaker) -> None:
    await peer.create("m", "a")
    said = await mobd(peer, "events", "m")
    assert [line.split()[3] for line in said.out.splitlines()] == ["mob_created", "mob_started", "member_spawned"]
    following = await start("events", "m", "-f", "--after", "3", "--json", MOBD_TARGET=peer.server.address)
    assert following.stdout is not None
    await peer.deliver("a", "i", "hello")
    async with asyncio.timeout(TIMEOUT_S):
        event = json.loads(await following.stdout.readline())
    assert (event["kind"], event["input_accepted"]["content"]) == ("input_accepted", {"blocks": [{"text": "hello"}]})
    following.terminate()
    await following.communicate()


async def test_the_first_line_of_a_server_says_where_and_how_it_serves(tmp_path: Path) -> None:
    server = await start("serve", MOBD_LISTEN="127.0.0.1:0", MOBD_DATA_DIR=str(tmp_path))
    assert server.stderr is not None
    async with asyncio.timeout(TIMEOUT_S):
        first = json.loads(await server.stderr.readline())
        server.send_signal(signal.SIGTERM)
        await server.communicate()
    assert server.returncode == 0
    assert first["event"] == "serving"
    assert first["address"].startswith("127.0.0.1:")
    assert (first["store"], first["schema"], first["auth"]) == ("sqlite", "0002", "none")
    assert (first["synchronous"], first["pid"]) == ("FULL", server.pid)
    assert first["data_dir"] == str(tmp_path)


async def test_a_second_signal_ends_a_server_at_once(tmp_path: Path) -> None:
    server = await start("serve", MOBD_LISTEN="127.0.0.1:0", MOBD_DATA_DIR=str(tmp_path))
    assert server.stderr is not None
    async with asyncio.timeout(TIMEOUT_S):
        await server.stderr.readline()
        # It gets both before it can act on the first.
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
            os.kill(server.pid, number)
        await server.communicate()
    assert server.returncode == 1


async def test_without_its_extra_the_server_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "msgspec.py").write_text("raise ModuleNotFoundError(\"No module named 'msgspec'\", name='msgspec')")
    said = await run("serve", PYTHONPATH=str(tmp_path))
    assert said.code == 1
    assert said.err == "mobd: msgspec is missing: pip install 'mobd[server]' installs the server\n"
