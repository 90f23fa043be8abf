"""docker-compose.yml: its parts fit, and its services do together what it says."""

import asyncio
import stat
import subprocess
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.deploy.image import Builder
from tests.deploy.services import Database, Host, composed, seconds
from tests.support.processes import ROOT, free_port

import mobd
from mobd_server.config import PREFIX, Config

# The first of them builds the image, which loads what is locked.
# One worker builds the image once for both files.
pytestmark = [pytest.mark.timeout(400), pytest.mark.xdist_group("image")]

COMPOSED = composed()
SERVICES: dict[str, dict[str, Any]] = COMPOSED["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
# Those that end by themselves.
ONCE = [name for name, service in SERVICES.items() if service["restart"] == "no"]
GOING = [name for name in SERVICES if name not in ONCE]


@pytest.mark.parametrize("kind", ["volumes", "secrets", "networks"])
def test_what_is_declared_is_used_and_what_is_used_is_declared(kind: str) -> None:
    used = {
        one.partition(":")[0]
        for service in SERVICES.values()
        for one in service.get(kind, [])
        if not one.startswith("./") and one != "default"
    }
    assert used == set(COMPOSED[kind])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_confined_and_not_open_to_the_network(name: str) -> None:
    service = SERVICES[name]
    _, _, tag = service["image"].rpartition(":")
    assert tag not in {"", "latest"}
    assert "build" in service or any(character.isdigit() for character in tag)
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "env_file"}
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for path in (one.partition(":")[0] for one in service.get("volumes", [])):
        assert not path.startswith("./") or (ROOT / path).is_file(), path


@pytest.mark.parametrize("name", GOING)
def test_what_goes_on_comes_back_by_itself_and_says_whether_it_is_well(name: str, built: Builder) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"
    assert built.image.healthcheck if name in OURS else SERVICES[name]["healthcheck"]["test"]


def test_what_ends_by_itself_is_waited_for() -> None:
    """`up --wait` takes a container that has ended for a failure, unless another waits for its success."""
    waited = {
        other
        for service in SERVICES.values()
        for other, terms in service.get("depends_on", {}).items()
        if terms["condition"] == "service_completed_successfully"
    }
    assert waited == set(ONCE)


def test_the_server_has_the_time_to_drain(built: Builder) -> None:
    settings = {**built.image.environment, **SERVICES["server"]["environment"]}
    drain_s = float(settings.get("MOBD_DRAIN_S", Config.model_fields["drain_s"].default))
    assert seconds(SERVICES["server"]["stop_grace_period"]) >= drain_s + 5


def test_published_ports_are_those_of_the_image(built: Builder) -> None:
    assert [port.split(":")[1:] for port in SERVICES["server"]["ports"]] == [
        [str(p), str(p)] for p in built.image.ports
    ]


def test_services_of_one_image_share_what_its_image_writes_to(built: Builder) -> None:
    for name in OURS:
        mounted = {one.split(":")[1] for one in SERVICES[name]["volumes"]}
        assert mounted == set(built.image.volumes), "what is not named becomes one more volume at each start"


@pytest.mark.parametrize("secret", COMPOSED["secrets"])
def test_a_secret_is_read_by_the_setting_of_its_name_and_kept_out_of_the_repository(secret: str, alone: Host) -> None:
    assert secret.removeprefix(PREFIX.lower()) in Config.model_fields
    file = alone.secret(secret)
    before = file.read_text()
    assert len(before) == 48
    # Users of containers read the file; who may not enter its directory does not.
    assert stat.S_IMODE(file.stat().st_mode) == 0o444
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert alone.secret(secret).read_text() == before
    ignored = ["git", "-C", str(ROOT), "check-ignore", "--quiet", str(COMPOSED["secrets"][secret]["file"])]
    assert subprocess.run(ignored, check=False).returncode == 0


