"""The process that folds states, when its server dies: it ends too, and without a word."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import msgspec

from mobd_server.adapters.sql import rebuilding


def test_a_folding_process_whose_server_has_died_ends_quietly(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", rebuilding.MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith("MOBD_")},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    # Nobody reads its answer any more, but a request is still there.
    process.stdout.close()
    request = msgspec.json.encode(rebuilding.Request("state", "crew", 1, f"sqlite:///{tmp_path / 'mobd.db'}"))
    process.stdin.write(struct.pack(">Q", len(request)) + request)
    process.stdin.close()
    with process.stderr:
        said = process.stderr.read()
    assert (process.wait(), said) == (0, b"")
