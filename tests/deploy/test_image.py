"""The Dockerfile: what its steps make, and how what they make runs."""

import os
import re
import subprocess
import tomllib
from collections.abc import Iterable

import pytest
from tests.deploy.image import Builder, parse
from tests.deploy.services import Host, seconds
from tests.support.processes import ROOT

import mobd
from mobd_server.cli.asking import HEALTH_TIMEOUT_S
from mobd_server.config import Config

# The first of them builds the image, which loads what is locked.
# One worker builds the image once for both files.
pytestmark = [pytest.mark.timeout(400), pytest.mark.xdist_group("image")]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# How long `docker stop` waits unless it is told otherwise; see docs/operations.md.
STOP_S = 30.0
# As docker-compose.yml, and who else publishes its ports on a loopback address, starts it.
OPEN = {"MOBD_INSECURE_LISTEN": "true"}


def printed(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def distributions(lines: Iterable[str]) -> set[str]:
    """Names and versions; a name may be written in several ways."""
    return {line.lower().replace("_", "-") for line in lines}


def test_both_stages_have_one_base_whose_python_mobd_supports() -> None:
    stages = parse((ROOT / "Dockerfile").read_text())
    base, _, tag = stages[0].base.partition(":")
    assert {stage.base for stage in stages} == {f"{base}:{tag}"}
    version = re.match(r"3\.\d+(?=-)", tag)
    assert base == "python"
    assert version
    assert f"Programming Language :: Python :: {version[0]}" in PROJECT["classifiers"]


def test_the_image_has_what_is_locked_and_no_tools(built: Builder) -> None:
    script = "from importlib.metadata import distributions as d; print(*[f'{one.name}=={one.version}' for one in d()])"
    found = distributions(printed(built.call(["python", "-c", script])).split())
    lock = (ROOT / "requirements" / "server.txt").read_text()
    locked = distributions(re.findall(r"^([\w.-]+==[^ ]+)", lock, re.MULTILINE))
    mine = f"mobd=={PROJECT['version']}"
    assert mine in found
    # The lock is for every system: what another one needs is not here.
    elsewhere = distributions(re.findall(r"^([\w.-]+==[^ ]+) ; sys_platform == 'win32'", lock, re.MULTILINE))
    assert found - {mine} == locked - elsewhere
    assert not [path for path in ("opt/builder", "src", "dist") if (built.root / path).exists()]


def test_the_builder_is_sent_nothing_that_the_image_is_not_made_of(built: Builder) -> None:
    copied = {
        word.rstrip("/")
        for one in parse((ROOT / "Dockerfile").read_text())[0].instructions
        if one.name == "COPY"
        for word in one.words()[:-1]
    }
    context = built.root.parent / "context"
    sent = {str(path.relative_to(context)) for path in context.rglob("*") if path.is_file()}
    assert all(any(path == one or path.startswith(f"{one}/") for one in copied) for path in sent)
    assert not [path for path in sent if path.endswith((".pyc", ".db")) or "secret" in path]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become the user of the image")
def test_its_user_can_write_to_its_volumes_alone(built: Builder) -> None:
    assert built.image.user.partition(":")[0] not in {"", "0", "root"}
    found = printed(built.call(["find", str(built.root), "-writable", "-not", "-type", "l"])).split()
    assert found == [str(built.path(volume)) for volume in built.image.volumes]


def test_every_address_of_the_server_is_reached_from_outside_the_container(built: Builder) -> None:
    for name, setting in Config.model_fields.items():
        if name.endswith("listen") and setting.annotation is str:
            _, _, port = setting.default.rpartition(":")
            assert built.image.environment[f"MOBD_{name.upper()}"] == f"0.0.0.0:{port}"
            assert int(port) in built.image.ports


def test_the_health_check_may_take_as_long_as_its_command_waits(built: Builder) -> None:
    assert seconds(built.image.health_terms["timeout"]) > HEALTH_TIMEOUT_S


@pytest.mark.asyncio
async def test_alone_it_lets_nobody_in_unless_it_is_told_whom(alone: Host) -> None:
    server = alone.run()
    assert await server.ended() == 1
    assert "MOBD_TOKENS_FILE" in server.output()
    assert "MOBD_INSECURE_LISTEN" in server.output()


@pytest.mark.asyncio
async def test_it_keeps_what_it_holds_in_its_volume_and_drains_on_its_signal(alone: Host) -> None:
    assert alone.health() == 1
    server = alone.run(more=OPEN)
    await alone.healthy(server)
    async with mobd.Client(alone.target(7780)) as client:
        await client.create_mob("m", {"profiles": {"lead": {}}})
    assert await alone.stop(server, STOP_S) == 0
    assert alone.health() == 1
    server = alone.run(["serve"], OPEN)
    await alone.healthy(server)
    shown = printed(alone.builder.call(["mobd", "ps", "--target", alone.target(7780)], alone.settings({})))
    assert shown.splitlines()[1].split()[0] == "m"
    assert await alone.stop(server, STOP_S) == 0
    assert (alone.builder.path("/var/lib/mobd") / "mobd.db").exists()