@pytest.mark.parametrize(("profile", "flags"), [("", []), ("observability", ["--profile", "observability"])])
def test_one_command_brings_all_up(tmp_path: Path, profile: str, flags: list[str]) -> None:
    make = ["make", "--silent", "-f", str(ROOT / "Makefile"), "up", "DOCKER=echo", f"PROFILE={profile}"]
    done = subprocess.run(make, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["compose", *flags, "up", "--build", "--detach", "--wait"]
    assert all((tmp_path / one["file"]).is_file() for one in COMPOSED["secrets"].values())
    assert {one for service in SERVICES.values() for one in service.get("profiles", [])} == {"observability"}


@pytest.mark.asyncio
async def test_the_services_come_up_in_their_order_and_go_on_after_a_stop(services: Host, database: Database) -> None:
    assert database.health(free_port()) != 0
    assert database.health() == 0
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    early = services.start("server")
    assert await early.ended() == 1
    assert "run mobd migrate" in early.output()

    migrated = services.start("migrate")
    assert await migrated.ended() == 0, migrated.output()
    assert SERVICES["server"]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    server = services.start("server")
    await services.healthy(server, "server")
    assert "mobd_" in scraped(services, "server")
    grace_s = seconds(SERVICES["server"]["stop_grace_period"])
    async with mobd.Client(services.target(7780)) as client:
        await client.create_mob("m", {"profiles": {"lead": {}}})
        await client.spawn("m", "a", "lead")
        await client.deliver("m", "a", "x", input_id="i")
        # Nobody will answer: who waits does not keep the server from ending.
        asking = asyncio.create_task(client.ask("m", "a", "y", timeout=2 * grace_s))
        assert await services.stop(server, grace_s) == 0, server.output()
        assert services.health("server") == 1
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    migrated = services.start("migrate")
    assert await migrated.ended() == 0, migrated.output()
    server = services.start("server")
    await services.healthy(server, "server")
    async with mobd.Client(services.target(7780)) as client:
        assert (await client.get_input("m", "a", "i")).input_id == "i"
    assert await services.stop(server, grace_s) == 0
    assert "postgresql" in server.output()
    password = services.secret("mobd_database_password").read_text()
    assert password not in server.output() + migrated.output()


@pytest.mark.asyncio
async def test_without_the_password_nobody_reaches_the_database(services: Host) -> None:
    file = services.secret("mobd_database_password")
    file.chmod(0o644)
    file.write_text("another")
    refused = services.start("migrate")
    assert await refused.ended() == 1
    assert "does not answer" in refused.output()
    assert "authentication failed" in refused.output()
    assert "another" not in refused.output()


def scraped(services: Host, name: str) -> str:
    """Return the names of the metrics that Prometheus gets from a service, asked as its configuration says."""
    [target] = [one for one in targets() if one.startswith(f"{name}:")]
    address = services.target(int(target.rpartition(":")[2]))
    with urlopen(f"http://{address}/metrics", timeout=10) as answer:
        return " ".join(family.name for family in text_string_to_metric_families(answer.read().decode()))


def targets() -> list[str]:
    configured = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    return [
        str(target)
        for job in configured["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    ]


def test_prometheus_shares_a_network_with_what_it_asks() -> None:
    prometheus = SERVICES["prometheus"]
    assert {target.partition(":")[0] for target in targets()} == {"server", "localhost"}
    assert set(SERVICES["server"]["networks"]) & set(prometheus["networks"])
    [own] = [target for target in targets() if target.startswith("localhost:")]
    # What it reads is mounted where it looks, beside one another.
    mounted = dict(one.split(":")[:2] for one in prometheus["volumes"])
    read = {f"./{path.relative_to(ROOT)}": path.name for path in (ROOT / "deploy" / "prometheus").iterdir()}
    assert {path: f"/etc/prometheus/{name}" for path, name in read.items()}.items() <= mounted.items()
    assert f"127.0.0.1:{own.partition(':')[2]}/" in prometheus["healthcheck"]["test"][-1]
