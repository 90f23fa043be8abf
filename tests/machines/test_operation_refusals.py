"""Every refusal about operations in whole: why, in which words, and with which facts (runtime §5.2)."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import pytest
from tests.machines.stage import Stage, state_bytes

from mobd_server.errors import MobdError
from mobd_server.machines import commands as c
from mobd_server.machines import operation_table as table


class Said(NamedTuple):
    """A command in a mob, and what it is told there."""

    prepare: Callable[[], Stage]
    command: c.Command
    reason: str
    message: str
    details: dict[str, str]


def tool(*steps: Any) -> Stage:
    """Return a mob with a tool of its own that has taken these steps."""
    stage = Stage()
    stage.do(c.RegisterOperation("tool", "a tool", expect_peer_channel=True))
    for step in steps:
        stage.do(c.MoveOperation("tool", step))
    return stage


def child(*steps: Any, peer: bool) -> Stage:
    """Return a mob with the life of nobody on the roster, which a peer may be expected for."""
    stage = Stage()
    stage.do(c.RegisterOperation("child", "a child", kind="mob_member_child", expect_peer_channel=peer))
    for step in steps:
        stage.do(c.MoveOperation("child", step))
    return stage


def life(status: str) -> Stage:
    """Return a mob with member a, whose life `op-2` has come to a status."""
    stage = Stage()
    stage.spawn("a")
    if status != "provisioning":
        stage.agent()
    if status == "retiring":
        stage.accepted("a", "i1")
        stage.do(c.RetireRuntime("a"))
    if status == "terminated":
        stage.do(c.DestroyRuntime("a"))
    assert stage.mob.operations["op-2"].status == status
    return stage


def crowded(owner: str, count: int) -> Stage:
    """Return a mob whose members have no tools but those of one, which are as many as are said."""
    stage = Stage()
    stage.spawn("a")
    for number in range(count):
        stage.do(c.RegisterOperation(f"t{number}", "a tool", owner=owner))
    return stage


def full() -> Stage:
    """Return a mob that has as many tools as it may, and no owner that has as many as one may."""
    stage = Stage()
    for owner in range(table.LIVE // 250):
        stage.mob.owned[f"m{owner}"] = [f"t{owner}-{number}" for number in range(250)]
    return stage


def life_moved(status: str, action: Any, allowed: str) -> Said:
    return Said(
        lambda: life(status),
        c.MoveOperation("op-2", action),
        "OPERATION_TRANSITION",
        "operation 'op-2' is the life of member 'a' and ends with it: retire the member",
        {"operation_id": "op-2", "status": status, "action": action, "allowed": allowed},
    )


REGISTERED: Final[dict[str, Said]] = {
    "a taken name": Said(
        tool,
        c.RegisterOperation("tool", "another"),
        "OPERATION_EXISTS",
        "mob 'mob' has an operation 'tool' already",
        {"mob_id": "mob", "operation_id": "tool"},
    ),
    "a name that only the store knows": Said(
        tool,
        c.RegisterOperation("old", "another", taken=True),
        "OPERATION_EXISTS",
        "mob 'mob' has an operation 'old' already",
        {"mob_id": "mob", "operation_id": "old"},
    ),
    "an owner that is not there": Said(
        Stage,
        c.RegisterOperation("new", "a tool", owner="nobody"),
        "MEMBER_NOT_FOUND",
        "mob 'mob' has no member 'nobody'",
        {"mob_id": "mob", "member_id": "nobody"},
    ),
    "the life of nobody": Said(
        Stage,
        c.RegisterOperation("new", "a life", kind="mob_member_child", member_id="nobody"),
        "MEMBER_NOT_FOUND",
        "mob 'mob' has no member 'nobody'",
        {"mob_id": "mob", "member_id": "nobody"},
    ),
    "a second life": Said(
        lambda: life("running"),
        c.RegisterOperation("new", "a life", kind="mob_member_child", member_id="a"),
        "OPERATION_AMBIGUOUS",
        "member 'a' has the operation 'op-2', which lives: with a second one nobody could tell which is meant",
        {"member_id": "a", "operation_ids": "op-2,new"},
    ),
    "an owner that is destroyed": Said(
        lambda: life("terminated"),
        c.RegisterOperation("new", "a tool", owner="a"),
        "OPERATION_TRANSITION",
        "register is not legal: member 'a' is destroyed and owns no operations any more",
        {"member_id": "a", "status": "destroyed", "action": "register", "allowed": ""},
    ),
    "more of one owner than may live": Said(
        lambda: crowded("a", table.LIVE_OF_OWNER),
        c.RegisterOperation("new", "a tool", owner="a"),
        "OPERATION_LIMIT",
        "'a' has 256 operations that live: at most 256 may",
        {"owner": "a", "limit": "256", "active": "256"},
    ),
    "more of the mob's own than may live": Said(
        lambda: crowded("", table.LIVE_OF_OWNER),
        c.RegisterOperation("new", "a tool"),
        "OPERATION_LIMIT",
        "'mob' has 256 operations that live: at most 256 may",
        {"owner": "", "limit": "256", "active": "256"},
    ),
    "more of a mob than may live": Said(
        full,
        c.RegisterOperation("new", "a tool"),
        "OPERATION_LIMIT",
        "mob 'mob' has 10000 operations that live: at most 10000 may",
        {"limit": "10000", "active": "10000"},
    ),
}

MOVED: Final[dict[str, Said]] = {
    "nothing that is known": Said(
        Stage,
        c.MoveOperation("gone", "cancel"),
        "OPERATION_NOT_FOUND",
        "mob 'mob' has no operation 'gone', or it ended long ago",
        {"mob_id": "mob", "operation_id": "gone"},
    ),
    # A tool has no peer, whatever was said when it was registered.
    "the peer of a tool": Said(
        lambda: tool("provisioning_succeeded"),
        c.MoveOperation("tool", "peer_ready"),
        "PEER_NOT_EXPECTED",
        "operation 'tool' is a background_tool that expects no peer",
        {"operation_id": "tool", "kind": "background_tool"},
    ),
    "a peer that nobody expects": Said(
        lambda: child("provisioning_succeeded", peer=False),
        c.MoveOperation("child", "peer_ready"),
        "PEER_NOT_EXPECTED",
        "operation 'child' is a mob_member_child that expects no peer",
        {"operation_id": "child", "kind": "mob_member_child"},
    ),
    "a peer twice": Said(
        lambda: child("provisioning_succeeded", "peer_ready", peer=True),
        c.MoveOperation("child", "peer_ready"),
        "OPERATION_TRANSITION",
        "operation 'child' is peer-ready already: that happens once",
        {
            "operation_id": "child",
            "status": "running",
            "action": "peer_ready",
            "allowed": "cancel, complete, fail, mark_retired, peer_ready, report_progress, request_retire, terminate",
        },
    ),
    "a step that comes too early": Said(
        tool,
        c.MoveOperation("tool", "complete"),
        "OPERATION_TRANSITION",
        "complete is not legal: operation 'tool' is provisioning; "
        "legal: abort_provisioning, cancel, fail, provisioning_failed, provisioning_succeeded, terminate",
        {
            "operation_id": "tool",
            "status": "provisioning",
            "action": "complete",
            "allowed": "abort_provisioning, cancel, fail, provisioning_failed, provisioning_succeeded, terminate",
        },
    ),
    "what has ended": Said(
        lambda: tool("cancel"),
        c.MoveOperation("tool", "complete"),
        "OPERATION_TRANSITION",
        "complete is not legal: operation 'tool' is cancelled; legal: nothing, it has ended",
        {"operation_id": "tool", "status": "cancelled", "action": "complete", "allowed": ""},
    ),
    # The table would have it, but only the member itself comes so far.
    "a life that begins": life_moved("provisioning", "provisioning_succeeded", ""),
    "a life that goes on": life_moved("running", "complete", "peer_ready, report_progress"),
    "a life that goes to its end": life_moved("retiring", "mark_retired", "peer_ready, report_progress"),
    "a life that has ended": life_moved("terminated", "fail", ""),
}


def refuses(said: Said) -> None:
    stage = said.prepare()
    before = state_bytes(stage.mob)
    with pytest.raises(MobdError) as refused:
        stage.do(said.command)
    found = refused.value
    assert (found.reason, found.message, found.details) == (said.reason, said.message, said.details)
    assert state_bytes(stage.mob) == before


@pytest.mark.parametrize("what", REGISTERED)
def test_what_cannot_be_registered_is_told_why(what: str) -> None:
    refuses(REGISTERED[what])


@pytest.mark.parametrize("what", MOVED)
def test_what_cannot_be_moved_is_told_why(what: str) -> None:
    refuses(MOVED[what])


def test_one_fewer_than_may_live_is_not_refused() -> None:
    stage = crowded("a", table.LIVE_OF_OWNER - 1)
    stage.do(c.RegisterOperation("last", "a tool", owner="a"))
    stage = full()
    stage.mob.owned["m0"].pop()
    stage.do(c.RegisterOperation("last", "a tool"))
    # Lives are not counted among tools: each member has one.
    stage.do(c.RegisterOperation("child", "a child", kind="mob_member_child"))
    stage.spawn("a")
