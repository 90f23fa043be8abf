"""The client has a class for every reason that the server can give, and only for those."""

import inspect
from types import ModuleType
from typing import Any

import pytest

import mobd
from mobd import statuses


@pytest.fixture
def server() -> ModuleType:
    errors: ModuleType = pytest.importorskip("mobd_server.errors", reason="the server is not installed here")
    return errors


def test_every_reason_of_the_server_has_a_class_of_its_own(server: ModuleType) -> None:
    kinds: list[Any] = [one for _, one in inspect.getmembers(server, inspect.isclass)]
    found = {one.reason for one in kinds if issubclass(one, server.MobdError)}
    assert set(statuses.REASONS) == found
    assert all(kind.default_reason == reason for reason, kind in statuses.REASONS.items())


def test_every_class_is_grouped_as_its_status_says() -> None:
    status = pytest.importorskip("mobd_server.adapters.rpc.status")
    for kind, code in status.STATUS.items():
        mine = statuses.REASONS[kind.reason]
        assert mine.default_code is code, kind
        assert issubclass(mine, statuses.CODES[code])


@pytest.mark.floor
def test_everything_that_can_be_raised_is_exported() -> None:
    kinds = {*statuses.REASONS.values(), *statuses.CODES.values(), *statuses.REJECTIONS.values()}
    assert {kind.__name__ for kind in kinds} <= set(mobd.__all__)
