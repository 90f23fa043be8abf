"""Every refusal of an input, in whole: the cause that programs compare, the sentence for people, and its facts."""

from collections.abc import Callable
from typing import Any, Final

import pytest
from msgspec import Raw
from tests.machines.scene import Scene
from tests.machines.stage import DAY, NOW, text

from mobd_server.errors import DecisionTooLarge, MemberNotFound
from mobd_server.machines import commands as c
from mobd_server.machines import events as e
from mobd_server.machines.answers import Accepted, BatchDelivered, Deduplicated, Rejected
from mobd_server.machines.inbox import QUEUE_BYTES, QUEUE_INPUTS

OLD: Final = "00000000-0001-7000-8000-000000000000"
# Minted when the input was accepted that `forgetful` forgets: NOW, in milliseconds.
LAST_OLD: Final = f"{NOW // 1_000:012x}"[:8] + "-" + f"{NOW // 1_000:012x}"[8:] + "-7000-8000-000000000000"


def resting() -> Scene:
    """Return a mob whose one member has neither agent nor input."""
    return Scene("a")


def retired() -> Scene:
    scene = Scene("a")
    scene.retire_runtime("a")
    return scene


def forgetful() -> Scene:
    """Return a mob whose member has forgotten an input that ended more than a day ago."""
    scene = Scene("a")
    scene.serve()
    scene.put("a", "i1")
    scene.settle(scene.run_of("a"))
    scene.now += DAY + 1
    scene.put("a", "i2")
    return scene


def filled(count: int, size: int, **options: Any) -> Scene:
    """Return a mob whose member has so many waiting inputs of so many bytes each, the first with options of its own."""
    scene = Scene("a")
    scene.do(c.Deliver("a", "i0", sized(size), **options))
    scene.do(c.DeliverBatch([c.Deliver("a", f"i{n}", sized(size)) for n in range(1, count)]), BatchDelivered)
    assert len(scene.inputs("a")) == count
    return scene


def sized(size: int) -> Raw:
    return Raw(b"1" * size)


def known() -> Scene:
    scene = Scene("a")
    scene.put("a", "i1")
    return scene


