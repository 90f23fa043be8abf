"""The clients in docs/snippets name what the protocol has, and compile where the tools for that are there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.processes import ROOT

from mobd.v1 import bridge_pb2, common_pb2

SNIPPETS = ROOT / "docs" / "snippets"
FILES = (bridge_pb2.DESCRIPTOR, common_pb2.DESCRIPTOR)
TYPES = {name for file in FILES for name in (*file.message_types_by_name, *file.enum_types_by_name)}
SERVICES = {name for file in FILES for name in file.services_by_name}
FIELDS = {field.name for file in FILES for message in file.message_types_by_name.values() for field in message.fields}
VALUES = {value.name for file in FILES for enum in file.enum_types_by_name.values() for value in enum.values}


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)


def passes(command: list[str], folder: Path) -> None:
    done = run(command, folder)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


def test_the_snippets_name_what_the_protocol_has() -> None:
    script = (SNIPPETS / "typescript" / "ask.ts").read_text()
    assert set(re.findall(r"gen/mobd/v1/(\w+)\"", script)) - SERVICES <= TYPES
    assert set(re.findall(r"\b[a-z]+_[a-z_]+\b", script)) <= FIELDS
    assert set(re.findall(r"INPUT_STATE_\w+", script)) <= VALUES

    program = (SNIPPETS / "go" / "ask.go").read_text()
    named = {name.partition("_")[0] for name in re.findall(r"mobdv1\.(\w+)", program)}
    clients = {f"{name}Client" for name in SERVICES} | {f"New{name}Client" for name in SERVICES}
    assert named - clients <= TYPES
    getters = {"Get" + "".join(part.title() for part in name.split("_")) for name in FIELDS}
    assert set(re.findall(r"\.(Get[A-Z]\w+)\(\)", program)) <= getters


@pytest.mark.timeout(300)
def test_the_client_in_typescript_compiles(tmp_path: Path) -> None:
    tool("node")
    modules = SNIPPETS / "typescript" / "node_modules"
    if not (modules / ".bin" / "tsc").exists():
        pytest.skip("its modules are not there: run `npm install` in docs/snippets/typescript")
    folder = tmp_path / "docs" / "snippets" / "typescript"
    shutil.copytree(SNIPPETS / "typescript", folder, ignore=shutil.ignore_patterns("node_modules", "gen", "out"))
    (folder / "node_modules").symlink_to(modules)
    (tmp_path / "proto").symlink_to(ROOT / "proto")
    passes([tool("npm"), "run", "gen"], folder)
    passes([tool("npm"), "run", "build"], folder)


@pytest.mark.timeout(300)
def test_the_client_in_go_compiles(tmp_path: Path) -> None:
    go = tool("go")
    tool("protoc-gen-go")
    tool("protoc-gen-go-grpc")
    folder = tmp_path / "go"
    shutil.copytree(SNIPPETS / "go", folder, ignore=shutil.ignore_patterns("gen"))
    fetched = run([go, "mod", "download"], folder)
    if fetched.returncode:
        pytest.skip(f"the modules that it needs can't be fetched: {fetched.stderr.strip()[-200:]}")
    buf = str(Path(sys.executable).parent / "buf")
    passes([buf, "generate", str(ROOT), "--template", "buf.gen.yaml"], folder)
    passes([go, "mod", "tidy"], folder)
    passes([go, "vet", "./..."], folder)
    passes([go, "build", "-o", "ask", "."], folder)
