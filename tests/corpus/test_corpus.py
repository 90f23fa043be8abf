"""What was ever stored can be read: one file for every event in every version, and one for every format of snapshot.

`pytest tests/corpus --rewrite-corpus` writes those of this build anew.
"""

from pathlib import Path

import msgspec
import pytest
from tests.corpus.samples import sample

from mobd_server.machines import snapshot as snapshots
from mobd_server.machines.events import BY_KIND, EVENT_TYPES, Event
from mobd_server.machines.state import Mob
from mobd_server.machines.upcast import NEWEST, upcast

HERE = Path(__file__).parent
STORED = sorted(HERE.glob("*.json"))
SNAPSHOT = HERE / f"snapshot.v{snapshots.FORMAT}.json"


def named(kind: type[Event]) -> Path:
    return HERE / f"{kind.kind}.v{kind.v}.json"


def written(path: Path, now: bytes, *, rewrite: bool) -> bytes:
    """Return what a file holds, written now if it is to be."""
    if rewrite:
        path.write_bytes(now + b"\n")
    return path.read_bytes().rstrip(b"\n")


@pytest.mark.parametrize("kind", EVENT_TYPES, ids=lambda kind: str(kind.kind))
def test_every_event_is_read_and_written_as_it_was(kind: type[Event], *, rewrite: bool) -> None:
    event = sample(kind)
    text = written(named(kind), msgspec.json.encode(event), rewrite=rewrite)
    assert msgspec.json.decode(text, type=kind) == event
    assert msgspec.json.encode(msgspec.json.decode(text, type=kind)) == text


def test_a_snapshot_is_read_and_written_as_it_was(*, rewrite: bool) -> None:
    mob = sample(Mob)
    text = written(SNAPSHOT, snapshots.encode(mob), rewrite=rewrite)
    assert snapshots.decode(text) == mob
    assert snapshots.encode(snapshots.decode(text)) == text


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_what_is_stored_is_of_a_kind_that_is_known(path: Path) -> None:
    kind, version = path.stem.rsplit(".v", 1)
    text, v = path.read_text(), int(version)
    if kind == "snapshot":
        assert v <= snapshots.FORMAT
        return
    if v < NEWEST[kind]:
        lifted = upcast(kind, v, text)
        assert lifted is not None, f"no steps lead from version {v} of {kind} to {NEWEST[kind]}"
        v, text = lifted
    msgspec.json.decode(text, type=BY_KIND[kind, v])
