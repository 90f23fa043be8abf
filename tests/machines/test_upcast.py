"""Reading events of earlier versions: step by step to the newest, without touching what a step does not."""

from typing import Any

import msgspec
import pytest
from msgspec import Raw

from mobd_server.machines.events import BY_KIND, EVENT_TYPES
from mobd_server.machines.upcast import NEWEST, UPCASTERS, upcast


def _named(value: dict[str, Any]) -> dict[str, Any]:
    """1 to 2: `text` was called `message`."""
    return {"text": value.pop("message"), **value}


def _listed(value: dict[str, Any]) -> dict[str, Any]:
    """2 to 3: one text became a list, and a count came along."""
    return {**value, "text": [msgspec.json.decode(value["text"])], "count": 1}


TABLE = {("told", 1): _named, ("told", 2): _listed}
TO_3 = {"told": 3, "other": 1}


def test_an_old_event_goes_through_every_step_to_the_newest_version() -> None:
    lifted = upcast("told", 1, '{"message":"hi","content":{"n":1.50,"s":"\\u0000"}}', TABLE, TO_3)
    assert lifted == (3, '{"text":["hi"],"content":{"n":1.50,"s":"\\u0000"},"count":1}')


def test_one_that_is_newer_by_a_step_goes_through_the_rest() -> None:
    assert upcast("told", 2, '{"text":"hi"}', TABLE, TO_3) == (3, '{"text":["hi"],"count":1}')


@pytest.mark.parametrize(("kind", "v"), [("told", 3), ("told", 4), ("unknown", 1), ("told", 0)])
def test_without_steps_to_the_newest_version_there_is_nothing(kind: str, v: int) -> None:
    assert upcast(kind, v, "{}", TABLE, TO_3) is None


@pytest.mark.parametrize("payload", ["", "[]", "{"])
def test_what_is_no_object_is_named(payload: str) -> None:
    with pytest.raises(msgspec.MsgspecError):
        upcast("told", 1, payload, TABLE, TO_3)


def test_a_step_gets_values_as_they_were_written() -> None:
    seen: list[object] = []

    def step(value: dict[str, Any]) -> dict[str, Any]:
        seen.extend(value.values())
        return value

    assert upcast("told", 1, '{"a":1e2}', {("told", 1): step}, {"told": 2}) == (2, '{"a":1e2}')
    assert seen == [Raw(b"1e2")]


def test_every_step_leads_to_a_version_that_is_known_or_has_a_step() -> None:
    for kind, v in UPCASTERS:
        assert (kind, v + 1) in BY_KIND or (kind, v + 1) in UPCASTERS
        assert v < NEWEST[kind]


def test_every_kind_has_one_newest_version() -> None:
    assert {kind.kind: kind.v for kind in EVENT_TYPES} == dict(NEWEST)
    assert len(BY_KIND) == len(NEWEST)
