"""What a state weighs, and which of a mob's snapshots are kept, at every bound."""

import pytest
from tests.machines.scene import Scene

from mobd_server.machines.sections import weight
from mobd_server.machines.snapshot import superfluous


def test_every_thing_that_a_state_holds_weighs_one_wherever_it_lies() -> None:
    empty = weight(Scene().mob)
    scene = Scene("a", "b")
    members = weight(scene.mob)
    assert members - empty == 2 + len(scene.mob.operations)
    scene.put("a", "q1", "q2")
    scene.steer("b", "s1")
    assert weight(scene.mob) == members + 3
    scene.serve()
    # An input that runs weighs what it weighed when it waited.
    assert scene.batch("b") == ["s1"]
    assert weight(scene.mob) == members + 3 + len(scene.mob.attachments)
    scene.put("b", "q3")
    assert weight(scene.mob) == members + 4 + len(scene.mob.attachments)


@pytest.mark.parametrize(
    ("seqs", "spacing", "dropped"),
    [
        ([], 5, []),
        ([10], 100, []),
        ([10, 20], 100, []),
        ([10, 20, 30], 19, []),
        ([10, 20, 30], 20, [10]),
        ([10, 20, 39], 1, []),
        ([10, 20, 40], 1, [10]),
        ([5, 10, 15, 100], 1, [5, 10]),
        ([30, 60, 62, 100], 1, [60]),
        ([30, 60, 70, 80], 1, []),
    ],
)
def test_the_newest_two_stay_and_what_lies_close_behind_them_goes(
    seqs: list[int], spacing: int, dropped: list[int]
) -> None:
    assert superfluous(seqs, spacing) == dropped
