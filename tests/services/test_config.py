"""Where settings come from, and what is said of wrong ones."""

import os
from pathlib import Path

import pytest

from mobd_server import config
from mobd_server.config import Config, ConfigInvalid, load


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "SECRETS", tmp_path / "secrets")
    for name in list(os.environ):
        if name.startswith("MOBD_"):
            monkeypatch.delenv(name)


def test_the_defaults_are_those_of_the_design() -> None:
    found = load()
    assert found.listen == "127.0.0.1:7780"
    assert found.data_dir == Path("mobd-data")
    assert found.database_url is None
    assert (found.heartbeat_s, found.lease_s, found.grace_s, found.accept_s) == (10, 30, 60, 10)
    assert not found.beyond_this_machine


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Config.model_fields.values())


def test_flags_come_before_the_environment_and_that_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mobd.toml"
    file.write_text('listen = "127.0.0.1:1"\nnode = "file"\nlease_s = 99')
    monkeypatch.setenv("MOBD_CONFIG", str(file))
    monkeypatch.setenv("MOBD_LISTEN", "127.0.0.1:2")
    monkeypatch.setenv("MOBD_NODE", "environment")
    found = load(listen="127.0.0.1:3", node=None)
    assert (found.listen, found.node, found.lease_s) == ("127.0.0.1:3", "environment", 99)


def test_a_secret_may_be_a_file_and_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "mobd_database_url").write_text("postgresql://u:hunter2@h/d\n")
    found = load()
    assert found.database_url is not None
    assert found.database_url.get_secret_value() == "postgresql://u:hunter2@h/d"
    assert "hunter2" not in repr(found) + str(found) + found.model_dump_json()


def test_the_password_of_a_database_may_be_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mobd_database_password").write_text("hunter2\n")
    monkeypatch.setenv("MOBD_SECRETS_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("MOBD_DATABASE_URL", "postgresql://u@h/d")
    found = load()
    assert found.database_password is not None
    assert found.database_password.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(found) + str(found) + found.model_dump_json()


@pytest.mark.parametrize("url", [None, "postgresql://u:other@h/d", "postgresql://h/d", "sqlite:///mobd.db"])
def test_a_password_that_nobody_asks_for_is_refused(monkeypatch: pytest.MonkeyPatch, url: str | None) -> None:
    monkeypatch.setenv("MOBD_DATABASE_PASSWORD", "hunter2")
    if url is not None:
        monkeypatch.setenv("MOBD_DATABASE_URL", url)
    with pytest.raises(ConfigInvalid) as refused:
        load()
    assert "database_password needs a database_url such as postgresql://user@host/name" in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MOBD_LEASE_S", "soon", "lease_s (or MOBD_LEASE_S): Input should be a valid number"),
        ("MOBD_LEASE_S", "5", "lease_s (5) must be greater than heartbeat_s (10)"),
        ("MOBD_LISTEN", "7780", "127.0.0.1:7780"),
        ("MOBD_LISTEN", "[::]:70000", "127.0.0.1:7780"),
        ("MOBD_DATABASE_URL", "mysql://u:hunter2@h/d", "postgresql://"),
        ("MOBD_LOOP", "trio", "'asyncio'"),
        ("MOBD_HEARTBEAT", "1", "MOBD_HEARTBEAT: no such setting; did you mean MOBD_HEARTBEAT_S?"),
        ("MOBD_CONFIG", "/nowhere/mobd.toml", "/nowhere/mobd.toml can't be read"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigInvalid) as refused:
        load()
    assert says in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(("text", "says"), [("listn = 1", "did you mean listen?"), ("listen = ", "is not TOML")])
def test_a_wrong_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "mobd.toml").write_text(text)
    with pytest.raises(ConfigInvalid) as refused:
        load(tmp_path / "mobd.toml")
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "name", ["MOBD_TARGET", "MOBD_TOKEN", "MOBD_HOST_ID", "MOBD_SERVICE_HOST", "MOBD_PORT_7780_TCP_ADDR"]
)
def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    load()


@pytest.mark.parametrize(
    ("listen", "beyond"),
    [
        ("localhost:1", False),
        ("127.0.0.1:1", False),
        ("127.9.9.9:1", False),
        ("[::1]:1", False),
        ("0.0.0.0:1", True),
        ("[::]:1", True),
        ("10.0.0.1:1", True),
        ("127.example.com:1", True),
        ("localhost.example.com:1", True),
    ],
)
def test_it_is_known_who_can_reach_the_server(listen: str, *, beyond: bool) -> None:
    assert load(listen=listen).beyond_this_machine is beyond