REFUSED: Final[dict[str, tuple[Callable[[], Scene], c.Deliver, Rejected]]] = {
    "a handling mode where none may be": (
        resting,
        c.Deliver("a", "i1", text("hello"), kind="peer_response_progress", handling_mode="queue"),
        Rejected("handling_mode_invalid", "a peer_response_progress has no handling mode: leave it out"),
    ),
    "other content": (
        known,
        c.Deliver("a", "i1", text("other")),
        Rejected(
            "content_conflict",
            "input_id 'i1' was delivered with other content: use a new input_id for new content",
            canonical_input_id="in-3",
        ),
    ),
    "a member that takes none": (
        retired,
        c.Deliver("a", "i1", text("hello")),
        Rejected("not_ready", "member 'a' is retired", state="retired"),
    ),
    "another generation": (
        resting,
        c.Deliver("a", "i1", text("hello"), generation=1),
        Rejected("stale_fence", "member 'a' is at generation 0, fence token 1", generation=0, fence_token=1),
    ),
    "an id that is too old": (
        forgetful,
        c.Deliver("a", OLD, text("hello")),
        Rejected("input_forgotten", f"input_id '{OLD}' is older than what is remembered: whether it ran can't be told"),
    ),
    "an id of the millisecond up to which is forgotten": (
        forgetful,
        c.Deliver("a", LAST_OLD, text("hello")),
        Rejected(
            "input_forgotten", f"input_id '{LAST_OLD}' is older than what is remembered: whether it ran can't be told"
        ),
    ),
    "as many as may wait": (
        lambda: filled(QUEUE_INPUTS, 2),
        c.Deliver("a", "more", sized(1)),
        Rejected("queue_full", "1000 inputs of 2000 bytes wait; at most 1000 of 4194304 may", retry_after_ms=1_000),
    ),
    "as much as may wait": (
        lambda: filled(2, QUEUE_BYTES // 2 - 1),
        c.Deliver("a", "more", sized(3)),
        Rejected("queue_full", "2 inputs of 4194302 bytes wait; at most 1000 of 4194304 may", retry_after_ms=1_000),
    ),
    "as much as may wait beside what it replaces": (
        lambda: filled(2, QUEUE_BYTES // 2, supersession_key="k"),
        c.Deliver("a", "more", sized(QUEUE_BYTES // 2 + 1), supersession_key="k"),
        Rejected("queue_full", "1 inputs of 2097152 bytes wait; at most 1000 of 4194304 may", retry_after_ms=1_000),
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refusal_says_what_is_wrong_and_changes_nothing(what: str) -> None:
    make, command, refusal = REFUSED[what]
    scene = make()
    assert scene.do(command) == refusal
    assert (scene.append, scene.reactions) == (None, [])
    assert scene.do(c.DeliverBatch([command]), BatchDelivered).outcomes == [refusal]


def test_an_unknown_member_is_named_with_its_mob() -> None:
    with pytest.raises(MemberNotFound) as missing:
        resting().send("nobody", "i1")
    assert missing.value.message == "mob 'mob' has no member 'nobody'"
    assert missing.value.details == {"mob_id": "mob", "member_id": "nobody"}


# What is not refused, though little is missing.


ADMITTED: Final[dict[str, tuple[Callable[[], Scene], c.Deliver]]] = {
    "the last of as many as may wait": (lambda: filled(QUEUE_INPUTS - 1, 2), c.Deliver("a", "more", sized(1))),
    "the last of as much as may wait": (
        lambda: filled(2, QUEUE_BYTES // 2 - 1),
        c.Deliver("a", "more", sized(2)),
    ),
    "one in place of another, though as many wait as may": (
        lambda: filled(QUEUE_INPUTS, 2, supersession_key="k"),
        c.Deliver("a", "more", sized(1), supersession_key="k"),
    ),
    "as much as may wait, with what it replaces gone": (
        lambda: filled(2, QUEUE_BYTES // 2, supersession_key="k"),
        c.Deliver("a", "more", sized(QUEUE_BYTES // 2), supersession_key="k"),
    ),
}


@pytest.mark.parametrize("what", ADMITTED)
def test_what_is_just_within_the_limits_is_accepted(what: str) -> None:
    make, command = ADMITTED[what]
    scene = make()
    answer = scene.do(command, Accepted)
    assert answer == Accepted("more", scene.canonical("more"), None, scene.mob.head)
    assert answer.canonical_input_id.startswith("in-")
    assert scene.replayed().members["a"].queue_bytes == scene.member("a").queue_bytes


@pytest.mark.parametrize("waits", [0, 1], ids=["alone", "in place of the only one"])
def test_what_is_too_large_by_itself_is_not_told_to_come_again(waits: int) -> None:
    scene = Scene("a")
    scene.put("a", *["i0"] * waits, supersession_key="k")
    with pytest.raises(DecisionTooLarge):
        scene.do(c.Deliver("a", "more", sized(QUEUE_BYTES + 1), supersession_key="k"))


def test_an_input_is_known_while_it_waits_and_after_its_end() -> None:
    scene = known()
    assert scene.send("a", "i1") == Deduplicated("in-3", terminal=False)
    scene.serve()
    scene.settle(scene.run_of("a"))
    assert scene.send("a", "i1") == Deduplicated("in-3", terminal=True)


# What takes the place of a failed input.


def test_what_is_behind_a_failed_input_runs_when_that_is_replaced() -> None:
    scene = Scene("a")
    scene.serve()
    scene.put("a", "k1", supersession_key="k")
    scene.report(scene.run_of("a"), "error")
    scene.put("a", "i2")
    assert scene.member("a").run_id is None, "the failed one is tried again first"
    scene.put("a", "k2", supersession_key="k")
    assert scene.kinds == ["input_superseded", "input_accepted", "run_started"]
    assert scene.event(e.InputSuperseded) == e.InputSuperseded("a", scene.canonical("k1"), scene.canonical("k2"), 1)
    assert scene.batch("a") == ["i2", "k2"]
