"""Generate the Python stubs of the wire protocol, or check that the ones in the tree are fresh.

protoc comes from an environment of its own (.venv-gen), because what it makes refuses every runtime older than itself,
and the client promises an old one; the plugin that writes the type stubs comes from this interpreter's environment.
Both are locked, so the same input gives the same bytes. `make proto` runs this.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from importlib.metadata import files
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROTO = ROOT / "proto"
STUBS = ROOT / "client"
PROTOC = ROOT / ".venv-gen" / "bin" / "python"
PACKAGE = Path("mobd/v1")


def googleapis() -> Path:
    """Where google/rpc/*.proto lie; protoc itself brings google/protobuf."""
    anchor = next(file for file in files("googleapis-common-protos") or () if file.match("google/rpc/status.proto"))
    return Path(str(anchor.locate())).parent.parent.parent


def generate(target: Path) -> None:
    """Write the stubs of every .proto below `target`, or exit with protoc's status."""
    sources = sorted(path.relative_to(PROTO).as_posix() for path in (PROTO / PACKAGE).glob("*.proto"))
    if not sources:
        sys.exit(f"no .proto files in {PROTO / PACKAGE}")
    # protoc looks for its plugins on PATH, and nothing says that this environment is active.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    command = [
        *(str(PROTOC), "-m", "grpc_tools.protoc"),
        *(f"--proto_path={directory}" for directory in (PROTO, googleapis())),
        *(f"--python_out={target}", f"--grpc_python_out={target}"),
        *(f"--mypy_out=quiet:{target}", f"--mypy_grpc_out=quiet:{target}"),
        *sources,
    ]
    status = subprocess.run(command, env=os.environ | {"PATH": path}, check=False).returncode
    if status != 0:
        sys.exit(status)


def generated(root: Path) -> dict[str, bytes]:
    """The generated files below `root`: name to content."""
    return {path.name: path.read_bytes() for path in sorted((root / PACKAGE).glob("*_pb2*.py*")) if path.is_file()}


def main() -> int:
    """Bring the stubs up to date; with --check change nothing and exit 1 when any is stale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 and name what is stale")
    check: bool = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = generated(Path(scratch))
    present = generated(STUBS)
    stale = sorted(name for name in fresh.keys() | present.keys() if fresh.get(name) != present.get(name))
    if check:
        for name in stale:
            what = "missing" if name not in present else "without a .proto" if name not in fresh else "stale"
            print(f"{(STUBS / PACKAGE / name).relative_to(ROOT)}: {what}; run `make proto`", file=sys.stderr)
        return 1 if stale else 0
    (STUBS / PACKAGE).mkdir(parents=True, exist_ok=True)
    for name in stale:
        path = STUBS / PACKAGE / name
        if name in fresh:
            path.write_bytes(fresh[name])
        else:
            path.unlink()
        print(f"{'wrote' if name in fresh else 'removed'} {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
